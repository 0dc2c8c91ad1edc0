"""A mean over images with its two standard errors and confidence intervals."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._diffusion import Unit
from vdiff._validate import Number, require, validated

Confidence = Annotated[float, Number(above=0.0, below=1.0, hint="0.95 for 95 %")]
_BITS = Unit()
MANY = 200.0  # degrees of freedom from which Student's t is a normal with a small correction


@dataclass(frozen=True)
class Estimate:
    """A mean over images in bits/dim, or over texts in bits/token, with two standard errors. Never
    add them: the spread over images contains the Monte Carlo part.

    Attributes:
        value: the mean.
        monte_carlo: the standard error on the given images. More draws lower it.
        images: the standard error over images (or texts), which other test sets would show; None
            for one.
        freedom: degrees of freedom of `monte_carlo`; None where it is exact.
        count: the number of images.
        unit: of the numbers, and what a report calls an image.

    >>> print(Estimate(1.7966, 0.0012, 0.0131))
    1.7966 ± 0.0012 (Monte Carlo) ± 0.0131 (images)
    """

    value: float
    monte_carlo: float
    images: float | None
    freedom: float | None = None
    count: int | None = None
    unit: Unit = field(default=_BITS, repr=False)

    @validated
    def interval(
        self, confidence: Confidence = 0.95, *, over_images: bool = False
    ) -> tuple[float, float]:
        """A confidence interval by Student's t, for the mean of the given images or of all images.

        >>> low, high = Estimate(1.0, 0.1, 0.2, freedom=3, count=50).interval()
        >>> round(low, 4), round(high, 4)
        (0.6818, 1.3182)
        """
        error, freedom = self.monte_carlo, self.freedom
        if over_images:
            what, hint = f"be False for a single {self.unit.example}", "it says nothing of others"
            require(self.images is not None, "over_images", what, True, hint)
            assert self.images is not None
            error, freedom = self.images, None if self.count is None else self.count - 1
        half = error * student_t(confidence, math.inf if freedom is None else freedom)
        return self.value - half, self.value + half

    def __str__(self) -> str:
        example = self.unit.example
        images = f", one {example}"
        if self.images is not None:
            images = f" ± {self.images:.4f} ({example}s)"
        return f"{self.value:.4f} ± {self.monte_carlo:.4f} (Monte Carlo){images}"


def difference(first: Estimate, second: Estimate, value: float, images: float | None) -> Estimate:
    """The difference of two estimates with independent draws on the same images. Its value and its
    error over images are given.

    >>> print(difference(Estimate(1.0, 0.03, 0.2), Estimate(0.5, 0.04, 0.2), 0.5, 0.01))
    0.5000 ± 0.0500 (Monte Carlo) ± 0.0100 (images)
    """
    variance = first.monte_carlo**2 + second.monte_carlo**2
    estimated = [e for e in (first, second) if e.freedom]
    fourth = sum((e.monte_carlo**2) ** 2 / e.freedom for e in estimated if e.freedom)
    freedom = variance**2 / fourth if fourth > 0 else None  # Satterthwaite 1946
    return Estimate(value, math.sqrt(variance), images, freedom, first.count, first.unit)


def student_t(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t: |T| is smaller with probability `confidence`.

    With T = √ν tan θ the density of θ is ∝ cos^{ν−1} θ, which is summed on a grid.

    >>> round(student_t(0.95, 3), 4), round(student_t(0.95, 1e9), 4)
    (3.1824, 1.96)
    """
    if freedom >= MANY:
        z = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64)).item()
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    theta = torch.linspace(0, math.pi / 2, 200_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(theta.cos().clamp(min=0) ** (freedom - 1), theta)
    i = int(torch.searchsorted(mass, confidence * mass[-1]))  # θ lies between grid points i, i + 1
    low, high = (mass[i - 1], mass[i]) if i else (0 * mass[0], mass[0])
    at = torch.lerp(theta[i], theta[i + 1], (confidence * mass[-1] - low) / (high - low))
    return math.sqrt(freedom) * math.tan(at.item())


class RunningMoments:
    """The running mean and sum of squared deviations of each image's replicates: (parts, images)
    in float64, by Welford's update.

    A row is a part of the bound; the last row is their total. The draws of one image may depend on
    each other, but images are independent given the pilot: every error is clustered by image.

    >>> moments = RunningMoments.empty(1, 2)
    >>> for replicate in (1.0, 3.0):
    ...     moments.add(torch.tensor([0, 1]), torch.tensor([[replicate, replicate]]))
    >>> moments.estimates(scale=1.0)
    [Estimate(value=2.0, monte_carlo=0.7071067811865476, images=0.0, freedom=2.0, count=2)]
    """

    def __init__(self, count: Tensor, mean: Tensor, spread: Tensor) -> None:
        self.count, self.mean, self.spread = count, mean, spread

    @classmethod
    def empty(cls, parts: int, images: int) -> "RunningMoments":
        """Of no replicate."""
        return cls(*(torch.zeros(rows, images, dtype=torch.float64) for rows in (1, parts, parts)))

    def state(self) -> dict[str, Tensor]:
        """As tensors by name."""
        return {"count": self.count, "mean": self.mean, "spread": self.spread}

    def add(self, rows: Tensor, values: Float[Tensor, "parts rows"]) -> None:
        """One more replicate of some images."""
        self.count[:, rows] += 1
        off = values - self.mean[:, rows]
        self.mean[:, rows] += off / self.count[:, rows]
        self.spread[:, rows] += off * (values - self.mean[:, rows])

    @property
    def replicates(self) -> int:
        """The number that every image has."""
        return int(self.count.min())

    def variances(self) -> Float[Tensor, "parts images"]:
        """The unbiased variance of one replicate of each image."""
        return self.spread / (self.count - 1)

    def estimates(
        self,
        scale: float,
        first: "RunningMoments | None" = None,
        dims: Tensor | None = None,
        unit: Unit = _BITS,
    ) -> list[Estimate]:
        """Each part's mean over images, multiplied by `scale`, with its errors.

        With `dims`, the numbers of modelled dimensions of the images, `scale` is one over their
        mean (in bits), the mean is a ratio of sums, and its error over images that of a ratio.

        `first` are the moments of the first stage, where it decided on the number of replicates.
        The Monte Carlo error then comes from it alone, as in Stein's two-stage procedure (1945),
        whose interval is exact for normal replicates.
        """
        images = self.mean.shape[1]
        stage = first or self
        error, freedom = mean_error(stage.variances(), self.replicates, stage.replicates)
        counted = images if dims is None else int((dims > 0).sum())
        spread = spread_error(self.mean, dims) if counted > 1 else None
        return [
            Estimate(
                self.mean[i].mean().item() * scale,
                error[i].item() * scale,
                None if spread is None else spread[i].item() * scale,
                freedom[i].item() if error[i] > 0 else None,
                counted,
                unit,
            )
            for i in range(len(self.mean))
        ]


def spread_error(values: Float[Tensor, "*parts images"], dims: Tensor | None = None) -> Tensor:
    """The standard error of a mean over images, from their spread.

    With `dims`, it is that of Σ values / Σ dims, times the mean of `dims`: the residuals are
    values − R·dims with R the ratio of sums (Cochran, Sampling Techniques, 1977, eq. 6.13). An
    image without dimensions counts nothing.

    >>> nats = torch.tensor([2.0, 6.0])
    >>> spread_error(nats), spread_error(nats, dims=torch.tensor([1, 3]))
    (tensor(2.), tensor(0.))
    """
    images = values.shape[-1]
    if dims is None:
        return values.std(-1) / math.sqrt(images)
    d = dims.to(values)
    off = values - values.sum(-1, keepdim=True) / d.sum() * d
    counted = (d > 0).sum()
    return (off.square().sum(-1) * counted / (counted - 1)).sqrt() / images


def mean_error(
    variances: Float[Tensor, "*parts images"], replicates: int | Tensor, behind: int
) -> tuple[Tensor, Tensor]:
    """The standard error of a mean over images with `replicates` each, and its degrees of freedom
    (Satterthwaite 1946).

    `variances` are those of one replicate of each image, estimated from `behind` replicates.

    >>> mean_error(torch.tensor([2.0, 2.0]), replicates=4, behind=3)
    (tensor(0.5000), tensor(4.))
    """
    images = variances.shape[-1]
    total = variances.sum(-1)
    squares = variances.square().sum(-1).clamp(min=torch.finfo(total.dtype).tiny)
    freedom = (behind - 1) * total.square() / squares
    return (total / replicates).sqrt() / images, freedom


def replicates_for(tolerance: float, variances: Float[Tensor, "*parts images"]) -> Tensor:
    """How many replicates of each image lower the standard error of the mean to `tolerance`, in
    the same unit.

    >>> replicates_for(0.25, torch.tensor([2.0, 2.0]))
    tensor(16.)
    """
    images = variances.shape[-1]
    return (variances.sum(-1) / (images * tolerance) ** 2).ceil()
