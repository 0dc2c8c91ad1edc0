"""Schedules made of other things: another schedule shifted, a function of one's own."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vdiff.errors import finite, must
from vdiff.gaussian import PURE
from vdiff.schedule.base import Schedule, check_returned, check_schedule


class Shifted(Schedule):
    """Another schedule with every λ moved by `shift`: data multiplied by b shifts λ by 2 log b.

    A resolution shift (simple diffusion, SD3) is this with a negative shift.

    >>> from vdiff import Cosine
    >>> Shifted(Cosine(), -2.0)(torch.tensor(0.5))
    tensor(-2.)
    """

    def __init__(self, schedule: Schedule, shift: float) -> None:
        check_schedule("Shifted", schedule)
        if schedule.learns_ends or schedule.learns_shape:
            raise ValueError(
                must(
                    "Shifted",
                    "schedule",
                    "have fixed ends and shape",
                    repr(schedule),
                    "what is learned needs no shift",
                )
            )
        shift = finite("Shifted", "shift", shift)
        super().__init__(schedule.logsnr_max + shift, max(schedule.logsnr_min, PURE) + shift)
        self.schedule, self.shift = schedule, shift

    def ends(self, pin: bool = True) -> tuple[Tensor | float, Tensor | float]:
        high, low = self.schedule.ends()
        return high + self.shift, low + self.shift

    def own_ends(self) -> tuple[float, float]:
        return self.logsnr_max, self.logsnr_min

    def ends_with(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        one = self.schedule
        loaded = one.ends_with(state, prefix + "schedule.")
        high, low = loaded or (one.logsnr_max, one.logsnr_min)
        return high + self.shift, low + self.shift

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

    Without `rate`, the derivative is taken by automatic differentiation at each call; a formula is
    several times cheaper. A schedule used often is a subclass of `Schedule` with two methods.

    >>> Custom(lambda t: 10 - 5 * t - 10 * t**2).rate(torch.tensor(1.0))
    tensor(25.)
    """

    def __init__(
        self, logsnr: Callable[[Tensor], Tensor], rate: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
        ends = logsnr(t)
        check_returned("Custom.logsnr", ends, t)
        first, last = ends.tolist()
        if not (math.isfinite(first) and math.isfinite(last)):
            hint = "a schedule has finite ends: stop short of λ = ±∞, for instance with logsnr(1e-3 + 0.998 * t)"
            raise ValueError(
                must(
                    "Custom",
                    "logsnr",
                    "be finite at both ends",
                    f"λ = {first:g} at t = 0 and λ = {last:g} at t = 1",
                    hint,
                )
            )
        if not first > last:
            hint = "γ = −λ rises: hand over −γ" if last > first else ""
            raise ValueError(
                must(
                    "Custom",
                    "logsnr",
                    "fall from data (t = 0) to noise (t = 1)",
                    f"λ = {first:g} at t = 0 and λ = {last:g} at t = 1",
                    hint,
                )
            )
        super().__init__(first, last)
        self._logsnr, self._rate = logsnr, rate
        self.check()

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._logsnr(t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        if self._rate is not None:
            return self._rate(t)
        logsnr, pull_back, *_ = torch.func.vjp(
            self._logsnr, t
        )  # λ is elementwise in t; jvp would load deprecated torch.jit
        derivative: Tensor = pull_back(torch.ones_like(logsnr))[0]
        return -derivative


__all__ = ["Custom", "Shifted"]
