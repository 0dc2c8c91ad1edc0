"""Likelihood evaluation: bounds with error bars."""

from vdiff.likelihood.evaluation import Estimate, Report, evaluate

__all__ = ["Estimate", "Report", "evaluate"]
