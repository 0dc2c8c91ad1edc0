"""p(data | z₀): how z₀ is decoded, and how data is encoded for the network.

A decoder that does not use the network depends only on the data and λ_max. Its term of the bound
is then computed from a small table, exactly and without variance.
"""

from vdiff.decoder.base import Decoder
from vdiff.decoder.base import normal_nodes as normal_nodes
from vdiff.decoder.categorical import Categorical
from vdiff.decoder.gaussian import (
    DiscretizedGaussian,
    Gaussian,
    log_normal_cdf,
    log_normal_interval,
)
from vdiff.decoder.levels import Levels
from vdiff.decoder.levels import signed as signed

__all__ = [
    "Categorical", "Decoder", "DiscretizedGaussian", "Gaussian", "Levels", "log_normal_cdf",
    "log_normal_interval",
]  # fmt: skip
