"""Control variates: quantities near ‖ε − ε̂‖² whose mean **given the image** is known.

The mean is over ε alone. A Gaussian's mean over data is wrong on every image that is not typical
of it, and would bias the bound of held-out images.
"""

import functools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._partial import Partial
from vdiff._precision import to_float64
from vdiff._validate import Count, validated
from vdiff.gaussian import per_example, sum_dims, weighted_sum
from vdiff.likelihood.digest import data_hash
from vdiff.oracle import Gaussian

WHOLE = Partial()


class FittedControl(ABC):
    """A control variate that was fitted to the images."""

    @abstractmethod
    def centered(
        self, rows: Tensor, eps: Tensor, logsnr: Tensor, rate: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """Its value at (image, ε, λ) minus its mean over ε, in the unit of ‖ε − ε̂‖².

        Where λ is a field there is a `rate`, a field too, and the unit is that of Σ rate (ε − ε̂)².
        """


class Control(ABC):
    """A control variate, before it is fitted to all images."""

    __example__: ClassVar[str] = "for instance NoiseNorm()"

    @abstractmethod
    def fit(
        self, x: Float[Tensor, "images *dims"], part: Partial = WHOLE, by_dim: bool = False
    ) -> FittedControl:
        """Ready for draws of these images. Sums are over the modelled dimensions of `part`, whose
        masks have a row for each image; with `by_dim` λ will be a field. Without a mask or a path
        over dimensions, `fit(x)` is called."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class NoiseNorm(Control, FittedControl):
    """‖ε‖² − d: most of ‖ε − ε̂‖² at high λ, where the model cannot tell the noise.

    >>> NoiseNorm().centered(torch.tensor([0]), torch.ones(1, 3), torch.zeros(1))
    tensor([0.])
    """

    def fit(self, x: Tensor, part: Partial = WHOLE, by_dim: bool = False) -> FittedControl:
        return self if part.modelled is None else _MaskedNoise(part.modelled)

    def centered(
        self, rows: Tensor, eps: Tensor, logsnr: Tensor, rate: Tensor | None = None
    ) -> Tensor:
        return _sum(eps.square() - 1, rate, None)


class _MaskedNoise(FittedControl):
    """`NoiseNorm` of the modelled dimensions."""

    def __init__(self, modelled: Tensor) -> None:
        self.modelled = modelled

    def centered(
        self, rows: Tensor, eps: Tensor, logsnr: Tensor, rate: Tensor | None = None
    ) -> Tensor:
        return _sum(eps.square() - 1, rate, self.modelled[rows])


class GaussianError(Control):
    """‖e_g‖² minus its mean given the image, for the error e_g = ε − σ C⁻¹ (z − α m) of the best
    denoiser of N(m, Σ), with C = α² Σ + σ² I:

        E[‖e_g‖² | x] = ‖I − σ² C⁻¹‖²_F + α² σ² ‖C⁻¹ (x − m)‖².

    In the axes of Σ, with variances v, S = sigmoid(λ + log v) and ξ = (x − m)/√v, e_g = S ε −
    √(S(1 − S)) ξ, so that the difference is Σ S² (ε² − 1) − 2 S √(S(1 − S)) ε ξ: nothing cancels.

    Where the same dimensions are given in all images, m and Σ are those of the modelled dimensions
    given the others. With masks of their own for the images, or a field of λ, Σ is diagonal.

    Args:
        data: m and Σ are those of this data, or of the evaluated images. Any choice is unbiased,
            since the mean is over the noise.
        full: beyond so many dimensions Σ is diagonal.

    >>> control = GaussianError().fit(torch.randn(50, 2))
    >>> control.centered(torch.tensor([0]), torch.ones(1, 2), torch.tensor([-20.0])).abs() < 1e-3
    tensor([True])
    """

    @validated
    def __init__(
        self, data: Float[Tensor, "n *dims"] | None = None, *, full: Count = 4096
    ) -> None:
        self.data, self.full = data, full

    def __repr__(self) -> str:
        if self.data is None:
            return "GaussianError()"
        data = f"data of {len(self.data)}, {data_hash(self.data)}"
        return f"GaussianError({data}, full={self.full})"

    def fit(self, x: Tensor, part: Partial = WHOLE, by_dim: bool = False) -> FittedControl:
        images = x.flatten(1).cpu()  # in float64, which not every device has
        data = images if self.data is None else self.data.flatten(1).cpu()
        mask = None if part.modelled is None else part.modelled.expand_as(x).flatten(1).cpu()
        absent = None if part.absent is None else part.absent.expand_as(x).flatten(1).cpu()
        some = None if mask is None or bool(mask.any(1).all()) else mask.any(1)
        if mask is not None and some is not None:  # an image with nothing modelled counts nothing
            mask = mask[some]
            absent = None if absent is None else absent[some]
            data = data if self.data is not None else data[some]
        shared = mask is None or bool((mask == mask[:1]).all())
        diagonal = data.shape[1] > self.full or by_dim or not shared
        gaussian = Gaussian.fit(data, diagonal=diagonal)
        gaussian.variances.clamp_(min=torch.finfo(torch.float32).tiny)  # of equal images it is 0
        if diagonal and (by_dim or mask is not None):
            form = (len(x), *x.shape[1:])
            log_variances = gaussian.variances.log().view(1, *x.shape[1:]).to(x.device)
            score = gaussian.standardized(images).view(form).to(x)
            return _FittedDiagonal(log_variances, score, part.modelled)
        if mask is not None:
            return _conditional(gaussian, images, mask[0], absent, x)
        axes = None if gaussian.axes is None else gaussian.axes[0].to(x)
        log_variances = gaussian.variances[0].log().to(x.device)
        return _FittedGaussian(log_variances, gaussian.standardized(images).to(x), axes)


def _conditional(
    gaussian: Gaussian, images: Tensor, modelled: Tensor, absent: Tensor | None, x: Tensor
) -> FittedControl:
    """The control for the same modelled dimensions (d,) in all images, given the others but those
    that are `absent` (n, d) in an image."""
    assert gaussian.axes is not None
    given = ~modelled
    if absent is not None:
        given = given & ~absent.any(0)
    axes, variances, off = gaussian.axes[0], gaussian.variances[0], images - gaussian.means[0]
    covariance = axes * variances @ axes.mT
    own, cross = covariance[modelled][:, modelled], covariance[modelled][:, given]
    # dimensions that are constant in the data have a slope of zero
    solve = functools.partial(torch.linalg.lstsq, rcond=1e-9, driver="gelsd")
    slope = solve(covariance[given][:, given], cross.mT).solution
    variances, axes = torch.linalg.eigh(own - cross @ slope)
    variances = variances.clamp(min=torch.finfo(torch.float32).tiny)
    score = (off[:, modelled] - off[:, given] @ slope) @ axes / variances.sqrt()
    log_variances = variances.log().to(x.device)
    return _FittedGaussian(log_variances, score.to(x), axes.to(x), modelled.to(x.device))


class _FittedDiagonal(FittedControl):
    """Σ diagonal: each dimension by itself. `log_variances` (1, …), `score` (images, …)."""

    def __init__(self, log_variances: Tensor, score: Tensor, modelled: Tensor | None) -> None:
        self.log_variances, self.score, self.modelled = log_variances, score, modelled

    def centered(
        self, rows: Tensor, eps: Tensor, logsnr: Tensor, rate: Tensor | None = None
    ) -> Tensor:
        level = per_example(logsnr, self.log_variances) + self.log_variances
        share, spread = _shares(level, eps.dtype)
        terms = share * (share * (eps.square() - 1) - 2 * spread * eps * self.score[rows])
        return _sum(terms, rate, _of(self.modelled, rows))


def _shares(level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """S and √(S(1 − S)) with S = sigmoid(level)."""
    return level.sigmoid().to(dtype), (0.5 * level).cosh().reciprocal().mul(0.5).to(dtype)


def _of(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


def _sum(terms: Tensor, rate: Tensor | None, mask: Tensor | None) -> Tensor:
    return sum_dims(terms, mask) if rate is None else weighted_sum(terms, rate, mask)


class _FittedGaussian(FittedControl):
    """Σ in its axes. `modelled` are the dimensions (d,) that it is of, by default all."""

    def __init__(
        self,
        log_variances: Tensor,
        score: Tensor,
        axes: Tensor | None,
        modelled: Tensor | None = None,
    ) -> None:
        self.log_variances, self.score, self.axes = log_variances, score, axes
        self.modelled = modelled

    def centered(
        self, rows: Tensor, eps: Tensor, logsnr: Tensor, rate: Tensor | None = None
    ) -> Tensor:
        eps = eps.flatten(1) if self.modelled is None else eps.flatten(1)[:, self.modelled]
        level = to_float64(logsnr)[:, None] + self.log_variances
        share, spread = _shares(level, eps.dtype)
        noise = eps if self.axes is None else eps @ self.axes
        cross = 2 * spread * noise * self.score[rows]
        return (share * (share * (noise.square() - 1) - cross)).sum(1)
