"""A law over log-SNR, and the schedule that it becomes when it is cut off at two ends."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vdiff._validate import require, validated
from vdiff.schedule.base import Schedule


class Law(ABC):
    """A distribution over λ: `icdf(t)` is λ at the time t ∈ (0, 1) of its paper, P(Λ > λ(t)) = t.

    A subclass writes four formulas: `icdf_at(t, rest)`, where `rest` is 1 − t with all its digits,
    `sf`, `cdf` and `density`.

    >>> from vdiff.schedule import OptimalTransport
    >>> law = OptimalTransport().law
    >>> law, law.cdf(law.icdf(torch.tensor(0.25)))
    (Logistic(mean=0.0, scale=2.0), tensor(0.7500))
    """

    def icdf(self, t: Tensor) -> Tensor:
        """λ at time t."""
        return self.icdf_at(t, 1.0 - t)

    @abstractmethod
    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        """λ at time t, with rest = 1 − t."""

    @abstractmethod
    def sf(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ) = t."""

    @abstractmethod
    def cdf(self, logsnr: Tensor) -> Tensor:
        """P(Λ ≤ λ) = 1 − t."""

    @abstractmethod
    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ."""

    def __repr__(self) -> str:
        values = (f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(values)})"


def ends_or(
    high: float, low: float, logsnr_max: float | None, logsnr_min: float | None
) -> tuple[float, float]:
    """The ends that were given; `high` and `low` where they were not."""
    return high if logsnr_max is None else logsnr_max, low if logsnr_min is None else logsnr_min


class Truncated(Schedule):
    """A law over λ restricted to [λ_min, λ_max]: uniform in the law's own time between the ends.

    λ(t) = Q(t₀ + (t₁ − t₀) t) with t₀ = P(Λ > λ_max), t₁ = P(Λ > λ_min); p(λ) = p_law(λ)/(t₁ −
    t₀). `law` is the law itself, on the whole line.

    >>> from vdiff.schedule.law import Logistic
    >>> Truncated(Logistic(mean=1.0), 10.0, -10.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 10.0000,   0.9723, -10.0000])
    """

    @validated
    def __init__(self, law: Law, logsnr_max: float, logsnr_min: float) -> None:
        super().__init__(logsnr_max, logsnr_min)
        self.law = law
        ends = torch.tensor(self._ends, dtype=torch.float64, device="cpu")
        self._before = law.sf(ends)[0].item()  # mass above λ_max
        self._after = law.cdf(ends)[1].item()  # mass below λ_min
        self._mass = 1.0 - self._before - self._after
        reached = self.logsnr_at(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"))
        close = torch.isclose(reached, ends, rtol=1e-9, atol=1e-6)
        inside = bool(close.all()) and self._after >= -1e-9
        argument = "logsnr_min" if close[0] else "logsnr_max"
        came = f"[{ends[1]:g}, {ends[0]:g}], of which it reaches [{reached[1]:g}, {reached[0]:g}]"
        hint = "the end is too far out: no time is ever spent there"
        require(inside, argument, f"lie where {law!r} has mass in float64", came, hint)

    def logsnr_at(self, t: Tensor) -> Tensor:
        within = affine(self._before, self._mass, t)
        return self.law.icdf_at(within, affine(self._after, self._mass, 1.0 - t))

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._mass / self.law.density(logsnr)

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (self.law.sf(logsnr) - self._before) / self._mass

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.law.density(logsnr) / self._mass


def affine(a: float, b: float, t: Tensor) -> Tensor:
    """a + b t, in one operation."""
    return torch.rsub(t, a, alpha=-b)
