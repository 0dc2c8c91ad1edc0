"""Theorems as data, each with both of its sides computed by different routes, and counterexamples that must fail."""

from vdiff.theorems import augmentation, bounds, chains, forward, information, invariance, limits, scores, weightings
from vdiff.theorems.theorem import THEOREMS

del augmentation, bounds, chains, forward, information, invariance, limits, scores, weightings
__all__ = ["THEOREMS"]
