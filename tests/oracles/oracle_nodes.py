"""Quadratures over x and ε as `x`, `t` and `eps` of vdiff, and moments by them."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from oracle_records import DATA, Model, oracle
from torch import Tensor

from vdiff import weighted_elbo
from vdiff.schedule import Schedule


def error_of(case: str, name: str, logsnr: Tensor, mmse: Tensor) -> Tensor:
    """E‖ε − ε̂‖² of a denoiser in closed form from the perfect one's:

    c ε̂*: m + (1 − c)²(d − m);  c x̂*: m + (1 − c)²(e^λ E‖x‖² − m);  a bias b: m + ‖b‖².
    """
    data = oracle(case)
    square = (data.weights @ (data.means.square() + data.variances)).sum() * logsnr.exp()
    return {
        "opt": mmse,
        "eps_scale_0.9": mmse + 0.01 * (data.dims - mmse),
        "eps_zero": torch.full_like(mmse, data.dims),
        "eps_bias_0.1": mmse + 0.01 * data.dims,
        "x_zero": square,
        "x_scale_3": mmse + 4.0 * (square - mmse),
    }[name]


PANELS = {
    "gmm1d": [(-15.1, 15.1, 200)],
    "pixels_ddpm": [(-10.2, 6.0, 96), (6.0, 11.0, 36), (11.0, 13.3, 24)],
}


@functools.cache
def _knots(case: str) -> list[tuple[float, float, Tensor, Tensor, Tensor]]:
    panels = []
    for low, high, n in PANELS[case]:
        angle = (torch.arange(n, dtype=torch.float64) + 0.5) * (math.pi / n)
        knots = 0.5 * (low + high) + 0.5 * (high - low) * torch.cos(angle)
        panels.append(
            (
                low,
                high,
                knots,
                torch.sin(angle) * (1 - 2 * (torch.arange(n) % 2)),
                oracle(case).mmse(knots),
            )
        )
    return panels


def mmse(case: str, logsnr: Tensor) -> Tensor:
    """The perfect denoiser's error: `oracle.mmse`, for mixtures interpolated between Chebyshev
    points to 1e-10 or better."""
    if len(oracle(case).weights) == 1:
        return oracle(case).mmse(logsnr)
    value = torch.full_like(logsnr, math.nan)
    for low, high, knots, weight, known in _knots(case):
        inside = (logsnr >= low) & (logsnr <= high)
        ratio = weight / (logsnr[inside, None] - knots)
        value[inside] = (ratio @ known) / ratio.sum(1)
    return value


def kinks(name: str) -> list[float]:
    return DATA["weightings"][name]["kinks"]


STRIDE = 2  # of the 401 trapezoid nodes of `oracle.nodes` every second still gives 1e-12


def gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(N(0, 1)), exact to degree 2n − 1."""
    off = torch.arange(1, n, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0].square()


def gauss_legendre(low: float, high: float, n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [low, high]."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return low + 0.5 * (high - low) * (nodes + 1), (high - low) * vectors[0].square()


def levels_between(
    low: float, high: float, splits: list[float], n: int = 64
) -> tuple[Tensor, Tensor]:
    """λ nodes and weights on [low, high], the panels meeting at the kinks of the integrand."""
    ends = [low, *sorted(s for s in splits if low < s < high), high]
    panels = [gauss_legendre(a, b, n) for a, b in itertools.pairwise(ends)]
    return torch.cat([p[0] for p in panels]), torch.cat([p[1] for p in panels])


def times(spacing: float = 0.025, reach: float = 3.1) -> tuple[Tensor, Tensor]:
    """t and weights of ∫₀¹ dt, the same for every schedule: tanh-sinh, which does not mind a rate
    that soars at the ends."""
    half = round(reach / spacing)
    u = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    t = torch.sigmoid(math.pi * torch.sinh(u))
    return t, spacing * math.pi * torch.cosh(u) * t * torch.sigmoid(-math.pi * torch.sinh(u))


@functools.lru_cache(maxsize=4096)
def _mixture_nodes(case: str, logsnr: float) -> tuple[Tensor, Tensor, Tensor]:
    data = oracle(case)
    x, eps, weight = (
        v.view(len(data.weights), -1, 5)[:, ::STRIDE].reshape(-1) for v in data.nodes(logsnr)
    )
    return x[:, None], eps[:, None], weight * STRIDE


def nodes(case: str, logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (n, r, d), ε (n, r, d) and weights (n, r) for each of n λ: Σ weight·f(x, ε) is E f of the
    data of a case.

    For Gaussian data f may be any polynomial of degree 9, whose expectation does not depend on how
    dimensions hang together: ‖e‖² of d independent dimensions is a sum, so all may share one node.
    For mixtures in one dimension these are `oracle.nodes`.
    """
    data = oracle(case)
    if len(data.weights) > 1:
        parts = [_mixture_nodes(case, level) for level in logsnr.tolist()]
        x, eps, weight = (torch.stack(p) for p in zip(*parts, strict=True))
        return x, eps, weight
    node, mass = gauss_hermite(5)
    xi, eps, weight = (
        node.repeat_interleave(5)[:, None],
        node.repeat(5)[:, None],
        mass.repeat_interleave(5) * mass.repeat(5),
    )
    x = data.means[0] + data.variances[0].sqrt() * xi
    n = len(logsnr)
    return x.expand(n, -1, -1), eps.expand(n, -1, data.dims), weight.expand(n, -1)


def product_nodes(case: str, logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with independent dimensions, for ‖e‖⁴ of Gaussian data: degree 5 in each of the 2d
    normals."""
    data = oracle(case)
    node, mass = gauss_hermite(3)
    grid = torch.cartesian_prod(*[node] * (2 * data.dims))
    weight = torch.cartesian_prod(*[mass] * (2 * data.dims)).prod(1)
    x, eps = data.means[0] + data.variances[0].sqrt() * grid[:, : data.dims], grid[:, data.dims :]
    n = len(logsnr)
    return x.expand(n, -1, -1), eps.expand(n, -1, -1), weight.expand(n, -1)


def nodes_given(x: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ε alone, for one given x (d,): equidistant nodes of one standard normal, shared by all
    dimensions."""
    u = torch.arange(-90, 91, dtype=torch.float64) * 0.1
    weight = torch.exp(-0.5 * u.square())
    n = len(logsnr)
    return (
        x.expand(n, len(u), -1),
        u[:, None].expand(n, len(u), len(x)),
        (weight / weight.sum()).expand(n, -1),
    )


Nodes = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
ROWS = 1_500_000  # of one call of the verb


def moments(
    model: Model,
    at: Nodes,
    t: Tensor,
    *,
    schedule: Schedule,
    powers: tuple[int, ...] = (1,),
    **options: Any,
) -> list[Tensor]:
    """E[ℓ^p] over (x, ε) at each given time, ℓ being what `weighted_elbo` returns."""
    found: list[list[Tensor]] = [[] for _ in powers]
    rows = at(schedule(t[:1]))[2].shape[1]
    for part in t.split(max(1, ROWS // rows)):
        x, eps, weight = at(schedule(part))
        flat = weighted_elbo(
            model,
            x.flatten(0, 1),
            t=part.repeat_interleave(rows),
            eps=eps.flatten(0, 1),
            schedule=schedule,
            **options,
        )
        loss = flat.view(weight.shape)
        for kept, power in zip(found, powers, strict=True):
            kept.append((weight * loss**power).sum(1))
    return [torch.cat(kept) for kept in found]
