"""Statistics of times."""

import math

import torch


def around(difference):
    """A difference of times on the circle, in [−½, ½)."""
    return (difference + 0.5) % 1.0 - 0.5


def assert_uniform(times):
    """The mean and the distribution of each place's times over many calls (calls, places), by z
    and Kolmogorov-Smirnov."""
    calls = len(times)
    below = (torch.arange(calls, dtype=torch.float64)[:, None] + 0.5) / calls
    assert (times.mean(0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / calls)
    distance = (times.double().sort(0).values - below).abs().max()
    assert distance < 2.5 / math.sqrt(calls)  # more in one of 100,000 places
