"""Decoders in float32: tails, narrow intervals and gradients keep their digits."""

import math

import mpmath
import numpy as np
import pytest
import torch
from decoder_values import grid, log_interval
from scipy.special import erfcx, log_ndtr

from vdiff import Prediction
from vdiff.decoder import DiscretizedGaussian, log_normal_cdf, log_normal_interval
from vdiff.parameterization import X
from vdiff.variance import LearnedRange


@pytest.mark.parametrize(("bins", "log_p"), [(8, -34.736), (12, -78.02)])
@pytest.mark.parametrize("side", [-1, 1])
def test_far_tails_have_their_value_and_their_gradient(bins, log_p, side):
    """No floor: a clamp at 1e-12 would return −27.631 and a zero gradient."""
    std = math.sqrt(5.4532e-5)
    decoder = DiscretizedGaussian(256, variance=std**2)
    x = grid(256, True)
    mean = torch.tensor([[x[100 + side * bins]]], requires_grad=True)
    value = decoder.log_prob(torch.tensor([[100]]), mean, 0.0).sum()
    assert value.item() == pytest.approx(log_p, abs=0.006)
    value.backward()
    a, b = ((x[100] + h / 255 - x[100 + side * bins]) / std for h in (-1, 1))
    log_phi = [
        -0.5 * u**2 - 0.5 * math.log(2 * math.pi) for u in (a, b)
    ]  # ∂ log P/∂mean = (φ(a) − φ(b))/(σ P)
    want = (math.exp(log_phi[0] - value.item()) - math.exp(log_phi[1] - value.item())) / std
    assert mean.grad.item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (-300.0, -299.0),
        (299.0, 300.0),
        (-41.0, -40.0),
        (-1.0, 1.0),
        (-40.0, 40.0),
        (0.3, 0.3001),
        (-20.0, 1.0),
    ],
)
def test_an_interval_of_the_normal_in_log_space(lower, upper):
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (lower, upper))
    value = log_normal_interval(a, b)
    assert value.item() == pytest.approx(float(log_interval(lower, upper)), rel=1e-12, abs=1e-13)
    value.backward()
    want = [
        sign * math.exp(-0.5 * end**2 - 0.5 * math.log(2 * math.pi) - value.item())
        for end, sign in ((lower, -1), (upper, 1))
    ]
    assert [a.grad.item(), b.grad.item()] == pytest.approx(
        want, rel=1e-9, abs=1e-12 * max(map(abs, want))
    )


@pytest.mark.parametrize("at", [0.0, 1e-3, 0.3, -7.0, 40.0])
@pytest.mark.parametrize("width", [2**-2, 2**-8, 2**-11, 2**-12, 2**-20, 2**-36, 2**-42])
def test_a_narrow_interval_keeps_its_digits(at, width):
    """Φ(b) − Φ(a) to 80 digits is the oracle."""
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (at, at + width))
    value = log_normal_interval(a, b)
    with mpmath.workdps(80 + int(at**2)):
        low, high = (-b.item(), -a.item()) if at > 0 else (a.item(), b.item())
        mass = mpmath.ncdf(high) - mpmath.ncdf(low)
        want, density = mpmath.log(mass), mpmath.npdf(b.item()) / mass
    assert value.item() == pytest.approx(float(want), rel=1e-11)
    value.backward()
    assert b.grad.item() == pytest.approx(float(density), rel=1e-7)


def test_the_bins_of_a_decoder_under_almost_pure_noise():
    """log p = log φ(0) + log of the width, whose digits a difference of Φ loses."""
    for variance, logsnr in ((None, -39.0), (None, -75.0), (1e30, 5.0)):
        decoder = DiscretizedGaussian(256, variance=variance)
        std = math.exp(-0.5 * logsnr) if variance is None else math.sqrt(variance)
        mean = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        log_p = decoder.log_prob(torch.tensor([[100]]), mean, logsnr)
        want = math.log(decoder.spacing / std) - 0.5 * math.log(2 * math.pi)
        assert log_p.item() == pytest.approx(want, rel=1e-12)
        assert torch.autograd.grad(log_p.sum(), mean)[0].isfinite().all()


def density_over_mass(lower, upper):
    """φ(lower)/P and φ(upper)/P with P = Φ(upper) − Φ(lower), from φ/Φ = √(2/π)/erfcx(−x/√2)."""
    flip = lower + upper > 0
    low, high = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    mass = -np.expm1(log_ndtr(low) - log_ndtr(high))  # P/Φ(high)
    near = math.sqrt(2 / math.pi) / erfcx(-high / math.sqrt(2)) / mass
    far = near * np.exp(0.5 * (high - low) * (high + low))
    return np.where(flip, near, far), np.where(flip, far, near)


@pytest.mark.parametrize("logsnr", [5.0, 9.21, 13.3, 20.0, 30.0, 35.0, 40.0])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_the_gradient_is_right_at_every_level_however_small_the_noise(logsnr, closed, learned):
    """The mean is up to 1e9 standard deviations from the level; the variance may be learned."""
    levels, means = 256, [-1.0, -0.31, 0.98, 3.0]
    data = torch.arange(levels).repeat(len(means))[:, None]
    mean = torch.tensor(means, dtype=torch.float64).repeat_interleave(levels)[:, None]
    mean.requires_grad_()
    head = torch.ones_like(mean, requires_grad=True)  # of a range: the noise of z₀ itself, σ = σ₀
    clip = 0.1 * math.exp(-logsnr) if learned else None
    decoder = DiscretizedGaussian(
        levels, levels_at_ends=closed, uses_network=True, posterior_variance=clip
    )

    def nll(mean):
        def predict(z, logsnr):
            return Prediction(z, logsnr, mean, X(), LearnedRange(), head)

        return decoder.nll(data, torch.zeros_like(mean), logsnr, predict).sum()

    slopes = torch.autograd.grad(nll(mean), [mean, head] if learned else [mean])
    std = math.exp(-0.5 * logsnr) * ((1 + math.exp(-logsnr)) ** -0.5 if learned else 1)
    away, half = decoder.level_values.numpy()[data] - mean.detach().numpy(), 0.5 * decoder.spacing
    first, last = data.numpy() == 0, data.numpy() == levels - 1
    lower = np.where(first, -1e15, (away - half) / std)
    upper = np.where(last, 1e15, (away + half) / std)
    by_lower, by_upper = density_over_mass(lower, upper)
    by_std = np.where(last, 0, upper * by_upper) - np.where(first, 0, lower * by_lower)
    by_head = 0.25 * (math.log(std**2) - math.log(0.1) + logsnr) * by_std
    for slope, want in zip(slopes, [(by_upper - by_lower) / std, by_head], strict=False):
        np.testing.assert_allclose(slope.numpy(), want, rtol=1e-8, atol=1e-8 / std)
    single = mean.detach().float().requires_grad_()
    nll(single).backward()
    assert torch.isfinite(single.grad).all()


@pytest.mark.parametrize("score", [-1e99, -1e9, -1e8, -1e6, -40.0, -1.0, 0.0, 1.0, 9.0, 40.0, 1e9])
def test_the_logarithm_of_the_normal_cdf_and_its_slope(score):
    x = torch.tensor([score, 0.5], dtype=torch.float64, requires_grad=True)
    value = log_normal_cdf(x)
    assert value.tolist() == pytest.approx(log_ndtr([score, 0.5]).tolist(), rel=1e-14)
    value.sum().backward()
    hazard = math.sqrt(2 / math.pi) / erfcx(-score / math.sqrt(2))
    assert x.grad[0].item() == pytest.approx(hazard, rel=1e-14)
