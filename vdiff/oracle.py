"""Data whose denoiser, error, density and bound are known exactly, for tests.

An oracle is a model: `oracle(z, logsnr)` is the `Prediction` of the perfect denoiser. All
arithmetic is in float64.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._inputs import Data, Mask
from vdiff._mixture import Array, Mixture, as_levels, one_point, parts_of, scales
from vdiff._quadrature import gauss_hermite, mean_on_line, mmse_on_line, one_dimension
from vdiff._validate import require, validated
from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.errors import InvalidType
from vdiff.gaussian import Level, kl_to_normal


def _one_per_row(logsnr: Tensor) -> None:
    """Rule: λ is no field."""
    hint = "of a field there is mutual_information"
    require(logsnr.ndim == 1, "logsnr", "have shape (n,)", tuple(logsnr.shape), hint)


class GaussianMixture(Mixture):
    """x ~ Σ_k w_k N(m_k, Σ_k): weights (K,), means (K, d), covariances (K, d, d), or (K, d) where
    diagonal.

    >>> oracle = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])
    >>> oracle.mmse(torch.tensor([0.0], dtype=torch.float64))
    tensor([0.3430], dtype=torch.float64)
    """

    def matched(self) -> "Gaussian":
        """The Gaussian with the same mean and covariance.

        >>> GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[0.25], [0.25]]).matched().variances
        tensor([[1.2500]], dtype=torch.float64)
        """
        mean = self.weights @ self.means
        off = self.means - mean
        if self.axes is None:
            within = torch.diag(self.weights @ self.variances)
        else:
            parts = self.weights, self.axes, self.variances, self.axes
            within = torch.einsum("k,kia,ka,kja->ij", *parts)
        return Gaussian(mean, within + torch.einsum("k,ki,kj->ij", self.weights, off, off))

    @validated(rules=[one_point])
    def conditional(
        self, x: Float[Tensor, " dims"], mask: Mask | None = None, absent: Mask | None = None
    ) -> "GaussianMixture":
        """The law of the modelled dimensions given the others of one example x (d,), in the order
        of x. `mask` is True where x is modelled, `absent` where it is missing: absent dimensions
        are integrated out. Of one Gaussian, `matched()` of the result is the `Gaussian`.

        >>> oracle = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.6], [0.6, 1.0]]])
        >>> given_first = oracle.conditional(torch.tensor([1.0, 0.0]), torch.tensor([False, True]))
        >>> given_first.means, given_first.variances
        (tensor([[0.6000]], dtype=torch.float64), tensor([[0.6400]], dtype=torch.float64))
        """
        return GaussianMixture(*self._conditioned(x, *parts_of(x, mask, absent)))

    @validated
    def cdf(self, x: Float[Tensor, "n 1"]) -> Float[Tensor, " n"]:
        """P(X ≤ x) for d = 1.

        >>> GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[0.1], [0.1]]).cdf(torch.zeros(1, 1))
        tensor([0.5000], dtype=torch.float64)
        """
        one_dimension(self, "cdf")
        self._require_density("cdf")
        normal = (x.to(torch.float64) - self.means[:, 0]) / self.variances[:, 0].sqrt()
        below: Tensor = torch.special.ndtr(normal)
        return below @ self.weights

    @validated(rules=[_one_per_row])
    def mmse(self, logsnr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E‖ε − ε̂‖² of the perfect denoiser, summed over dimensions: closed form for one
        Gaussian, quadrature for d = 1."""
        if len(self.weights) == 1:
            level = logsnr[:, None].to(torch.float64) + self.variances[0].log()
            return torch.sigmoid(level).sum(1)
        return torch.stack([mmse_on_line(self, level) for level in logsnr.to(torch.float64)])

    @validated
    def mutual_information(self, logsnr: Level) -> Float[Tensor, " batch"]:
        """I(x; z) at each λ, nats; its derivative is half the `mmse` (I-MMSE). For one Gaussian λ
        may be a field (n, d): whatever path leads from one field to another, the diffusion term of
        the perfect denoiser is the difference of their informations."""
        levels = as_levels(logsnr)
        if levels.ndim == 2:
            return self._field_information(levels)
        if len(self.weights) == 1:
            return 0.5 * nn.functional.softplus(levels[:, None] + self.variances[0].log()).sum(1)
        noise = 0.5 * (math.log(2 * math.pi * math.e) + nn.functional.logsigmoid(-levels))
        negative = [mean_on_line(self, *scales(level), lambda z, log_q: log_q) for level in levels]
        return -torch.stack(negative) - noise

    def entropy(self) -> Tensor:
        """E[−log p(x)] of the data, nats (the differential entropy)."""
        if len(self.weights) == 1:
            return 0.5 * (math.log(2 * math.pi * math.e) + self.variances[0].log()).sum()
        one = torch.ones((), dtype=torch.float64)
        return -mean_on_line(self, one, 0.0 * one, lambda x, log_p: log_p)

    def prior_gap(self, logsnr_min: float) -> Tensor:
        """KL(q(z₁) ‖ N(0, I)), nats: the slack of the perfect model's bound at the noisy end."""
        level = torch.tensor(logsnr_min, dtype=torch.float64)
        if len(self.weights) == 1:
            square = torch.sigmoid(level) * self.means[0].square()
            variance = torch.sigmoid(level) * self.variances[0] + torch.sigmoid(-level)
            return kl_to_normal(square, variance).sum()
        constant = 0.5 * math.log(2 * math.pi)
        return mean_on_line(
            self, *scales(level), lambda z, log_q: log_q + 0.5 * z.square() + constant
        )

    @validated
    def bound(self, logsnr_max: float, logsnr_min: float, decoder: Decoder | None = None) -> Bound:
        """The bound of the perfect denoiser in continuous time, averaged over the data: tensors of
        one element.

        >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
        >>> round((oracle.bound(13.3, -5.0).total - oracle.entropy()).item(), 9)  # e^{-13.3}/2
        8.37e-07
        """
        ends = torch.tensor([logsnr_max, logsnr_min], dtype=torch.float64)
        information = self.mutual_information(ends)
        square = (self.weights @ (self.means.square() + self.variances)).sum()  # E‖x‖²
        low = nn.functional.softplus(ends[1])
        prior = 0.5 * (torch.sigmoid(ends[1]) * (square - self.dims) + self.dims * low)
        diffusion = information[0] - information[1]
        reconstruction = self._reconstruction(logsnr_max, decoder or GaussianDecoder())
        return Bound(prior[None], diffusion[None], reconstruction[None], self.dims)

    def nodes(
        self, logsnr: float
    ) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"], Float[Tensor, " n"]]:
        """Quadrature nodes (x, ε, weight) for d = 1 at one λ: Σ weight·f(x, ε) is E f, to 1e-13
        for polynomials in ε of degree 9 with coefficients smooth in z.

        >>> oracle = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])
        >>> x, eps, weight = oracle.nodes(0.0)
        >>> round((weight @ x[:, 0]).item(), 12), round((weight @ eps[:, 0] ** 2).item(), 12)
        (0.05, 1.0)
        """
        one_dimension(self, "nodes")
        level = torch.tensor(logsnr, dtype=torch.float64)
        alpha, sigma = scales(level)
        variance = alpha**2 * self.variances + sigma**2  # (K, 1)
        u = torch.arange(-200, 201, dtype=torch.float64) * 0.05
        density = torch.exp(-0.5 * u.square())
        hermite, mass = gauss_hermite(5)
        z = (alpha * self.means + variance.sqrt() * u)[:, :, None]
        off = z - alpha * self.means[..., None]
        mean = sigma * off / variance[..., None]
        spread = (alpha**2 * self.variances / variance).sqrt()[..., None]
        eps = mean + spread * hermite
        # x is (z − σ ε)/α, without cancelling where α is small
        x = self.means[..., None] + alpha * (self.variances / variance)[..., None] * off
        x = x - sigma * (self.variances / variance).sqrt()[..., None] * hermite
        weight = self.weights[:, None, None] * (density / density.sum())[:, None] * mass
        return x.reshape(-1, 1), eps.reshape(-1, 1), weight.expand_as(eps).reshape(-1)

    def _field_information(self, levels: Tensor) -> Tensor:
        """½ log det(A Σ A + S²) − Σ log σ of one Gaussian: (n, d) → (n,)."""
        if len(self.weights) != 1:
            raise NotImplementedError("mutual_information of a field is exact for one Gaussian")
        upper = self._triangle(*scales(levels))[:, 0]
        log_det = upper.diagonal(dim1=-2, dim2=-1).abs().log().sum(1)
        return log_det + 0.5 * nn.functional.softplus(levels).sum(1)

    def _reconstruction(self, logsnr_max: float, decoder: Decoder) -> Tensor:
        if not isinstance(decoder, GaussianDecoder):
            raise InvalidType("decoder", "be a Gaussian for continuous data", repr(decoder))
        return decoder.expected_nll(torch.zeros(1, self.dims, dtype=torch.float64), logsnr_max)[0]


class Gaussian(GaussianMixture):
    """x ~ N(mean, covariance): mean (d,), covariance (d, d), or (d,) where diagonal.

    >>> Gaussian([0.0], [0.25]).entropy()
    tensor(0.7258, dtype=torch.float64)
    """

    def __init__(self, mean: Array, covariance: Array) -> None:
        m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (mean, covariance))
        super().__init__([1.0], m[None], c[None])

    @classmethod
    @validated
    def fit(cls, x: Data, *, shrinkage: float = 1e-3, diagonal: bool = False) -> "Gaussian":
        """The Gaussian with the mean and the covariance of data (n, *dims), flattened. `shrinkage`
        moves the covariance towards its mean variance; `diagonal` omits correlations.

        >>> Gaussian.fit(torch.tensor([[0.0], [2.0]]), shrinkage=0.0).variances
        tensor([[1.]], dtype=torch.float64)
        """
        flat = x.flatten(1).to(torch.float64)
        off = flat - flat.mean(0)
        if diagonal:
            variances = off.square().mean(0)
            return cls(flat.mean(0), torch.lerp(variances, variances.mean(), shrinkage))
        covariance = off.T @ off / len(off)
        isotropic = covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        return cls(flat.mean(0), torch.lerp(covariance, isotropic, shrinkage))

    @validated
    def information(
        self, x: Float[Tensor, "n dims"], logsnr: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """KL(q(z | x) ‖ q(z)) at each λ, nats: ½ ∫ E[‖ε − ε̂‖² | x] dλ from −∞ to there, with this
        Gaussian's denoiser. In the axes of the covariance, with λ' = λ + log v,

            ½ Σ [ softplus(λ') + sigmoid(λ') ((x − m)²/v − 1) ]

        >>> Gaussian([0.0], [1.0]).information(torch.zeros(1, 1), torch.zeros(1))
        tensor([0.0966], dtype=torch.float64)
        """
        level = logsnr.to(torch.float64)[:, None] + self.variances[0].log()
        excess = level.sigmoid() * (self.standardized(x).square() - 1)
        return 0.5 * (nn.functional.softplus(level) + excess).sum(1)

    def standardized(self, x: Float[Tensor, "n dims"]) -> Float[Tensor, "n dims"]:
        """ξ = (x − m)/√v in the axes of the covariance: N(0, I) if x has this law.

        >>> Gaussian([1.0], [4.0]).standardized(torch.tensor([[5.0]]))
        tensor([[2.]], dtype=torch.float64)
        """
        off = x.to(torch.float64) - self.means[0]
        return (off if self.axes is None else off @ self.axes[0]) / self.variances[0].sqrt()


class Lattice(GaussianMixture):
    """Discrete data in one dimension: level k at `values[k]` with probability `pmf[k]` (all
    positive).

    >>> oracle = Lattice([-0.5, 0.5], [0.25, 0.75])
    >>> oracle.entropy()
    tensor(0.5623, dtype=torch.float64)
    """

    def __init__(self, values: Array, pmf: Array) -> None:
        v = torch.as_tensor(values, dtype=torch.float64)
        super().__init__(pmf, v[:, None], torch.zeros_like(v)[:, None])

    @validated
    def log_prob(self, x: Float[Tensor, "n dims"]) -> Float[Tensor, " n"]:
        """log p(x), nats: a probability, −∞ off the lattice."""
        distance, level = (x.to(torch.float64) - self.means[:, 0]).abs().min(1)
        return torch.where(distance < 1e-6, self.weights[level].log(), -torch.inf)

    def entropy(self) -> Tensor:
        """H = −Σ p log p, nats."""
        return -(self.weights * self.weights.log()).sum()

    def _reconstruction(self, logsnr_max: float, decoder: Decoder) -> Tensor:
        levels = torch.arange(len(self.weights))[:, None]
        level = torch.tensor(logsnr_max, dtype=torch.float64)
        return self.weights @ decoder.expected_nll(levels, level)


__all__ = ["Gaussian", "GaussianMixture", "Lattice"]
