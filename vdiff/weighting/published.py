"""The weightings of published losses."""

import math
from typing import Annotated

import torch
from torch import Tensor

from vdiff._inputs import Steps
from vdiff._precision import PURE_NOISE, device_of
from vdiff._validate import Finite, Given, Positive, of_type, require, validated
from vdiff.errors import InvalidType
from vdiff.parameterization import Parameterization, V, X
from vdiff.schedule import OptimalTransport, Schedule
from vdiff.schedule.base import EDGE
from vdiff.schedule.law import Gaussian, Law
from vdiff.weighting._check import SPAN, lowest
from vdiff.weighting.base import Weighting


class ELBO(Weighting):
    """w = 1: the evidence lower bound.

    >>> ELBO()(torch.tensor([3.0]))
    tensor([1.])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


class Sigmoid(Weighting):
    """w = sigmoid(bias − λ) (VDM++, arXiv:2303.00848; bias 2 was best there).

    >>> Sigmoid(0.0)(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated
    def __init__(self, bias: Finite = 2.0) -> None:
        super().__init__()
        self.bias = bias

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - logsnr)


def fixed(schedule: Schedule | Law, argument: str, given: Given) -> Schedule | Law:
    """A law, or a schedule that learns nothing."""
    if isinstance(schedule, Law):
        if given["steps"] is not None:
            raise InvalidType(argument, "be a Schedule where steps are given", repr(schedule))
        return schedule
    of_type(Schedule, schedule, argument, given)
    one = "have one λ for all dimensions and examples"
    require(schedule.shared, argument, one, repr(schedule), "w is a function of one λ")
    learns = schedule.learns_ends or schedule.learns_shape
    hint = "the objective of a plain loss moves with it: use a fixed w(λ)"
    require(not learns, argument, "be fixed", repr(schedule), hint)
    return schedule


class MSE(Weighting):
    """The weighting of plain squared error on a target, with times from a schedule or a law
    over λ.

        w(λ) = 2 p(λ) κ(λ)²

    with the constant: `weighted_elbo(…, weighting=MSE(s, p))` is E‖o − ô‖², summed over
    dimensions, for λ ~ p_s between the ends of s, whatever schedule draws the times. A learned or
    adaptive s is refused, because the objective would move with it.

    With `steps`, this is the mean over the T + 1 times of the T-step chain of s, w(λ_i) =
    2κ²/((T + 1) expm1(λ_{i−1} − λ_i)) at i = 1 … T. No draw trains t = 0, though a sampler calls
    the network there; `hybrid_loss(…, steps=T, bound_weight=0)` trains all T + 1 times.

    >>> MSE(OptimalTransport().law, Flow())(torch.tensor([2.0]))  # e^{-λ/2}
    tensor([0.3679])
    """

    @validated
    def __init__(
        self,
        schedule: Annotated[Schedule | Law, fixed],
        parameterization: Parameterization,
        *,
        steps: Steps | None = None,
    ) -> None:
        super().__init__()
        self.schedule, self.parameterization, self.steps = schedule, parameterization, steps
        self._first = SPAN  # the largest λ of a draw
        self._find_first()
        self.register_load_state_dict_post_hook(MSE._find_first)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._find_first()

    def _find_first(self, *_: object) -> None:
        if isinstance(self.schedule, Schedule) and device_of(self.schedule).type != "meta":
            start = 1 / self.steps if self.steps else 0.0
            t = torch.tensor(start, dtype=torch.float64, device="cpu")
            self._first = self.schedule(t).item()

    def weight_at(self, logsnr: Tensor) -> Tensor:
        if self.steps is None or isinstance(self.schedule, Law):
            per_kappa2 = self.parameterization.inverse_kappa2(logsnr)
            return 2.0 * self.schedule.density(logsnr) / per_kappa2
        logsnr = logsnr.masked_fill(logsnr == -math.inf, PURE_NOISE)
        kappa2 = self.parameterization.inverse_kappa2(logsnr).reciprocal()
        delta = self.schedule.delta(self.schedule.inverse(logsnr, clamp=True), self.steps)
        inside = (logsnr >= self.schedule.logsnr_min - EDGE) & (logsnr <= self._first + EDGE)
        return torch.where(inside, 2.0 * kappa2 / ((self.steps + 1) * torch.expm1(delta)), 0.0)

    def support(self) -> tuple[float, float]:
        low = -SPAN if isinstance(self.schedule, Law) else lowest(self.schedule)
        return self._first, low

    def extra_repr(self) -> str:
        steps = f", steps={self.steps}" if self.steps else ""
        return f"{self.schedule!r}, {self.parameterization!r}{steps}"


class EDM(MSE):
    """EDM's w = (2/σ_d²) N(λ; 2.4, 2.4²)(e^{−λ} + σ_d²) (arXiv:2206.00364). With `monotone`, w is
    constant to the left of its peak (VDM++).

    >>> EDM()(torch.tensor([0.0]))
    tensor([1.0082])
    """

    @validated
    def __init__(
        self,
        mean: Finite = 2.4,
        std: Positive = 2.4,
        sigma_data: Positive = 0.5,
        *,
        monotone: bool = False,
    ) -> None:
        super().__init__(Gaussian(mean, std), V(sigma_data))
        self.constant_below = -math.inf
        if monotone:
            self.constant_below = self.peak

    def weight_at(self, logsnr: Tensor) -> Tensor:
        if self.constant_below > -math.inf:
            logsnr = logsnr.clamp(min=self.constant_below)
        return super().weight_at(logsnr)


class InDI(MSE):
    """Inversion by direct iteration: x-prediction on the straight path, w = ¼ e^{−λ} sech²(λ/4)
    (arXiv:2303.11435).

    >>> InDI()(torch.tensor([0.0]))
    tensor([0.2500])
    """

    def __init__(self) -> None:
        super().__init__(OptimalTransport().law, X())
