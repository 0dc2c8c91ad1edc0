"""A noise schedule: t ↦ λ, the quantile function of a distribution over log-SNR."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import check_positive_int, checking, must
from vdiff.gaussian import at_least_float32, wide

BISECTIONS = 64
EDGE = 1e-6  # how far beyond an end, relative to the range, a rounded float32 λ may lie and still count as inside


class Schedule(nn.Module):
    """t ∈ [0, 1] ↦ λ, from λ_max at t = 0 (data) down to λ_min at t = 1 (noise).

    Two methods make a schedule, written in float64 without a care for shapes or dtypes:

        logsnr_at(t)           λ(t), strictly decreasing
        rate_at(t, logsnr)     −dλ/dt > 0, at the same t and λ

    and, where they have closed forms, `time_at(logsnr)` (else by bisection) and `density_at(logsnr)` (else one over
    the rate). The public methods compute in float64 on the (batch,) vector and round once to the dtype they were given.
    End points are finite: λ = ±∞ has no bound and no rate.

    A schedule moves only the variance of a loss: E[L] depends on the end points alone (VDM, arXiv:2107.00630, sec. 5.1).

    >>> class Quadratic(Schedule):
    ...     def logsnr_at(self, t): return 10 - 5 * (t + t**2)
    ...     def rate_at(self, t, logsnr): return 5 * (1 + 2 * t)
    >>> schedule = Quadratic(logsnr_max=10.0, logsnr_min=0.0).check()
    >>> schedule(torch.tensor([0.0, 0.5, 1.0]))
    tensor([10.0000,  6.2500,  0.0000])
    """

    def __init__(self, logsnr_max: float, logsnr_min: float) -> None:
        super().__init__()
        check_ends(type(self).__name__, logsnr_max, logsnr_min)
        self._ends = (float(logsnr_max), float(logsnr_min))

    @property
    def logsnr_max(self) -> float:
        """λ at t = 0, the data end."""
        return float(self.ends()[0])

    @property
    def logsnr_min(self) -> float:
        """λ at t = 1, the noise end."""
        return float(self.ends()[1])

    def logsnr_at(self, t: Tensor) -> Tensor:
        """λ(t) in the dtype of t."""
        raise NotImplementedError(f"{type(self).__name__} must define logsnr_at(t)")

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        """−dλ/dt at t, where λ(t) = logsnr."""
        raise NotImplementedError(f"{type(self).__name__} must define rate_at(t, logsnr)")

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

    def ends(self, pin: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """(λ_max, λ_min); numbers where they are fixed, tensors where they are learned, without gradient if pinned."""
        return self._ends

    @property
    def learns_ends(self) -> bool:
        """Whether λ_max and λ_min are parameters."""
        return False

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """λ(t), in the dtype of t (float32 where t is narrower).

        >>> from vdiff import Cosine
        >>> Cosine()(torch.tensor(0.5))
        tensor(0.)
        """
        return self.logsnr_at(wide(t)).to(at_least_float32(t.dtype))

    def rate(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """−dλ/dt at t: positive.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).rate(torch.tensor(0.5))
        tensor(18.3000)
        """
        t64 = wide(t)
        return self.rate_at(t64, self.logsnr_at(t64)).to(at_least_float32(t.dtype))

    def inverse(self, logsnr: Float[Tensor, "*shape"], *, clamp: bool = False) -> Float[Tensor, "*shape"]:
        """The time at which the schedule passes λ.

        Raises ValueError where λ lies beyond the ends, unless `clamp`, which returns 0 or 1 there.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).inverse(torch.tensor(4.15))
        tensor(0.5000)
        """
        wide_logsnr = wide(logsnr)
        if not clamp and checking() and not self._inside(wide_logsnr).all():
            low, high = logsnr.min().item(), logsnr.max().item()
            came = f"values from {low:g} to {high:g}"
            raise ValueError(must(f"{type(self).__name__}.inverse", "logsnr", f"lie within the ends [{self.logsnr_min:g}, {self.logsnr_max:g}]", came, "clamp=True returns the nearest end"))
        return self.time_at(wide_logsnr).clamp(0.0, 1.0).to(at_least_float32(logsnr.dtype))

    def density(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """p(λ) = −dt/dλ, normalised over [λ_min, λ_max] and zero outside.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).density(torch.tensor([0.0, 20.0]))
        tensor([0.0546, 0.0000])
        """
        wide_logsnr = wide(logsnr)
        inside = torch.where(self._inside(wide_logsnr), self.density_at(wide_logsnr), 0.0)
        return inside.to(at_least_float32(logsnr.dtype))

    def delta(self, t: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "*shape"]:
        """λ_s − λ_t over the step that ends at t, s = t − 1/T, in float64.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).delta(torch.tensor(1.0), steps=10)
        tensor(1.8300, dtype=torch.float64)
        """
        t64 = wide(t)
        return self.logsnr_at((t64 - 1 / steps).clamp(min=0.0)) - self.logsnr_at(t64)

    def levels(self, t: Float[Tensor, " batch"], steps: int | None = None, *, pin: bool = True) -> tuple[Tensor, Tensor]:
        """λ_t and the measure of a uniform draw of t: −dλ/dt, or T·expm1(λ_s − λ_t) on a chain; in float64.

        With `pin`, learned end points get no gradient from either.
        """
        t64 = wide(t)
        logsnr = self.logsnr_at(t64)
        if checking() and (not isinstance(logsnr, Tensor) or logsnr.shape != t.shape or logsnr.dtype != t64.dtype or logsnr.device != t.device):
            came = f"{tuple(logsnr.shape)}, {logsnr.dtype}, {logsnr.device}" if isinstance(logsnr, Tensor) else type(logsnr).__name__
            raise ValueError(must(f"{type(self).__name__}.logsnr_at", "return value", f"have the shape, dtype and device of t: {tuple(t.shape)}, {t64.dtype}, {t.device}", came))
        if steps is None:
            return logsnr, self.rate_at(t64, logsnr)
        return logsnr, steps * torch.expm1(self.delta(t64, steps))

    def check(self, points: int = 10_001) -> Self:
        """Verify on a dense float64 grid that λ is finite, strictly decreasing, ends where it says, and that `rate_at`
        is its derivative. Returns self; raises ValueError at the first t that fails.

        >>> from vdiff import Cosine
        >>> Cosine().check()
        Cosine(logsnr_max=15.0, logsnr_min=-15.0)
        """
        name = type(self).__name__
        with torch.no_grad():
            t = torch.linspace(0, 1, points, dtype=torch.float64)
            logsnr = self.logsnr_at(t)
            rate = self.rate_at(t, logsnr)
            drop = logsnr[:-1] - logsnr[1:]
            ends = torch.tensor([self.logsnr_max, self.logsnr_min], dtype=torch.float64)
        _fail_at(name, "have finite logsnr_at(t)", ~torch.isfinite(logsnr), t, logsnr)
        _fail_at(name, "be strictly decreasing in t (λ falls from data to noise)", drop <= 0, t, logsnr, "γ = −λ rises: hand over −γ")
        _fail_at(name, "have rate_at(t, logsnr) = −dλ/dt > 0", ~(rate > 0), t, rate)
        if not torch.allclose(logsnr[[0, -1]], ends, rtol=1e-6, atol=1e-6):
            came = f"λ(0) = {logsnr[0]:g}, λ(1) = {logsnr[-1]:g}"
            raise ValueError(must(name, "logsnr_at", f"run from logsnr_max = {ends[0]:g} to logsnr_min = {ends[1]:g}", came))
        area = 0.5 * (rate[:-1] + rate[1:]) * (t[1] - t[0])
        width = (t[1] - t[0]) * (rate[:-1] - rate[1:]).abs()  # how far a monotone rate leaves the trapezoid undecided
        _fail_at(name, "have rate_at equal to the derivative of −logsnr_at", (area - drop).abs() > width + 1e-6 * drop.abs() + 1e-9, t, rate)
        return self

    def _inside(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (logsnr - 0.5 * (high + low)).abs() <= 0.5 * (1 + EDGE) * (high - low)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move between devices; never to half precision, which λ does not survive."""

        def keep_dtype(v: Tensor) -> Tensor:
            moved = fn(v)
            return moved if moved.dtype == v.dtype else v.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        return f"logsnr_max={self.logsnr_max}, logsnr_min={self.logsnr_min}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Shifted(Schedule):
    """Another schedule with every λ moved by `shift`: data multiplied by b shifts λ by 2 log b.

    A resolution shift (simple diffusion, SD3) is this with a negative shift.

    >>> from vdiff import Cosine
    >>> Shifted(Cosine(), -2.0)(torch.tensor(0.5))
    tensor(-2.)
    """

    def __init__(self, schedule: Schedule, shift: float) -> None:
        if schedule.learns_ends:
            raise ValueError(must("Shifted", "schedule", "have fixed ends", repr(schedule), "learned ends need no shift"))
        super().__init__(schedule.logsnr_max + shift, schedule.logsnr_min + shift)
        self.schedule, self.shift = schedule, float(shift)

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.schedule.logsnr_at(t) + self.shift

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self.schedule.rate_at(t, logsnr - self.shift)

    def time_at(self, logsnr: Tensor) -> Tensor:
        return self.schedule.time_at(logsnr - self.shift)

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.schedule.density_at(logsnr - self.shift)

    def extra_repr(self) -> str:
        return f"{self.schedule!r}, shift={self.shift}"


class Custom(Schedule):
    """A schedule from a function t ↦ λ of one's own, checked at construction.

    Without `rate`, the derivative is taken by forward-mode differentiation at each call; a formula is several times
    cheaper. A schedule used often is a subclass of `Schedule` with two methods.

    >>> Custom(lambda t: 10 - 15 * t.sqrt() * t).rate(torch.tensor(1.0))
    tensor(22.5000)
    """

    def __init__(self, logsnr: Callable[[Tensor], Tensor], rate: Callable[[Tensor], Tensor] | None = None) -> None:
        first, last = (logsnr(torch.tensor([t], dtype=torch.float64)).item() for t in (0.0, 1.0))
        super().__init__(first, last)
        self._logsnr, self._rate = logsnr, rate
        self.check()

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._logsnr(t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        if self._rate is not None:
            return self._rate(t)
        derivative: Any = torch.func.jvp(self._logsnr, (t,), (torch.ones_like(t),))[1]
        return -derivative


def check_ends(name: str, logsnr_max: float, logsnr_min: float) -> None:
    """Raise unless λ_max > λ_min and both are finite."""
    for argument, value in (("logsnr_max", logsnr_max), ("logsnr_min", logsnr_min)):
        if not math.isfinite(value):
            hint = "λ = −∞ is zero terminal SNR: the bound's prior term needs some signal left, so stop at about −15"
            raise ValueError(must(name, argument, "be finite", value, hint))
    if not logsnr_min < logsnr_max:
        gamma = logsnr_max < 0 < logsnr_min
        hint = f"these look like γ = −λ: logsnr_max={-logsnr_max:g}, logsnr_min={-logsnr_min:g}" if gamma else "t = 0 is data, with the larger λ"
        raise ValueError(must(name, "logsnr_max", f"be greater than logsnr_min = {logsnr_min:g}", f"{logsnr_max:g}", hint))


def _fail_at(name: str, requirement: str, bad: Tensor, t: Tensor, value: Tensor, hint: str = "") -> None:
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(must(name, "schedule", requirement, f"{value[i]:g} at t = {t[i]:g}" + (f" and {value[i + 1]:g} at t = {t[i + 1]:g}" if i + 1 < len(t) else ""), hint))
