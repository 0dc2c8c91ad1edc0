"""Gaussian decoders: a density for continuous data, and its integrals over the bins of levels."""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Data, data, finite_values
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import Given, Number, require, validated
from vdiff.decoder.base import Decoder, Mean, Predict, by_dim, logsnr_of, normal_nodes
from vdiff.decoder.levels import Level, LevelData, Levels
from vdiff.errors import has_values
from vdiff.gaussian import StepToData, sum_dims
from vdiff.prediction import Prediction
from vdiff.reverse import log_variance_ratio
from vdiff.variance import AnalyticVariance

Variance = Annotated[float, Number(above=0.0, hint="a variance, not its logarithm")]


def _model_variance(
    variance: float | None, uses_network: bool, posterior_variance: float | None
) -> None:
    fits = posterior_variance is None or (uses_network and variance is None)
    what = "come with uses_network=True and without variance"
    got, hint = (
        f"variance={variance}, uses_network={uses_network}",
        "the variance is the model's own",
    )
    require(fits, "posterior_variance", what, got, hint)


class DiscretizedGaussian(Levels):
    """DDPM's decoder: a Gaussian integrated over each level's bin, the end bins reaching to ±∞
    (arXiv:2006.11239, eq. 13).

    Its standard deviation is e^{−λ_max/2}, the noise of z₀/α₀, or √variance if given (DDPM: β₁ or
    β̃₂). Its mean is z₀/α₀, or x̂(z₀) with `uses_network`, as in DDPM. Computed in log space without
    a clamp.

    With `posterior_variance` the variance is the model's own, that of its reverse step from z₀ to
    data, as in iDDPM. The posterior's variance is zero there, and this number stands for it (β̃₂,
    `first_variance(schedule, steps)`). For a learned range it is the lower end: log Σ = v log σ₀²
    + (1 − v) log posterior_variance. For `FixedLarge()` Σ is σ₀², where DDPM's code has β̃₂ too
    (`variance=β̃₂`).

    >>> table = DiscretizedGaussian(256).table(13.3)
    >>> bool(table[0] < table[1])
    True
    """

    @validated(rules=[_model_variance])
    def __init__(
        self,
        levels: Level = 256,
        *,
        levels_at_ends: bool = True,
        variance: Variance | None = None,
        uses_network: bool = False,
        posterior_variance: Variance | None = None,
    ) -> None:
        super().__init__(levels, levels_at_ends=levels_at_ends)
        self.variance, self.uses_network = variance, uses_network
        self.posterior_variance = posterior_variance

    @validated
    def log_prob(
        self, data: LevelData, mean: Mean, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        return self._log_prob(data, mean, _std(self.variance, logsnr, mean), mask)

    def _log_prob(
        self, data: Tensor, mean: Tensor, std: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        center = self._value(to_float64(data)) - to_float64(mean)
        log_p = self._log_bin(center, std, data == 0, data == self.levels - 1)
        return sum_dims(log_p, mask).to(at_least_float32(mean.dtype))

    @validated
    def nll(
        self,
        data: Tensor,
        z: Tensor,
        logsnr: Tensor | float,
        predict: Predict,
        mask: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        if self.posterior_variance is None:
            return super().nll(data, z, logsnr, predict, mask)
        prediction = predict(z, logsnr_of(logsnr, z))
        std = self._model_std(prediction, self.posterior_variance)
        return -self._log_prob(data, self.denoised(prediction), std, mask)

    def _model_std(self, prediction: Prediction, posterior: float) -> Tensor:
        """The standard deviation of the model's reverse step to data, in each dimension."""
        hint = "its limit here is the error of x̂ alone: measure that, and give variance=…"
        fitted = isinstance(prediction.variance, AnalyticVariance)
        out = "be left out with a variance fitted to the chain"
        require(not fitted, "posterior_variance", out, "AnalyticVariance", hint)
        z = to_float64(prediction.z)
        std = torch.full_like(z, math.sqrt(posterior))
        u = log_variance_ratio(prediction, StepToData(to_float64(prediction.logsnr), posterior), z)
        return std if u is None else std * torch.exp(0.5 * u)

    def _log_probs(self, mean: Tensor, prediction: Prediction) -> Tensor:
        if self.posterior_variance is None:
            of_noise = _std(self.variance, prediction.logsnr, prediction.z)
            std = torch.as_tensor(of_noise[..., None] if of_noise.ndim else of_noise)
        else:
            std = self._model_std(prediction, self.posterior_variance)[..., None]
        k = torch.arange(self.levels, device=mean.device)
        return self._log_bin(
            self.level_values.to(mean.device) - mean, std, k == 0, k == self.levels - 1
        )

    def _table(self, logsnr: Tensor) -> Float[Tensor, "*dims levels"]:
        nodes, weights = normal_nodes(logsnr.device)
        std = _std(self.variance, logsnr, logsnr)
        center = -nodes * torch.exp(-0.5 * logsnr)
        no, yes = (torch.full_like(nodes, value, dtype=torch.bool) for value in (False, True))
        edge, inner = (-(weights @ self._log_bin(center, std, first, no)) for first in (yes, no))
        table = inner.repeat(self.levels)
        return torch.cat([edge[None], table[1:-1], edge[None]])

    def _log_bin(self, center: Tensor, std: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """log probability of the bin around `center` = x_k − mean."""
        lower, upper = (center - 0.5 * self.spacing) / std, (center + 0.5 * self.spacing) / std
        inner = log_normal_interval(lower, upper)
        edge = log_normal_cdf(torch.where(first, upper, -lower))
        return torch.where(first | last, edge, inner)

    def extra_repr(self) -> str:
        names = ("variance", "uses_network", "posterior_variance")
        own = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{super().extra_repr()}, {own}"


def _finite_data(value: Tensor, argument: str, given: Given) -> Tensor:
    data(value, argument, given)
    read = has_values(value) and not torch.is_grad_enabled()
    return finite_values(value, argument, given) if read else value


class Gaussian(Decoder):
    """p(x | z₀) = N(z₀/α₀, e^{−λ_max} I) for continuous data; or N(x̂(z₀), variance I) with
    `uses_network`.

    Without `uses_network` and `variance` its term is ½d (log 2πe − λ_max). It has no minimum in
    λ_max, so a learned λ_max is refused with this decoder.

    >>> Gaussian().expected_nll(torch.zeros(1, 2), 0.0)
    tensor([2.8379])
    """

    factorises = True

    @validated
    def __init__(self, *, variance: Variance | None = None, uses_network: bool = False) -> None:
        super().__init__()
        self.variance, self.uses_network = variance, uses_network

    @validated
    def encode(self, data: Annotated[Tensor, _finite_data]) -> Tensor:
        """Continuous data as it is. Raises if it is not floating, or not finite (checked where no
        gradient is recorded)."""
        return data

    def decode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    @validated
    def log_prob(
        self, data: Data, mean: Mean, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        std = _std(self.variance, logsnr, mean)
        score = (to_float64(data) - to_float64(mean)) / std
        log_p = -0.5 * score.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return sum_dims(log_p, mask).to(at_least_float32(mean.dtype))

    @validated
    def expected_nll(
        self, data: Tensor, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        logsnr = by_dim(logsnr, data)
        log_variance = -logsnr
        if self.variance is not None:
            log_variance = torch.full_like(logsnr, math.log(self.variance))
        per_dim = 0.5 * (math.log(2 * math.pi) + log_variance + torch.exp(-logsnr - log_variance))
        dtype = at_least_float32(data.dtype)
        if per_dim.ndim == 0 and mask is None:
            return (data[0].numel() * per_dim).to(dtype).expand(data.shape[0])
        return sum_dims(per_dim.expand(data.shape), mask).to(dtype)

    def __repr__(self) -> str:
        return f"Gaussian(variance={self.variance}, uses_network={self.uses_network})"


def log_normal_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Φ(upper) − Φ(lower)) for lower < upper, in log space: exact far in the tails, and so is
    its gradient.

    >>> log_normal_interval(torch.tensor(-41.0), torch.tensor(-40.0))
    tensor(-804.6085)
    """
    flip = lower + upper > 0  # work in the lower tail, where Φ keeps its digits
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    width, middle = high - low, 0.5 * (low + high)
    narrow = width * (1 - middle) < 4 * torch.finfo(width.dtype).eps ** 0.25
    log_high = log_normal_cdf(high)
    log_low = log_normal_cdf(torch.where(narrow, high - 1, low))
    wide = log_high + torch.log(-torch.expm1(log_low - log_high))
    # φ(m) w (1 + (m² − 1) w²/24 + …): the difference of two equal numbers has no digits
    width, middle = torch.where(narrow, width, 1e-3), torch.where(narrow, middle, 0.0)
    bend = torch.log1p((middle.square() - 1) * width.square() / 24)
    density = -0.5 * middle.square() - 0.5 * math.log(2 * math.pi)
    return torch.where(narrow, density + width.log() + bend, wide)


def log_normal_cdf(score: Tensor) -> Tensor:
    """log Φ(score), with an accurate gradient: −score far in the lower tail.

    `torch.special.log_ndtr` has the same values, but computes its gradient as
    e^{−score²/2 − log Φ}/√2π, whose relative error is 1e-16 · score². Below −1e8 that gradient is
    zero or infinite.

    >>> score = torch.tensor([-1e9], dtype=torch.float64, requires_grad=True)
    >>> log_normal_cdf(score).sum().backward()
    >>> score.grad
    tensor([1.0000e+09], dtype=torch.float64)
    """
    # each formula overflows on the side of the other
    below, above = score.clamp(max=0.0), score.clamp(min=0.0)
    tail = torch.log(0.5 * torch.special.erfcx(below * -math.sqrt(0.5))) - 0.5 * below.square()
    return torch.where(score < 0, tail, torch.log1p(-0.5 * torch.erfc(above * math.sqrt(0.5))))


def _std(variance: float | None, logsnr: Tensor | float, data: Tensor) -> Tensor:
    if variance is not None:
        return as_float64(math.sqrt(variance), data.device)
    return torch.exp(-0.5 * by_dim(logsnr, data))
