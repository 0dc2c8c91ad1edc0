"""Likelihood evaluation: bounds with error bars."""

from vdiff.likelihood.control import GaussianError, NoiseNorm
from vdiff.likelihood.density import Independent, Sobol, Stratified
from vdiff.likelihood.estimate import Estimate
from vdiff.likelihood.evaluation import compare, evaluate
from vdiff.likelihood.measurement import Share
from vdiff.likelihood.plan import Plan
from vdiff.likelihood.report import Comparison, Report

__all__ = [
    "Comparison",
    "Estimate",
    "GaussianError",
    "Independent",
    "NoiseNorm",
    "Plan",
    "Report",
    "Share",
    "Sobol",
    "Stratified",
    "compare",
    "evaluate",
]
