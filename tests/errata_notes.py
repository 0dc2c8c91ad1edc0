"""The numbers of `docs/errata.md` on the two notes and on what none of the sources says, in the
order of each entry."""

import torch
from errata_values import (
    BETA,
    DDPM,
    KEPT,
    MASS,
    MIXTURE,
    NODE,
    UNIT,
    ddpm,
    f64,
    integral,
    linear_chain,
    same,
    whole_bound,
)
from torch.distributions import Normal, kl_divergence

from vdiff.decoder import DiscretizedGaussian
from vdiff.gaussian import Step, alpha, prior_kl, sigma, step_kl
from vdiff.oracle import Lattice
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.schedule import Cosine, Linear, Tabulated
from vdiff.theorems.integral import expected_loss
from vdiff.weighting import ELBO, MSE


def best_slopes():
    """ε̂ = c z on N(0, 1): the vertex of a parabola through three losses, and a mean of σ."""
    schedule = Cosine(4.0, -3.0)
    for w in (ELBO(), MSE(schedule, Eps())):
        zero, half, one = (
            expected_loss(lambda z, lam: Prediction(z, lam, c * z, Eps()), UNIT, schedule, w)  # noqa: B023
            for c in (0.0, 0.5, 1.0)
        )
        top, mass = (
            integral(lambda lam: w(lam) * sigma(lam) ** p, -3.0, 4.0)  # noqa: B023
            for p in (1, 0)
        )
        yield same((3 * zero - 4 * half + one) / (4 * (zero - 2 * half + one)), top / mass)


def large_variance():
    step = ddpm(2)
    shift = (step.variance * step.snr_gain * 0.7).sqrt()
    truth = kl_divergence(
        Normal(0 * shift, step.variance.sqrt()), Normal(shift, step.forward_variance.sqrt())
    )
    whole = same(step_kl(step.snr_gain, f64(0.7), step.log_variance_ratio), truth)
    return whole[0], (whole - shift**2 / (2 * step.forward_variance))[0]


def unit_kls():
    """The steps' mean KLs of N(0, 1), E‖e‖² = ᾱ_t: DDPM's weight from β, and the library's."""
    t = torch.tensor([2, 100, 1000])
    every = step_kl(ddpm().snr_gain, UNIT.mmse(ddpm().logsnr_t))
    beta, before, now = BETA[t - 1], KEPT[t - 2], KEPT[t - 1]
    weight = beta**2 / (2 * beta * (1 - before) / (1 - now) * (1 - beta) * (1 - now))
    return *same(every[t - 2], weight * now), every.mean()


def reconstruction_of_levels():
    decoder = DiscretizedGaussian(256, uses_network=True, variance=1e-4)
    level, lam = torch.arange(120, 136), DDPM.logsnr_max
    oracle = Lattice(decoder.level_values[level], torch.full((16,), 1 / 16, dtype=torch.float64))
    steps = step_kl(ddpm().snr_gain, oracle.mmse(ddpm().logsnr_t)).sum()
    data, eps = level.repeat_interleave(60)[:, None], NODE.repeat(16)[:, None]
    at = f64(lam).expand(len(data))
    said = oracle(alpha(at)[:, None] * decoder.level_values[data] + sigma(at)[:, None] * eps, at).x
    first = -(decoder.log_prob(data, said, lam).view(16, 60) @ MASS).mean()
    prior = prior_kl(decoder.level_values[level][:, None], DDPM.logsnr_min).mean()
    return first, first + steps + prior


def longer_chains():
    x = torch.ones(1, 1, dtype=torch.float64)
    for n in (1000, 4000):
        beta = torch.linspace(1e-4, 0.02, n, dtype=torch.float64) * 1000 / n
        kept = (1 - beta).log().sum().exp()
        table = Tabulated.linear_betas(levels=n, rescale_from=1000)
        prior = kl_divergence(Normal(kept.sqrt(), (1 - kept).sqrt()), Normal(f64(0), f64(1)))
        yield same(prior_kl(x, table.logsnr_min)[0], prior[0], rel=1e-4)


def weights_of_the_steps():
    w = 0.5 * ddpm().snr_gain
    t = torch.arange(2, 1001)
    same(w, BETA[t - 1] / (2 * (1 - BETA[t - 1]) * (1 - KEPT[t - 2])))
    assert w.argmin() == 348
    return *w[[0, 8, 98, 348, 998]], w[998] / w.min()


def factor_of_t():
    t = torch.arange(2, 1001)
    weight = 2 * (1 - BETA[t - 1]) * (1 - KEPT[t - 2]) / BETA[t - 1]  # 1/w of DDPM's eq. 12
    kl = step_kl(ddpm().snr_gain, UNIT.mmse(ddpm().logsnr_t))
    return same((weight * kl).mean(), KEPT[1:].mean()), (weight * kl / 999).mean()


def first_level():
    """N(0, 1), whose E‖ε − ε̂‖² is ᾱ_t: the simple loss, and its part without the decoder."""
    kept = torch.cumprod(1 - f64(1e-4, 0.1, 0.2, 0.3, 0.4), 0)
    table = Tabulated.from_betas(f64(1e-4, 0.1, 0.2, 0.3, 0.4)).table
    step = Step(table[1:], table[:-1] - table[1:])
    kl = step_kl(step.snr_gain, UNIT.mmse(step.logsnr_t))
    steps = (kl / (5 * 0.5 * step.snr_gain)).sum()
    same(steps + UNIT.mmse(table[:1])[0] / 5, kept.mean())
    return kept.mean(), steps


def no_bound():
    bound, _, simple = whole_bound()
    return MIXTURE.entropy(), bound, simple


def more_steps():
    coin, schedule = Lattice([-1.0, 1.0], [0.5, 0.5]), Linear(12.0, -6.0)
    for steps in (2, 3, 4):
        step = linear_chain(steps, 12.0, -6.0)
        kls = step_kl(step.snr_gain, coin.mmse(step.logsnr_t)).sum()
        yield same(expected_loss(coin, coin, schedule, steps=steps), kls)
    yield 0.5 * integral(coin.mmse, -6.0, 12.0, 36)


NUMBERS = {
    "the end of section 14.5.4": best_slopes,
    "section 14.5.4, the KL": large_variance,
    "section 14.5.4, L_{t−1}": unit_kls,
    "section 14.5.5; also the note": longer_chains,
    "section 14.5.5, L₀": reconstruction_of_levels,
    "The Simple Loss Drops the Weight": weights_of_the_steps,
    "the claim, and The Simple Loss Drops the Weight": factor_of_t,
    "the claim, “+ const”": first_level,
    "Why the Reweighting Helps; also": no_bound,
    "Why the Reweighting Helps": lambda: unit_kls()[:3],
    "of the number of steps": more_steps,
}  # fmt: skip
