"""DDPM's simple loss is a weighted evidence lower bound, on DDPM's own table of 1000 levels and in
continuous time."""

import math

import numpy as np
import pytest
import torch

from vdiff import weighted_elbo
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step, step_kl
from vdiff.parameterization import Eps
from vdiff.schedule import LinearBeta, Schedule, Tabulated
from vdiff.theorems.subject import Altered
from vdiff.weighting import MSE

from .reference import (
    gauss3d,
    gauss3d_mmse,
    gauss3d_nodes,
    gmm1d,
    line_nodes,
    panels,
    posterior_moments,
    quadrature_loss,
)

BETA = np.linspace(1e-4, 0.02, 1000)
LOG_SIGNAL = np.log1p(-BETA).cumsum()
LAMBDA = LOG_SIGNAL - np.log(-np.expm1(LOG_SIGNAL))
SIGNAL, NOISE = np.exp(LOG_SIGNAL), -np.expm1(LOG_SIGNAL)
TABLE, STEPS = Tabulated.linear_betas(), 999


def corners(levels: int):
    """(x, ε, weight) per level and the number of nodes, for the correlated Gaussian."""
    x, eps, weight = gauss3d_nodes()
    return x.repeat(levels, 1), eps.repeat(levels, 1), weight.repeat(levels), len(weight)


def line(levels: int):
    x, eps, weight = line_nodes(torch.from_numpy(LAMBDA[-levels:]))
    return x, eps, weight, len(weight) // levels


# data, nodes, and E‖e‖² of a model that says 0.9 ε̂ + 0.05: m + 0.1²(d − m) + 0.05² d
CASES = {
    "gaussian": (gauss3d, corners, lambda: gauss3d_mmse(LAMBDA), 3),
    "mixture": (gmm1d, line, lambda: posterior_moments(LAMBDA)[0], 1),
}


def biased(oracle):
    return Altered(oracle, lambda prediction: 0.9 * prediction.eps + 0.05)


def first_level(model, oracle_nodes, variance: float) -> float:
    """L₀ through the decoder: a Gaussian around x̂(z₀)."""
    x, eps, weight, _ = oracle_nodes
    term = Gaussian(variance=variance, uses_network=True).reconstruction(
        x, x, LAMBDA[0].item(), model, eps=eps
    )
    return float(weight @ term)


def nodes_of_first_level(case: str):
    if case == "gaussian":
        return corners(1)
    x, eps, weight = line_nodes(torch.from_numpy(LAMBDA[:1]))
    return x, eps, weight, len(weight)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first_variance", [BETA[0], 5.4532e-5])
def test_simple_is_the_weighted_bound_in_both_forms(case, first_variance):
    make, nodes, mmse, dims = CASES[case]
    model, m = biased(make()), mmse()
    error = m + 0.01 * (dims - m) + 0.05**2 * dims
    x, eps, weight, each = nodes(STEPS)
    t = torch.arange(1, STEPS + 1, dtype=torch.float64).repeat_interleave(each) / STEPS

    # DDPM's L_simple, over t = 1 … 1000, against the library's: 999 steps and the decoder's level
    chain = weighted_elbo(
        model,
        x,
        schedule=TABLE,
        weighting=MSE(TABLE, Eps(), steps=STEPS),
        steps=STEPS,
        t=t,
        eps=eps,
    )
    chain = (weight * chain).view(STEPS, each).sum(1).numpy() / STEPS
    np.testing.assert_allclose(chain, error[1:] / 1000, rtol=1e-8)
    simple = error.mean()

    # L₀ with its constant and its weight
    w1, c1 = (
        np.exp(-LAMBDA[0]) / (2 * first_variance),
        dims / 2 * math.log(2 * math.pi * first_variance),
    )
    decoded = (first_level(model, nodes_of_first_level(case), first_variance) - c1) / (1000 * w1)

    # small variance: L_{t-1} is the library's own step of the bound
    bound = weighted_elbo(model, x, schedule=TABLE, steps=STEPS, t=t, eps=eps)
    small = (weight * bound).view(STEPS, each).sum(1).numpy() / STEPS
    w = 0.5 * np.expm1(LAMBDA[:-1] - LAMBDA[1:])
    assert (small / (1000 * w)).sum() + decoded == pytest.approx(simple, rel=1e-9)

    # large variance, with its constant: the step's divergence at u = ℓ
    step = Step(torch.from_numpy(LAMBDA[1:]), torch.from_numpy(LAMBDA[:-1] - LAMBDA[1:]))
    ratio = step.log_variance_ratio
    large = step_kl(step.snr_gain, torch.from_numpy(error[1:]), ratio, dims).numpy()
    w = BETA[1:] / (2 * (1 - BETA[1:]) * NOISE[1:])
    ell = np.log(NOISE[1:] / NOISE[:-1])
    constant = dims / 2 * (ell + np.expm1(-ell))
    assert ((large - constant) / (1000 * w)).sum() + decoded == pytest.approx(simple, rel=1e-9)


def test_the_divergences_are_those_between_gaussians():
    """Both choices of the reverse variance against the KL of one-dimensional Gaussians, with
    DDPM's β, at its own steps."""
    step = Step(torch.from_numpy(LAMBDA[1:]), torch.from_numpy(LAMBDA[:-1] - LAMBDA[1:]))
    posterior = BETA[1:] * NOISE[:-1] / NOISE[1:]
    np.testing.assert_allclose(step.variance.numpy(), posterior, rtol=1e-9)
    np.testing.assert_allclose(step.forward_variance.numpy(), BETA[1:], rtol=1e-9)
    error = 0.7
    shift = BETA[1:] / np.sqrt((1 - BETA[1:]) * NOISE[1:]) * error  # μ̃ − μ of an error in ε
    for variance, u in ((posterior, None), (BETA[1:], step.log_variance_ratio)):
        kl = 0.5 * (np.log(variance / posterior) - 1 + posterior / variance + shift**2 / variance)
        got = step_kl(step.snr_gain, torch.full((999,), error**2, dtype=torch.float64), u)
        np.testing.assert_allclose(got.numpy(), kl, rtol=1e-7)


def test_the_weights_of_the_bound_are_the_published_ones():
    w = 0.5 * torch.expm1(TABLE.delta(torch.arange(1, 1000) / STEPS, STEPS))
    assert [w[t - 2].item() for t in (2, 10, 100, 1000)] == pytest.approx(
        [0.5997, 0.0864, 0.01027, 0.01020], rel=1e-3
    )
    assert int(w.argmin()) + 2 == 350
    assert w.min().item() == pytest.approx(0.004982, rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_bound_of_the_perfect_denoiser_on_the_table(case):
    """Σ_t L_{t-1} at the optimum, from the MMSE alone; the first step is the largest."""
    make, nodes, mmse, _ = CASES[case]
    x, eps, weight, each = nodes(STEPS)
    t = torch.arange(1, STEPS + 1, dtype=torch.float64).repeat_interleave(each) / STEPS
    bound = weighted_elbo(make(), x, schedule=TABLE, steps=STEPS, t=t, eps=eps)
    per_step = (weight * bound).view(STEPS, each).sum(1).numpy() / STEPS
    np.testing.assert_allclose(
        per_step, 0.5 * np.expm1(LAMBDA[:-1] - LAMBDA[1:]) * mmse()[1:], rtol=1e-8
    )
    assert per_step.argmax() == 0
    if case == "mixture":
        assert per_step.sum() == pytest.approx(4.334960601947, abs=1e-9)


class OwnLinearBeta(Schedule):
    """DDPM's β from 0.1 to 20 in continuous time, λ = −log expm1(B), between t = 1e-3 and 1:
    written here, not imported."""

    def __init__(self):
        super().__init__(*(-math.log(math.expm1(self.integral(t))) for t in (1e-3, 1.0)))

    @staticmethod
    def integral(t):
        return 0.1 * t + 9.95 * t**2

    def logsnr_at(self, t):
        return -torch.log(torch.expm1(self.integral(1e-3 + 0.999 * t)))

    def rate_at(self, t, logsnr):
        beta = 0.1 + 19.9 * (1e-3 + 0.999 * t)
        return 0.999 * beta / -torch.expm1(-self.integral(1e-3 + 0.999 * t))


def test_simple_is_a_weighted_bound_in_continuous_time():
    schedule = OwnLinearBeta().check()
    breaks = np.linspace(schedule.logsnr_min, schedule.logsnr_max, 41)
    model = biased(gmm1d())
    t, dt = panels(np.sort(schedule.inverse(torch.from_numpy(breaks)).numpy()))
    m = posterior_moments(schedule(torch.from_numpy(t)).numpy())[0]
    simple = (m + 0.01 * (1 - m) + 0.05**2) @ dt  # E_{t ~ U} ‖e‖², no constant

    def weight(logsnr):
        return 2 / schedule.rate(schedule.inverse(logsnr, clamp=True))

    assert quadrature_loss(model, schedule, weight, breaks) == pytest.approx(simple, rel=1e-9)
    assert quadrature_loss(model, LinearBeta(), MSE(LinearBeta(), Eps()), breaks) == pytest.approx(
        simple, rel=1e-9
    )
