"""Likelihood evaluation: bounds and exact values with error bars, and the suite that verifies them."""

from vdiff.likelihood.dequantise import TruncatedNormal, Uniform, dequantized_ode
from vdiff.likelihood.evaluation import Estimate, Report, evaluate
from vdiff.likelihood.immse import immse
from vdiff.likelihood.importance import ImportanceBound, path_importance
from vdiff.likelihood.ode import OdeLikelihood, ode_likelihood
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.likelihood.verify import verify_estimators

__all__ = [
    "Estimate",
    "Exact",
    "Hutchinson",
    "ImportanceBound",
    "OdeLikelihood",
    "Replicated",
    "Report",
    "TruncatedNormal",
    "Uniform",
    "dequantized_ode",
    "evaluate",
    "immse",
    "ode_likelihood",
    "path_importance",
    "verify_estimators",
]
