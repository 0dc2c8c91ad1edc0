"""Schedules whose end points may be parameters:

λ(t) = λ_max − (λ_max − λ_min) u(t),   u(0) = 0, u(1) = 1, u' > 0
"""

import math
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff._inputs import Steps
from vdiff._precision import to_float64
from vdiff._validate import validated
from vdiff.schedule.base import Schedule
from vdiff.schedule.noise_levels import Learn, NoiseLevels, unchanged


class LearnedEnds(Schedule):
    """A schedule whose u(t) is the cdf of a density over t ∈ [0, 1], between ends that may be
    parameters.

    Learned ends are float64 and ordered by construction: λ_max = low + softplus(high − low), which
    is `high` itself unless they come close. Only the whole bound, `elbo`, gives them a gradient:
    the diffusion term alone would shrink the range without limit, so `weighted_elbo` passes none.
    Exclude them from weight decay, as `vdiff.groups.parameter_groups` does.
    """

    def __init__(self, logsnr_max: float, logsnr_min: float, *, learn_ends: bool) -> None:
        super().__init__(logsnr_max, logsnr_min)
        self.learns_ends = learn_ends
        if learn_ends:
            self.low = nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.high = nn.Parameter(torch.zeros((), dtype=torch.float64))
            self._reset_ends()

    @abstractmethod
    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(u, u') at t, in float64: u is exactly 0 and 1 at the ends, and u' > 0."""

    @abstractmethod
    def observed(
        self, u: Tensor, pdf: Tensor, distance: Tensor | float
    ) -> tuple[Tensor, Tensor, Learn]:
        """(u, u') as a loss in continuous time uses them, and what learns from that loss."""

    @torch.no_grad()
    def _reset_ends(self) -> None:
        high, low = self._ends
        self.low.fill_(low)
        self.high.fill_(high + math.log(-math.expm1(low - high)))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.learns_ends:
            self._reset_ends()

    def saved_ends(self, state: dict[str, Any], prefix: str) -> Tensor | None:
        if prefix + "low" not in state or prefix + "high" not in state:
            return super().saved_ends(state, prefix)
        low, high = state[prefix + "low"], state[prefix + "high"]
        return torch.stack([low + F.softplus(high - low), low])

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        if self.learns_ends and prefix + "low" in state:
            return None
        return self.logsnr_max, self.logsnr_min

    def ends(self, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        if not self.learns_ends:
            return self._ends
        low, high = (self.low.detach(), self.high.detach()) if detach else (self.low, self.high)
        return low + F.softplus(high - low), low

    def logsnr_at(self, t: Tensor) -> Tensor:
        high, low = self.ends()
        return high - (high - low) * self.cdf_and_pdf(t)[0]

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - low) * self.cdf_and_pdf(t)[1]

    @validated
    def at(
        self,
        t: Tensor,
        steps: Steps | None = None,
        *,
        detach_ends: bool = True,
        ndim: int | None = None,
    ) -> NoiseLevels:
        t = self.spread(to_float64(t), ndim)
        high, low = self.ends(detach_ends)
        distance = high - low
        learn: Learn = unchanged
        if steps is not None:
            u, before = self._cdf_of_step(t, (t - 1 / steps).clamp(min=0.0))
            delta = distance * (u - before)
            levels = NoiseLevels(high - distance * u, steps * torch.expm1(delta), delta)
        else:
            u, pdf, learn = self.observed(*self.cdf_and_pdf(t), distance)
            levels = NoiseLevels(high - distance * u, distance * pdf)
        if detach_ends and self.learns_ends and torch.is_grad_enabled():
            learn = partial(self._touch_ends, learn)
        return levels._replace(learn=learn)

    def _cdf_of_step(self, t: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        if self.over_dims:  # the dimensions of t are those of x
            return self.cdf_and_pdf(t)[0], self.cdf_and_pdf(before)[0]
        u, before = self.cdf_and_pdf(torch.stack([t, before]))[0]
        return u, before

    def _touch_ends(self, learn: Learn, loss: Tensor, dims: int) -> Tensor:
        """The loss with detached ends in its graph: DDP waits for every parameter."""
        loss = learn(loss, dims)
        if not loss.requires_grad:
            return loss
        zero: Tensor = _NoGradient.apply(self.low, self.high)  # type: ignore[no-untyped-call]
        return loss + zero


class LearnedLinear(LearnedEnds):
    """The linear schedule whose end points are parameters (`LearnedEnds`); `elbo` trains them.

    >>> schedule = LearnedLinear(13.3, -5.0)
    >>> schedule(torch.tensor([0.0, 1.0]))
    tensor([13.3000, -5.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min, learn_ends=True)

    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def observed(
        self, u: Tensor, pdf: Tensor, distance: Tensor | float
    ) -> tuple[Tensor, Tensor, Learn]:
        return u, pdf, unchanged

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - logsnr) / (high - low)


class _NoGradient(torch.autograd.Function):
    """Zero. The backward pass reaches the parameters and leaves no gradient, so that no optimizer
    moves them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(low: Tensor, high: Tensor) -> Tensor:
        return torch.zeros_like(low)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, to_zero):  # type: ignore[no-untyped-def]
        return None, None
