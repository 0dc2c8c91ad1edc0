"""A mixture of Gaussians: its density, its samples and its exact denoiser."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import RestorableModule
from vdiff._validate import require, validated
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction

Array = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | Tensor


def _is_mixture(weights: Array, means: Array, covariances: Array) -> None:
    """Rule: positive weights (K,) of sum one, means (K, d), semidefinite covariances."""
    w, m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
    law = w.ndim == 1 and bool((w > 0).all()) and math.isclose(w.sum().item(), 1.0, rel_tol=1e-6)
    require(law, "weights", "be positive, of shape (K,), and sum to one", str(w.tolist()))
    k, fits = len(w), m.ndim == 2 and len(m) == len(w)
    require(fits, "means", f"have shape (K, d) with K = {k}", tuple(m.shape))
    shapes, came = (tuple(m.shape), (*m.shape, m.shape[1])), tuple(c.shape)
    require(came in shapes, "covariances", f"have shape {shapes[0]} or {shapes[1]}", came)
    symmetric, hint = c.ndim == 2 or torch.allclose(c, c.mT), "of a factor L it is L @ L.T"
    require(symmetric, "covariances", "be symmetric", str(c.tolist()), hint)
    least = (c if c.ndim == 2 else torch.linalg.eigh(c)[0]).min().item()
    require(least >= 0, "covariances", "have no negative eigenvalue", least)


class Mixture(RestorableModule):
    """x ~ Σ_k w_k N(m_k, Σ_k), and its noisy versions z."""

    weights: Tensor
    means: Tensor
    axes: Tensor | None  # (K, d, d), a component's in columns; None where all are diagonal
    variances: Tensor

    @validated(rules=[_is_mixture])
    def __init__(self, weights: Array, means: Array, covariances: Array) -> None:
        super().__init__()
        w, m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
        w, c = w.to(m.device), c.to(m.device)
        variances, axes = (c, None) if c.ndim == 2 else torch.linalg.eigh(c)
        self.register_constructed("weights", w / w.sum())
        self.register_constructed("means", m)
        self.register_constructed("variances", variances.clone())
        self.register_constructed("axes", axes)

    @property
    def dims(self) -> int:
        """d, the number of dimensions."""
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dims"]:
        """n independent draws of x, in float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dims, dtype=torch.float64, generator=generator)
        off = self.variances[k].sqrt() * noise
        if self.axes is not None:
            off = torch.einsum("nij,nj->ni", self.axes[k], off)
        return self.means[k] + off

    @validated
    def forward(
        self, z: Float[Tensor, "batch dims"], logsnr: Float[Tensor, " batch"]
    ) -> Prediction:
        """The perfect denoiser, ε̂ = E[ε | z]."""
        alpha, sigma = scales(logsnr.to(torch.float64))
        log_joint, residual, variance = self._log_joint(z.to(torch.float64), alpha, sigma)
        share = log_joint.softmax(1)
        mean_eps = sigma[:, None, None] * (residual / variance)
        if self.axes is not None:
            mean_eps = torch.einsum("kij,nkj->nki", self.axes, mean_eps)
        eps = torch.einsum("nk,nki->ni", share, mean_eps)
        return Prediction(z, logsnr, eps.to(z.dtype), Eps())

    @validated
    def log_prob(self, x: Float[Tensor, "n dims"]) -> Float[Tensor, " n"]:
        """log p(x), the density of the data, nats."""
        ones = torch.ones(len(x), dtype=torch.float64)
        return self._log_joint(x.to(torch.float64), ones, 0.0 * ones)[0].logsumexp(1)

    @validated
    def noisy_log_prob(
        self, z: Float[Tensor, "n dims"], logsnr: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log q(z), the density of the noisy data at λ, nats."""
        log_joint, *_ = self._log_joint(z.to(torch.float64), *scales(logsnr.to(torch.float64)))
        return log_joint.logsumexp(1)

    def _log_joint(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k q(z | k), with z − α m_k in the axes of component k and its variances there: (n,
        K), (n, K, d), (n, K, d)."""
        residual = z[:, None, :] - alpha[:, None, None] * self.means
        if self.axes is not None:
            residual = torch.einsum("kji,nkj->nki", self.axes, residual)
        variance = alpha[:, None, None] ** 2 * self.variances + sigma[:, None, None] ** 2
        quadratic = (residual.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return self.weights.log() - 0.5 * quadratic, residual, variance


def scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    return logsnr.sigmoid().sqrt(), logsnr.neg().sigmoid().sqrt()
