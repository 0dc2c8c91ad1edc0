"""Control variates: quantities near ‖ε − ε̂‖² whose mean **given the image** is known.

The mean is over ε alone. A Gaussian's mean over data is wrong on every image that is not typical
of it, and would bias the bound of held-out images.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, validated
from vdiff.gaussian import sum_dims
from vdiff.likelihood.digest import data_hash
from vdiff.oracle import Gaussian


class FittedControl(ABC):
    """A control variate that was fitted to the images."""

    @abstractmethod
    def centered(self, rows: Tensor, eps: Tensor, logsnr: Tensor) -> Float[Tensor, " n"]:
        """Its value at (image, ε, λ) minus its mean over ε, in the unit of ‖ε − ε̂‖²."""


class Control(ABC):
    """A control variate, before it is fitted to all images."""

    __example__: ClassVar[str] = "for instance NoiseNorm()"

    @abstractmethod
    def fit(self, x: Float[Tensor, "images *dims"]) -> FittedControl:
        """Ready for draws of these images."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class NoiseNorm(Control, FittedControl):
    """‖ε‖² − d: most of ‖ε − ε̂‖² at high λ, where the model cannot tell the noise.

    >>> NoiseNorm().centered(torch.tensor([0]), torch.ones(1, 3), torch.zeros(1))
    tensor([0.])
    """

    def fit(self, x: Tensor) -> FittedControl:
        return self

    def centered(self, rows: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return sum_dims(eps.square() - 1)


class GaussianError(Control):
    """‖e_g‖² minus its mean given the image, for the error e_g = ε − σ C⁻¹ (z − α m) of the best
    denoiser of N(m, Σ), with C = α² Σ + σ² I:

        E[‖e_g‖² | x] = ‖I − σ² C⁻¹‖²_F + α² σ² ‖C⁻¹ (x − m)‖².

    In the axes of Σ, with variances v, S = sigmoid(λ + log v) and ξ = (x − m)/√v, e_g = S ε −
    √(S(1 − S)) ξ, so that the difference is Σ S² (ε² − 1) − 2 S √(S(1 − S)) ε ξ: nothing cancels.

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

    def fit(self, x: Tensor) -> FittedControl:
        images = x.flatten(1).cpu()  # in float64, which not every device has
        data = images if self.data is None else self.data.flatten(1).cpu()
        gaussian = Gaussian.fit(data, diagonal=data.shape[1] > self.full)
        gaussian.variances.clamp_(min=torch.finfo(torch.float32).tiny)  # of equal images it is 0
        axes = None if gaussian.axes is None else gaussian.axes[0].to(x)
        log_variances = gaussian.variances[0].log().to(x.device)
        return _FittedGaussian(log_variances, gaussian.standardized(images).to(x), axes)


class _FittedGaussian(FittedControl):
    def __init__(self, log_variances: Tensor, score: Tensor, axes: Tensor | None) -> None:
        self.log_variances, self.score, self.axes = log_variances, score, axes

    def centered(self, rows: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        level = to_float64(logsnr)[:, None] + self.log_variances
        share = level.sigmoid().to(eps.dtype)  # S
        spread = (0.5 * level).cosh().reciprocal().mul(0.5).to(eps.dtype)  # √(S(1 − S))
        noise = eps.flatten(1) if self.axes is None else eps.flatten(1) @ self.axes
        cross = 2 * spread * noise * self.score[rows]
        return (share * (share * (noise.square() - 1) - cross)).sum(1)
