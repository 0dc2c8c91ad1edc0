"""A schedule from another one, shifted, and a schedule from a function."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import PURE_NOISE
from vdiff._validate import Finite, require, validated
from vdiff.schedule._check import returned
from vdiff.schedule.base import Schedule


class Shifted(Schedule):
    """Another schedule with `shift` added to every λ. Multiplying the data by b shifts λ by
    2 log b; a resolution shift (simple diffusion, SD3) is negative.

    >>> from vdiff.schedule import Cosine
    >>> Shifted(Cosine(), -2.0)(torch.tensor(0.5))
    tensor(-2.)
    """

    @validated
    def __init__(self, schedule: Schedule, shift: Finite) -> None:
        fixed = not (schedule.learns_ends or schedule.learns_shape)
        hint = "what is learned needs no shift"
        require(fixed, "schedule", "have fixed ends and shape", repr(schedule), hint)
        super().__init__(schedule.logsnr_max + shift, max(schedule.logsnr_min, PURE_NOISE) + shift)
        self.schedule, self.shift = schedule, shift

    def ends(self, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        high, low = self.schedule.ends()
        return high + self.shift, low + self.shift

    def ends_to_save(self) -> tuple[float, float]:
        return self.logsnr_max, self.logsnr_min

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        inner = self.schedule
        loaded = inner.expected_ends(state, prefix + "schedule.")
        high, low = loaded or (inner.logsnr_max, inner.logsnr_min)
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
