"""Noise that depends on the input, through a latent whose KL is part of the bound."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._precision import at_least_float32, device_of, to_float64
from vdiff._validate import Count, Instance, require, validated
from vdiff.errors import InvalidValue, has_values
from vdiff.schedule._parts import sizes_of
from vdiff.schedule.multivariate import Knots, MultivariateSpline, spline_field

ENCODER = "it returns logits (batch, latents): nn.Sequential(nn.Flatten(), nn.Linear(64, 8))"


class MuLAN(MultivariateSpline):
    """A learned λ_i(t) for each dimension that depends on the input through a latent c (MuLAN,
    Sahoo et al., arXiv:2312.13236).

        −log p(x) ≤ E_{c ~ q(c|x)}[ the bound under λ(t, c) ] + KL(q(c|x) ‖ p(c))

    Given c everything is an ordinary diffusion, whose network gets the field λ(t, c). c is m
    fair coins under p, and m independent ones under q:

        q(c_j = 1 | x) = sigmoid(l_j),   KL = Σ_j [log 2 + π_j log π_j + (1 − π_j) log(1 − π_j)]

    The paper found a discrete latent best, k of m categories, and draws it relaxed. Independent
    coins need no k, have a KL in closed form, and are drawn as 0 or 1, so that every loss is that
    of a bound. Only their gradient is an approximation, the straight-through one: ∂c_j/∂l_j is
    taken for π_j (1 − π_j). Each λ_i is a `MultivariateSpline`'s whose log-density is linear in c:
    each coin multiplies the densities by factors of its own. They start as 1.

    The encoder sees x alone, neither noise nor time. Everything but the ends follows `follow`, as
    in `MultivariateSpline`: "variance" is missing, because c would then cost its KL for nothing.
    Train it with `elbo`; `weighted_elbo` refuses it, since its loss has no KL. A verb calls
    `for_data(x)`; a sampler, which has no x, `for_samples(n)`.

    Args:
        encoder: a module that returns the logits l, (batch, latents), for x (batch, …).
        shape, logsnr_max, logsnr_min, knots, learn_ends: as in `MultivariateSpline`.
        latents: m.
        follow: "loss", or "both".

    >>> schedule = MuLAN(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), [1, 8, 8], latents=8)
    >>> of_batch, nats = schedule.for_data(torch.randn(5, 1, 8, 8))
    >>> of_batch.at(torch.rand(5), ndim=4).logsnr.shape, nats.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    depends_on_data = True
    table: Tensor | None = None  # (batch, *shape, knots), of the examples of one batch

    @validated
    def __init__(
        self,
        encoder: Annotated[Callable[[Tensor], Tensor], Instance((nn.Module,), ENCODER)],
        shape: Annotated[Sequence[int], sizes_of],
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        *,
        latents: Count = 16,
        knots: Knots = 16,
        learn_ends: bool = True,
        follow: Literal["loss", "both"] = "loss",
    ) -> None:
        super().__init__(
            shape, logsnr_max, logsnr_min, knots=knots, learn_ends=learn_ends, follow=follow
        )
        assert isinstance(encoder, nn.Module)
        self.encoder, self.latents = encoder, latents
        self.log_factors = nn.Parameter(
            torch.zeros(latents, *self.log_density.shape, dtype=torch.float64)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore all but the encoder, whose modules have their own `reset_parameters`."""
        super().reset_parameters()
        self.log_factors.zero_()

    @validated
    def for_data(
        self, x: Float[Tensor, "batch *dims"], generator: torch.Generator | None = None
    ) -> tuple["MuLAN", Tensor]:
        """The schedule of these examples under one drawn c each, and KL(q(c|x) ‖ p(c)) in nats,
        (batch,)."""
        logits = self.encoder(x.to(_dtype_of(self.encoder, x)))
        form = len(x), self.latents
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        require(came == form, "encoder", f"return logits (batch, latents) = {form}", came)
        logits = to_float64(logits)
        chance = logits.sigmoid()
        uniform = torch.rand(form, dtype=chance.dtype, device=x.device, generator=generator)
        coins = (uniform < chance).to(chance.dtype) + (chance - chance.detach())
        return self.given(coins), coin_kl(logits).to(at_least_float32(x.dtype))

    @validated
    def for_samples(self, batch: Count, generator: torch.Generator | None = None) -> "MuLAN":
        """The schedule of `batch` samples, under c ~ p(c)."""
        device = device_of(self)
        coins = torch.rand(batch, self.latents, device=device, generator=generator) < 0.5
        return self.given(coins)

    def __getstate__(self) -> dict[str, Any]:
        """A copy's table has no graph, as of any tensor of one."""
        return vars(self) | {"table": None if self.table is None else self.table.detach()}

    def given(self, coins: Tensor) -> "MuLAN":
        """The schedule of a batch with latents c (batch, latents), each 0 or 1. It shares all
        parameters and statistics with this one."""
        drawn = coins.ndim == 2 and coins.shape[1] == self.latents
        require(drawn, "coins", f"have shape (batch, {self.latents})", tuple(coins.shape))
        of_batch = copy.copy(self)
        sign = 2 * coins.to(self.log_factors.dtype) - 1
        of_batch.table = self.log_density + torch.tensordot(sign, self.log_factors, 1)
        of_batch.depends_on_data, of_batch.latents_drawn = False, True
        return of_batch

    def cdf_and_pdf(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is None:
            hint = "schedule.for_data(x) has the schedule of a batch, for_samples(n) of samples"
            raise InvalidValue("schedule", "be that of a batch", repr(self), hint)
        same = "have as many times as the batch that it is for, "
        require(len(t) == len(self.table), "schedule", same + str(len(self.table)), len(t))
        return spline_field(t, self.table, self.field_shape(t.ndim))

    def mean_logsnr(self, t: Tensor) -> Tensor:
        """The mean over dimensions, under the mean log-density over c ~ p(c)."""
        return super().mean_logsnr(t) if self.table is not None else self._mean(t).mean_logsnr(t)

    def curves(self, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """As of any schedule over dimensions, under the mean log-density over c ~ p(c), or over
        the examples of a batch."""
        return MultivariateSpline.curves(self._mean(t), t)

    def _mean(self, t: Tensor) -> "MuLAN":
        mean = copy.copy(self)
        table = self.log_density if self.table is None else self.table.mean(0)
        mean.table = table.expand(t.numel(), *table.shape)
        return mean

    def check(self: Any, points: int = 10_001) -> Any:
        """λ runs between its ends and falls for every c, by construction; verify that the
        parameters are finite. Returns self."""
        learned = self.log_density, self.log_factors
        if has_values(*learned):
            finite = all(bool(p.isfinite().all()) for p in learned)
            require(finite, "schedule", "have finite parameters", "NaN or infinite ones")
        return self

    def extra_repr(self) -> str:
        return f"{type(self.encoder).__name__}, {super().extra_repr()}, latents={self.latents}"


def coin_kl(logits: Tensor) -> Tensor:
    """KL of independent coins with these logits (batch, m) from fair ones, nats (batch,).

    >>> coin_kl(torch.tensor([[0.0, 0.0], [torch.inf, 0.0]]))
    tensor([0.0000, 0.6931])
    """
    logits = logits.clamp(-1e3, 1e3)  # 0 · log 0 is 0
    chance = logits.sigmoid()
    entropy = -chance * F.logsigmoid(logits) - (1 - chance) * F.logsigmoid(-logits)
    return (math.log(2) - entropy).sum(1)


def _dtype_of(encoder: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of a module's parameters; that of x if it has none."""
    floating = (p.dtype for p in encoder.parameters() if p.is_floating_point())
    return next(floating, x.dtype)
