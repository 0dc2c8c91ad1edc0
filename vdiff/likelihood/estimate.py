"""A mean over images with its two errors, and the intervals they make."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import Number, require, validated

Confidence = Annotated[float, Number(above=0.0, below=1.0, hint="0.95 for 95 %")]
MANY = 200.0  # degrees of freedom from which Student's t is a normal with a small correction


@dataclass(frozen=True)
class Estimate:
    """A mean over images in bits/dim, with its two errors.

    `monte_carlo` is the standard error on the given images (what more draws would lessen);
    `images` that over images (what another test set would give), None for a single one. The spread
    over images already contains the Monte Carlo part: never add them. `freedom` is the number of
    degrees of freedom behind `monte_carlo`, None where it is exact; `count` the number of images.

    >>> print(Estimate(1.7966, 0.0012, 0.0131))
    1.7966 ± 0.0012 (Monte Carlo) ± 0.0131 (images)
    """

    value: float
    monte_carlo: float
    images: float | None
    freedom: float | None = None
    count: int | None = None

    @validated
    def interval(
        self, confidence: Confidence = 0.95, *, over_images: bool = False
    ) -> tuple[float, float]:
        """A confidence interval by Student's t: for the mean of the given images, or of the
        population they come from.

        >>> low, high = Estimate(1.0, 0.1, 0.2, freedom=3, count=50).interval()
        >>> round(low, 4), round(high, 4)
        (0.6818, 1.3182)
        """
        error, freedom = self.monte_carlo, self.freedom
        if over_images:
            one, hint = "be False for a single image", "it says nothing of others"
            require(self.images is not None, "over_images", one, True, hint)
            assert self.images is not None
            error, freedom = self.images, None if self.count is None else self.count - 1
        half = error * student_t(confidence, math.inf if freedom is None else freedom)
        return self.value - half, self.value + half

    def __str__(self) -> str:
        images = ", one image" if self.images is None else f" ± {self.images:.4f} (images)"
        return f"{self.value:.4f} ± {self.monte_carlo:.4f} (Monte Carlo){images}"


def difference(one: Estimate, other: Estimate, value: float, images: float | None) -> Estimate:
    """The difference of two estimates whose draws are independent and whose images are the same;
    its error over images is given.

    >>> print(difference(Estimate(1.0, 0.03, 0.2), Estimate(0.5, 0.04, 0.2), 0.5, 0.01))
    0.5000 ± 0.0500 (Monte Carlo) ± 0.0100 (images)
    """
    variances = [one.monte_carlo**2, other.monte_carlo**2]
    known = [(v, e.freedom) for v, e in zip(variances, (one, other), strict=True) if e.freedom]
    behind = sum(v**2 / freedom for v, freedom in known)
    freedom = sum(variances) ** 2 / behind if behind > 0 else None  # Satterthwaite's
    return Estimate(value, math.sqrt(sum(variances)), images, freedom, one.count)


def student_t(confidence: float, freedom: float) -> float:
    """The number of standard errors that hold a share `confidence` of Student's t, both sides
    together.

    With T = √ν tan θ the density of θ is ∝ cos^{ν−1} θ, which is summed on a grid.

    >>> round(student_t(0.95, 3), 4), round(student_t(0.95, 1e9), 4)
    (3.1824, 1.96)
    """
    if freedom >= MANY:
        z = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64)).item()
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    theta = torch.linspace(0, math.pi / 2, 200_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(theta.cos().clamp(min=0) ** (freedom - 1), theta)
    # theta[place + 1] is the first beyond it
    place = int(torch.searchsorted(mass, confidence * mass[-1]))
    low, high = (mass[place - 1], mass[place]) if place else (0 * mass[0], mass[0])
    at = torch.lerp(theta[place], theta[place + 1], (confidence * mass[-1] - low) / (high - low))
    return math.sqrt(freedom) * math.tan(at.item())


class Tally:
    """The running mean and spread of each image's replicates: (parts, images) in float64, by
    Welford's update.

    A row of parts is a part of the bound, the last their total. Images are independent of each
    other given the pilot, whatever joins the draws of one, so that everything here is clustered by
    image.

    >>> tally = Tally.empty(1, 2)
    >>> for replicate in (1.0, 3.0):
    ...     tally.add(torch.tensor([0, 1]), torch.tensor([[replicate, replicate]]))
    >>> tally.estimates(scale=1.0)
    [Estimate(value=2.0, monte_carlo=0.7071067811865476, images=0.0, freedom=2.0, count=2)]
    """

    def __init__(self, count: Tensor, mean: Tensor, spread: Tensor) -> None:
        self.count, self.mean, self.spread = count, mean, spread

    @classmethod
    def empty(cls, parts: int, images: int) -> "Tally":
        """Nothing seen yet."""
        return cls(*(torch.zeros(rows, images, dtype=torch.float64) for rows in (1, parts, parts)))

    def state(self) -> dict[str, Tensor]:
        """As tensors by name.

        >>> list(Tally.empty(1, 2).state())
        ['count', 'mean', 'spread']
        """
        return {"count": self.count, "mean": self.mean, "spread": self.spread}

    def add(self, rows: Tensor, values: Float[Tensor, "parts rows"]) -> None:
        """One more replicate of some images."""
        self.count[:, rows] += 1
        off = values - self.mean[:, rows]
        self.mean[:, rows] += off / self.count[:, rows]
        self.spread[:, rows] += off * (values - self.mean[:, rows])

    @property
    def replicates(self) -> int:
        """How many every image has."""
        return int(self.count.min())

    def variances(self) -> Float[Tensor, "parts images"]:
        """Of one replicate of each image, estimated without bias."""
        return self.spread / (self.count - 1)

    def estimates(self, scale: float, first: "Tally | None" = None) -> list[Estimate]:
        """Each part's mean over images, multiplied by `scale`, with its errors.

        `first` is the tally of the first stage where it decided how many replicates there are: the
        Monte Carlo error is then its, as in Stein's two-stage procedure, whose interval is exact
        for normal replicates (Stein 1945).
        """
        images = self.mean.shape[1]
        known = first or self
        error, freedom = mean_error(known.variances(), self.replicates, known.replicates)
        spread = self.mean.std(1) / math.sqrt(images) if images > 1 else None
        return [
            Estimate(
                self.mean[i].mean().item() * scale,
                error[i].item() * scale,
                None if spread is None else spread[i].item() * scale,
                freedom[i].item() if error[i] > 0 else None,
                images,
            )
            for i in range(len(self.mean))
        ]


def mean_error(
    variances: Float[Tensor, "*parts images"], replicates: int | Tensor, behind: int
) -> tuple[Tensor, Tensor]:
    """The standard error of a mean over images of `replicates` each, and its degrees of freedom
    (Satterthwaite 1946).

    `variances` are those of one replicate of each image, from `behind` replicates.

    >>> mean_error(torch.tensor([2.0, 2.0]), replicates=4, behind=3)
    (tensor(0.5000), tensor(4.))
    """
    images = variances.shape[-1]
    total = variances.sum(-1)
    squares = variances.square().sum(-1).clamp(min=torch.finfo(total.dtype).tiny)
    freedom = (behind - 1) * total.square() / squares
    return (total / replicates).sqrt() / images, freedom


def replicates_for(tolerance: float, variances: Float[Tensor, "*parts images"]) -> Tensor:
    """How many replicates of each image bring the standard error of the mean down to `tolerance`,
    in the same unit.

    >>> replicates_for(0.25, torch.tensor([2.0, 2.0]))
    tensor(16.)
    """
    images = variances.shape[-1]
    return (variances.sum(-1) / (images * tolerance) ** 2).ceil()


__all__ = ["Estimate", "Tally", "difference", "mean_error", "replicates_for", "student_t"]
