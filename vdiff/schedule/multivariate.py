"""A learned λ(t) of its own for each dimension of x: by the model alone, or also by the input."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from vdiff._validate import Whole, validated
from vdiff.schedule._parts import same_dims, sizes_of
from vdiff.schedule.learned import Learned
from vdiff.schedule.monotone import spline_cdf_and_pdf, spline_cells
from vdiff.schedule.over_dims import OverDims

Knots = Annotated[int, Whole(at_least=2)]


class MultivariateSpline(OverDims, Learned):
    """A learned λ_i(t) for each dimension of x, between ends that all dimensions share.

        λ_i(t) = λ_max − (λ_max − λ_min) u_i(t)

    Each u_i is that of a `Spline`: its density over λ is linear between even knots. All start
    uniform, which is the linear schedule for every dimension.

    The ends follow the bound (`elbo`; `weighted_elbo` gives them no gradient). What the shape
    follows is `follow`, for ℓ the loss of an example and m its running mean:

        "variance"   ∇ E (ℓ − m)²/m    as every learned shape does
        "loss"       ∇ E ℓ
        "both"       ∇ E [ℓ + (ℓ − m)²/m]

    With one λ for all dimensions E ℓ does not depend on the shape. Here the dimensions can fall in
    another order, and E ℓ depends on it unless w(λ_i) ∂E e_i²/∂λ_j = w(λ_j) ∂E e_j²/∂λ_i, with
    e = ε − ε̂, as for the exact denoiser and w = 1. So, for w = 1, "loss" is a gradient of the
    bound, though a small one: it is how far the network is from being consistent. The variance of
    ℓ is in both cases that of one draw of (x, t, ε); m must be E ℓ for (ℓ − m)² to be it, so call
    `update()` after each optimizer step. On a chain (`steps=T`) the shape always follows the loss.

    Args:
        shape: of one example. A size of 1 means that all indices share a λ(t): (3, 1, 1) has one
            for each channel, (1, 32, 32) one for each pixel.
        logsnr_max, logsnr_min: the ends, or where they start.
        knots: of each spline.
        learn_ends: whether the ends are parameters.
        follow: what the shape follows.

    >>> schedule = MultivariateSpline([1, 8, 8])
    >>> schedule.at(torch.tensor([0.5]), ndim=4).logsnr.shape
    torch.Size([1, 1, 8, 8])
    """

    @validated
    def __init__(
        self,
        shape: Annotated[Sequence[int], sizes_of],
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        knots: Knots = 16,
        learn_ends: bool = True,
        follow: Literal["variance", "loss", "both"] = "both",
    ) -> None:
        super().__init__(
            logsnr_max, logsnr_min, learn_ends=learn_ends, follow_variance=follow != "loss"
        )
        self.shape, self.follow = tuple(shape), follow
        self.least_ndim = 1 + len(shape)
        self.log_density = nn.Parameter(torch.zeros(*shape, knots, dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.log_density.zero_()

    def field_shape(self, ndim: int) -> tuple[int, ...]:
        return same_dims(self.shape, ndim)

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        return self.ends(detach)

    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return spline_field(t, self.log_density, self.field_shape(t.ndim))

    def gradient_weight(self, deviation: Tensor) -> Tensor:
        weight = super().gradient_weight(deviation)
        return 1 + weight if self.follow == "both" else weight

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {super().extra_repr()}, follow={self.follow!r}"


def spline_field(t: Tensor, log_density: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(u, u') of a spline for each dimension, (*shape, knots), or for each dimension of each
    example, (batch, *shape, knots), at times with the dimensions of x."""
    knots, batch = log_density.shape[-1], len(t)
    whole = [max(sizes) for sizes in zip(t.shape[1:], shape, strict=True)]
    times = t.expand(batch, *whole).reshape(batch, -1)
    if log_density.ndim > t.ndim:  # a table for each example
        cells = spline_cells(log_density.expand(batch, *whole, knots).reshape(batch, -1, knots))
        u, pdf = (v[..., 0] for v in spline_cdf_and_pdf(times[..., None], *cells))
    else:
        cells = spline_cells(log_density.expand(*whole, knots).reshape(-1, knots))
        u, pdf = (v.T for v in spline_cdf_and_pdf(times.T, *cells))
    return u.reshape(batch, *whole), pdf.reshape(batch, *whole)
