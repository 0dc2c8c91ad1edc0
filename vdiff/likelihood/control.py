"""Control variates: quantities near ‖ε − ε̂‖² whose mean **given the image** is known, so that
only the rest is left to chance.

The mean is over ε alone. Taken over data instead, a Gaussian's is wrong on every image that is not
typical of it, and the bound of held-out images is biased.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, validated
from vdiff.gaussian import sum_dims
from vdiff.likelihood.pieces import data_hash
from vdiff.oracle import Gaussian


class Control:
    """One control variate: `fit(x)` to all images, then `centered(rows, eps, logsnr)`, its value
    minus its mean given the image.

    >>> NoiseNorm()
    NoiseNorm()
    """

    __example__: ClassVar[str] = "for instance NoiseNorm()"

    def fit(self, x: Float[Tensor, "images *dims"]) -> "FittedControl":
        """Ready for draws of these images."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FittedControl:
    """A control that knows the images: called with their rows, it is (n,), in the unit of ‖ε −
    ε̂‖² and with mean zero.

    >>> isinstance(NoiseNorm().fit(torch.zeros(3, 2)), FittedControl)
    True
    """

    def centered(self, rows: Tensor, eps: Tensor, logsnr: Tensor) -> Float[Tensor, " n"]:
        """Its value at (image, ε, λ) minus its mean over ε."""
        raise NotImplementedError


class NoiseNorm(Control, FittedControl):
    """‖ε‖² − d: most of ‖ε − ε̂‖² at high λ, where nothing of the noise can be told.

    >>> NoiseNorm().centered(torch.tensor([0]), torch.ones(1, 3), torch.zeros(1))
    tensor([0.])
    """

    def fit(self, x: Tensor) -> FittedControl:
        return self

    def centered(self, rows: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return sum_dims(eps.square() - 1)


class GaussianError(Control):
    """The error e_g = ε − σ C⁻¹ (z − α m) of the best denoiser of N(m, Σ), C = α² Σ + σ² I, minus
    its mean given the image,

        E[‖e_g‖² | x] = ‖I − σ² C⁻¹‖²_F + α² σ² ‖C⁻¹ (x − m)‖².

    In the axes of Σ, with variances v, S = sigmoid(λ + log v) and ξ = (x − m)/√v, e_g = S ε −
    √(S(1 − S)) ξ, so that the difference is Σ S² (ε² − 1) − 2 S √(S(1 − S)) ε ξ, and nothing
    cancels. m and Σ are those of the evaluated images unless `data` is given: they may be any
    function of the images, for the mean is taken over the noise. Beyond `full` dimensions Σ is
    diagonal.

    >>> GaussianError().fit(torch.randn(50, 2)).centered(torch.tensor([0]), torch.ones(1, 2), torch.tensor([-20.0])).abs() < 1e-3
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
        known = f"data of {len(self.data)}, {data_hash(self.data)}"
        return f"GaussianError({known}, full={self.full})"

    def fit(self, x: Tensor) -> FittedControl:
        images = x.flatten(1).cpu()  # in float64, which not every device has
        known = images if self.data is None else self.data.flatten(1).cpu()
        gaussian = Gaussian.fit(known, diagonal=known.shape[1] > self.full)
        gaussian.variances.clamp_(min=torch.finfo(torch.float32).tiny)  # equal images have none
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


__all__ = ["Control", "FittedControl", "GaussianError", "NoiseNorm"]
