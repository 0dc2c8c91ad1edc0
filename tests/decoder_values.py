"""Decoders of the registry, and their probabilities by another formula."""

import numpy as np
from scipy.special import log_ndtr

from vdiff.decoder import Categorical


def grid(levels: int, closed: bool) -> np.ndarray:
    k = np.arange(levels)
    return 2 * k / (levels - 1) - 1 if closed else 2 * (k + 0.5) / levels - 1


def log_interval(a, b):
    """log(Φ(b) − Φ(a)), in the tail where it keeps its digits."""
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    return log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b)))


def log_pmf(kind, mean, std, levels, closed, prior=None) -> np.ndarray:
    """log p(k | mean) for all k, shape (*mean, levels), in SciPy."""
    x, mean = grid(levels, closed), np.asarray(mean)[..., None]
    if kind is Categorical:
        logit = -0.5 * ((mean - x) / std) ** 2 + (0 if prior is None else prior)
        return logit - np.logaddexp.reduce(logit, -1, keepdims=True)
    half = 0.5 * (x[1] - x[0])
    lower, upper = (x - half - mean) / std, (x + half - mean) / std
    inner = log_interval(lower, upper)
    inner[..., 0], inner[..., -1] = log_ndtr(upper[..., 0]), log_ndtr(-lower[..., -1])
    return inner
