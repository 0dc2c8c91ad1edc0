"""The variance of a loss by log-SNR, and the least variance of any schedule."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import require, validated
from vdiff.profile import Profile
from vdiff.schedule import Schedule
from vdiff.schedule.histogram import filled
from vdiff.weighting import WeightFunction

INSIDE = 8  # points of a bin at which the density is evaluated
ROUNDING = 1e-12  # a smaller variance, relative to the squared loss, is zero


@dataclass(frozen=True)
class Diagnosis:
    """The variance of one independent draw of ½ w ‖ε − ε̂‖²/p, by log-SNR.

        Var = ¼ ∫ w² E‖e‖⁴/p dλ − (½ ∫ w E‖e‖² dλ)²,   least for p* ∝ w √E‖e‖⁴

    Attributes:
        logsnr: the middle of each bin.
        density: of the schedule, p, by bin.
        best: p*, by bin.
        square: the bin's part of the first integral.
        loss: nats.
        variance, least: of a draw under p and p*, nats². Their ratio is how many times as many
            draws p takes for the same error.
        effective: the second moment under p* over that under p, the effective sample size of one
            draw. A second moment is the variance plus the squared loss: for a large loss the ratio
            is near 1.

    Kingma & Gao, arXiv:2303.00848, section on importance sampling.

    >>> from vdiff.schedule import Linear
    >>> profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
    >>> profile.update(torch.tensor([-0.5, 0.5]), torch.tensor([1.0, 3.0]))
    >>> print(diagnose(profile, Linear(1.0, -1.0)))
    log-SNR            p      best p    share of E ℓ²
         -0.50       0.500       0.250             10 %
          0.50       0.500       0.750             90 %
    variance of a draw 1, least 0
    second moment of a draw 5, least 4: 1.25 times
    """

    logsnr: Float[Tensor, " bins"]
    density: Float[Tensor, " bins"]
    best: Float[Tensor, " bins"]
    square: Float[Tensor, " bins"]
    loss: float
    variance: float
    least: float
    effective: float

    @property
    def share(self) -> Float[Tensor, " bins"]:
        """Each bin's share of the second moment."""
        return self.square / self.square.sum()

    def __str__(self) -> str:
        rows = [f"{'log-SNR':<10}{'p':>10}{'best p':>12}{'share of E ℓ²':>17}"]
        columns = self.logsnr, self.density, self.best, self.share
        for level, p, best, share in torch.stack(columns, 1).tolist():
            rows.append(f"{level:>10.2f}{p:>12.3f}{best:>12.3f}{100 * share:>15.0f} %")
        least = self.least if self.least > ROUNDING * self.loss**2 else 0.0
        variance = f"variance of a draw {self.variance:.4g}, least {least:.4g}"
        if least > 0:
            times = f"{self.variance / least:.3g} times"
            variance += f": {times}, and as many times the draws for the same error"
        second = self.variance + self.loss**2
        moment = f"second moment of a draw {second:.4g}, least {self.effective * second:.4g}"
        return "\n".join([*rows, variance, f"{moment}: {1 / self.effective:.3g} times"])


def same_ends(profile: Profile, schedule: Schedule) -> None:
    """Rule: the schedule and the profile have the same ends."""
    low, high = profile.logsnr_min, profile.logsnr_max
    ends = schedule.logsnr_min, schedule.logsnr_max
    same = all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(ends, (low, high), strict=True))
    between = f"run between the profile's ends, {low:g} and {high:g}"
    require(same, "schedule", between, f"{ends[0]:g} and {ends[1]:g}")


@validated(rules=[same_ends])
@torch.no_grad()
def diagnose(
    profile: Profile, schedule: Schedule, weighting: WeightFunction | None = None
) -> Diagnosis:
    """The variance of a loss under a schedule, by log-SNR, from a profile of its errors. The
    default weighting is w = 1.

    The profile may come from any schedule with the same ends, as `evaluate(…, profile=profile)`
    fills it.

    Raises:
        ValueError: if the ends of schedule and profile differ, and for a factor as weighting.

    >>> from vdiff.schedule import Cosine
    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=50)
    >>> profile.update(torch.linspace(-5, 5, 500), torch.ones(500))
    >>> diagnose(profile, Cosine(5.0, -5.0)).effective < 1
    True
    """
    low, high = profile.logsnr_min, profile.logsnr_max
    width = (high - low) / profile.bins
    middle = profile.centers
    inside = middle[:, None] + width * ((torch.arange(INSIDE).to(middle) + 0.5) / INSIDE - 0.5)
    rate = schedule.density(inside).reciprocal().mean(1)  # ∫ dλ/p over the bin, per width
    w = torch.ones_like(middle) if weighting is None else weighting(middle)
    first, root = w * filled(profile.mean), w * filled(profile.second_moment).sqrt()
    square = 0.25 * width * root.square() * rate
    loss, reach = 0.5 * width * first.sum(), width * root.sum()
    total, least = square.sum(), 0.25 * reach.square()
    return Diagnosis(
        logsnr=middle, density=rate.reciprocal(), best=root / reach, square=square,
        loss=loss.item(), variance=(total - loss.square()).item(),
        least=(least - loss.square()).item(), effective=(least / total).item(),
    )  # fmt: skip


__all__ = ["Diagnosis", "diagnose"]
