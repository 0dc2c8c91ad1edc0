"""The sigmoid schedule of recurrent interface networks: α² is a sigmoid of time, rescaled to run
from 1 to 0."""

import math

import torch
from torch import Tensor

from vdiff._validate import Finite, Positive, require, validated
from vdiff.schedule.truncated import Law, Truncated


def _rises(start: float, end: float) -> None:
    """Rule: the argument of the sigmoid rises with time."""
    require(start < end, "end", f"be greater than start = {start:g}", f"{end:g}", "swapped?")


class RescaledSigmoidLaw(Law):
    """α² = (s(end) − s(x))/(s(end) − s(start)) with s(x) = sigmoid(x/temperature) and x linear in
    t from `start` to `end`.

    With b = (end − start)/(2 temperature) this is λ = log(sinh(b(1 − t))/sinh(bt)) + c, the sum of
    a uniform variable on [c − b, c + b] and a logistic one: p = sinh b/(2b (cosh(λ − c) + cosh b))
    """

    @validated(rules=[_rises])
    def __init__(
        self, start: Finite = -3.0, end: Finite = 3.0, temperature: Positive = 1.0
    ) -> None:
        self.start, self.end, self.temperature = start, end, temperature
        self._b = 0.5 * (end - start) / temperature
        low, high = math.cosh(0.5 * start / temperature), math.cosh(0.5 * end / temperature)
        self._c = math.log(low / high)

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        return self._c + torch.log(torch.sinh(self._b * rest) / torch.sinh(self._b * t))

    def sf(self, logsnr: Tensor) -> Tensor:
        return self._tail(logsnr - self._c)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return self._tail(self._c - logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        u = logsnr - self._c
        product = torch.cosh(0.5 * (u + self._b)) * torch.cosh(0.5 * (u - self._b))
        return math.sinh(self._b) / (4.0 * self._b) / product

    def _tail(self, u: Tensor) -> Tensor:
        """The mass beyond c + u, atanh(sinh b/(e^u + cosh b))/b, without cancelling."""
        above = math.expm1(2.0 * self._b) * torch.sigmoid(-u - self._b)
        return torch.log1p(above) * (0.5 / self._b)


class RescaledSigmoid(Truncated):
    """The sigmoid schedule (Jabri, Fleet & Chen, arXiv:2212.11972; Chen, arXiv:2301.10972, with
    the same defaults). `temperature` is the paper's τ.

    >>> RescaledSigmoid()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 15.,   0., -15.])
    """

    @validated(rules=[_rises])
    def __init__(
        self,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
        *,
        start: Finite = -3.0,
        end: Finite = 3.0,
        temperature: Positive = 1.0,
    ) -> None:
        super().__init__(RescaledSigmoidLaw(start, end, temperature), logsnr_max, logsnr_min)
