"""Schedules of a user's own, and functions that they are made of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.schedule import Schedule

INF, NAN = math.inf, math.nan


class Own(Schedule):
    """A user's schedule from two functions."""

    def __init__(
        self,
        logsnr: Callable[[Tensor], object],
        rate: Callable[[Tensor], object],
        high: float = 10.0,
        low: float = -10.0,
    ) -> None:
        super().__init__(high, low)
        self.functions = logsnr, rate

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.functions[0](t)  # type: ignore[return-value]

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self.functions[1](t)  # type: ignore[return-value]


def falls(t: Tensor) -> Tensor:
    return 10 - 20 * t


def twenty(t: Tensor) -> Tensor:
    return torch.full_like(t, 20.0)
