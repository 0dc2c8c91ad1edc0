"""Expectations without seeds, and the numbers to compare with: NumPy formulas that share no code
with the library."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vdiff import Prediction, weighted_elbo
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.schedule import Schedule

W, M, V = (
    np.array([0.3, 0.7]),
    np.array([-1.0, 0.5]),
    np.array([0.04, 0.09]),
)  # the one-dimensional mixture
SECOND_MOMENT = float(W @ (M**2 + V))
MEAN3 = np.array([0.3, -0.2, 0.1])
COVARIANCE3 = np.array([[0.5, 0.3, -0.2], [0.3, 1.5, 0.4], [-0.2, 0.4, 0.8]])
W2, M2 = np.array([0.35, 0.65]), np.array([[-1.0, 0.3], [0.6, -0.2]])
COVARIANCE2 = np.array([[[0.3, 0.2], [0.2, 0.4]], [[0.25, -0.1], [-0.1, 0.1]]])


def gmm1d() -> GaussianMixture:
    return GaussianMixture(W.tolist(), M[:, None].tolist(), V[:, None].tolist())


def gmm2d() -> GaussianMixture:
    return GaussianMixture(W2.tolist(), torch.from_numpy(M2), torch.from_numpy(COVARIANCE2))


def gauss3d() -> Gaussian:
    return Gaussian(torch.from_numpy(MEAN3), torch.from_numpy(COVARIANCE3))


def panels(breaks: np.ndarray, points: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss-Legendre rule on each interval between sorted breaks."""
    u, w = np.polynomial.legendre.leggauss(points)
    half, middle = 0.5 * np.diff(breaks)[:, None], 0.5 * (breaks[1:] + breaks[:-1])[:, None]
    return (middle + half * u).ravel(), (half * w).ravel()


def line_nodes(logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x, ε, weight) for the one-dimensional mixture at each λ, shapes (len(logsnr)·n, 1) and
    (len(logsnr)·n,).

    z of each component by the trapezoid rule, ε given z and component by Gauss-Hermite with 3
    nodes: exact for e².
    """
    u = np.arange(-70, 71) * 0.125
    phi = np.exp(-0.5 * u**2)
    n, g = np.polynomial.hermite_e.hermegauss(3)
    lam = logsnr.numpy()[:, None, None, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-lam))), np.sqrt(1 / (1 + np.exp(lam)))
    m, v = M[:, None, None], V[:, None, None]
    variance = alpha**2 * v + sigma**2
    away = np.sqrt(variance) * u[:, None]
    eps = sigma * away / variance + np.sqrt(alpha**2 * v / variance) * n
    x = (alpha * m + away - sigma * eps) / alpha
    weight = W[:, None, None] * (phi / phi.sum())[:, None] * (g / g.sum()) * np.ones_like(eps)
    return (
        torch.from_numpy(x.reshape(-1, 1)),
        torch.from_numpy(eps.reshape(-1, 1)),
        torch.from_numpy(weight.reshape(-1)),
    )


def gauss3d_nodes() -> tuple[Tensor, Tensor, Tensor]:
    """(x, ε, weight) for the three-dimensional Gaussian: exact for polynomials of degree 3, so for
    any affine model."""
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    x = MEAN3 + corners[:, :3] @ np.linalg.cholesky(COVARIANCE3).T
    return (
        torch.from_numpy(x),
        torch.from_numpy(corners[:, 3:].copy()),
        torch.full((64,), 1 / 64, dtype=torch.float64),
    )


def quadrature_loss(
    model: Callable[..., Prediction],
    schedule: Schedule,
    weighting: Callable[[Tensor], Tensor],
    breaks: np.ndarray,
    points: int = 6,
) -> float:
    """E[weighted_elbo] over t ~ U(0, 1), x and ε, for the one-dimensional mixture, with panels
    between the λ in `breaks`."""
    times = np.sort(schedule.inverse(torch.from_numpy(breaks), clamp=True).numpy())
    t, dt = (torch.from_numpy(a) for a in panels(times, points))
    x, eps, weight = line_nodes(schedule(t))
    each = len(weight) // len(t)
    loss = weighted_elbo(
        model, x, schedule=schedule, weighting=weighting, t=t.repeat_interleave(each), eps=eps
    )
    return float(((weight * loss).view(len(t), each).sum(1) * dt).sum())


def chain_loss(
    model: Callable[..., Prediction],
    schedule: Schedule,
    steps: int,
    weighting: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """E[weighted_elbo(steps=T)] over i ~ U{1 … T}, x and ε, for the one-dimensional mixture."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    x, eps, weight = line_nodes(schedule(t))
    each = len(weight) // steps
    options = {} if weighting is None else {"weighting": weighting}
    loss = weighted_elbo(
        model, x, schedule=schedule, steps=steps, t=t.repeat_interleave(each), eps=eps, **options
    )
    return float(weight @ loss) / steps


def posterior_moments(logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E Var(ε | z) and E Var(ε | z)² of the one-dimensional mixture at each λ."""
    z = np.linspace(-12, 12, 4801)
    result = []
    for lam in np.atleast_1d(logsnr):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-lam))), np.sqrt(1 / (1 + np.exp(lam)))
        variance = (alpha**2 * V + sigma**2)[:, None]
        away = z - alpha * M[:, None]
        joint = W[:, None] * np.exp(-0.5 * away**2 / variance) / np.sqrt(2 * np.pi * variance)
        q = joint.sum(0)
        share = joint / np.maximum(q, 1e-300)
        eps = sigma * away / variance
        mean = (share * eps).sum(0)
        spread = (share * (alpha**2 * V[:, None] / variance + (eps - mean) ** 2)).sum(0)
        result.append([(q * spread).sum() * (z[1] - z[0]), (q * spread**2).sum() * (z[1] - z[0])])
    return tuple(np.array(result).T)


def plane_mmse(logsnr: np.ndarray, points: int = 241, reach: float = 8.0) -> np.ndarray:
    """E‖ε − ε̂‖² of the two-dimensional mixture at each λ: 2 − E‖ε̂‖², by the trapezoid rule in
    the plane."""
    line = np.linspace(-reach, reach, points)
    z = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    result = []
    for lam in np.atleast_1d(logsnr):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-lam))), np.sqrt(1 / (1 + np.exp(lam)))
        joint, pull = [], []
        for w, m, c in zip(W2, M2, COVARIANCE2, strict=True):
            covariance = alpha**2 * c + sigma**2 * np.eye(2)
            solved = (z - alpha * m) @ np.linalg.inv(covariance)
            joint.append(
                w
                * np.exp(-0.5 * (solved * (z - alpha * m)).sum(-1))
                / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
            )
            pull.append(sigma * solved)
        q = sum(joint)
        eps = (
            sum(p[..., None] * e for p, e in zip(joint, pull, strict=True))
            / np.maximum(q, 1e-300)[..., None]
        )
        result.append(2 - (q * (eps**2).sum(-1)).sum() * (line[1] - line[0]) ** 2)
    return np.array(result)


def gauss3d_mmse(logsnr: np.ndarray) -> np.ndarray:
    """tr Cov(ε | z) = Σ_i S_i, S_i = sigmoid(λ + log v_i) over the eigenvalues of the data's
    covariance."""
    return _gauss3d_shares(logsnr).sum(1)


def gauss3d_covariance(logsnr: np.ndarray) -> np.ndarray:
    """‖Cov(ε | z)‖² = Σ_i S_i²."""
    return (_gauss3d_shares(logsnr) ** 2).sum(1)


def _gauss3d_shares(logsnr: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.atleast_1d(logsnr)[:, None]) / np.linalg.eigvalsh(COVARIANCE3))


def assert_near(draws: Tensor, expected: float, errors: float = 4.0) -> None:
    """The mean of independent draws is the expected number, within so many standard errors."""
    mean, error = float(draws.mean()), float(draws.std() / len(draws) ** 0.5)
    z = (mean - expected) / error
    if abs(z) > errors:
        raise AssertionError(
            f"mean {mean:.6g} ± {error:.2g}, expected {expected:.6g}: {z:.1f} standard errors away"
        )
