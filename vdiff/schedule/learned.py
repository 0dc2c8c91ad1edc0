"""Schedules with parameters: the end points follow the bound, the shape between them follows the
variance.

    λ(t) = λ_max − (λ_max − λ_min) u(t),   u(0) = 0, u(1) = 1, u' > 0

In continuous time the expected loss does not depend on the shape u, so that its gradient there is
noise of mean zero, under which a shape walks at random. What the shape does move is the variance
of ℓ = ½ w u' (λ_max − λ_min) ‖ε − ε̂‖², and since E ℓ stands still, ∇Var[ℓ] = ∇E[ℓ²] = E[2 (ℓ − m)
∇ℓ] for any constant m (Kingma et al., arXiv:2107.00630, appendix on the variance, with m = 0).
With the running mean of ℓ for m the noise of that gradient goes as the shape improves. One
backward pass gives the network and the ends ∇ℓ and the shape 2 (ℓ − m) ∇ℓ/m, through u and u'
alike:

    u, u' ──► _Route ──► λ, rate ──► network ──► ℓ ──► _Weigh ──► the user's loss
                 └──────────────── carrier ────────────────┘

`_Weigh` hands 2 (ℓ − m)/m backwards as the gradient of the carrier, a third output of `_Route`,
which multiplies by it whatever arrives for u and u'. Autograd runs `_Route` last, when all three
are there. Nothing is stored between calls, and a loss that never passes `_Weigh` gives the shape
no gradient rather than a wrong one.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._validate import Steps, validated
from vdiff.errors import under_functorch
from vdiff.gaussian import to_float64
from vdiff.schedule.base import AllReduce, Learn, NoiseLevels, Schedule, unchanged

# the least slope: no λ is looked at more than 1/FLOOR times as often as under the linear schedule
FLOOR = 1e-3
MEMORY = 0.99  # of the running mean loss, by updates


class Learned(Schedule):
    """A schedule made of ends and a shape: one method, `rise(t)`, returns (u, u') up to a common
    factor, and u at 1.

    Args:
        logsnr_max, logsnr_min: the ends, or where they start.
        learn_ends: whether the ends are parameters, ordered by construction: λ_max = low +
            softplus(high − low), which is `high` itself unless they come close. Only the whole
            bound, `elbo`, gives them a gradient: the diffusion term alone would shrink the range
            without limit.
        follow_variance: whether the shape's gradient is that of the variance; if not, it is the
            loss's own, in continuous time mere noise. On a chain (`steps=T`) the bound depends on
            the shape, which always follows it there.

    >>> class Power(Learned):
    ...     def __init__(self):
    ...         super().__init__(10.0, -10.0, learn_ends=False)
    ...         self.log_power = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    ...     def rise(self, t):
    ...         power = self.log_power.exp()
    ...         return t**power, power * t ** (power - 1), torch.ones_like(power)
    >>> Power().check()(torch.tensor(0.25))
    tensor(5., grad_fn=<ToCopyBackward0>)
    """

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
        super().__init__(logsnr_max, logsnr_min)
        self.learn_ends, self.follow_variance = learn_ends, follow_variance
        if learn_ends:
            high, low = self._ends
            self.low = nn.Parameter(torch.tensor(low, dtype=torch.float64))
            start = high + math.log(-math.expm1(low - high))
            self.high = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        if self.learns_shape:
            self.register_buffer(
                "mean_loss", torch.zeros((), dtype=torch.float64)
            )  # m; 0 while it is unknown
            # Σ ℓ and their number since the last update
            self.register_local("seen", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.learn_ends:
            high, low = self._ends
            self.low.fill_(low)
            self.high.fill_(high + math.log(-math.expm1(low - high)))
        if self.learns_shape:
            self.mean_loss.zero_()
            self.seen.zero_()

    def ends_in(self, state: dict[str, Any], prefix: str) -> Tensor | None:
        if prefix + "low" not in state or prefix + "high" not in state:
            return super().ends_in(state, prefix)
        low, high = state[prefix + "low"], state[prefix + "high"]
        return torch.stack([low + F.softplus(high - low), low])

    def ends_with(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        if self.learn_ends and prefix + "low" in state:
            return None
        return self.logsnr_max, self.logsnr_min

    def rise(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(v, v', v(1)) with v(0) = 0 and v' ≥ 0: the shape before it is normalised. Float64,
        differentiable in the parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define rise(t)")

    def shape(
        self, t: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """(u, u') at t: the share of the range that lies behind, and its rate.

        >>> from vdiff.schedule import LearnedLinear
        >>> LearnedLinear().shape(torch.tensor(0.5))
        (tensor(0.5000, dtype=torch.float64), tensor(1., dtype=torch.float64))
        """
        t64 = to_float64(t)
        v, slope, whole = self.rise(t64)
        u = torch.lerp(v / whole, t64, FLOOR)
        u = torch.where(
            (t64 > 0) & (t64 < 1), u, t64
        )  # exactly 0 and 1 at the ends, however v is rounded
        return u, slope * ((1 - FLOOR) / whole) + FLOOR

    @property
    def learns_ends(self) -> bool:
        return self.learn_ends

    @property
    def learns_shape(self) -> bool:
        return True

    def ends(self, pin: bool = True) -> tuple[Tensor | float, Tensor | float]:
        if not self.learn_ends:
            return self._ends
        low, high = (self.low.detach(), self.high.detach()) if pin else (self.low, self.high)
        return low + F.softplus(high - low), low

    def logsnr_at(self, t: Tensor) -> Tensor:
        high, low = self.ends()
        return high - (high - low) * self.shape(t)[0]

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - low) * self.shape(t)[1]

    @validated
    def at(self, t: Tensor, steps: Steps | None = None, *, pin: bool = True) -> NoiseLevels:
        t, graph = to_float64(t), torch.is_grad_enabled()
        high, low = self.ends(pin)
        distance, learn = high - low, unchanged
        if steps is not None:
            u, before = self.shape(torch.stack([t, (t - 1 / steps).clamp(min=0.0)]))[0]
            delta = distance * (u - before)
            levels = NoiseLevels(high - distance * u, steps * torch.expm1(delta), delta)
        else:
            u, slope = self.shape(t)
            if self.learns_shape and self.follow_variance and graph:
                u, slope, carrier = _Route.apply(u, slope)  # type: ignore[no-untyped-call]
                learn = partial(self._weigh, carrier, distance)
            levels = NoiseLevels(high - distance * u, distance * slope)
        if pin and self.learn_ends and graph:
            learn = partial(self._touch_ends, learn)
        return levels._replace(learn=learn)

    @torch.no_grad()
    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Take the losses since the last call into the running mean m of the shape's gradient."""
        self._unread = 0
        if self.learns_shape:
            total, count = self.seen if all_reduce is None else all_reduce(self.seen)
            mean = total / count  # of no losses, NaN
            mean = torch.where(mean.isfinite(), mean, self.mean_loss)
            self.mean_loss.copy_(
                torch.where(self.mean_loss > 0, torch.lerp(mean, self.mean_loss, MEMORY), mean)
            )
            self.seen.zero_()

    def _touch_ends(self, learn: Learn, loss: Tensor, dims: int) -> Tensor:
        """The loss of pinned ends for DDP, which waits for every parameter and takes no gradient
        for zero.
        """
        loss = learn(loss, dims)
        if not loss.requires_grad:
            return loss
        zero: Tensor = _Nothing.apply(self.low, self.high)  # type: ignore[no-untyped-call]
        return loss + zero

    def _weigh(self, carrier: Tensor, distance: Tensor | float, loss: Tensor, dims: int) -> Tensor:
        value = to_float64(loss.detach())
        if self.training and not under_functorch(value):
            self._count_loss()
            self.seen[0].add_(value.sum())
            self.seen[1].add_(len(value))
        width = distance.detach() if isinstance(distance, Tensor) else distance
        # the bound of a model that predicts nothing is the scale of ℓ until m is known
        mean = torch.where(self.mean_loss > 0, self.mean_loss, 0.5 * dims * width)
        weighed: Tensor = _Weigh.apply(loss, carrier, 2 * (value - self.mean_loss) / mean)  # type: ignore[no-untyped-call]
        return weighed

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learn_ends=True" if self.learn_ends else "")


class LearnedLinear(Learned):
    """The linear schedule with its end points as parameters, ordered by construction.

    Only the whole bound trains them (`elbo`): from the diffusion term alone they would close in on
    each other, so `weighted_elbo` passes them no gradient. They are float64 and belong
    outside weight decay (`vdiff.groups.parameter_groups` sees to it).

    >>> schedule = LearnedLinear(13.3, -5.0)
    >>> schedule(torch.tensor([0.0, 1.0]))
    tensor([13.3000, -5.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min)

    @property
    def learns_shape(self) -> bool:
        return False

    def shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t64 = to_float64(t)
        return t64, torch.ones_like(t64)

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - logsnr) / (high - low)

    def extra_repr(self) -> str:
        return Schedule.extra_repr(self)


class _Route(torch.autograd.Function):
    """(u, u') as they are, and a carrier; backwards, their gradients are multiplied by the
    carrier's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return u.view_as(u), slope.view_as(slope), torch.zeros_like(u)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, to_u, to_slope, weight):  # type: ignore[no-untyped-def]
        return to_u * weight, to_slope * weight


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


class _Nothing(torch.autograd.Function):
    """Zero; backwards, parameters are reached and get no gradient, so that no optimizer moves
    them.
    """

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


__all__ = ["Learned", "LearnedLinear"]
