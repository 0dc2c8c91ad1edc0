"""A law over log-SNR, and the schedule that it becomes when it is cut off at two ends."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vdiff._validate import require, validated
from vdiff.schedule.base import Schedule


class Law(ABC):
    """A distribution over λ: `quantile(t)` is λ at original time t ∈ (0, 1); P(Λ > λ(t)) = t.

    `rest` is 1 − t where it is known more accurately than by subtraction.

    >>> from vdiff.schedule import OptimalTransport
    >>> law = OptimalTransport().law                         # of the schedule before it is cut off
    >>> law, law.cdf(law.icdf(torch.tensor(0.25)))
    (Logistic(mean=0.0, scale=2.0), tensor(0.7500))
    """

    @abstractmethod
    def icdf(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        """λ at original time t."""

    @abstractmethod
    def sf(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ): the original time."""

    def cdf(self, logsnr: Tensor) -> Tensor:
        """P(Λ ≤ λ), one minus the original time."""
        return 1.0 - self.sf(logsnr)

    @abstractmethod
    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ."""

    def __repr__(self) -> str:
        values = (f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(values)})"


class Truncated(Schedule):
    """A law over λ restricted to [λ_min, λ_max]: uniform in the law's own time between the ends.

    λ(t) = Q(t₀ + (t₁ − t₀) t) with t₀ = P(Λ > λ_max), t₁ = P(Λ > λ_min); p(λ) = p_law(λ)/(t₁ −
    t₀). `law` is the law itself, with its `quantile` and `density` on the whole line.

    >>> from vdiff.schedule.law import Logistic
    >>> Truncated(Logistic(), 10.0, -10.0).law.icdf(torch.tensor(0.25))
    tensor(2.1972)
    """

    @validated
    def __init__(self, law: Law, logsnr_max: float, logsnr_min: float) -> None:
        super().__init__(logsnr_max, logsnr_min)
        self.law = law
        ends = torch.tensor(self._ends, dtype=torch.float64, device="cpu")
        self._before = law.sf(ends)[0].item()  # mass above λ_max
        self._after = law.cdf(ends)[1].item()  # mass below λ_min
        self._mass = 1.0 - self._before - self._after
        reached = ends * torch.nan
        if self._mass > 0:
            reached = self.logsnr_at(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"))
        close = torch.isclose(reached, ends, rtol=1e-9, atol=1e-6)
        came = f"[{ends[1]:g}, {ends[0]:g}], of which it reaches [{reached[1]:g}, {reached[0]:g}]"
        require(
            bool(close.all()) and self._after >= -1e-9,
            "logsnr_min" if close[0] else "logsnr_max",
            f"lie where {law!r} has mass in float64",
            came,
            "the end is too far out: no time is ever spent there",
        )

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.law.icdf(self._before + self._mass * t, self._after + self._mass * (1.0 - t))

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._mass / self.law.density(logsnr)

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (self.law.sf(logsnr) - self._before) / self._mass

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.law.density(logsnr) / self._mass


__all__ = ["Law", "Truncated"]
