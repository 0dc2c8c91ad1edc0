"""Likelihood evaluation: bounds and exact values with standard errors, and the checks of the
estimators."""

from vdiff.likelihood.chunks import Share
from vdiff.likelihood.conditions import Shared
from vdiff.likelihood.control import GaussianError, NoiseNorm
from vdiff.likelihood.density import Independent, Sobol, Stratified
from vdiff.likelihood.dequantise import (
    DequantizedLikelihood,
    TruncatedNormal,
    Uniform,
    dequantized_ode,
)
from vdiff.likelihood.estimate import Estimate
from vdiff.likelihood.evaluation import compare, evaluate
from vdiff.likelihood.immse import immse
from vdiff.likelihood.importance import ImportanceBound, path_importance
from vdiff.likelihood.ode import OdeLikelihood, log_prob, ode_likelihood
from vdiff.likelihood.paths import PathGap, path_gap
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.report import Comparison, Reference, Report
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.likelihood.variance_reduction import VarianceReduction
from vdiff.likelihood.verify import verify_estimators

__all__ = [
    "Comparison", "DequantizedLikelihood", "Estimate", "Exact", "GaussianError", "Hutchinson",
    "ImportanceBound", "Independent", "NoiseNorm", "OdeLikelihood", "PathGap", "Reference",
    "Replicated", "Report", "Share", "Shared", "Sobol", "Stratified", "TruncatedNormal", "Uniform",
    "VarianceReduction", "compare", "dequantized_ode", "evaluate", "immse", "log_prob",
    "ode_likelihood", "path_gap", "path_importance", "verify_estimators",
]  # fmt: skip
