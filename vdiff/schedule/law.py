"""Laws over log-SNR with a mean and a scale, each before its schedule between two ends."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff._validate import Finite, Positive, require, validated
from vdiff.schedule.ddpm import HyperbolicSecant, LinearBetaLaw, OffsetCosine
from vdiff.schedule.truncated import Law, Truncated, affine, ends_or


class Logistic(Law):
    """A logistic law. Rectified flow with uniform t has mean 0, scale 2: λ = 2 log((1 − t)/t)."""

    @validated
    def __init__(self, mean: Finite = 0.0, scale: Positive = 2.0) -> None:
        self.mean, self.scale = mean, scale

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        return affine(self.mean, self.scale, torch.log(rest / t))

    def sf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid((self.mean - logsnr) / self.scale)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid((logsnr - self.mean) / self.scale)

    def density(self, logsnr: Tensor) -> Tensor:
        half = (logsnr - self.mean) * (0.5 / self.scale)
        return torch.cosh(half).pow(-2) * (0.25 / self.scale)


class OptimalTransport(Truncated):
    """Rectified flow and OT flow matching with uniform t: λ = 2 log((1 − t)/t), Logistic(0, 2).

    >>> OptimalTransport()(torch.tensor(0.5))
    tensor(0.)
    """

    def __init__(self, logsnr_max: float = 15.0, logsnr_min: float = -15.0) -> None:
        super().__init__(Logistic(0.0, 2.0), logsnr_max, logsnr_min)


class LogLinear(Truncated):
    """sigmoid(λ) = 1 − t, λ = log((1 − t)/t), Logistic(0, 1). Over tokens α = 1 − t: the
    log-linear schedule of SEDD and MDLM (arXiv:2310.16834, 2406.07524), the linear one of MD4 and
    LLaDA (arXiv:2406.04329, 2502.09992). Over reals α² = 1 − t.

    >>> LogLinear()(torch.tensor([0.0, 0.25, 1.0])).sigmoid()
    tensor([1.0000e+00, 7.5000e-01, 3.0590e-07])
    """

    def __init__(self, logsnr_max: float = 15.0, logsnr_min: float = -15.0) -> None:
        super().__init__(Logistic(0.0, 1.0), logsnr_max, logsnr_min)


class Spectral(Truncated):
    """A logistic law fitted to the data's covariance with eigenvalues `variances` (ITDiffusion,
    Kong, Brekelmans & Ver Steeg, arXiv:2302.03792).

    For a Gaussian with eigenvalues v_i, E‖e‖² = Σ_i sigmoid(λ + log v_i). Its derivative is a
    mixture of logistic densities of scale 1 at −log v_i, and this law has the same mean, −E log v,
    and variance: scale² = 1 + (3/π²) Var log v. (The paper's code has 3/π.) The default ends are
    mean ± 4 scale, as there. Leave out zero eigenvalues (pixels that never change).

    >>> Spectral([1.0, 0.25])(torch.tensor([0.5]))
    tensor([0.6931])
    """

    @validated
    def __init__(
        self,
        variances: Tensor | Sequence[float],
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
    ) -> None:
        log_v = torch.as_tensor(variances, dtype=torch.float64, device="cpu").log()
        came = f"shape {tuple(log_v.shape)}, of them {int((~log_v.isfinite()).sum())} not"
        positive = log_v.ndim == 1 and len(log_v) > 0 and bool(log_v.isfinite().all())
        what, hint = "be a vector of positive eigenvalues", "torch.linalg.eigvalsh(x.T.cov())"
        require(positive, "variances", what, came, hint)
        mean, spread = -log_v.mean().item(), log_v.var(correction=0).item()
        law = Logistic(mean, math.sqrt(1 + 3 / math.pi**2 * spread))
        high, low = law.mean + 4 * law.scale, law.mean - 4 * law.scale
        super().__init__(law, *ends_or(high, low, logsnr_max, logsnr_min))


class Gaussian(Law):
    """A normal law N(mean, std²): EDM's log-normal σ is N(−2 P_mean, (2 P_std)²), SD3's
    logit-normal t N(−2m, (2s)²)."""

    @validated
    def __init__(self, mean: Finite = 2.4, std: Positive = 2.4) -> None:
        self.mean, self.std = mean, std

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        score = torch.special.ndtri(torch.minimum(t, rest))
        return affine(self.mean, self.std, torch.copysign(score, rest - t))

    def sf(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf((self.mean - logsnr) / self.std)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf((logsnr - self.mean) / self.std)

    def density(self, logsnr: Tensor) -> Tensor:
        log_peak = -math.log(self.std * math.sqrt(2.0 * math.pi))
        return torch.exp(affine(log_peak, -0.5 / self.std**2, (logsnr - self.mean).square()))


def _normal_cdf(score: Tensor) -> Tensor:
    """Φ, with all digits in the lower tail, where torch's ndtr cancels."""
    return 0.5 * torch.erfc(score * -math.sqrt(0.5))


class Normal(Truncated):
    """λ ~ N(mean, std²), by default EDM's training noise (P_mean = −1.2, P_std = 1.2) between
    mean ± 5 std. SD3's logit-normal(m, s) is `Normal(-2 * m, 2 * s)`.

    >>> Normal()(torch.tensor(0.5))
    tensor(2.4000)
    """

    @validated
    def __init__(
        self,
        mean: Finite = 2.4,
        std: Positive = 2.4,
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
    ) -> None:
        ends = ends_or(mean + 5 * std, mean - 5 * std, logsnr_max, logsnr_min)
        super().__init__(Gaussian(mean, std), *ends)


class DoubleExponential(Law):
    """A Laplace law: p = e^{−|λ − μ|/b}/2b."""

    @validated
    def __init__(self, mean: Finite = 0.0, scale: Positive = 0.5) -> None:
        self.mean, self.scale = mean, scale

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        score = torch.where(t < 0.5, -torch.log(2.0 * t), torch.log(2.0 * rest))
        return self.mean + self.scale * score

    def sf(self, logsnr: Tensor) -> Tensor:
        return self._tail(logsnr - self.mean)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return self._tail(self.mean - logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-(logsnr - self.mean).abs() / self.scale) / (2.0 * self.scale)

    def _tail(self, distance: Tensor) -> Tensor:
        """The mass beyond the mean plus `distance`."""
        half = 0.5 * torch.exp(-distance.abs() / self.scale)
        return torch.where(distance > 0, half, 1.0 - half)


class Laplace(Truncated):
    """λ ~ Laplace(mean, scale) (Hang et al., arXiv:2407.03297).

    >>> Laplace().law.icdf(torch.tensor(0.1))
    tensor(0.8047)
    """

    @validated
    def __init__(
        self,
        mean: Finite = 0.0,
        scale: Positive = 0.5,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
    ) -> None:
        super().__init__(DoubleExponential(mean, scale), logsnr_max, logsnr_min)


__all__ = [
    "DoubleExponential", "Gaussian", "HyperbolicSecant", "Laplace", "Law", "LinearBetaLaw",
    "LogLinear", "Logistic", "Normal", "OffsetCosine", "OptimalTransport", "Spectral",
]  # fmt: skip
