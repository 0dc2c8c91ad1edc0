"""Noise schedules: where on the log-SNR axis training and sampling look."""

from vdiff.schedule.base import Schedule
from vdiff.schedule.closed import Cosine, Karras, Laplace, LinearBeta, Normal, OptimalTransport, Truncated
from vdiff.schedule.derived import Custom, Shifted
from vdiff.schedule.law import Law
from vdiff.schedule.linear import LearnedLinear, Linear
from vdiff.schedule.tabulated import Tabulated

__all__ = [
    "Cosine",
    "Custom",
    "Karras",
    "Laplace",
    "Law",
    "LearnedLinear",
    "Linear",
    "LinearBeta",
    "Normal",
    "OptimalTransport",
    "Schedule",
    "Shifted",
    "Tabulated",
    "Truncated",
]
