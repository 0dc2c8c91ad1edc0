"""The reverse kernel p(z_s | z_t) of a discrete step, for the bound and for ancestral sampling.

p(z_s | z_t) = N( μ(x̂), Σ ): the posterior's mean with x̂ in place of x, and the prediction's own
choice of Σ = e^u c σ_s².
"""

import abc

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import require
from vdiff.gaussian import Step, per_example, spread_kl
from vdiff.prediction import Prediction
from vdiff.variance import AnalyticVariance

Rng = torch.Generator | None


def reverse_mean(prediction: Prediction, step: Step) -> Float[Tensor, "batch *dims"]:
    """The mean of p(z_s | z_t): the posterior's, with x̂ in place of x.

    >>> from vdiff.parameterization import Eps
    >>> z = torch.ones(1, 1)
    >>> step = Step(torch.zeros(1), torch.ones(1))
    >>> reverse_mean(Prediction(z, step.logsnr_t, torch.zeros(1, 1), Eps()), step)
    tensor([[1.2092]])
    """
    return step.mean(prediction.z, prediction.x)


def reverse_sample(
    prediction: Prediction, step: Step, noise: Float[Tensor, "batch *dims"]
) -> Float[Tensor, "batch *dims"]:
    """z_s ~ p(z_s | z_t), from standard normal `noise`.

    >>> from vdiff.parameterization import Eps
    >>> z = torch.ones(1, 1)
    >>> step = Step(torch.zeros(1), torch.ones(1))
    >>> prediction = Prediction(z, step.logsnr_t, torch.zeros(1, 1), Eps())
    >>> reverse_sample(prediction, step, torch.zeros(1, 1))
    tensor([[1.2092]])
    """
    std = per_example(step.variance.sqrt(), noise)
    u = log_variance_ratio(prediction, step, noise)
    std = std if u is None else std * torch.exp(0.5 * u)
    return reverse_mean(prediction, step) + std * noise


def reverse_kl(
    prediction: Prediction,
    x: Float[Tensor, "batch *dims"],
    eps: Float[Tensor, "batch *dims"],
    step: Step,
) -> Float[Tensor, " batch"]:
    """KL(q(z_s | z_t, x) ‖ p(z_s | z_t)) of each example, nats, summed over dimensions:

        K = ½ Σ [ u + expm1(−u) + e^{−u} k (ε − ε̂)² ],   k = expm1(λ_s − λ_t)

    which at u = 0 is ½ k ‖ε − ε̂‖², with no term left over.

    >>> from vdiff.parameterization import Eps
    >>> x, eps, step = torch.zeros(1, 2), torch.ones(1, 2), Step(torch.zeros(1), torch.ones(1))
    >>> prediction = Prediction(0.5**0.5 * eps, step.logsnr_t, torch.zeros(1, 2), Eps())
    >>> reverse_kl(prediction, x, eps, step)
    tensor([1.7183])
    """
    half_gain = 0.5 * step.snr_gain
    u = log_variance_ratio(prediction, step, x)
    if u is None:
        return prediction.squared_error(x, eps, factor=half_gain)
    spread = prediction.sum(spread_kl(u).expand_as(x))
    return prediction.squared_error(x, eps, factor=half_gain, weight=torch.exp(-u)) + spread


def reverse_log_ratio(
    prediction: Prediction,
    x: Float[Tensor, "batch *dims"],
    eps: Float[Tensor, "batch *dims"],
    step: Step,
    noise: Float[Tensor, "batch *dims"],
) -> Float[Tensor, " batch"]:
    """log q(z_s | z_t, x) − log p(z_s | z_t) at one sample z_s = μ + √(c) σ_s n of the posterior,
    nats:

        Σ ½ [ u − n² + e^{−u} (√k (ε̂ − ε) + n)² ]

    Its mean over `noise` n is `reverse_kl`; given z_t its variance is Σ [ ½ expm1(−u)² + e^{−2u} k
    (ε − ε̂)² ].
    """
    shift = per_example(step.snr_gain.sqrt(), x) * prediction.error(x, eps)
    u = log_variance_ratio(prediction, step, x)
    if u is None:
        return prediction.sum(shift * (0.5 * shift + noise))
    return 0.5 * prediction.sum(
        u + torch.expm1(-u) * noise.square() + torch.exp(-u) * shift * (shift + 2 * noise)
    )


class Estimator(abc.ABC):
    """An estimator of one step of the bound. A call returns nats per example; their sum over the
    chain is the diffusion term.
    """

    @abc.abstractmethod
    def __call__(
        self, prediction: Prediction, x: Tensor, eps: Tensor, step: Step, generator: Rng = None
    ) -> Tensor:
        """One draw of this step's term for each example."""

    def ends(self, logsnr_max: Tensor | float, logsnr_min: Tensor | float) -> Tensor | float:
        """What the estimator adds to the prior's KL, nats per dimension: 0, except for `Raw`."""
        return 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RaoBlackwell(Estimator):
    """The step's KL in closed form, given z_t: no variance from z_s."""

    def __call__(
        self, prediction: Prediction, x: Tensor, eps: Tensor, step: Step, generator: Rng = None
    ) -> Tensor:
        return reverse_kl(prediction, x, eps, step)


class MonteCarlo(Estimator):
    """log q(z_s | z_t, x) − log p(z_s | z_t) at one sampled z_s. The mean of every step is that of
    `RaoBlackwell`.

    Where Σ is the posterior's, Var = Var_RB + 2 E[K]. The ratio Var/Var_RB grows like T, and
    diverges as K → 0.
    """

    def __call__(
        self, prediction: Prediction, x: Tensor, eps: Tensor, step: Step, generator: Rng = None
    ) -> Tensor:
        return reverse_log_ratio(prediction, x, eps, step, _noise(x, generator))


class Raw(Estimator):
    """log q(z_t | z_s) − log p(z_s | z_t) at one sampled z_s: the term with which the bound's
    derivation starts.

    It is `MonteCarlo` plus log q(z_t | x) − log q(z_s | x), so each step has another mean. The
    mean sum over the chain is lower by the entropy that q gains, ½ d log(σ_1²/σ_0²), which `elbo`
    adds to the prior's term. Then the totals agree.
    """

    def __call__(
        self, prediction: Prediction, x: Tensor, eps: Tensor, step: Step, generator: Rng = None
    ) -> Tensor:
        noise = _noise(x, generator)
        moved = step.noise_s(eps, noise).square() - eps.square()
        gain = 0.5 * prediction.sum(moved - per_example(step.log_variance_ratio, x))
        return reverse_log_ratio(prediction, x, eps, step, noise) + gain

    def ends(self, logsnr_max: Tensor | float, logsnr_min: Tensor | float) -> Tensor | float:
        high, low = (torch.as_tensor(v, dtype=torch.float64) for v in (logsnr_max, logsnr_min))
        return 0.5 * (F.softplus(high) - F.softplus(low))


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def log_variance_ratio(prediction: Prediction, step: Step, x: Tensor) -> Tensor | None:
    """u in the dtype of x, ready to broadcast over x; None for the number 0."""
    variance = prediction.variance
    if isinstance(variance, AnalyticVariance):
        same, hint = f"be the dimensions of an example, {x[0].numel()}", "of AnalyticVariance"
        require(variance.dims == x[0].numel(), "dims", same, variance.dims, hint)
        whole, hint = "be left out with a mask", "the errors of its profile are of whole examples"
        require(prediction.modelled is None, "variance", whole, variance, hint)
    u = variance.log_variance_ratio(step, prediction.variance_output)
    if not isinstance(u, Tensor):
        return None if u == 0.0 else torch.full_like(x, u)
    if step.delta.ndim > 1:  # where a dimension rests, its step changes nothing
        u = torch.where(step.delta == 0, 0.0, u)
    return u.to(x.dtype) if u.ndim == x.ndim else torch.as_tensor(per_example(u, x))


__all__ = [
    "Estimator", "MonteCarlo", "RaoBlackwell", "Raw", "reverse_kl", "reverse_log_ratio",
    "reverse_mean", "reverse_sample",
]  # fmt: skip
