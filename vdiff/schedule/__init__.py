"""Noise schedules: which log-SNRs training and sampling use."""

from vdiff.schedule.adaptive import Adaptive
from vdiff.schedule.base import Schedule
from vdiff.schedule.closed import Karras, SignalPower
from vdiff.schedule.ddpm import Cosine, LinearBeta
from vdiff.schedule.derived import Custom, Shifted, resolution_shift, sequence_shift
from vdiff.schedule.histogram import Histogram
from vdiff.schedule.law import Laplace, LogLinear, Normal, OptimalTransport, Spectral
from vdiff.schedule.learned_ends import LearnedLinear
from vdiff.schedule.linear import Linear
from vdiff.schedule.monotone import Monotone, Spline
from vdiff.schedule.mulan import MuLAN
from vdiff.schedule.multivariate import MultivariateSpline
from vdiff.schedule.over_dims import PerDimension
from vdiff.schedule.paths import InTurn, Path
from vdiff.schedule.sigmoid import RescaledSigmoid
from vdiff.schedule.tabulated import Tabulated
from vdiff.schedule.truncated import Law, Truncated

__all__ = [
    "Adaptive", "Cosine", "Custom", "Histogram", "InTurn", "Karras", "Laplace", "Law",
    "LearnedLinear", "Linear", "LinearBeta", "LogLinear", "Monotone", "MuLAN",
    "MultivariateSpline", "Normal",
    "OptimalTransport", "Path", "PerDimension", "RescaledSigmoid", "Schedule", "Shifted",
    "SignalPower", "Spectral", "Spline", "Tabulated", "Truncated", "resolution_shift",
    "sequence_shift",
]  # fmt: skip
