"""Objectives that a config does not describe."""

from typing import Any

from points import points
from registry import objective_of

from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical
from vdiff.nn import MLP
from vdiff.parameterization import V
from vdiff.schedule import Linear

CONFIG = points(
    steps=2, schedule={"name": "Linear", "logsnr_max": 10.0, "logsnr_min": -7.0}, ema=[0.9]
)


def network() -> MLP:
    return MLP(64, width=16, depth=1, features=8)


def model(**changes: Any) -> Denoiser:
    settings: dict[str, Any] = {"network": network(), "parameterization": V()} | changes
    return Denoiser(settings.pop("network"), settings.pop("parameterization"), **settings)


def objective(**changes: Any) -> Objective:
    """The config's, but for what is changed."""
    settings: dict[str, Any] = {
        "model": model(),
        "schedule": Linear(10.0, -7.0),
        "decoder": Categorical(17),
    } | changes
    return objective_of(settings.pop("model"), **settings)
