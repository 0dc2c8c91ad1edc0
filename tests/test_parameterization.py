"""A target is a row (a, b); from its output every other target follows."""

import math

import numpy as np
import pytest
import torch

from vdiff import Denoiser, Prediction
from vdiff.gaussian import Step, diffuse
from vdiff.parameterization import Eps, Flow, Parameterization, PosteriorMean, Score, V, X
from vdiff.reverse import reverse_mean
from vdiff.schedule import Cosine, Linear

LAM = np.linspace(-12, 12, 25)
SIGNAL, NOISE = 1 / (1 + np.exp(-LAM)), 1 / (1 + np.exp(LAM))
SCHEDULE = Linear(13.0, -13.0)
C = -np.expm1(-26 / 10)
LAM_S = np.minimum(LAM + 2.6, 13.0)
C_LAST = -np.expm1(LAM - LAM_S)  # the first step of the chain is cut at λ_max
KAPPA_SQUARED = {
    "eps": (Eps(), 1 + 0 * LAM),
    "x": (X(), np.exp(-LAM)),
    "v": (V(), 1 + np.exp(-LAM)),
    "edm": (V(0.5), (np.exp(-LAM) + 0.25) / 0.25),
    "flow": (Flow(), (1 + np.exp(-LAM / 2)) ** 2),
    "score": (Score(), 1 + np.exp(LAM)),
    "posterior-mean": (
        PosteriorMean(SCHEDULE, 10),
        (1 / (1 + np.exp(-LAM_S))) * C_LAST**2 * np.exp(-LAM),
    ),
}


def draw(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x, eps, wrong_x = torch.randn(3, len(LAM), 2, dtype=torch.float64, generator=generator)
    logsnr = torch.from_numpy(LAM)
    return x, eps, wrong_x, logsnr, diffuse(x, eps, logsnr)


@pytest.mark.parametrize("name", KAPPA_SQUARED)
def test_an_error_of_the_target_is_kappa_times_the_error_of_the_noise(name):
    target, want = KAPPA_SQUARED[name]
    kappa = torch.as_tensor(target.kappa(torch.from_numpy(LAM)), dtype=torch.float64).expand(
        len(LAM)
    )
    np.testing.assert_allclose(kappa.numpy() ** 2, want, rtol=1e-10)


@pytest.mark.parametrize("name", KAPPA_SQUARED)
def test_a_perfect_output_gives_every_answer(name):
    target, _ = KAPPA_SQUARED[name]
    x, eps, _, logsnr, z = draw()
    prediction = Prediction(z, logsnr, target.target(x, eps, logsnr), target)
    alpha, sigma = (
        torch.from_numpy(SIGNAL).sqrt()[:, None],
        torch.from_numpy(NOISE).sqrt()[:, None],
    )
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(prediction.x, x, **close)
    torch.testing.assert_close(prediction.eps, eps, **close)
    torch.testing.assert_close(prediction.v, alpha * eps - sigma * x, **close)
    torch.testing.assert_close(prediction.score, -eps / sigma, **close)
    torch.testing.assert_close(prediction.as_target(Flow()), eps - x, **close)
    assert (prediction.squared_error(x, eps) < 1e-20).all()


@pytest.mark.parametrize("name", KAPPA_SQUARED)
def test_a_wrong_output_is_consistent_with_the_noisy_data(name):
    """x̂ and ε̂ from any output satisfy z = α x̂ + σ ε̂, and the error is that of ε̂."""
    target, _ = KAPPA_SQUARED[name]
    x, eps, wrong_x, logsnr, z = draw()
    alpha, sigma = (
        torch.from_numpy(SIGNAL).sqrt()[:, None],
        torch.from_numpy(NOISE).sqrt()[:, None],
    )
    wrong_eps = (z - alpha * wrong_x) / sigma
    prediction = Prediction(z, logsnr, target.target(wrong_x, wrong_eps, logsnr), target)
    torch.testing.assert_close(prediction.x, wrong_x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.eps, wrong_eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        prediction.squared_error(x, eps), (eps - wrong_eps).square().sum(1), rtol=1e-9, atol=0
    )


def test_v_at_another_scale_is_minus_edms_network():
    """D(z̃) = c_skip z̃ + c_out F(c_in z̃) of arXiv:2206.00364, table 1, with σ̃ = e^{−λ/2} and z̃
    = z/α."""
    x, eps, _, logsnr, z = draw()
    noise, s = np.exp(-LAM / 2), 0.5
    total = noise**2 + s**2
    noisy = (z.numpy().T / np.sqrt(SIGNAL)).T
    prediction = Prediction(z, logsnr, V(s).target(x, eps, logsnr), V(s))
    network = -prediction.output.numpy()
    denoised = (s**2 / total)[:, None] * noisy + (noise * s / np.sqrt(total))[:, None] * network
    np.testing.assert_allclose(denoised, x.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        V(s).input_scale(logsnr).numpy() * np.sqrt(SIGNAL), 1 / np.sqrt(total), rtol=1e-12
    )


def test_the_inputs_and_the_target_of_v_have_the_datas_unit_scale():
    sigma_data, n, generator = 0.5, 200_000, torch.Generator().manual_seed(0)
    x, eps = (
        sigma_data * torch.randn(n, 1, dtype=torch.float64, generator=generator),
        torch.randn(n, 1, dtype=torch.float64, generator=generator),
    )
    for lam in (-4.0, 0.0, 3.0):
        logsnr = torch.full((n,), lam, dtype=torch.float64)
        for value in (
            V(0.5).input_scale(logsnr)[:, None] * diffuse(x, eps, logsnr),
            V(0.5).target(x, eps, logsnr),
        ):
            assert abs(value.var().item() - 1) < 4 * math.sqrt(2 / n)


def test_flow_sees_the_straight_path():
    x, eps, _, logsnr, z = draw()
    t = 1 / (1 + np.exp(LAM / 2))[:, None]
    np.testing.assert_allclose(
        (Flow().input_scale(logsnr)[:, None] * z).numpy(),
        (1 - t) * x.numpy() + t * eps.numpy(),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("schedule", [Linear(13.3, -5.0), Cosine(9.0, -6.0)], ids=repr)
def test_the_posterior_mean_is_the_mean_of_the_reverse_step(schedule):
    x, eps, steps = (
        torch.tensor([[0.3, -2.0]], dtype=torch.float64),
        torch.tensor([[1.0, 0.1]], dtype=torch.float64),
        12,
    )
    for i in range(1, steps + 1):
        t = torch.tensor([i / steps], dtype=torch.float64)
        logsnr = schedule(t)
        z, step = diffuse(x, eps, logsnr), Step(logsnr, schedule.delta(t, steps))
        target = PosteriorMean(schedule, steps).target(x, eps, logsnr)
        torch.testing.assert_close(target, step.mean(z, x), rtol=1e-10, atol=1e-12)
        prediction = Prediction(z, logsnr, target + 0.1, PosteriorMean(schedule, steps))
        torch.testing.assert_close(
            reverse_mean(prediction, step), target + 0.1, rtol=1e-10, atol=1e-12
        )


class Numbers(Parameterization):
    """A row and an input scale that are numbers other than 0 and 1."""

    def row(self, logsnr):
        return 0.3, 2

    def input_scale(self, logsnr):
        return 0.1


def test_a_row_may_be_numbers():
    x, eps, _, logsnr, z = draw()
    perfect = 0.3 * x + 2 * eps
    torch.testing.assert_close(Numbers().target(x, eps, logsnr), perfect)
    model = Denoiser(lambda scaled, time: perfect + scaled - 0.1 * z, Numbers())
    prediction = model(z, logsnr)
    torch.testing.assert_close(prediction.eps, eps)
    torch.testing.assert_close(prediction.x, x)
    assert prediction.squared_error(x, eps).max() < 1e-20
