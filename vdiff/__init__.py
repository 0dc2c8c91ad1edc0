"""Diffusion models as weighted evidence lower bounds: one integral over log-SNR, and bounds in
bits/dim to trust."""

import importlib
import sys
from typing import TYPE_CHECKING

from vdiff.augmentation import augmented_elbo
from vdiff.bound import Bound
from vdiff.chain import first_variance, hybrid, path_bound, vlb
from vdiff.decoder import Categorical, Decoder, DiscretizedGaussian
from vdiff.denoiser import (
    Denoiser,
    ScaledGamma,
    ScheduleTime,
    TableStep,
    edm_time,
    flow_time,
    sigma_time,
)
from vdiff.describe import describe
from vdiff.diagnosis import Diagnosis, diagnose
from vdiff.gaussian import bits_per_dim
from vdiff.groups import parameter_groups
from vdiff.loss import elbo, weighted_elbo
from vdiff.objective import Objective
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import (
    Eps,
    Exploding,
    Flow,
    Parameterization,
    PosteriorMean,
    Score,
    V,
    X,
)
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.recipes import Recipe, recipe
from vdiff.resampling import LossSecondMoment
from vdiff.reverse import MonteCarlo, RaoBlackwell
from vdiff.sampling import (
    Clipped,
    Guided,
    adams,
    ancestral,
    ddim,
    dpmpp_2m,
    encode,
    few_steps,
    heun,
    ode,
    sample,
    trajectory,
)
from vdiff.schedule import (
    Adaptive,
    Cosine,
    Histogram,
    Karras,
    Laplace,
    LearnedLinear,
    Linear,
    LinearBeta,
    Monotone,
    Normal,
    OptimalTransport,
    Schedule,
    Shifted,
    SignalPower,
    Spectral,
    Spline,
    Tabulated,
)
from vdiff.times import stratified
from vdiff.variance import Forward, LogVariance, Range
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Debiased,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    loss_factor,
)

__version__ = "0.1.0"

ROOMS = ("cli", "data", "likelihood", "metrics", "nn", "plots", "theorems", "training")

if TYPE_CHECKING:
    from vdiff import cli, data, likelihood, metrics, nn, plots, theorems, training  # noqa: F401 (for type checkers)
else:

    def __getattr__(name):
        """A room of the package, such as `vdiff.nn`, imported at its first use."""
        if name in ROOMS:
            return importlib.import_module(f"vdiff.{name}")
        raise AttributeError(
            f"module 'vdiff' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})


__all__ = [
    "EDM",
    "ELBO",
    "MSE",
    "P2",
    "Adaptive",
    "Bound",
    "Categorical",
    "Clipped",
    "Cosine",
    "Debiased",
    "Decoder",
    "Denoiser",
    "Diagnosis",
    "DiscretizedGaussian",
    "Eps",
    "Exploding",
    "Flow",
    "Forward",
    "GaussianMixture",
    "Guided",
    "Histogram",
    "InDI",
    "Karras",
    "Laplace",
    "Lattice",
    "LearnedLinear",
    "Linear",
    "LinearBeta",
    "LogVariance",
    "LossSecondMoment",
    "MinSNR",
    "Monotone",
    "MonteCarlo",
    "Normal",
    "Objective",
    "OptimalTransport",
    "Parameterization",
    "PosteriorMean",
    "Prediction",
    "Profile",
    "Range",
    "RaoBlackwell",
    "Recipe",
    "ScaledGamma",
    "Schedule",
    "ScheduleTime",
    "Score",
    "Shifted",
    "Sigmoid",
    "SignalPower",
    "SoftMinSNR",
    "Spectral",
    "Spline",
    "TableStep",
    "Tabulated",
    "TruncatedSNR",
    "V",
    "Weighting",
    "X",
    "adams",
    "ancestral",
    "augmented_elbo",
    "bits_per_dim",
    "ddim",
    "describe",
    "diagnose",
    "dpmpp_2m",
    "edm_time",
    "elbo",
    "encode",
    "few_steps",
    "first_variance",
    "flow_time",
    "heun",
    "hybrid",
    "loss_factor",
    "ode",
    "parameter_groups",
    "path_bound",
    "recipe",
    "sample",
    "sigma_time",
    "stratified",
    "trajectory",
    "vlb",
    "weighted_elbo",
]
