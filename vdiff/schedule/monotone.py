"""Learned shapes γ_η: VDM's monotone network, and a monotone spline, which learns faster at a
fraction of the cost."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdiff._validate import Count, Positive, Whole, validated
from vdiff.gaussian import to_float64
from vdiff.schedule.learned import FLOOR, Learned

ROWS = 32  # times in a block, on a CPU


class Monotone(Learned):
    """VDM's learned schedule, a monotone network between two ends. The gradient of its shape is
    not that of the loss.

    Backwards, the shape gets the gradient of the loss's variance and the ends that of the bound,
    in one pass (module `vdiff.schedule.learned`; the switch is `follow_variance`). Call `update()`
    after each optimizer step, as `vdiff.training.train` does, and give the shape a learning rate
    of its own (`vdiff.groups.parameter_groups`).

        u(t) ∝ l₁(t) + l₃(sigmoid(l₂(l₁(t)))) − the same at 0

    with positive weights, here as exponentials, without what normalising removes (l₁ is t itself,
    l₃ has no bias), and with the biases of l₂ relative to where each sigmoid starts (Kingma et
    al., arXiv:2107.00630, appendix on the monotone network). It starts as good as linear, the
    sigmoids side by side over [0, 1], each `1/sharpness` wide: VDM's own start hardly moves.

    Args:
        logsnr_max, logsnr_min, learn_ends, follow_variance: as in `Learned`.
        hidden: the number of sigmoids.
        sharpness: the slope of each at the start.

    >>> gamma = Monotone(logsnr_max=13.3, logsnr_min=-5.0)
    >>> gamma(torch.tensor([0.0, 1.0])).detach()
    tensor([13.3000, -5.0000])
    """

    middle: Tensor

    @validated
    def __init__(
        self,
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        hidden: Count = 1024,
        sharpness: Positive = 50.0,
        learn_ends: bool = True,
        follow_variance: bool = True,
    ) -> None:
        super().__init__(
            logsnr_max, logsnr_min, learn_ends=learn_ends, follow_variance=follow_variance
        )
        self._sharpness = sharpness
        self.register_buffer("middle", torch.empty(hidden, dtype=torch.float64))
        empty = [torch.empty(hidden, dtype=torch.float64) for _ in range(3)]
        self.log_inner, self.bias, self.log_outer = map(nn.Parameter, empty)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        hidden = len(self.bias)
        margin = 4.0 / self._sharpness  # sigmoids from beyond the ends keep the slope up there
        self.middle.copy_(torch.linspace(-margin, 1 + margin, hidden, dtype=torch.float64))
        self.log_inner.fill_(math.log(self._sharpness))
        self.bias.zero_()
        self.log_outer.fill_(math.log(10.0 / hidden))

    def rise(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, outer = self.log_inner.exp(), self.log_outer.exp()
        bias = self.bias - inner * self.middle
        v, slope = _Sigmoids.apply(t, bias, inner, outer)  # type: ignore[no-untyped-call]
        first, last = bias.sigmoid() @ outer, (bias + inner).sigmoid() @ outer
        return t + (v - first), 1 + slope, 1 + (last - first)


class _Sigmoids(torch.autograd.Function):
    """Σ_k outer_k s(bias_k + inner_k t) and its derivative in t, for each t of a vector of any
    shape.

    Both ways it goes by blocks of t that fit the cache, and keeps none: on a CPU, fresh memory for
    all of (batch, hidden) costs five times the arithmetic. All gradients are matrix products with
    s, s' and s'', a third of what autograd would compute here.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, bias: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
        steep = inner * outer
        found = [
            (s @ outer, first @ steep)
            for s, first in (_sigmoids(block, bias, inner) for block in _blocks(t.reshape(-1)))
        ]
        value, slope = (torch.cat(parts).view(t.shape) for parts in zip(*found, strict=True))
        return value, slope

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_value, to_slope):  # type: ignore[no-untyped-def]
        t, bias, inner, outer = ctx.saved_tensors
        steep, times = inner * outer, t.reshape(-1)
        value, slope = to_value.reshape(-1), to_slope.reshape(-1)
        gradients = torch.stack([value, value * times, slope, slope * times], 1)
        sums, to_t = [], []
        for t_, rows in zip(_blocks(times), _blocks(gradients), strict=True):
            s, first = _sigmoids(t_, bias, inner)
            second = torch.addcmul(first, first, s, value=-2)
            sums.append(
                torch.cat([rows[:, :1].T @ s, rows[:, :3].T @ first, rows[:, 2:].T @ second])
            )
            if ctx.needs_input_grad[0]:
                to_t.append(rows[:, 0] * (first @ steep) + rows[:, 2] * (second @ (steep * inner)))
        total = torch.stack(sums).sum(0)
        by_s, by_first, t_by_first, slope_by_first, by_second, t_by_second = total
        to_bias = outer * by_first + steep * by_second
        to_inner = outer * (t_by_first + slope_by_first) + steep * t_by_second
        to_times = torch.cat(to_t).view(t.shape) if to_t else None
        return to_times, to_bias, to_inner, by_s + inner * slope_by_first


def _blocks(t: Tensor) -> tuple[Tensor, ...]:
    return torch.split(t, ROWS if t.device.type == "cpu" else max(1, len(t)))


def _sigmoids(t: Tensor, bias: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """s and s' at each t (rows) of each unit."""
    s = torch.addcmul(bias, t[:, None], inner).sigmoid_()
    return s, torch.addcmul(s, s, s, value=-1)


class Spline(Learned):
    """A learned schedule whose density p(λ) is linear between knots. The gradient of its shape is
    not that of the loss.

    The same rule as `Monotone`, and its choices, with one parameter to a knot, the logarithm of
    the density there: λ(t) and its inverse are in closed form. Knots lie evenly in λ, not in t:
    where the loss is nothing, p falls at once, whatever it is elsewhere.

    >>> gamma = Spline(logsnr_max=13.3, logsnr_min=-5.0)
    >>> gamma(torch.tensor([0.0, 0.5, 1.0])).detach()
    tensor([13.3000,  4.1500, -5.0000])
    """

    @validated
    def __init__(
        self,
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        knots: Annotated[int, Whole(at_least=2)] = 64,
        learn_ends: bool = True,
        follow_variance: bool = True,
    ) -> None:
        super().__init__(
            logsnr_max, logsnr_min, learn_ends=learn_ends, follow_variance=follow_variance
        )
        self.log_density = nn.Parameter(torch.zeros(knots, dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.log_density.zero_()

    def shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t64 = to_float64(t)
        times, *cells = self._cells()
        cell = _place(times, t64)
        start, low, gain = (part[cell] for part in (times, *cells))
        twice = 2 * (t64 - start)
        density = torch.addcmul(low.square(), twice, gain).sqrt()
        # the root of gain x² + 2 low x = twice, without cancelling
        u = (cell + twice / (low + density)) / len(cells[0])
        return torch.where((t64 > 0) & (t64 < 1), u, t64), (density * len(cells[0])).reciprocal()

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low_end = self.ends()
        times, low, gain = self._cells()
        u = (high - logsnr) / (high - low_end) * len(low)
        cell = u.detach().long().clamp(0, len(low) - 1)
        x = u - cell
        return times[cell] + x * (low[cell] + 0.5 * x * gain[cell])

    def _cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """The time at each knot; in each cell between two, the density at its start and what it
        gains, in units of a cell."""
        density = self.log_density.exp()
        mass = density.sum() - 0.5 * (density[0] + density[-1])
        density = (1 - FLOOR) * density / mass + FLOOR / (len(density) - 1)
        low, gain = density[:-1], density.diff()
        return nn.functional.pad((low + 0.5 * gain).cumsum(0), (1, 0)), low, gain


def _place(times: Tensor, t: Tensor) -> Tensor:
    """The cell in which each t falls."""
    right = torch.searchsorted(times.detach(), t.detach().contiguous(), right=True)
    return (right - 1).clamp(0, len(times) - 2)


__all__ = ["Monotone", "Spline"]
