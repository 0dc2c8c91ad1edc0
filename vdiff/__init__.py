"""Diffusion models as weighted evidence lower bounds: one integral over log-SNR, and bounds in
bits/dim with their errors.

The names here are the most used. Everything else is in its module:
`vdiff.schedule.Cosine`, `vdiff.weighting.Sigmoid`, `vdiff.parameterization.V`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from vdiff._version import __version__ as __version__
from vdiff.chain import hybrid_loss
from vdiff.denoiser import Denoiser
from vdiff.gaussian import bits_per_dim
from vdiff.loss import elbo, weighted_elbo
from vdiff.objective import Objective
from vdiff.prediction import Prediction
from vdiff.recipes import recipe
from vdiff.sampling import sample, trajectory

LAZY = {"compare": "vdiff.likelihood", "evaluate": "vdiff.likelihood"}
ROOMS = (
    "augmentation", "cli", "codec", "data", "describe", "diagnosis", "interop", "likelihood",
    "masks", "metrics", "nn", "oracle", "plots", "theorems", "training",
)  # fmt: skip

if TYPE_CHECKING:
    from vdiff.likelihood import compare, evaluate
else:

    def __getattr__(name):
        """A room of the package, such as `vdiff.nn`, or a name of one, imported at first use."""
        if name in LAZY:
            return getattr(importlib.import_module(LAZY[name]), name)
        if name in ROOMS:
            return importlib.import_module(f"vdiff.{name}")
        hint = f"; did you mean vdiff.{near}?" if (near := _room_of(name)) else ""
        raise AttributeError(
            f"module 'vdiff' has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__]
        )


def _room_of(name: str) -> str:
    """The room that has a name, such as "schedule.Cosine"."""
    for room in ("schedule", "parameterization", "weighting", "decoder", "variance", "oracle"):
        if name in importlib.import_module(f"vdiff.{room}").__all__:
            return f"{room}.{name}"
    return ""


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS, *LAZY})


__all__ = [
    "Denoiser", "Objective", "Prediction", "bits_per_dim", "compare", "elbo", "evaluate",
    "hybrid_loss", "recipe", "sample", "trajectory", "weighted_elbo",
]  # fmt: skip
