"""Learned shapes: VDM's monotone network, and a spline that learns faster at a fraction of its
cost."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdiff._validate import Count, Positive, Whole, validated
from vdiff.schedule.learned import FLOOR, Learned, normalized

ROWS = 32  # times in a block on a CPU


class Monotone(Learned):
    """VDM's learned schedule, a monotone network between two ends.

    The gradient of its shape is not that of the loss: one backward pass gives the shape the
    gradient of the loss's variance and the ends that of the bound (module
    `vdiff.schedule.learned`; `follow_variance=False` turns it off). Call `update()` after each
    optimizer step, as `vdiff.training.train` does, and give the shape a learning rate of its own
    (`vdiff.groups.parameter_groups`).

        u(t) ∝ l₁(t) + l₃(sigmoid(l₂(l₁(t)))) − the same at 0

    with positive weights, the exponentials of the parameters (Kingma et al., arXiv:2107.00630,
    appendix on the monotone network). Normalising makes l₁ the identity and l₃ free of a bias; the
    biases of l₂ are relative to the start of each sigmoid. The initial sigmoids lie side by side
    over [0, 1], so that u is almost linear; VDM's own initial values hardly learn.

    Args:
        logsnr_max, logsnr_min, learn_ends, follow_variance: as in `Learned`.
        hidden: the number of sigmoids.
        sharpness: their initial slope; each is 1/sharpness wide.

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
        margin = 4.0 / self._sharpness  # sigmoids beyond the ends, for the slope there
        self.middle.copy_(torch.linspace(-margin, 1 + margin, hidden, dtype=torch.float64))
        self.log_inner.fill_(math.log(self._sharpness))
        self.bias.zero_()
        self.log_outer.fill_(math.log(10.0 / hidden))

    def unnormalized_cdf(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(v, v', v(1)) with u = v/v(1)."""
        inner, outer = self.log_inner.exp(), self.log_outer.exp()
        bias = self.bias - inner * self.middle
        value, slope = _Sigmoids.apply(t, bias, inner, outer)  # type: ignore[no-untyped-call]
        first, last = bias.sigmoid() @ outer, (bias + inner).sigmoid() @ outer
        return t + (value - first), 1 + slope, 1 + (last - first)

    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return normalized(t, *self.unnormalized_cdf(t))


class _Sigmoids(torch.autograd.Function):
    """Σ_k outer_k s(bias_k + inner_k t) and its derivative in t, for t of any shape.

    Both passes go through blocks of t that fit the cache and keep none: on a CPU, new memory for
    all of (batch, hidden) costs five times the arithmetic. All gradients are matrix products with
    s, s' and s'', a third of autograd's work.
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
    """A learned schedule whose density p(λ) is linear between knots.

    It learns as `Monotone` does, and the gradient of its shape is not that of the loss either. Its
    parameters are the logarithms of the density at the knots; λ(t) and its inverse are in closed
    form. The knots are even in λ, not in t: where the loss is zero, p falls at once.

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

    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return spline_cdf_and_pdf(t, *spline_cells(self.log_density))

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low_end = self.ends()
        times, low, gain = spline_cells(self.log_density)
        u = (high - logsnr) / (high - low_end) * len(low)
        cell = u.detach().long().clamp(0, len(low) - 1)
        x = u - cell
        return times[cell] + x * (low[cell] + 0.5 * x * gain[cell]) / len(low)


def spline_cells(log_density: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The time at each knot; in each cell between two knots, the density dt/du at its start and
    its increase. One spline (knots,) or several (…, knots)."""
    density, du = log_density.exp(), 1 / (log_density.shape[-1] - 1)
    rest, total = (1 - FLOOR) * density, torch.trapezoid(density, dx=du)
    density = rest / (total if total.ndim == 0 else total[..., None]) + FLOOR
    times = nn.functional.pad(torch.cumulative_trapezoid(density, dx=du), (1, 0))
    return times, density.narrow(-1, 0, density.shape[-1] - 1), density.diff()


def spline_cdf_and_pdf(
    t: Tensor, times: Tensor, low: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """(u, u') of one spline at t of any shape, or of several (…, knots) at times (…, n) each."""
    cells = low.shape[-1]
    knots = times.detach().narrow(-1, 1, cells - 1).contiguous()
    cell = torch.searchsorted(knots, t.detach().contiguous(), right=True)
    if times.ndim == 1:
        start, low, gain = times[cell], low[cell], gain[cell]
    else:
        start, low, gain = (v.gather(-1, cell) for v in (times, low, gain))
    twice = 2 * cells * (t - start)
    density = torch.addcmul(low.square(), twice, gain).sqrt()
    # the root of gain x² + 2 low x = twice, without cancelling
    u = (cell + twice / (low + density)) / cells
    return torch.where(t < 1, u, t), density.reciprocal()
