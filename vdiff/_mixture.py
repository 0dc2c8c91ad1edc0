"""A mixture of Gaussians: its density, its samples and its exact denoiser."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Mask, broadcasts
from vdiff._modules import RestorableModule
from vdiff._validate import require, validated
from vdiff.gaussian import Level
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction

Array = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | Tensor


def _is_mixture(weights: Array, means: Array, covariances: Array) -> None:
    """Rule: positive weights (K,) of sum one, means (K, d), symmetric covariances."""
    w, m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
    law = w.ndim == 1 and bool((w > 0).all()) and math.isclose(w.sum().item(), 1.0, rel_tol=1e-6)
    require(law, "weights", "be positive, of shape (K,), and sum to one", str(w.tolist()))
    k, fits = len(w), m.ndim == 2 and len(m) == len(w)
    require(fits, "means", f"have shape (K, d) with K = {k}", tuple(m.shape))
    shapes, came = (tuple(m.shape), (*m.shape, m.shape[1])), tuple(c.shape)
    require(came in shapes, "covariances", f"have shape {shapes[0]} or {shapes[1]}", came)
    symmetric, hint = c.ndim == 2 or torch.allclose(c, c.mT), "of a factor L it is L @ L.T"
    require(symmetric, "covariances", "be symmetric", str(c.tolist()), hint)


def _fits_points(z: Tensor, logsnr: Tensor) -> None:
    """Rule: λ is (batch,), or a field (batch, 1) or (batch, d)."""
    same = logsnr.shape[:1] == z.shape[:1] and (logsnr.ndim == 1 or broadcasts(logsnr, z))
    shape = f"have shape (batch,) = ({len(z)},) or broadcast over z, {tuple(z.shape)}"
    require(same, "logsnr", shape, tuple(logsnr.shape))


def points_of(self: "Mixture", x: Tensor) -> None:
    """Rule: x are examples (n, d)."""
    shape = f"have shape (n, {self.dims})"
    require(x.ndim == 2 and x.shape[1] == self.dims, "x", shape, tuple(x.shape), "one is x[None]")


def one_point(self: "Mixture", x: Tensor) -> None:
    """Rule: x is one example (d,)."""
    hint = "one law for each: [oracle.conditional(row, mask) for row in x]" if x.ndim > 1 else ""
    require(x.shape == (self.dims,), "x", f"have shape ({self.dims},)", tuple(x.shape), hint)


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
        least = variances.min().item()
        require(least >= 0, "covariances", "have no negative eigenvalue", least)
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

    @validated(rules=[_fits_points])
    def forward(self, z: Float[Tensor, "batch dims"], logsnr: Level) -> Prediction:
        """The perfect denoiser, ε̂ = E[ε | z], where each dimension may have its own λ: `logsnr` is
        (batch,), or a field (batch, 1) or (batch, d)."""
        log_joint, mean_eps = self._posterior(z.to(torch.float64), *scales(as_levels(logsnr)))
        eps = torch.einsum("nk,nki->ni", log_joint.softmax(1), mean_eps)
        return Prediction(z, logsnr, eps.to(z.dtype), Eps())

    @validated(rules=[points_of])
    def conditional_nll(
        self,
        x: Float[Tensor, "n dims"],
        mask: Mask | None = None,
        absent: Mask | None = None,
    ) -> Float[Tensor, " n"]:
        """−log p(x_modelled | x_given) of each example, nats: what a bound with a mask is a bound
        of. 0 where nothing is modelled.

        Args:
            x: (n, d) examples.
            mask: bool, True where x is modelled; (d,), or broadcasts over x. None is all.
            absent: bool, True where x is missing. These dimensions are integrated out, and x is
                not read there.
        """
        self._require_density("conditional_nll")
        modelled, given = parts_of(x, mask, absent)
        return self._marginal_log_prob(x, given) - self._marginal_log_prob(x, given | modelled)

    def _marginal_log_prob(self, x: Tensor, kept: Tensor) -> Tensor:
        """log p of the dimensions that are kept: the others become noise, z_i = ε_i, at z_i = 0,
        whose log-density is −½ log 2π each."""
        signal = kept.to(torch.float64)
        z = torch.where(kept, x.to(torch.float64), 0.0)
        log_joint, _ = self._posterior(z, signal, 1.0 - signal)
        return log_joint.logsumexp(1) + 0.5 * math.log(2 * math.pi) * (1.0 - signal).sum(1)

    def _conditioned(
        self, x: Tensor, modelled: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and covariances of the modelled dimensions given one point x (d,).

        With L of the given dimensions first, L Lᵀ = RᵀR and R upper triangular, the covariance is
        that of R's last block, and the mean moves by R's upper right block, transposed, times the
        whitened given values.
        """
        self._require_density("conditional")
        require(bool(modelled.any()), "mask", "leave a dimension to model", "none")
        order = torch.cat([given.nonzero()[:, 0], modelled.nonzero()[:, 0]])
        upper = torch.linalg.qr(self._roots()[:, order].mT)[1]
        n, z = int(given.sum()), torch.where(given, x.to(torch.float64), 0.0)
        off = (z - self.means)[:, given]
        white = torch.linalg.solve_triangular(upper[:, :n, :n].mT, off[..., None], upper=False)
        means = self.means[:, modelled] + (upper[:, :n, n:].mT @ white)[..., 0]
        log_det = 2 * upper[:, :n, :n].diagonal(dim1=-2, dim2=-1).abs().log()
        share = (self.weights.log() - 0.5 * (white[..., 0].square() + log_det).sum(1)).softmax(0)
        covariances = upper[:, n:, n:].mT @ upper[:, n:, n:]
        if self.axes is None or means.shape[1] == 1:
            covariances = covariances.diagonal(dim1=1, dim2=2)
        met = share > 0  # the weight of a component that is far from the point may underflow
        return share[met], means[met], covariances[met]

    def _require_density(self, what: str) -> None:
        if (self.variances == 0).any():
            raise NotImplementedError(
                f"{type(self).__name__}.{what} needs a density; a variance is zero"
            )

    @validated
    def log_prob(self, x: Float[Tensor, "n dims"]) -> Float[Tensor, " n"]:
        """log p(x), the density of the data, nats."""
        ones = torch.ones(len(x), dtype=torch.float64)
        return self._log_joint(x.to(torch.float64), ones, 0.0 * ones)[0].logsumexp(1)

    @validated(rules=[_fits_points])
    def noisy_log_prob(
        self, z: Float[Tensor, "batch dims"], logsnr: Level
    ) -> Float[Tensor, " batch"]:
        """log q(z), the density of the noisy data at λ, nats; λ may be a field."""
        log_joint, _ = self._posterior(z.to(torch.float64), *scales(as_levels(logsnr)))
        return log_joint.logsumexp(1)

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k q(z | k), (n, K), and E[ε | z, k], (n, K, d), for α and σ (n,) or (n, d)."""
        if alpha.ndim == 2 and self.axes is not None:
            return self._correlated_posterior(z, alpha, sigma)
        log_joint, residual, variance = self._log_joint(z, alpha, sigma)
        mean_eps = _by_component(sigma) * (residual / variance)
        if self.axes is not None:
            mean_eps = torch.einsum("kij,nkj->nki", self.axes, mean_eps)
        return log_joint, mean_eps

    def _correlated_posterior(
        self, z: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same for α and σ (n, d) and correlated components. With A = diag α, S = diag σ and
        C = A Σ A + S² = RᵀR, the covariance of z, E[ε | z, k] is S C⁻¹ (z − A m)."""
        upper = self._triangle(alpha, sigma)
        residual = z[:, None, :] - alpha[:, None, :] * self.means
        white = torch.linalg.solve_triangular(upper.mT, residual[..., None], upper=False)
        solved = torch.linalg.solve_triangular(upper, white, upper=True)[..., 0]
        log_det = 2 * upper.diagonal(dim1=-2, dim2=-1).abs().log()
        quadratic = (white[..., 0].square() + log_det + math.log(2 * math.pi)).sum(2)
        return self.weights.log() - 0.5 * quadratic, sigma[:, None, :] * solved

    def _triangle(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """R of C = A Σ A + S² = RᵀR, (n, K, d, d), from the QR decomposition of [A L, S]ᵀ with Σ =
        L Lᵀ. A Cholesky decomposition of C would lose the digits of a σ² far below Σ."""
        signal = alpha[:, None, :, None] * self._roots()
        noise = torch.diag_embed(sigma)[:, None].expand_as(signal)
        upper: Tensor = torch.linalg.qr(torch.cat([signal, noise], dim=-1).mT)[1]
        return upper

    def _roots(self) -> Tensor:
        """L of each component's covariance L Lᵀ, (K, d, d)."""
        roots = self.variances.sqrt()
        return roots.diag_embed() if self.axes is None else self.axes * roots[:, None, :]

    def _log_joint(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k q(z | k), with z − α m_k in the axes of component k and its variances there: (n,
        K), (n, K, d), (n, K, d). α and σ are (n,), or (n, d) where components have no axes."""
        alpha, sigma = _by_component(alpha), _by_component(sigma)
        residual = z[:, None, :] - alpha * self.means
        if self.axes is not None:
            residual = torch.einsum("kji,nkj->nki", self.axes, residual)
        variance = alpha**2 * self.variances + sigma**2
        quadratic = (residual.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return self.weights.log() - 0.5 * quadratic, residual, variance


def parts_of(x: Tensor, mask: Tensor | None, absent: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which dimensions of x are modelled, and which are given: bool, of the shape of x."""
    everywhere = torch.ones_like(x, dtype=torch.bool)
    present = everywhere if absent is None else everywhere & ~absent
    modelled = present if mask is None else present & mask
    return modelled, present & ~modelled


def _by_component(v: Tensor) -> Tensor:
    """(n,) or (n, d), ready to broadcast over (n, K, d)."""
    return v[:, None, None] if v.ndim == 1 else v[:, None, :]


def as_levels(logsnr: Level) -> Tensor:
    """λ in float64: (n,) where it is one number per example, else (n, d)."""
    wide = logsnr.to(torch.float64)
    return wide[:, 0] if wide.ndim == 2 and wide.shape[1] == 1 else wide


def scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    return logsnr.sigmoid().sqrt(), logsnr.neg().sigmoid().sqrt()
