"""Expectations without seeds: over λ by Gauss-Legendre panels, over (x, ε) by the oracle's own
nodes."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vdiff.decoder import normal_nodes
from vdiff.loss import Model, WeightFunction, predict_at, weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Schedule
from vdiff.weighting import ELBO

PANEL = 0.5  # the width of a panel in λ: with six nodes the error of a mixture is below 1e-9
Integrand = Callable[[Tensor, Tensor, Tensor], Tensor]


def panels(breaks: Tensor, points: int = 6) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on each interval between sorted breaks.

    >>> node, weight = panels(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))
    >>> round((weight @ node**2).item(), 12)
    9.0
    """
    u, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    half, middle = 0.5 * breaks.diff()[:, None], 0.5 * (breaks[1:] + breaks[:-1])[:, None]
    return (middle + half * u).flatten(), (half * w).flatten()


def levels(low: float, high: float, *corners: float) -> tuple[Tensor, Tensor]:
    """λ and weights of ∫ dλ between two ends, with a panel's edge at each corner of the integrand.

    >>> logsnr, width = levels(-1.0, 1.0)
    >>> round((width @ logsnr.exp()).item(), 12)
    2.350402387288
    """
    return panels(_breaks(low, high, *corners))


def _breaks(low: float, high: float, *corners: float) -> Tensor:
    even = torch.linspace(
        low, high, max(2, round((high - low) / PANEL) + 1), dtype=torch.float64
    ).tolist()
    return torch.tensor(
        sorted({*even, *(c for c in corners if low < c < high)}), dtype=torch.float64
    )


def log_normal(z: Tensor | float, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """log N(z; mean, std²), elementwise.

    >>> log_normal(0.0, 0.0, 1.0)
    tensor(-0.9189, dtype=torch.float64)
    """
    value, center, scale = (torch.as_tensor(v, dtype=torch.float64) for v in (z, mean, std))
    log_p: Tensor = (
        -0.5 * ((value - center) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    )
    return log_p


def average(oracle: GaussianMixture, logsnr: Tensor, of: Integrand) -> Tensor:
    """E f(x, ε, λ) over the oracle's data and noise at each λ, for f of (rows, 1), (rows, 1) and
    (rows,).

    >>> from vdiff.theorems.subject import mixture
    >>> average(mixture(), torch.zeros(2, dtype=torch.float64), lambda x, eps, level: eps[:, 0] ** 2)
    tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    parts = [oracle.nodes(level) for level in logsnr.tolist()]
    x, eps, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    return (
        (weight * of(x, eps, logsnr.repeat_interleave(len(weight) // len(logsnr))))
        .view(len(logsnr), -1)
        .sum(1)
    )


def average_noise(x: float, logsnr: Tensor, of: Integrand) -> Tensor:
    """E f(x, ε, λ) over noise alone, for one given x on the line.

    >>> average_noise(2.0, torch.zeros(1, dtype=torch.float64), lambda x, eps, level: (x * eps**2)[:, 0])
    tensor([2.], dtype=torch.float64)
    """
    node, mass = normal_nodes()
    n = len(logsnr)
    eps = node.repeat(n)[:, None]
    return of(torch.full_like(eps, x), eps, logsnr.repeat_interleave(len(node))).view(n, -1) @ mass


def squared(model: Model) -> Integrand:
    """‖ε − ε̂‖² as an integrand.

    >>> from vdiff.theorems.subject import mixture
    >>> squared(mixture())(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1)).shape
    torch.Size([1])
    """
    return lambda x, eps, level: predict_at(model, x, eps, level, {}).squared_error(x, eps)


def expected_loss(
    model: Model,
    oracle: GaussianMixture,
    schedule: Schedule,
    weighting: WeightFunction | None = None,
    *,
    steps: int | None = None,
    corners: tuple[float, ...] = (),
    power: int = 1,
) -> Tensor:
    """E[weighted_elbo^power] over t, x and ε: over every step of a chain, or over panels of
    continuous time.

    >>> from vdiff.schedule import Linear
    >>> from vdiff.theorems.subject import mixture
    >>> expected_loss(mixture(), mixture(), Linear(13.3, -5.0))
    tensor(5.9296, dtype=torch.float64)
    """
    if steps is None:
        breaks = schedule.inverse(
            _breaks(schedule.logsnr_min, schedule.logsnr_max, *corners), clamp=True
        ).flip(0)
        t, dt = panels(breaks)
    else:
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        dt = torch.full_like(t, 1 / steps)
    logsnr = schedule(t)

    def loss(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        each = len(level) // len(t)
        given = t.repeat_interleave(each)
        return (
            weighted_elbo(
                model,
                x,
                schedule=schedule,
                weighting=weighting or ELBO(),
                steps=steps,
                t=given,
                eps=eps,
            )
            ** power
        )

    return average(oracle, logsnr, loss) @ dt


def slope(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-3) -> Tensor:
    """df/dλ by central differences of fourth order, elementwise.

    >>> round(slope(torch.exp, torch.zeros(1, dtype=torch.float64)).item(), 9)
    1.0
    """
    near, far = (function(at + k * step) - function(at - k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)


__all__ = [
    "average",
    "average_noise",
    "expected_loss",
    "levels",
    "log_normal",
    "panels",
    "slope",
    "squared",
]
