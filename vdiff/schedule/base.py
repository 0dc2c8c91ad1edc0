"""A noise schedule: t ↦ λ, the quantile function of a distribution over log-SNR."""

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff import _html
from vdiff._inputs import CleanEnd, NoisyEnd, Steps, ordered_ends
from vdiff._modules import PreciseModule
from vdiff._precision import at_least_float32, to_float64
from vdiff._validate import Count, Given, require, unchecked, validated
from vdiff.errors import InvalidType, has_values, validation_enabled
from vdiff.schedule._check import check
from vdiff.schedule.noise_levels import AllReduce, NoiseLevels

BISECTIONS = 64
EDGE = 1e-5  # a float32 λ this far beyond an end counts as inside: it was rounded
UNREAD = 500  # losses without an update, after which a schedule that learns from them warns

AnySchedule = TypeVar("AnySchedule", bound="Schedule")


class Schedule(PreciseModule, ABC):
    """t ∈ [0, 1] ↦ λ, from λ_max at t = 0 (data) down to λ_min at t = 1 (noise).

    A subclass writes two methods, in float64 for any shape:

        logsnr_at(t)           λ(t), strictly decreasing
        rate_at(t, logsnr)     −dλ/dt > 0, at the same t and λ; at t = 0 and at t = 1 it may be 0

    and, where they have closed forms, `time_at(logsnr)` (else by bisection) and
    `density_at(logsnr)` (else one over the rate). The public methods compute in float64 and round
    once to the dtype of their argument. End points are finite, except the last level of a table:
    λ = ±∞ has no bound and no rate.

    With one λ for all dimensions, a schedule moves only the variance of a loss: E[L] depends on
    the end points alone (VDM, arXiv:2107.00630, sec. 5.1).

    >>> class Quadratic(Schedule):
    ...     def logsnr_at(self, t): return 10 - 5 * (t + t**2)
    ...     def rate_at(self, t, logsnr): return 5 * (1 + 2 * t)
    >>> schedule = Quadratic(logsnr_max=10.0, logsnr_min=0.0).check()
    >>> schedule(torch.tensor([0.0, 0.5, 1.0]))
    tensor([10.0000,  6.2500,  0.0000])
    """

    learns_ends: bool = False  # whether λ_max and λ_min are parameters
    learns_shape: bool = False  # whether training moves λ(t) between the ends
    over_dims: bool = False  # whether each dimension of x has its own λ(t)
    learns_by_density: bool = False  # whether the shape learns where z does not move with λ
    depends_on_data: bool = False  # whether `for_data` makes a schedule for each example
    latents_drawn: bool = False  # whether it is one that `for_data` has made, for its examples
    __example__ = "for instance Cosine(); schedule.Custom takes a function of t"

    @validated(rules=[ordered_ends])
    def __init__(self, logsnr_max: CleanEnd, logsnr_min: NoisyEnd) -> None:
        super().__init__()
        self._ends = logsnr_max, logsnr_min
        self._checked = False
        self._least_rate = 0.0  # what a loss takes for a rate of 0
        self._unread = 0  # losses since the last update

    @staticmethod
    def __validate__(schedule: "Schedule", argument: str, given: Given) -> "Schedule":
        """An initialised schedule that passes `check`."""
        if "_ends" not in vars(schedule):
            hint = "its __init__ must call super().__init__(logsnr_max, logsnr_min)"
            raise InvalidType(argument, "be initialised", type(schedule).__name__, hint)
        schedule.check_once()
        return schedule

    @property
    def logsnr_max(self) -> float:
        """λ at t = 0, the data end."""
        return float(self.ends()[0])

    @property
    def logsnr_min(self) -> float:
        """λ at t = 1, the noise end."""
        return float(self.ends()[1])

    @property
    def reaches_noise(self) -> bool:
        """Whether λ_min is −∞, as in a table; `logsnr_at` then returns −600 there."""
        return not self.learns_ends and self.logsnr_min == -math.inf

    @property
    def shared(self) -> bool:
        """Whether all examples and dimensions have the same λ at the same t."""
        return not self.over_dims

    @abstractmethod
    def logsnr_at(self, t: Tensor) -> Tensor:
        """λ(t) in the dtype of t."""

    @abstractmethod
    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        """−dλ/dt at t, where λ(t) = logsnr."""

    def time_at(self, logsnr: Tensor) -> Tensor:
        """t with λ(t) = logsnr, by bisection to float64 accuracy."""
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            noisier = self.logsnr_at(middle) < logsnr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return 0.5 * (low + high)

    def density_at(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ inside the ends."""
        return self.rate_at(self.time_at(logsnr), logsnr).reciprocal()

    def ends(self, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """(λ_max, λ_min): numbers where they are fixed, tensors where they are learned, detached
        from the graph with `detach`. Over dimensions, the largest and the smallest of all."""
        return self._ends

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """(λ_max, λ_min) of each dimension of an x with `ndim` dimensions: those of `ends`, or
        fields that broadcast over x."""
        return self.ends(detach)

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError unless λ broadcasts over x without another shape than x's."""

    def for_data(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple["Schedule", Tensor | float]:
        """The schedule for these examples, and what it adds to their bound, nats (batch,). Only a
        schedule that `depends_on_data` is another for other examples."""
        return self, 0.0

    @validated
    def at(
        self,
        t: Tensor,
        steps: Steps | None = None,
        *,
        detach_ends: bool = True,
        ndim: int | None = None,
    ) -> NoiseLevels:
        """The noise levels at times (batch,), in continuous time or on a chain of `steps` steps.
        With `detach_ends`, learned end points get no gradient. A schedule over dimensions needs
        `ndim`, the number of dimensions of x; times that are a field have as many.
        """
        t = self.spread(to_float64(t), ndim)
        if steps is None:
            logsnr = self.logsnr_at(t)
            rate = self.rate_at(t, logsnr)
            return NoiseLevels(
                logsnr, rate.clamp(min=self._least_rate) if self._least_rate else rate
            )
        logsnr, delta = self._step_at(t, steps)
        return NoiseLevels(logsnr, steps * torch.expm1(delta), delta)

    def at_fixed(
        self,
        t: Tensor,
        steps: int | None = None,
        *,
        detach_ends: bool = True,
        ndim: int | None = None,
    ) -> NoiseLevels:
        """`at`, for a z that does not move with λ, such as tokens. A learned shape then gets a
        gradient as an importance density, and λ and the rate have none."""
        return self.at(t, steps, detach_ends=detach_ends, ndim=ndim)

    def spread(self, t: Tensor, ndim: int | None) -> Tensor:
        """Times (batch,) as (batch, 1, …) where each dimension has its own λ(t)."""
        if not self.over_dims or t.ndim != 1:
            return t
        hint = "schedule.at(t, ndim=x.ndim)"
        require(ndim is not None, "ndim", "be given for a schedule over dimensions", None, hint)
        return t.view(-1, *[1] * ((ndim or 1) - 1))

    def _step_at(self, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """λ_t, and λ_s − λ_t over the step that ends at t."""
        logsnr, less_noisy = self.logsnr_at(torch.stack([t, (t - 1 / steps).clamp(min=0.0)]))
        return logsnr, less_noisy - logsnr

    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Learn from the losses since the last call. Call it once after each optimizer step.

        `all_reduce` sums a tensor of statistics over ranks (`vdiff.training.all_reduce`).
        """

    def _count_loss(self) -> None:
        """Warn once after many losses without an `update`."""
        self._unread += validation_enabled()
        if self._unread == UNREAD and validation_enabled():
            warnings.warn(
                f"{type(self).__name__} has learned from none of {UNREAD} losses: call update() "
                "of the schedule, or of the Objective, after each optimizer step",
                stacklevel=2,
            )

    @validated
    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """λ(t), in the dtype of t (float32 where t is narrower)."""
        t64 = to_float64(t)
        logsnr = self.logsnr_at(t64)
        if self.reaches_noise:
            logsnr = logsnr.masked_fill(t64 >= 1, -math.inf)
        return logsnr.to(at_least_float32(t.dtype))

    def mean_logsnr(self, t: Tensor) -> Tensor:
        """λ(t), or its mean over dimensions where each has its own: for reports by log-SNR."""
        logsnr: Tensor = self(t)
        return logsnr

    @validated
    def rate(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """−dλ/dt at t: positive."""
        t64 = to_float64(t)
        return self.rate_at(t64, self.logsnr_at(t64)).to(at_least_float32(t.dtype))

    @validated
    def inverse(
        self, logsnr: Float[Tensor, "*shape"], *, clamp: bool = False
    ) -> Float[Tensor, "*shape"]:
        """The t with λ(t) = logsnr. Beyond the ends it raises ValueError, or returns 0 or 1 with
        `clamp`.

        >>> from vdiff.schedule import Linear
        >>> Linear(13.3, -5.0).inverse(torch.tensor(4.15))
        tensor(0.5000)
        """
        level = to_float64(logsnr)
        if not clamp and validation_enabled() and has_values(logsnr):
            between = f"lie within the ends {self._between()}"
            came = f"values from {level.min():g} to {level.max():g}" if level.numel() else ""
            hint = "clamp=True returns the nearest end"
            require(bool(self._inside(level).all()), "logsnr", between, came, hint)
        return self.time_at(level).clamp(0.0, 1.0).to(at_least_float32(logsnr.dtype))

    @validated
    def density(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """p(λ) = −dt/dλ, normalised over [λ_min, λ_max] and zero outside. At an end where the rate
        is 0 it is infinite; this returns 10⁶/(λ_max − λ_min) there.

        >>> from vdiff.schedule import Linear
        >>> Linear(13.3, -5.0).density(torch.tensor([0.0, 20.0]))
        tensor([0.0546, 0.0000])
        """
        if validation_enabled():
            self.check_once()
        level = to_float64(logsnr)
        density = self.density_at(level)
        if self._least_rate:
            density = density.abs().clamp(max=1 / self._least_rate)  # a rate may be −0
        return (density * self._inside(level)).to(at_least_float32(logsnr.dtype))

    @validated
    def delta(self, t: Float[Tensor, "*shape"], steps: Steps) -> Float[Tensor, "*shape"]:
        """λ_s − λ_t over the step that ends at t, s = t − 1/T, in float64."""
        return self._step_at(to_float64(t), steps)[1]

    @validated
    def check(self: AnySchedule, points: Count = 10_001) -> AnySchedule:
        """Verify on a dense float64 grid that λ is finite and strictly decreasing between its two
        ends, that `rate_at` is its derivative, positive inside, and that `time_at` and
        `density_at`, where a class defines them, are the inverse and one over the rate. Returns
        self; raises ValueError at the first t that fails."""
        self._least_rate = check(self, points, base=Schedule)
        return self

    def times_to_check(self, points: int) -> Tensor:
        """The times at which `check` evaluates, from 0 to 1: even, and more where the rate changes
        over a short time."""
        return torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")

    def check_once(self) -> None:
        """`check`, the first time this schedule is used."""
        if not self._checked:
            unchecked(type(self).check)(self)
            self._checked = True

    def _between(self) -> str:
        return f"[{self.logsnr_min:g}, {self.logsnr_max:g}]"

    def _inside(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (logsnr <= high + EDGE) & (logsnr >= low - EDGE)

    def ends_to_save(self) -> tuple[float, float] | None:
        return None if self.learns_ends else self._ends

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._checked = False

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._checked = False

    def extra_repr(self) -> str:
        return f"logsnr_max={self.logsnr_max}, logsnr_min={self.logsnr_min}"

    @torch.no_grad()
    def _repr_html_(self) -> str:
        t = (torch.arange(_html.POINTS, dtype=torch.float64) + 0.5) / _html.POINTS
        logsnr = self(t)
        levels = _html.curve(t, logsnr, "λ(t), data to noise")
        density = _html.curve(logsnr.flip(0), self.density_at(logsnr).flip(0), "p(λ)")
        return _html.table([(repr(self), levels, density)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
