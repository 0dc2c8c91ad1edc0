"""The Gaussian diffusion in one coordinate, the log signal-to-noise ratio λ.

z = α x + σ ε with λ = log α²/σ², variance preserving: α² = sigmoid(λ), σ² = sigmoid(−λ). Any other
process (variance exploding, rectified flow) is this one rescaled, and given λ nothing else
changes. Every quantity comes from λ through `sigmoid`, `expm1` and `softplus`, never as one minus
another.

λ is one number per example, (batch,), or a *field*, a tensor with as many dimensions as x that
broadcasts against it: (batch, 1, height, width), (batch, tokens, 1).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import ValuesCopied
from vdiff._precision import as_float64, at_least_float32
from vdiff._validate import validated

Level = Float[Tensor, "batch *#dims"]


def per_example(v: Tensor, x: Tensor) -> Tensor:
    """A (batch,) vector or a field, in the dtype of `x` and ready to broadcast over it."""
    return v.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) if v.ndim == 1 else v.to(x.dtype)


def combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a·x + b·y with coefficients (batch,) or fields."""
    return torch.addcmul(per_example(a, x) * x, per_example(b, y), y)


def sum_dims(
    x: Float[Tensor, "batch *dims"], mask: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """Sum over everything but the batch, or over the dimensions where `mask` is True."""
    return (x if mask is None else torch.where(mask, x, 0.0)).flatten(1).sum(1)


def masked(mask: Tensor | None) -> dict[str, Tensor]:
    """A mask as a keyword, where there is one: a function of the user need not take it."""
    return {} if mask is None else {"mask": mask}


def weighted_sum(
    x: Float[Tensor, "batch *dims"], factor: Tensor, mask: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """`sum_dims` of factor·x. What is one number per example multiplies the sum."""
    factor = factor.to(x.dtype)
    if factor.ndim > 1 and factor[0].numel() > 1:
        return sum_dims(factor * x, mask)
    return sum_dims(x, mask) * (factor.flatten() if factor.ndim > 1 else factor)


def alpha(logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The signal's scale, α = √sigmoid(λ).

    >>> alpha(torch.tensor(0.0))
    tensor(0.7071)
    """
    return logsnr.sigmoid().sqrt()


def sigma(logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The noise's scale, σ = √sigmoid(−λ), to full relative accuracy where 1 − α² would be zero.

    >>> sigma(torch.tensor(20.0))
    tensor(4.5400e-05)
    """
    return logsnr.neg().sigmoid().sqrt()


def scales(logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
    """α and σ together, √sigmoid(±λ): half the operations.

    >>> scales(torch.tensor(0.0))
    tensor([0.7071, 0.7071])
    """
    return torch.stack([logsnr, -logsnr]).sigmoid().sqrt()


@validated
def diffuse(
    x: Float[Tensor, "batch *dims"],
    eps: Float[Tensor, "batch *dims"],
    logsnr: Level,
) -> Float[Tensor, "batch *dims"]:
    """The noisy z = α x + σ ε at each example's λ, or at each dimension's.

    >>> diffuse(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1))
    tensor([[0.7071, 0.7071]])
    """
    signal, noise = scales(logsnr).to(x.dtype)
    return combine(signal, x, noise, eps)


@dataclass(frozen=True)
class Step(ValuesCopied):
    """One step of a chain from λ_t to λ_s > λ_t (towards data), and what the posterior q(z_s |
    z_t, x) is made of.

    With Δ = λ_s − λ_t and c = −expm1(−Δ), in any process with the same λ,

        q(z_s | z_t, x) = N( α_s (e^{−Δ} z_t/α_t + c x),  c σ_s² )

    `delta` is given by the schedule, in float64: the difference of two float32 λ is off by 6e-5 at
    T = 1000.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> step.snr_gain  # expm1(Δ): the weight of ½‖ε − ε̂‖² in the step's KL
    tensor([1.7183])
    """

    logsnr_t: Tensor
    delta: Tensor

    @property
    def logsnr_s(self) -> Tensor:
        """λ_s, the less noisy end."""
        return self.logsnr_t + self.delta

    @property
    def fresh(self) -> Tensor:
        """c = 1 − e^{−Δ}: the share of the step that comes from x̂ rather than from z."""
        return -torch.expm1(-self.delta)

    @property
    def snr_gain(self) -> Tensor:
        """k = SNR_s/SNR_t − 1 = expm1(Δ)."""
        return torch.expm1(self.delta)

    @property
    def coefficient_z(self) -> Tensor:
        """Of z_t in the posterior's mean, written with x: α_s e^{−Δ}/α_t = σ_s²/α_s · α_t/σ_t²."""
        log_alpha_ratio = F.logsigmoid(self.logsnr_s) - F.logsigmoid(self.logsnr_t)
        return torch.exp(0.5 * log_alpha_ratio - self.delta)

    @property
    def coefficient_x(self) -> Tensor:
        """Of x in the posterior's mean: α_s c."""
        return alpha(self.logsnr_s) * self.fresh

    @property
    def coefficient_eps(self) -> Tensor:
        """Of −ε in the posterior's mean written as (α_s/α_t) z_t − coefficient · ε: (α_s/α_t) c
        σ_t."""
        return alpha(self.logsnr_s) * self.fresh * torch.exp(-0.5 * self.logsnr_t)

    @property
    def variance(self) -> Tensor:
        """c σ_s², the posterior's ("small", β̃)."""
        return self.fresh * torch.sigmoid(-self.logsnr_s)

    @property
    def forward_variance(self) -> Tensor:
        """c σ_t², the forward step's ("large", β)."""
        return self.fresh * torch.sigmoid(-self.logsnr_t)

    @property
    def log_variance_ratio(self) -> Tensor:
        """ℓ = log(forward variance / posterior variance) = log1p(k·sigmoid(λ_t)), without
        cancellation."""
        return torch.log1p(self.snr_gain * torch.sigmoid(self.logsnr_t))

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        """The mean of q(z_s | z_t, x), or of p(z_s | z_t) where x is the model's x̂."""
        return combine(self.coefficient_z, z, self.coefficient_x, x)

    def noise_s(self, eps: Tensor, noise: Tensor) -> Tensor:
        """The ε_s of z_s = α_s x + σ_s ε_s ~ q(z_s | z_t, x), from z_t's ε and fresh noise:
        e^{−Δ/2} ε + √c n."""
        return combine(torch.exp(-0.5 * self.delta), eps, self.fresh.sqrt(), noise)


@dataclass(frozen=True)
class StepToData(Step):
    """The step from z₀ to data itself, λ_s = ∞, whose posterior's variance, zero, is clipped to
    `clip` as in iDDPM.

    >>> step = StepToData(torch.tensor([0.0]), clip=0.05)
    >>> step.variance, step.forward_variance, step.log_variance_ratio.exp()
    (tensor([0.0500]), tensor([0.5000]), tensor([10.]))
    """

    delta: Tensor = field(init=False)
    clip: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", torch.full_like(self.logsnr_t, math.inf))

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.logsnr_t, self.clip)

    @property
    def log_variance_ratio(self) -> Tensor:
        return F.logsigmoid(-self.logsnr_t) - math.log(self.clip)


def step_kl(
    snr_gain: Tensor, squared_error: Tensor, u: Tensor | None = None, dims: int = 1
) -> Tensor:
    """KL(q(z_s | z_t, x) ‖ p(z_s | z_t)) in nats, for a reverse variance e^u times the
    posterior's.

        K = ½ [ d·(u + expm1(−u)) + e^{−u} k ‖ε − ε̂‖² ]

    Without u, as at u = 0, it is the ELBO's ½ k ‖ε − ε̂‖²; no term is a difference. `squared_error`
    is summed over the `dims` dimensions that share `u`.

    >>> step_kl(torch.tensor(0.1), torch.tensor(2.0))
    tensor(0.1000)
    """
    if u is None:
        return 0.5 * snr_gain * squared_error
    return dims * spread_kl(u) + 0.5 * torch.exp(-u) * snr_gain * squared_error


def spread_kl(u: Tensor) -> Tensor:
    """½ (u + expm1(−u)): what a variance e^u times too large adds to a KL in each dimension, nats.

    >>> spread_kl(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.1839])
    """
    return 0.5 * (u + torch.expm1(-u))


@validated
def prior_kl(
    x: Float[Tensor, "batch *dims"], logsnr_min: Tensor | float, mask: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """KL(q(z₁ | x) ‖ N(0, I)) of the variance preserving process, nats per example.

        ½ [ sigmoid(λ_min)(‖x‖² − d) + d·softplus(λ_min) ]

    in float64 but for ‖x‖², so that d (softplus − sigmoid), which is tiny at low λ_min, keeps its
    digits down to −20 and is below the signal's term where it does not. λ_min is one number, or
    broadcasts over x. With a `mask`, the sum is over the dimensions where it is True.

    >>> prior_kl(torch.ones(1, 2), -5.0)
    tensor([0.0067])
    """
    level = as_float64(logsnr_min, x.device)
    level = level if level.numel() > 1 else level.reshape(())
    signal = level.sigmoid()
    slack = F.softplus(level) - signal  # KL of the variances alone: ½d of it
    squares = x.to(at_least_float32(x.dtype)).square()
    if level.ndim == 0 and mask is None:
        square = sum_dims(squares)
        return (0.5 * signal * square + (0.5 * x[0].numel()) * slack).to(square.dtype)
    signal, slack = per_example(signal, squares), per_example(slack, squares)
    return 0.5 * sum_dims(signal * squares + slack, mask)


def kl_to_normal(
    mean_square: Tensor | float,
    variance: Tensor | float,
    prior_variance: Tensor | float = 1.0,
    dims: int = 1,
) -> Tensor:
    """KL(N(μ, v I) ‖ N(0, s I)) in nats from ‖μ‖² = `mean_square`: the prior term of any other
    process.

        ½ [ d (r − 1 − log r) + ‖μ‖²/s ],  r = v/s

    >>> kl_to_normal(0.64, 6400.0, 6400.25)  # variance exploding, prior N(0, 80² + ¼)
    tensor(4.9998e-05, dtype=torch.float64)
    """
    square, v, s = (
        torch.as_tensor(a, dtype=torch.float64) for a in (mean_square, variance, prior_variance)
    )
    excess = (v - s) / s
    log_ratio = torch.where(excess.abs() < 0.5, torch.log1p(excess), v.log() - s.log())
    return 0.5 * (dims * (excess - log_ratio) + square / s)


@validated
def bits_per_dim(nats: Tensor, dims: int | Tensor, bin_width: float | None = None) -> Tensor:
    """Nats per example as bits per dimension, nats/(d ln 2). Where d, a number for all or
    (batch,), is 0, the result is 0.

    For a density on continuous data, `bin_width` (2/255 or 2/256 for bytes on [−1, 1]) turns it
    into the bits of data quantised to bins of that width: −log₂(bin_width) more.

    >>> bits_per_dim(torch.tensor(100.0), 3072)
    tensor(0.0470)
    """
    if isinstance(dims, Tensor):
        nats, dims = torch.where(dims == 0, 0.0, nats), dims.clamp(min=1).to(nats.dtype)
    bits = nats / (dims * math.log(2))
    return bits if bin_width is None else bits - math.log2(bin_width)


__all__ = [
    "Step",
    "StepToData",
    "alpha",
    "bits_per_dim",
    "diffuse",
    "kl_to_normal",
    "prior_kl",
    "sigma",
    "spread_kl",
    "step_kl",
]
