"""Expectations without random draws: over λ by Gauss-Legendre panels, over (x, ε) by the oracle's
own nodes."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vdiff.decoder import normal_nodes
from vdiff.loss import Model, WeightFunction, predict_at, weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Schedule
from vdiff.theorems.subject import HIGH, LOW, ORACLE, f64
from vdiff.weighting import ELBO

PANEL = 0.5  # the width of a panel in λ: with six nodes the error of a mixture is below 1e-9
QUADRATURE = "quadrature over λ, x and ε"
Integrand = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x (rows, 1), ε (rows, 1), λ (rows,)


def panels(breaks: Tensor, points: int = 6) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on each interval between sorted breaks."""
    u, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    half, middle = 0.5 * breaks.diff()[:, None], 0.5 * (breaks[1:] + breaks[:-1])[:, None]
    return (middle + half * u).flatten(), (half * w).flatten()


def levels(low: float = LOW, high: float = HIGH, *corners: float) -> tuple[Tensor, Tensor]:
    """λ and weights of ∫ dλ between two ends, with a panel's edge at each corner of the
    integrand."""
    return panels(_breaks(low, high, *corners))


def _breaks(low: float, high: float, *corners: float) -> Tensor:
    even = torch.linspace(low, high, max(2, round((high - low) / PANEL) + 1), dtype=torch.float64)
    return f64(sorted({*even.tolist(), *(c for c in corners if low < c < high)}))


def log_normal(z: Tensor | float, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """log N(z; mean, std²), elementwise."""
    value, center, scale = (torch.as_tensor(v, dtype=torch.float64) for v in (z, mean, std))
    return -0.5 * ((value - center) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def average(oracle: GaussianMixture, logsnr: Tensor, of: Integrand) -> Tensor:
    """E f(x, ε, λ) over the oracle's data and noise at each λ; f gives (rows,) or (cases,
    rows)."""
    parts = [oracle.nodes(level) for level in logsnr.tolist()]
    x, eps, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    value = weight * of(x, eps, logsnr.repeat_interleave(len(weight) // len(logsnr)))
    return value.view(*value.shape[:-1], len(logsnr), -1).sum(-1)


def average_noise(x: float, logsnr: Tensor, of: Integrand) -> Tensor:
    """E f(x, ε, λ) over noise alone, for one given x on the line."""
    node, mass = normal_nodes()
    eps = node.repeat(len(logsnr))[:, None]
    value = of(torch.full_like(eps, x), eps, logsnr.repeat_interleave(len(node)))
    return value.view(*value.shape[:-1], len(logsnr), -1) @ mass


def squared(model: Model) -> Integrand:
    """‖ε − ε̂‖² as an integrand."""
    return lambda x, eps, level: predict_at(model, x, eps, level, {}).squared_error(x, eps)


def over_time(
    of: Integrand,
    oracle: GaussianMixture,
    schedule: Schedule,
    *,
    steps: int | None = None,
    t: Tensor | None = None,
    corners: tuple[float, ...] = (),
    x: float | None = None,
    points: int = 6,
) -> Tensor:
    """E f(x, ε, t) over x (or at one x) and ε, and over t: the T steps of a chain, or panels of
    continuous time. With `t`, at each of these times."""
    if t is not None:
        times, dt = t, None
    elif steps is not None:
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        dt = torch.full_like(times, 1 / steps)
    else:
        breaks = _breaks(schedule.logsnr_min, schedule.logsnr_max, *corners)
        times, dt = panels(schedule.inverse(breaks, clamp=True).flip(0).detach(), points)
    level = schedule(times).detach()

    def at(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return of(x, eps, times.repeat_interleave(len(logsnr) // len(times)))

    value = average(oracle, level, at) if x is None else average_noise(x, level, at)
    return value if dt is None else value @ dt


def expected_loss(
    model: Model,
    oracle: GaussianMixture,
    schedule: Schedule,
    weighting: WeightFunction | None = None,
    *,
    steps: int | None = None,
    t: Tensor | None = None,
    corners: tuple[float, ...] = (),
    x: float | None = None,
) -> Tensor:
    """E[weighted_elbo], as in `over_time`."""

    def loss(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        w = weighting or ELBO()
        return weighted_elbo(model, x, schedule=schedule, weighting=w, steps=steps, t=t, eps=eps)

    return over_time(loss, oracle, schedule, steps=steps, t=t, corners=corners, x=x)


def integral(
    weighting: WeightFunction | None = None,
    model: Model = ORACLE,
    oracle: GaussianMixture = ORACLE,
    ends: tuple[float, float] = (HIGH, LOW),
    corners: tuple[float, ...] = (),
) -> Tensor:
    """½ ∫ w(λ) E‖ε − ε̂‖² dλ, without a schedule and without the library's loss."""
    lam, width = levels(ends[1], ends[0], *corners)
    weight = 1.0 if weighting is None else weighting(lam)
    return 0.5 * width @ (weight * average(oracle, lam, squared(model)))


def slope(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-3) -> Tensor:
    """df/dλ by central differences of fourth order, elementwise."""
    near, far = (function(at + k * step) - function(at - k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)
