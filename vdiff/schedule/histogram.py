"""A density over λ that is constant within bins: given, or the optimum of a measured error."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vdiff._inputs import total
from vdiff._validate import Count, require, validated
from vdiff.profile import Profile
from vdiff.schedule._check import refuse
from vdiff.schedule.base import Schedule


class Histogram(Schedule):
    """p(λ) constant within bins of equal width: `mass[i]` of the time is spent in bin i, counted
    from λ_min upwards, so that λ(t) is piecewise linear. Masses are positive; they are normalised.

    >>> schedule = Histogram([1.0, 3.0], logsnr_max=1.0, logsnr_min=-1.0)
    >>> schedule(torch.tensor([0.0, 0.75, 1.0]))
    tensor([ 1.,  0., -1.])
    """

    mass: Tensor

    @validated
    def __init__(
        self, mass: Tensor | Sequence[float], logsnr_max: float = 15.0, logsnr_min: float = -15.0
    ) -> None:
        super().__init__(logsnr_max, logsnr_min)
        device = mass.device if isinstance(mass, Tensor) else "cpu"
        mass = torch.as_tensor(mass, dtype=torch.float64, device=device)
        vector, came = mass.ndim == 1 and len(mass) > 0, f"shape {tuple(mass.shape)}"
        require(vector, "mass", "be a vector, a number for each bin", came)
        bad = ~(mass.isfinite() & (mass > 0))
        hint = "a loss never sees such a bin: mix in a little of the uniform density"
        refuse(bad, "mass", "be finite and positive", mass, lambda i: f"bin {i}", hint)
        self.register_constructed("mass", mass / mass.sum())

    @classmethod
    @validated
    def proportional(
        cls,
        density: Callable[[Tensor], Tensor],
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
        *,
        bins: Count = 1000,
    ) -> "Histogram":
        """p ∝ a function of λ, evaluated at the middle of each bin. √E‖e‖⁴ gives a bound the least
        variance.

        >>> law = Histogram.proportional(lambda logsnr: torch.exp(-logsnr), 1.0, -1.0)
        >>> law.density(torch.tensor(0.0))
        tensor(0.4259)
        """
        middle = torch.linspace(0.5 / bins, 1 - 0.5 / bins, bins, dtype=torch.float64)
        logsnr = logsnr_min + (logsnr_max - logsnr_min) * middle
        return Histogram(density(logsnr), logsnr_max, logsnr_min)

    @classmethod
    @validated
    def optimal(
        cls, profile: Profile, weighting: Callable[[Tensor], Tensor] | None = None
    ) -> "Histogram":
        """The density of least variance for a loss with this profile of errors, p* ∝ w √E‖e‖⁴,
        with w = 1 by default.

        >>> profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
        >>> profile.update(torch.tensor([-0.5, 0.5]), torch.tensor([1.0, 3.0]))
        >>> Histogram.optimal(profile).mass
        tensor([0.2500, 0.7500], dtype=torch.float64)
        """
        importance = filled(profile.second_moment.sqrt())
        if weighting is not None:
            total(weighting, "weighting", {})
            importance = importance * weighting(profile.centers)
        return Histogram(importance, profile.logsnr_max, profile.logsnr_min)

    def logsnr_at(self, t: Tensor) -> Tensor:
        before = self._before()
        bin = torch.searchsorted(before, t.contiguous(), right=True) - 1
        bin = bin.clamp(0, len(self.mass) - 1)
        fraction = ((t - before[bin]) / self.mass.flip(0)[bin]).clamp(max=1.0)
        return self._ends[0] - self._width * (bin + fraction)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._width / self.mass.flip(0)[self._bin(logsnr)]

    def time_at(self, logsnr: Tensor) -> Tensor:
        bin = self._bin(logsnr)
        fraction = (self._ends[0] - logsnr) / self._width - bin
        return self._before()[bin] + self.mass.flip(0)[bin] * fraction

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.mass.flip(0)[self._bin(logsnr)] / self._width

    def times_to_check(self, points: int) -> Tensor:
        before, mass = self._before().cpu(), self.mass.flip(0).cpu()
        times = torch.cat([super().times_to_check(points), before, before + 0.5 * mass])
        times = times.clamp(0.0, 1.0).sort().values
        # drop times so close that λ is equal by rounding
        return times[times.diff(prepend=times.new_tensor([-1.0])) > 1e-12]

    @property
    def _width(self) -> float:
        return (self._ends[0] - self._ends[1]) / len(self.mass)

    def _bin(self, logsnr: Tensor) -> Tensor:
        """The index of the bin, counted from λ_max downwards as time is."""
        return ((self._ends[0] - logsnr) / self._width).long().clamp(0, len(self.mass) - 1)

    def _before(self) -> Tensor:
        """The time spent above each bin."""
        mass = self.mass.flip(0)
        return mass.cumsum(0) - mass


def filled(values: Tensor) -> Tensor:
    """A curve over bins whose empty bins, NaN, have the mean of the others."""
    return torch.where(values.isnan(), values.nanmean(), values)
