"""A schedule from another one, shifted, and a schedule from a function."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import PURE_NOISE, at_least_float32, to_float64
from vdiff._validate import Count, Finite, Positive, require, validated
from vdiff.schedule._check import returned
from vdiff.schedule._parts import ShiftOf, SizeOf
from vdiff.schedule.base import Schedule


class Shifted(Schedule):
    """Another schedule with `shift` added to every λ: a number, or one for each example, (batch,).
    Multiplying the data by b shifts λ by 2 log b. `resolution_shift` and `sequence_shift` are the
    published shifts by the size of an image.

    With one shift for each example, times and λ are those of the same batch, (batch,) or fields,
    and `ends_of` has the ends of each example.

    >>> from vdiff.schedule import Cosine
    >>> Shifted(Cosine(), -2.0)(torch.tensor(0.5))
    tensor(-2.)
    >>> sizes = torch.tensor([64 * 64, 128 * 128])
    >>> Shifted(Cosine(), resolution_shift(sizes, 64 * 64)).at(torch.tensor([0.5, 0.5])).logsnr
    tensor([ 0.0000, -1.3863], dtype=torch.float64)
    """

    shift: float | Tensor

    @validated
    def __init__(self, schedule: Schedule, shift: ShiftOf) -> None:
        fixed = not (schedule.learns_ends or schedule.learns_shape)
        hint = "what is learned needs no shift"
        require(fixed, "schedule", "have fixed ends and shape", repr(schedule), hint)
        hint = "shift the schedules that it is made of"
        require(schedule.shared, "schedule", "have one λ for all dimensions", schedule, hint)
        most = shift.max().item() if isinstance(shift, Tensor) else shift
        least = shift.min().item() if isinstance(shift, Tensor) else shift
        super().__init__(schedule.logsnr_max + most, max(schedule.logsnr_min, PURE_NOISE) + least)
        self.schedule, self._outer = schedule, (most, least)
        if isinstance(shift, Tensor):
            self.register_constructed("shift", shift, persistent=False)
        else:
            self.shift = shift

    @property
    def shared(self) -> bool:
        return not isinstance(self.shift, Tensor)

    def ends(self, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        (high, low), (most, least) = self.schedule.ends(), self._outer
        return high + most, low + least

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        high, low = self.schedule.ends_of(ndim)
        return high + self.shift, low + self.shift

    def ends_to_save(self) -> tuple[float, float] | None:
        return None if isinstance(self.shift, Tensor) else (self.logsnr_max, self.logsnr_min)

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        inner = self.schedule
        loaded = inner.expected_ends(state, prefix + "schedule.")
        high, low = loaded or (inner.logsnr_max, inner.logsnr_min)
        most, least = self._outer
        return high + most, low + least

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.schedule.logsnr_at(t) + self._shift_of(t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self.schedule.rate_at(t, logsnr - self._shift_of(t))

    def time_at(self, logsnr: Tensor) -> Tensor:
        return self.schedule.time_at(logsnr - self._shift_of(logsnr))

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.schedule.density_at(logsnr - self._shift_of(logsnr))

    def _shift_of(self, v: Tensor) -> Tensor | float:
        """The shift, as it broadcasts over times or λ of the batch."""
        if not isinstance(self.shift, Tensor):
            return self.shift
        size = len(self.shift)
        fits = v.ndim > 0 and len(v) == size
        require(fits, "t", f"be of the batch of {size} shifts", f"shape {tuple(v.shape)}")
        return self.shift.view(-1, *[1] * (v.ndim - 1))

    def _step_at(self, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.shift, Tensor):
            return super()._step_at(t, steps)
        logsnr = self.logsnr_at(t)
        return logsnr, self.logsnr_at((t - 1 / steps).clamp(min=0.0)) - logsnr

    def _between(self) -> str:
        shift = " plus the shift of each example" if isinstance(self.shift, Tensor) else ""
        return self.schedule._between() + shift if shift else super()._between()

    def _inside(self, logsnr: Tensor) -> Tensor:
        return self.schedule._inside(logsnr - self._shift_of(logsnr))

    def mean_logsnr(self, t: Tensor) -> Tensor:
        if not isinstance(self.shift, Tensor):
            return super().mean_logsnr(t)
        return self.schedule.mean_logsnr(t) + self.shift.mean().to(at_least_float32(t.dtype))

    @validated
    def check(self, points: Count = 10_001) -> "Shifted":
        """Verify the schedule as any; with a shift for each example, the one that is shifted."""
        if not isinstance(self.shift, Tensor):
            return super().check(points)
        self._least_rate = self.schedule.check(points)._least_rate
        return self

    @torch.no_grad()
    def _repr_html_(self) -> str:
        one = isinstance(self.shift, Tensor)
        return self.schedule._repr_html_() if one else super()._repr_html_()

    def extra_repr(self) -> str:
        many = isinstance(self.shift, Tensor) and len(self.shift) > 3
        shown = f"{len(self.shift)} shifts" if many else f"shift={self.shift}"  # type: ignore[arg-type]
        return f"{self.schedule!r}, {shown}"


@validated
def resolution_shift(size: SizeOf, reference: Positive) -> float | Tensor:
    """The `shift` for images of another size than the schedule is for, −log(size/reference).

    `size` and `reference` count pixels, or tokens: h·w of an image. `size` is a number, or a
    tensor (batch,) for `Shifted` with one for each example. Averaging k pixels divides the noise's
    variance by k, so a larger image gets more noise at each t (simple diffusion, Hoogeboom et al.,
    arXiv:2301.11093). SD3's timestep shift (Esser et al., arXiv:2403.03206),
    t′ = s t/(1 + (s − 1) t) with s = √(size/reference), is this one: there λ = 2 log((1 − t)/t),
    and (1 − t′)/t′ = (1 − t)/(s t), which is λ − 2 log s.

    >>> resolution_shift(1024 * 1024, 512 * 512)
    -1.3862943611198906
    """
    if isinstance(size, Tensor):
        return -(to_float64(size) / reference).log()
    return -math.log(size / reference)


def short_before_long(short: float, long: float) -> None:
    """Rule: `long` is more than `short`."""
    require(short < long, "long", f"be more than short = {short:g}", f"{long:g}")


@validated(rules=[short_before_long])
def sequence_shift(
    tokens: SizeOf,
    *,
    short: Positive = 256.0,
    long: Positive = 4096.0,
    low: Finite = 0.5,
    high: Finite = 1.15,
) -> float | Tensor:
    """The `shift` of Flux for an image of so many tokens, a number or a tensor (batch,): −2 μ,
    where μ is linear in the number, `low` for `short` sequences and `high` for `long` ones. Flux
    maps t to e^μ/(e^μ + 1/t − 1), which multiplies t/(1 − t) by e^μ.

    >>> sequence_shift(4096)
    -2.3
    """
    size = to_float64(tokens) if isinstance(tokens, Tensor) else tokens
    return -2 * (low + (high - low) * (size - short) / (long - short))


class Custom(Schedule):
    """A schedule from a function t ↦ λ, checked at construction.

    Without a formula for the `rate`, each call differentiates the function, which costs several
    times more. For a schedule that is used often, subclass `Schedule`.

    >>> Custom(lambda t: 10 - 5 * t - 10 * t**2).rate(torch.tensor(1.0))
    tensor(25.)
    """

    @validated
    def __init__(
        self, logsnr: Callable[[Tensor], Tensor], rate: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
        first, last = returned(logsnr(t), t, "logsnr").tolist()
        came = f"λ = {first:g} at t = 0 and λ = {last:g} at t = 1"
        hint = "stop short of λ = ±∞, for instance with logsnr(1e-3 + 0.998 * t)"
        if math.isfinite(first) and math.isfinite(last):
            hint = "γ = −λ rises: pass −γ" if last > first else ""
        falls = "be finite, and fall from data (t = 0) to noise (t = 1)"
        require(math.inf > first > last > -math.inf, "logsnr", falls, came, hint)
        super().__init__(first, last)
        self._logsnr, self._rate = logsnr, rate
        self.check_once()

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._logsnr(t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        if self._rate is not None:
            return self._rate(t)
        # λ is elementwise in t; jvp would load deprecated torch.jit
        logsnr, pull_back, *_ = torch.func.vjp(self._logsnr, t)
        derivative: Tensor = pull_back(torch.ones_like(logsnr))[0]
        return -derivative
