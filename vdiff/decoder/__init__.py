"""p(data | z₀): how the first noise level is decoded, and how data is encoded for the network.

A decoder that does not look at the network depends on the level and on λ_max alone. Its term of
the bound is then a small table, exact and without variance.
"""

from vdiff.decoder.base import Decoder
from vdiff.decoder.base import normal_nodes as normal_nodes
from vdiff.decoder.gaussian import (
    DiscretizedGaussian,
    Gaussian,
    log_normal_cdf,
    log_normal_interval,
)
from vdiff.decoder.levels import Categorical, Levels
from vdiff.decoder.levels import signed as signed

__all__ = [
    "Categorical",
    "Decoder",
    "DiscretizedGaussian",
    "Gaussian",
    "Levels",
    "log_normal_cdf",
    "log_normal_interval",
]
