"""Schedules with a learned shape: the end points follow the bound, the shape between them follows
the variance.

    λ(t) = λ_max − (λ_max − λ_min) u(t),   u(0) = 0, u(1) = 1, u' > 0

In continuous time the expected loss does not depend on the shape u, so that its gradient there is
noise of mean zero, under which a shape walks at random. What the shape does move is the variance
of ℓ = ½ w u' (λ_max − λ_min) ‖ε − ε̂‖², and since E ℓ stands still, ∇Var[ℓ] = ∇E[ℓ²] = E[2 (ℓ − m)
∇ℓ] for any constant m (Kingma et al., arXiv:2107.00630, appendix on the variance, with m = 0).
With the running mean of ℓ for m the noise of that gradient decreases as the shape improves. One
backward pass gives the network and the ends ∇ℓ and the shape 2 (ℓ − m) ∇ℓ/m, through u and u'
alike:

    u, u' ──► _Route ──► λ, rate ──► network ──► ℓ ──► _Weigh ──► the user's loss
                 └──────────────── carrier ────────────────┘

`_Weigh` passes 2 (ℓ − m)/m backwards as the gradient of the carrier, a third output of `_Route`,
which multiplies by it whatever arrives for u and u'. Autograd runs `_Route` last, when all three
are there. Nothing is stored between calls, and a loss that never passes `_Weigh` gives the shape
no gradient rather than a wrong one.

Tokens do not move with λ: z has no derivative in it, and ∇ℓ along a path would be wrong. Then the
shape is learned as what it is, an importance density p(λ) = 1/(−dλ/dt). With ℓ = f(λ)/p(λ) the
variance is ∫ E f²/p dλ less a constant, so that

    ∇Var[ℓ] = −E[ℓ² ∇ log p(λ)] = E[(ℓ² − m²) ∇ log u'(t)]   at fixed λ,

where t moves with the shape so that λ stays, by −∂u/u'. Its minimum is p ∝ √E f².
"""

from functools import partial

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff.errors import under_functorch
from vdiff.gaussian import per_example
from vdiff.schedule._check import check_one_time
from vdiff.schedule.learned_ends import LearnedEnds
from vdiff.schedule.noise_levels import AllReduce, Learn, NoiseLevels, unchanged

FLOOR = 1e-3  # the least u': λ is visited at most 1/FLOOR times as often as by a linear schedule
MEMORY = 0.99  # of the running mean loss, by updates


def normalized(
    t: Tensor, cdf: Tensor, pdf: Tensor, total: Tensor | float
) -> tuple[Tensor, Tensor]:
    """(u, u') from a cdf that reaches `total` at t = 1, and its derivative: u' is at least
    `FLOOR`, and u is exactly 0 and 1 at the ends."""
    u = torch.lerp(cdf / total, t, FLOOR)
    u = torch.where((t > 0) & (t < 1), u, t)
    return u, pdf * ((1 - FLOOR) / total) + FLOOR


class Learned(LearnedEnds):
    """A schedule with a learned shape: one method, `cdf_and_pdf(t)`, returns (u, u').

    Args:
        logsnr_max, logsnr_min: the ends, or where they start.
        learn_ends: whether the ends are parameters (`LearnedEnds`).
        follow_variance: whether the shape's gradient is that of the variance; if not, it is the
            loss's own, in continuous time mere noise. On a chain (`steps=T`) the bound depends on
            the shape, which always follows it there.

    >>> class Power(Learned):
    ...     def __init__(self):
    ...         super().__init__(10.0, -10.0, learn_ends=False)
    ...         self.log_power = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    ...     def cdf_and_pdf(self, t):
    ...         power = self.log_power.exp()
    ...         return normalized(t, t**power, power * t ** (power - 1), total=1.0)
    >>> Power().check()(torch.tensor(0.25))
    tensor(5., grad_fn=<ToCopyBackward0>)
    """

    learns_shape = True
    mean_loss: Tensor
    seen: Tensor

    def __init__(
        self,
        logsnr_max: float,
        logsnr_min: float,
        *,
        learn_ends: bool = True,
        follow_variance: bool = True,
    ) -> None:
        super().__init__(logsnr_max, logsnr_min, learn_ends=learn_ends)
        self.follow_variance = follow_variance
        self.learns_by_density = follow_variance and not (learn_ends or self.over_dims)
        # m; 0 until it is known
        self.register_buffer("mean_loss", torch.zeros((), dtype=torch.float64))
        # Σ ℓ and their number since the last update
        self.register_local("seen", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.mean_loss.zero_()
        self.seen.zero_()

    def observed(
        self, u: Tensor, pdf: Tensor, distance: Tensor | float
    ) -> tuple[Tensor, Tensor, Learn]:
        if not (self.follow_variance and torch.is_grad_enabled()):
            return u, pdf, unchanged
        u, pdf, carrier = _Route.apply(u, pdf)  # type: ignore[no-untyped-call]
        return u, pdf, partial(self._weigh, carrier, distance)

    def _record(self, loss: Tensor) -> Tensor:
        """The values of a loss, which are counted for the running mean."""
        value = to_float64(loss.detach())
        if self.training and not under_functorch(value):
            self._count_loss()
            self.seen[0].add_(value.sum())
            self.seen[1].add_(len(value))
        return value

    def _weigh(self, carrier: Tensor, distance: Tensor | float, loss: Tensor, dims: int) -> Tensor:
        value = self._record(loss)
        width = distance.detach() if isinstance(distance, Tensor) else distance
        # the bound of a model that predicts nothing is the scale of ℓ until m is known
        mean = torch.where(self.mean_loss > 0, self.mean_loss, 0.5 * dims * width)
        weight = self.gradient_weight((value - self.mean_loss) / mean)
        if carrier.ndim > 1:
            weight = per_example(weight, carrier).expand_as(carrier)
        weighed: Tensor = _Weigh.apply(loss, carrier, weight)  # type: ignore[no-untyped-call]
        return weighed

    def at_fixed(
        self,
        t: Tensor,
        steps: int | None = None,
        *,
        detach_ends: bool = True,
        ndim: int | None = None,
    ) -> NoiseLevels:
        if not (self.learns_by_density and steps is None and torch.is_grad_enabled()):
            return self.at(t, steps, detach_ends=detach_ends, ndim=ndim)
        check_one_time(t)
        t, (high, low) = to_float64(t), self.ends()
        u, pdf = self.cdf_and_pdf(t)
        learn = partial(self._learn_density, t, u, pdf.detach())
        return NoiseLevels(
            high - (high - low) * u.detach(), (high - low) * pdf.detach(), None, learn
        )

    def _learn_density(self, t: Tensor, u: Tensor, pdf: Tensor, loss: Tensor, dims: int) -> Tensor:
        value = self._record(loss)
        mean = torch.where(self.mean_loss > 0, self.mean_loss, value.mean())
        weight = ((value.square() - mean.square()) / mean).nan_to_num(0.0, 0.0, 0.0)
        t = t - (u - u.detach()) / pdf  # moves so that λ stays
        log_rate = self.cdf_and_pdf(t)[1].log()
        return loss + (weight * (log_rate - log_rate.detach())).to(loss.dtype)

    def gradient_weight(self, deviation: Tensor) -> Tensor:
        """What multiplies the gradient of the loss ℓ for the shape, from (ℓ − m)/m."""
        return 2 * deviation

    @torch.no_grad()
    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Update the running mean m of the shape's gradient by the losses since the last call."""
        self._unread = 0
        total, count = self.seen if all_reduce is None else all_reduce(self.seen)
        mean = total / count  # NaN without a loss
        mean = torch.where(mean.isfinite(), mean, self.mean_loss)
        blended = torch.lerp(mean, self.mean_loss, MEMORY)
        self.mean_loss.copy_(torch.where(self.mean_loss > 0, blended, mean))
        self.seen.zero_()

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learn_ends=True" if self.learns_ends else "")


class _Route(torch.autograd.Function):
    """(u, u') as they are, and a carrier; backwards, their gradients are multiplied by the
    carrier's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, pdf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return u.view_as(u), pdf.view_as(pdf), torch.zeros_like(u)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, to_u, to_pdf, weight):  # type: ignore[no-untyped-def]
        return to_u * weight, to_pdf * weight


class _Weigh(torch.autograd.Function):
    """The loss as it is; backwards, the carrier gets `weight` for its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, carrier: Tensor, weight: Tensor) -> Tensor:
        return loss.view_as(loss)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, to_loss):  # type: ignore[no-untyped-def]
        return to_loss, ctx.saved_tensors[0], None
