"""Ancestral sampling: each step's kernel, and the variance that a whole chain ends with."""

import itertools
import math

import numpy as np
import pytest
import torch
from registry import ORACLES

from vdiff import Prediction, sample
from vdiff.gaussian import Step
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps, X
from vdiff.reverse import reverse_mean, reverse_sample
from vdiff.sampling import trajectory
from vdiff.schedule import Cosine, Linear

# of z at λ = 13.3, from N(0, 1) at −5 in uniform steps of λ: (data variance, steps) → posterior
# variance kernel
FINAL_VARIANCE = {
    (0.25, 1): 0.00042421391977381196,
    (0.25, 4): 0.04426675734107791,
    (0.25, 16): 0.14893850773570325,
    (0.25, 64): 0.2174377665343347,
    (4.0, 16): 2.3823133619088086,
}


def posterior(lam_s: float, lam_t: float):
    """q(z_s | z_t, x): coefficients of z and x and the variance, by conditioning a joint Gaussian
    (no log-SNR algebra)."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        (math.sqrt(1 / (1 + math.exp(-v))), math.sqrt(1 / (1 + math.exp(v))))
        for v in (lam_s, lam_t)
    )
    ratio = alpha_t / alpha_s  # z_t = ratio·z_s + noise
    gain = ratio * sigma_s**2 / sigma_t**2
    return gain, alpha_s - gain * alpha_t, sigma_s**2 - gain**2 * sigma_t**2


def chain_moments(schedule, steps: int, mean: float, variance: float):
    """Mean and variance of z at λ_max and of the x̂ there: a linear recursion with E[x | z] of
    Gaussian data."""
    t = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    lam = schedule(t).tolist()
    m, v = 0.0, 1.0
    for lam_t, lam_s in itertools.pairwise(lam):
        of_z, of_x, noise = posterior(lam_s, lam_t)
        slope, constant = denoiser(lam_t, mean, variance)
        m, v = (of_z + of_x * slope) * m + of_x * constant, (of_z + of_x * slope) ** 2 * v + noise
    slope, constant = denoiser(lam[-1], mean, variance)
    return (m, v), (slope * m + constant, slope**2 * v)


def denoiser(lam: float, mean: float, variance: float):
    """E[x | z] = slope·z + constant."""
    signal = 1 / (1 + math.exp(-lam))
    slope = math.sqrt(signal) * variance / (signal * variance + 1 - signal)
    return slope, mean * (1 - slope * math.sqrt(signal))


@pytest.mark.parametrize(("variance", "steps"), FINAL_VARIANCE)
def test_the_recursion_is_the_published_one(variance, steps):
    (_, v), _ = chain_moments(Linear(13.3, -5.0), steps, 0.0, variance)
    assert v == pytest.approx(FINAL_VARIANCE[variance, steps], rel=1e-7)


@pytest.mark.parametrize("schedule", [Linear(13.3, -5.0), Cosine(9.0, -6.0)], ids=repr)
@pytest.mark.parametrize(
    ("mean", "variance", "steps"), [(0.0, 0.25, 16), (0.0, 0.25, 4), (0.7, 4.0, 7), (-0.4, 0.5, 1)]
)
def test_samples_have_the_moments_of_the_chain(schedule, mean, variance, steps):
    n, generator = 100_000, torch.Generator().manual_seed(0)
    start = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    visited = list(
        trajectory(
            Gaussian([mean], [variance]),
            start,
            schedule=schedule,
            steps=steps + 1,
            generator=generator,
        )
    )
    assert len(visited) == steps + 1
    (want_z, want_x) = chain_moments(schedule, steps, mean, variance)
    for got, (m, v) in ((visited[-1][0], want_z), (visited[-1][1].x, want_x)):
        assert abs(got.mean().item() - m) < 4 * math.sqrt(v / n)
        assert abs(got.var().item() / v - 1) < 4 * math.sqrt(2 / n)


def test_a_sample_is_the_estimate_at_the_end_of_the_trajectory():
    oracle, z = (
        ORACLES["mixture"](),
        torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    options = {"schedule": Linear(13.3, -5.0), "steps": 20}
    *_, (_, last) = trajectory(oracle, z, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(
        sample(oracle, z, generator=torch.Generator().manual_seed(1), **options), last.x
    )


@pytest.mark.parametrize(("lam_s", "lam_t"), [(0.3, -1.0), (5.0, 4.9), (13.3, -5.0), (-2.0, -6.0)])
def test_the_kernel_is_the_posterior_with_the_estimate(lam_s, lam_t):
    of_z, of_x, variance = posterior(lam_s, lam_t)
    z, out = (
        torch.tensor([[0.7, -1.1]], dtype=torch.float64),
        torch.tensor([[0.2, 0.4]], dtype=torch.float64),
    )
    level = torch.tensor([lam_t], dtype=torch.float64)
    step = Step(level, torch.tensor([lam_s - lam_t], dtype=torch.float64))
    prediction = Prediction(z, level, out, X())
    torch.testing.assert_close(
        reverse_mean(prediction, step), of_z * z + of_x * out, rtol=1e-9, atol=0
    )
    noise = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    drawn = reverse_sample(prediction, step, noise)
    torch.testing.assert_close(
        drawn, of_z * z + of_x * out + math.sqrt(variance) * noise, rtol=1e-8, atol=0
    )
    # the same mean, written with ε̂
    same = Prediction(z, level, prediction.eps, Eps())
    alpha = [math.sqrt(1 / (1 + math.exp(-v))) for v in (lam_s, lam_t)]
    torch.testing.assert_close(
        alpha[0] / alpha[1] * z - step.coefficient_eps * same.eps,
        reverse_mean(same, step),
        rtol=1e-9,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        step.forward_variance.item(),
        1 / (1 + math.exp(lam_t)) - (alpha[1] / alpha[0]) ** 2 / (1 + math.exp(lam_s)),
        rtol=1e-9,
    )
