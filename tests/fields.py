"""Fields of log-SNR on three correlated Gaussians: denoisers, paths and what the loss along a path
is, for tests. `oracles/field.json` holds the numbers.

A path is a list of legs. A leg is a function s (n,) → λ (n, d), s from 0 (noise) to 1. The loss is
½ Σ_i ∫ E e_i² dλ_i, e = ε − ε̂.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vdiff import Prediction, weighted_elbo
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import diffuse, kl_to_normal
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import X
from vdiff.schedule import Schedule

Gain = Callable[[Tensor], Tensor]  # λ (n, d) → G (n, d, d), with x̂ = G (z/α)
Leg = Callable[[Tensor], Tensor]

NUMBERS = json.loads((Path(__file__).parent / "oracles" / "field.json").read_text())
COVARIANCE = torch.tensor(NUMBERS["C"], dtype=torch.float64)
WRONG = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.5]], dtype=torch.float64)
LOGSNR_MAX, LOGSNR_MIN = 8.0, -14.0
CELLS = 20_000  # of a leg, in the numbers of the file
POWERS = 0.5, 1.75, 3.0  # of s, in the tilted path


def posterior_gain(covariance: Tensor, scale: float = 1.0) -> Gain:
    """x̂ of data N(0, covariance), times `scale`: x̂ = Σ (Σ + e^{−λ})⁻¹ z/α."""

    def gain(logsnr: Tensor) -> Tensor:
        return scale * covariance @ torch.linalg.inv(covariance + (-logsnr).exp().diag_embed())

    return gain


def told_the_mean(gain: Gain) -> Gain:
    """The same denoiser where it is told the mean of λ over dimensions."""
    return lambda logsnr: gain(logsnr.mean(1, keepdim=True).expand_as(logsnr))


GAINS = {
    "exact": posterior_gain(COVARIANCE),
    "diagonal_model": posterior_gain(COVARIANCE.diagonal().diag()),
    "wrong_model": posterior_gain(WRONG),
    "scaled_0_97": posterior_gain(COVARIANCE, scale=0.97),
    "wrong_scaled": posterior_gain(WRONG, scale=0.97),
    "told_the_mean": told_the_mean(posterior_gain(COVARIANCE)),
}


def second_moments(gain: Gain, logsnr: Tensor, covariance: Tensor = COVARIANCE) -> Tensor:
    """E e_i² of a linear denoiser on N(0, covariance), (n, d): e^{λ_i} E(x_i − x̂_i)²."""
    matrix = gain(logsnr)
    left = torch.eye(len(covariance)).to(matrix) - matrix
    of_x = torch.einsum("nij,jk,nik->ni", left, covariance, left)
    of_noise = torch.einsum("nij,nj->ni", matrix.square(), (-logsnr).exp())
    return logsnr.exp() * (of_x + of_noise)


def basis(covariance: Tensor = COVARIANCE) -> tuple[Tensor, Tensor]:
    """x and ε (2d, d) over which the *sum* of any quadratic form in (x, ε) is its expectation for
    x ~ N(0, covariance): the columns of a root of the covariance, and of the identity."""
    root, zero = torch.linalg.cholesky(covariance), torch.zeros_like(covariance)
    return torch.cat([root.mT, zero]), torch.cat([zero, torch.eye(len(zero)).to(root)])


def joint(s: Tensor) -> Tensor:
    """All dimensions together."""
    return (LOGSNR_MIN + (LOGSNR_MAX - LOGSNR_MIN) * s)[:, None].expand(-1, 3)


def tilted(s: Tensor) -> Tensor:
    """Each dimension with a power of its own."""
    rises = s[:, None] ** torch.tensor(POWERS, dtype=s.dtype)
    return LOGSNR_MIN + (LOGSNR_MAX - LOGSNR_MIN) * rises


def one_after_another(order: Sequence[int]) -> list[Leg]:
    """Dimensions leave the noise one after another, in this order."""
    rank = torch.tensor([list(order).index(i) for i in range(len(order))])

    def leg(s: Tensor, now: int) -> Tensor:
        rises = (s[:, None] + now - rank).clamp(0.0, 1.0)
        return LOGSNR_MIN + (LOGSNR_MAX - LOGSNR_MIN) * rises

    return [lambda s, now=now: leg(s, now) for now in range(len(order))]


PATHS: dict[str, list[Leg]] = {
    "joint": [joint],
    "tilted": [tilted],
    "one_by_one": one_after_another([0, 1, 2]),
    "reversed": one_after_another([2, 1, 0]),
}


def loss_in_cells(moments: Callable[[Tensor], Tensor], path: list[Leg]) -> float:
    """The loss by the rule of the file: E e_i² at the mean of a cell's ends, times its Δλ_i."""
    total = 0.0
    for leg in path:
        ends = leg(torch.linspace(0.0, 1.0, CELLS + 1, dtype=torch.float64))
        middle, width = 0.5 * (ends[1:] + ends[:-1]), ends.diff(dim=0)
        total += 0.5 * (moments(middle) * width).sum().item()
    return total


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ∫₀¹."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return 0.5 * (nodes + 1), vectors[0].square()


def nodes_of(leg: Leg, n: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """λ (n, d), dλ/du (n, d) and weights (n,) of a Gauss rule over u in [0, 1], s = u²: a power ½
    of s is smooth in u."""
    nodes, weight = gauss_legendre(n)
    u = nodes.requires_grad_()
    logsnr = leg(u.square())
    parts = [torch.autograd.grad(v.sum(), u, retain_graph=True)[0] for v in logsnr.unbind(1)]
    return logsnr.detach(), torch.stack(parts, 1), weight


def loss_of(moments: Callable[[Tensor], Tensor], path: list[Leg]) -> float:
    """The loss along a path, to 1e-10 of it."""
    total = 0.0
    for leg in path:
        logsnr, slope, weight = nodes_of(leg)
        total += 0.5 * (weight @ (moments(logsnr) * slope).sum(1)).item()
    return total


def gaussian_loss(model: Tensor, covariance: Tensor = COVARIANCE) -> float:
    """The loss on N(0, covariance) of the exact denoiser of N(0, model), in closed form and on
    every path: information plus KL(q(z) ‖ p(z)), at one end minus at the other.

    That is ½ [tr(Q⁻¹P) − d + log det Q] with P and Q of data and model, I + e^λ Σ.
    """
    ends = []
    for level in (LOGSNR_MAX, LOGSNR_MIN):
        p, q = (
            torch.eye(len(c), dtype=c.dtype) + c * torch.tensor(level).double().exp()
            for c in (covariance, model)
        )
        trace = torch.linalg.solve(q, p).diagonal().sum() - len(p)
        ends.append(0.5 * (trace + torch.logdet(q)).item())
    return ends[0] - ends[1]


def linear_denoiser(gain: Gain) -> Callable[..., Prediction]:
    """x̂ = G (z/α) as a model that is told a field (n, d)."""

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        whole = logsnr[:, None] if logsnr.ndim == 1 else logsnr
        scaled = z / whole.sigmoid().sqrt()
        matrix = gain(whole.expand_as(z).to(torch.float64))
        return Prediction(z, logsnr, torch.einsum("nij,nj->ni", matrix, scaled), X())

    return model


class LegSchedule(Schedule):
    """A leg as a schedule over dimensions: t = 1 − √s, so a power ½ of s is smooth in t."""

    over_dims = True

    def __init__(self, leg: Leg) -> None:
        super().__init__(LOGSNR_MAX, LOGSNR_MIN)
        self.leg = leg

    def check_once(self) -> None:
        """Nothing: dimensions may rest, with rate 0."""

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.leg((1 - t[:, 0]).square())

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        with torch.enable_grad():
            u = (1 - t[:, 0]).requires_grad_()
            parts = self.leg(u.square()).unbind(1)
            slopes = [torch.autograd.grad(v.sum(), u, retain_graph=True)[0] for v in parts]
        return torch.stack(slopes, 1)


def expected_loss(
    model: Callable[..., Prediction],
    schedule: Schedule,
    covariance: Tensor = COVARIANCE,
    n: int = 256,
    **options: Tensor,
) -> float:
    """E over t, x ~ N(0, covariance) and ε of `weighted_elbo` for a model that is linear in z: a
    Gauss rule over t, `basis` over the others. `options` go to `weighted_elbo`."""
    t, weight = gauss_legendre(n)
    x, eps = (v.repeat_interleave(n, 0) for v in basis(covariance))
    t = t.repeat(2 * len(covariance))
    loss = weighted_elbo(model, x, schedule=schedule, t=t, eps=eps, **options)
    return (loss.view(-1, n) @ weight).sum().item()


def told_field(logsnr: Tensor, mask: Tensor, told: float) -> Tensor:
    """A field (n, d): `logsnr` (n,) where the mask is True, `told` elsewhere."""
    return torch.where(mask, logsnr[:, None], torch.tensor(told, dtype=torch.float64))


def masked_error(
    oracle: GaussianMixture, x: Tensor, mask: Tensor, logsnr: Tensor, told: float = 40.0
) -> Tensor:
    """E e² in the one modelled dimension at each λ, for one example x (d,) whose other dimensions
    are given, z_i = x_i, told λ = `told`: (n,). The trapezoid rule over ε, ±9 in steps of 0.1."""
    eps = torch.arange(-90, 91, dtype=torch.float64) * 0.1
    density = torch.exp(-0.5 * eps.square())
    levels = logsnr.repeat_interleave(len(eps))
    draws = eps.repeat(len(logsnr))
    noisy = diffuse(x.expand(len(draws), -1), draws[:, None].expand(-1, len(x)), levels)
    output = oracle(torch.where(mask, noisy, x), told_field(levels, mask, told)).output
    error = (draws - output[:, mask][:, 0]).square()
    return error.view(len(logsnr), -1) @ density / density.sum()


def masked_diffusion(
    oracle: GaussianMixture, x: Tensor, mask: Tensor, high: float, low: float, told: float = 40.0
) -> float:
    """½ ∫ E e² dλ of `masked_error` between two ends, by a Gauss rule with 128 nodes."""
    logsnr, slope, weight = nodes_of(lambda s: (low + (high - low) * s)[:, None], 128)
    error = masked_error(oracle, x, mask, logsnr[:, 0], told)
    return 0.5 * (weight @ (error * slope[:, 0])).item()


def gaussian() -> Gaussian:
    """The data of the file, as its perfect denoiser."""
    return Gaussian(torch.zeros(3, dtype=torch.float64), COVARIANCE)


def masked_information(
    oracle: GaussianMixture, x: Tensor, mask: Tensor, high: float, low: float
) -> float:
    """The same from densities: KL(q(z | x) ‖ q(z | x_given)) at λ = high minus at λ = low."""
    eps = torch.arange(-90, 91, dtype=torch.float64) * 0.1
    density = torch.exp(-0.5 * eps.square())
    rest, ends = oracle.conditional(x, mask), []
    for level in torch.tensor([high, low], dtype=torch.float64):
        sigma = (-level).sigmoid().sqrt()
        z = level.sigmoid().sqrt() * x[mask] + sigma * eps[:, None]
        own = -0.5 * eps.square() - sigma.log() - 0.5 * torch.tensor(2 * torch.pi).double().log()
        ratio = own - rest.noisy_log_prob(z, level.expand(len(z)))
        ends.append((density @ ratio / density.sum()).item())
    return ends[0] - ends[1]


def masked_bound(
    oracle: GaussianMixture, x: Tensor, mask: Tensor, high: float, low: float, told: float = 40.0
) -> tuple[float, float, float]:
    """Prior, diffusion and reconstruction (`decoder.Gaussian()`) of the exact denoiser's bound of
    −log p(x_modelled | x_given), for one example x (d,) with one modelled dimension, nats."""
    level, own = torch.tensor(low, dtype=torch.float64), x[mask][None]
    square = level.sigmoid() * own.square().sum()
    prior = kl_to_normal(square, (-level).sigmoid()).item()
    reconstruction = GaussianDecoder().expected_nll(own, high).item()
    return prior, masked_diffusion(oracle, x, mask, high, low, told), reconstruction
