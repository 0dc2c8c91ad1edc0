"""Averages over a mixture in one dimension, by quadrature."""

from collections.abc import Callable

import torch
from torch import Tensor

from vdiff._mixture import Mixture, scales

REACH, FINENESS = 11.0, 0.05  # of a grid in z: half its width and its spacing, in deviations
PIECE = 512  # points of that grid at a time, which fit the cache


def one_dimension(mixture: Mixture, what: str) -> None:
    """Raise unless a mixture has one dimension, where `what` is exact."""
    if mixture.dims != 1:
        raise NotImplementedError(
            f"{type(mixture).__name__}.{what} is exact for one Gaussian or one dimension; for a "
            f"mixture in {mixture.dims} dimensions average over `sample`"
        )


def mean_on_line(
    mixture: Mixture, alpha: Tensor, sigma: Tensor, f: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """E f(z, log q(z))."""
    z, step = _grid(mixture, alpha, sigma)
    at = alpha.expand(len(z)), sigma.expand(len(z))
    log_q = mixture._log_joint(z[:, None], *at)[0].logsumexp(1)
    return (step * log_q.exp() * f(z, log_q)).sum()


def mmse_on_line(mixture: Mixture, level: Tensor) -> Tensor:
    """E Var(ε | z) at one λ: the variance within components and between them, without
    cancelling."""
    alpha, sigma = scales(level)
    grid, step = _grid(mixture, alpha, sigma)
    total = torch.zeros((), dtype=torch.float64)
    for z in torch.split(grid, PIECE):
        at = alpha.expand(len(z)), sigma.expand(len(z))
        log_joint, residual, variance = mixture._log_joint(z[:, None], *at)
        share = log_joint.softmax(1)
        eps = (sigma * residual / variance)[..., 0]  # E[ε | z, k]
        within = (alpha**2 * mixture.variances / variance)[..., 0]  # Var[ε | z, k]
        between = (eps - (share * eps).sum(1, keepdim=True)).square()
        total += log_joint.logsumexp(1).exp() @ (share * (within + between)).sum(1)
    return step * total


def _grid(mixture: Mixture, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """An even grid over z and its step: on a mixture, the trapezoid rule has spectral accuracy."""
    one_dimension(mixture, "quadrature")
    center = alpha * mixture.means[:, 0]
    width = (alpha**2 * mixture.variances[:, 0] + sigma**2).sqrt()
    low, high = (center - REACH * width).min(), (center + REACH * width).max()
    n = int((high - low) / (FINENESS * width.min())) + 2
    z = torch.linspace(low.item(), high.item(), n, dtype=torch.float64)
    return z, z[1] - z[0]


def gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(N(0, 1)), from the Jacobi matrix of the Hermite polynomials (Golub
    & Welsch)."""
    off = torch.arange(1, n, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0].square()
