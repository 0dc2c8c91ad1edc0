"""Models, tables and sums of the errata; `same` compares two routes to a number."""

import numpy as np
import torch
from registry import ORACLES
from torch import Tensor

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step, alpha, prior_kl, sigma
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps
from vdiff.schedule import Cosine, Linear, Tabulated
from vdiff.theorems.integral import panels
from vdiff.weighting import MSE


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(left, right, rel: float = 1e-6):
    """One number by two routes."""
    pair = [torch.as_tensor(v, dtype=torch.float64) for v in (left, right)]
    torch.testing.assert_close(pair[0].expand_as(pair[1]), pair[1], rtol=rel, atol=1e-300)
    return pair[1]


NODE, MASS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
MASS = MASS / MASS.sum()
UNIT, LINE = Gaussian([0.0], [1.0]), Gaussian([0.3], [0.25])
MIXTURE = ORACLES["mixture"]()
DDPM, BETA = Tabulated.linear_betas(), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = torch.cumprod(1 - BETA, 0)  # ᾱ_t
X0 = 0.4  # data of the short chain


def ddpm(*t: int) -> Step:
    """DDPM's steps that end at its levels t = 2 … 1000."""
    at = torch.tensor(t) if t else torch.arange(2, 1001)
    return Step(DDPM.table[at - 1], DDPM.table[at - 2] - DDPM.table[at - 1])


def integral(function, low: float, high: float, n: int = 400) -> Tensor:
    node, width = panels(torch.linspace(low, high, n + 1, dtype=torch.float64), 8)
    return function(node) @ width


def linear_chain(steps: int, high: float = 6.0, low: float = -5.0) -> Step:
    schedule, t = Linear(high, low), torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Step(schedule(t), schedule.delta(t, steps))


def unit_step(level: float, delta: float):
    """(data, ε, n) nodes, their masses, the step and the exact prediction of N(0, 1)."""
    node, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(7))
    x, eps, noise = (v[:, None] for v in torch.cartesian_prod(node, node, node).T)
    weight = torch.cartesian_prod(*3 * [mass / mass.sum()]).prod(1)
    step = Step(f64(level).expand(len(x)), f64(delta).expand(len(x)))
    z = alpha(step.logsnr_t)[:, None] * x + sigma(step.logsnr_t)[:, None] * eps
    return x, eps, noise, weight, step, UNIT(z, step.logsnr_t)


def whole_bound():
    diffusion = 0.5 * integral(MIXTURE.mmse, -3.0, 4.0, 14)
    x, _, weight = MIXTURE.nodes(4.0)
    ends = weight @ (prior_kl(x, -3.0) + GaussianDecoder().expected_nll(x, 4.0))
    bound = same(MIXTURE.bound(4.0, -3.0).total[0], ends + diffusion)
    w = MSE(Cosine(4.0, -3.0), Eps())
    simple = 0.5 * integral(lambda lam: w(lam) * MIXTURE.mmse(lam), -3.0, 4.0, 14)
    return bound, diffusion, ends + simple


def weights(*levels: int) -> Tensor:
    """½ (SNR_{t−1} − SNR_t) of DDPM's table, from log-SNR and from ᾱ."""
    t, snr = torch.tensor(levels), KEPT / (1 - KEPT)
    found = 0.5 * ddpm(*levels).logsnr_t.exp() * ddpm(*levels).snr_gain
    return same(found, 0.5 * (snr[t - 2] - snr[t - 1]))
