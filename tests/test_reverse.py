"""Ancestral sampling: each step's kernel, and the variance that a whole chain ends with."""

import itertools
import math

import numpy as np
import pytest
import torch

from vdiff import Prediction
from vdiff.gaussian import Step
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps, X
from vdiff.reverse import reverse_log_ratio, reverse_mean, reverse_sample
from vdiff.sampling import trajectory
from vdiff.schedule import Cosine, Linear
from vdiff.variance import FixedLarge, FixedSmall

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
            steps=steps,
            generator=generator,
        )
    )
    assert len(visited) == steps + 1
    (want_z, want_x) = chain_moments(schedule, steps, mean, variance)
    for got, (m, v) in ((visited[-1][0], want_z), (visited[-1][1].x, want_x)):
        assert abs(got.mean().item() - m) < 4 * math.sqrt(v / n)
        assert abs(got.var().item() / v - 1) < 4 * math.sqrt(2 / n)


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


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_a_log_ratio_is_that_of_two_normal_distributions(variance):
    generator = torch.Generator().manual_seed(0)
    x, eps, noise, out = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    lam_t, lam_s = -0.5, 0.8
    logsnr = torch.full((3,), lam_t, dtype=torch.float64)
    step = Step(logsnr, torch.full_like(logsnr, lam_s - lam_t))
    alpha, sigma = torch.sigmoid(logsnr).sqrt()[0], torch.sigmoid(-logsnr).sqrt()[0]
    z = alpha * x + sigma * eps
    prediction = Prediction(z, logsnr, out, Eps(), variance)
    of_z, of_x, kernel = posterior(lam_s, lam_t)
    forward = kernel * (1 + math.exp(lam_s)) / (1 + math.exp(lam_t))
    model = {FixedSmall: kernel, FixedLarge: forward}[type(variance)]
    q = torch.distributions.Normal(of_z * z + of_x * x, math.sqrt(kernel))
    p = torch.distributions.Normal(of_z * z + of_x * prediction.x, math.sqrt(model))
    z_s = q.mean + q.stddev * noise
    want = (q.log_prob(z_s) - p.log_prob(z_s)).sum(1)
    got = reverse_log_ratio(prediction, x, eps, step, noise)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
