"""Learned shapes γ_η: VDM's monotone network, and a monotone spline that costs a tenth of it."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdiff.errors import check_positive_int, finite
from vdiff.schedule.learned import FLOOR, Learned


class Monotone(Learned):
    """VDM's learned schedule, a monotone network between two ends. The gradient of its shape is not that of the loss.

    Backwards, the shape gets the gradient of the loss's variance and the ends that of the bound, in one pass (module
    `vdiff.schedule.learned`; the switch is `follow_variance`). Call `update()` after each optimizer step, as
    `vdiff.training.train` does, and give the shape a learning rate of its own (`vdiff.parameter_groups`).

        u(t) ∝ l₁(t) + l₃(sigmoid(l₂(l₁(t)))) − the same at 0

    with positive weights, here as exponentials, without what normalising removes (l₁ is t itself, l₃ has no bias), and with
    the biases of l₂ relative to where each sigmoid starts (Kingma et al., arXiv:2107.00630, appendix on the monotone network).
    It starts as good as linear, the sigmoids side by side over [0, 1], each `1/sharpness` wide: VDM's own start hardly moves.

    Args:
        logsnr_max, logsnr_min, learn_ends, follow_variance: as in `Learned`.
        hidden: the number of sigmoids.
        sharpness: the slope of each at the start.

    >>> gamma = Monotone(logsnr_max=13.3, logsnr_min=-5.0)
    >>> gamma(torch.tensor([0.0, 1.0])).detach()
    tensor([13.3000, -5.0000])
    """

    middle: Tensor

    def __init__(
        self,
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        hidden: int = 1024,
        sharpness: float = 50.0,
        learn_ends: bool = True,
        follow_variance: bool = True,
    ) -> None:
        super().__init__(logsnr_max, logsnr_min, learn_ends=learn_ends, follow_variance=follow_variance)
        check_positive_int("Monotone", "hidden", hidden)
        sharpness = finite("Monotone", "sharpness", sharpness, above=0.0)
        margin = 4.0 / sharpness  # sigmoids whose middle lies outside, so that the slope does not fall at the ends
        self.register_buffer("middle", torch.linspace(-margin, 1 + margin, hidden, dtype=torch.float64))
        self.log_inner = nn.Parameter(torch.full((hidden,), math.log(sharpness), dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(hidden, dtype=torch.float64))
        self.log_outer = nn.Parameter(torch.full((hidden,), math.log(10.0 / hidden), dtype=torch.float64))

    def rise(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, outer = self.log_inner.exp(), self.log_outer.exp()
        bias = self.bias - inner * self.middle
        v, slope, *_ = _Sigmoids.apply(t, bias, inner, outer)  # type: ignore[no-untyped-call]
        first, last = bias.sigmoid() @ outer, (bias + inner).sigmoid() @ outer
        return t + (v - first), 1 + slope, 1 + (last - first)


class _Sigmoids(torch.autograd.Function):
    """Σ_k outer_k s(bias_k + inner_k t) and its derivative in t, for each t of a vector of any shape.

    All gradients are matrix products with s, s' and s'', a third of what autograd would compute here.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, bias: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = torch.addcmul(bias, t[..., None], inner).sigmoid()
        first = torch.addcmul(s, s, s, value=-1)
        return s @ outer, first @ (inner * outer), s, first

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, _, s, first = output
        ctx.mark_non_differentiable(s, first)
        ctx.save_for_backward(*inputs, s, first)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_value, to_slope, *_):  # type: ignore[no-untyped-def]
        t, _, inner, outer, s, first = ctx.saved_tensors
        second = torch.addcmul(first, first, s, value=-2)
        hidden = len(inner)
        value, slope = to_value.flatten(), to_slope.flatten()
        by_s = value @ s.view(-1, hidden)
        by_first = torch.stack([value, value * t.flatten(), slope]) @ first.view(-1, hidden)
        by_second = torch.stack([slope, slope * t.flatten()]) @ second.view(-1, hidden)
        steep = inner * outer
        to_bias = outer * by_first[0] + steep * by_second[0]
        to_inner = outer * (by_first[1] + by_first[2]) + steep * by_second[1]
        to_t = None
        if ctx.needs_input_grad[0]:
            to_t = to_value * (first @ steep) + to_slope * (second @ (steep * inner))
        return to_t, to_bias, to_inner, by_s + inner * by_first[2]


class Spline(Learned):
    """A learned schedule whose slope is linear between knots. The gradient of its shape is not that of the loss.

    The same rule as `Monotone`, and its choices, with one parameter to a knot, the logarithm of the slope there: u is a
    quadratic spline, its inverse is in closed form.

    >>> gamma = Spline(logsnr_max=13.3, logsnr_min=-5.0)
    >>> gamma(torch.tensor([0.0, 0.5, 1.0])).detach()
    tensor([13.3000,  4.1500, -5.0000])
    """

    def __init__(
        self,
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        knots: int = 64,
        learn_ends: bool = True,
        follow_variance: bool = True,
    ) -> None:
        super().__init__(logsnr_max, logsnr_min, learn_ends=learn_ends, follow_variance=follow_variance)
        check_positive_int("Spline", "knots", knots - 1)
        self.log_slope = nn.Parameter(torch.zeros(knots, dtype=torch.float64))

    def rise(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots, low, gain = self._cells()
        cells = len(low)
        cell = (t * cells).floor().clamp(max=cells - 1)
        start, low, gain = torch.stack([knots[:-1], low, gain], 1)[cell.long()].unbind(-1)
        place = t * cells - cell
        return start + place * (low + 0.5 * place * gain), cells * (low + place * gain), knots[-1]

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low_end = self.ends()
        knots, low, gain = self._cells()
        cells, share = len(low), (1 - FLOOR) / knots[-1]
        reached = share * knots + FLOOR * torch.arange(cells + 1).to(knots) / cells  # u at the knots
        u = (high - logsnr) / (high - low_end)
        cell = (torch.searchsorted(reached.detach(), u.detach().contiguous(), right=True) - 1).clamp(0, cells - 1)
        b, a = (share * low)[cell] + FLOOR / cells, 2 * share * gain[cell]  # ½ a/2 x² + b x = c, its root without cancelling
        c = u - reached[cell]
        return (cell + 2 * c / (b + (b * b + a * c).clamp(min=0.0).sqrt())) / cells

    def _cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """v at the knots, and in each cell between them the slope at its start and what it gains, in units of a cell."""
        slope = self.log_slope.exp()
        low, gain = slope[:-1], slope.diff()
        return nn.functional.pad((low + 0.5 * gain).cumsum(0), (1, 0)), low, gain


__all__ = ["Monotone", "Spline"]
