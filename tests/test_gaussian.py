"""The Gaussian diffusion in log-SNR against Bayes' rule and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vdiff.gaussian import (
    Step,
    StepToData,
    bits_per_dim,
    combine,
    diffuse,
    kl_to_normal,
    per_example,
    prior_kl,
    step_kl,
)

T = torch.tensor([-8.0, -1.0, 0.0, 3.0, 9.0], dtype=torch.float64)
STEP = Step(T, torch.tensor([0.3, 1.0, 2.0, 0.01, 4.0], dtype=torch.float64))
X, EPS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGNAL, NOISE = 1 / (1 + math.e**-T), 1 / (1 + math.e**T)


def test_coefficients_go_along_the_batch():
    left, right = T[:, None], T.flip(0)[:, None]
    torch.testing.assert_close(combine(T, X, T.flip(0), EPS), left * X + right * EPS)
    assert per_example(T, X.float()).dtype == torch.float32
    torch.testing.assert_close(
        diffuse(X, EPS, T), SIGNAL.sqrt()[:, None] * X + NOISE.sqrt()[:, None] * EPS
    )


def test_a_step_is_bayes_rule():
    """q(z_s | z_t, x) from q(z_t | z_s) and q(z_s | x), as products of two normals."""
    s = T + STEP.delta
    signal_s, noise_s = 1 / (1 + math.e**-s), 1 / (1 + math.e**s)
    ratio = (SIGNAL / signal_s).sqrt()  # z_t = ratio z_s + noise
    forward = NOISE - ratio.square() * noise_s
    precision = 1 / noise_s + ratio.square() / forward
    z = diffuse(X, EPS, T)
    mean = ((signal_s.sqrt() / noise_s)[:, None] * X + (ratio / forward)[:, None] * z) / (
        precision[:, None]
    )
    torch.testing.assert_close(STEP.mean(z, X), mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(STEP.variance, 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(STEP.forward_variance, forward, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        STEP.log_variance_ratio, (forward * precision).log(), rtol=1e-9, atol=1e-12
    )
    by_eps = ((signal_s / SIGNAL).sqrt()[:, None] * z) - STEP.coefficient_eps[:, None] * EPS
    torch.testing.assert_close(by_eps, mean, rtol=1e-9, atol=1e-12)


def test_the_step_to_data_clips_its_variance():
    step = StepToData(T, clip=1e-3)
    assert step.variance.tolist() == [1e-3] * 5
    torch.testing.assert_close(step.log_variance_ratio, (NOISE / 1e-3).log())


def test_a_step_s_kl_is_that_of_two_normals():
    gain, error = torch.tensor(0.7), torch.tensor(1.3)
    for u in (None, torch.tensor(0.4), torch.tensor(-0.2)):
        scale = torch.exp(0.5 * (torch.tensor(0.0) if u is None else u))
        moved = Normal((gain * error).sqrt(), scale)
        torch.testing.assert_close(step_kl(gain, error, u), kl_divergence(Normal(0.0, 1.0), moved))


@pytest.mark.parametrize("low", [-12.0, -5.0, 1.0])
def test_the_prior_s_kl_is_that_of_a_normal(low):
    signal, noise = 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(low))
    level = Normal(signal**0.5 * X, torch.tensor(noise**0.5, dtype=torch.float64))
    expected = kl_divergence(level, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_kl(X, low), expected, rtol=1e-9, atol=1e-12)
    tensor = torch.tensor(low, dtype=torch.float64)
    torch.testing.assert_close(prior_kl(X, tensor), expected, rtol=1e-9, atol=1e-12)
    each = kl_to_normal(signal * X.square().sum(1), noise, dims=3)
    torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-12)


def test_bits_per_dimension():
    nats = torch.tensor(3 * math.log(2))
    assert bits_per_dim(nats, 3).item() == pytest.approx(1.0)
    assert bits_per_dim(nats, 3, bin_width=0.25).item() == pytest.approx(3.0)


def test_the_noise_of_a_less_noisy_level_is_normal():
    """Of independent normal ε and n, the squared coefficients sum to one."""
    step = Step(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.1, 1.0, 4.0]))
    one, none = torch.ones(3, 1), torch.zeros(3, 1)
    squares = step.noise_s(one, none).square() + step.noise_s(none, one).square()
    torch.testing.assert_close(squares, one)
