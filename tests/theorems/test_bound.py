"""The bound is the negative log-likelihood plus a slack that is known exactly, and weighted losses
are bounds of noisier data."""

import math

import numpy as np
import pytest
import torch

from vdiff import elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.gaussian import prior_kl
from vdiff.oracle import Lattice
from vdiff.parameterization import Eps, Flow
from vdiff.schedule import Cosine, Linear, OptimalTransport
from vdiff.weighting import EDM, ELBO, MSE, MinSNR, Sigmoid

from .reference import (
    COVARIANCE3,
    MEAN3,
    SECOND_MOMENT,
    M,
    V,
    W,
    gauss3d,
    gauss3d_nodes,
    gmm1d,
    panels,
    posterior_moments,
    quadrature_loss,
)

HIGH, LOW = 4.0, -3.0


def kl(m0, c0, m1, c1) -> float:
    """KL between two Gaussians."""
    inverse = np.linalg.inv(c1)
    shift = m1 - m0
    return 0.5 * (
        np.trace(inverse @ c0)
        - len(m0)
        + shift @ inverse @ shift
        + np.linalg.slogdet(c1)[1]
        - np.linalg.slogdet(c0)[1]
    )


def noisy(logsnr: float, x: np.ndarray | None = None):
    """Mean and covariance of q(z), or of q(z | x)."""
    signal = 1 / (1 + math.exp(-logsnr))
    if x is None:
        return math.sqrt(signal) * MEAN3, signal * COVARIANCE3 + (1 - signal) * np.eye(3)
    return math.sqrt(signal) * x, (1 - signal) * np.eye(3)


STANDARD = np.zeros(3), np.eye(3)
DECODER_ENTROPY = 1.5 * (math.log(2 * math.pi * math.e) - HIGH)


def gaussian_bound(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The library's bound of each (x, ε), integrated over t."""
    schedule = Cosine(HIGH, LOW)
    t, dt = (
        torch.from_numpy(a)
        for a in panels(
            np.sort(schedule.inverse(torch.linspace(LOW, HIGH, 29, dtype=torch.float64)).numpy())
        )
    )
    n = len(x)
    bound = elbo(
        gauss3d(),
        x.repeat(len(t), 1),
        schedule=schedule,
        decoder=Gaussian(),
        t=t.repeat_interleave(n),
        eps=eps.repeat(len(t), 1),
    )
    return dt @ bound.total.view(len(t), n)


def test_the_bound_of_gaussian_data_is_its_entropy_plus_the_known_slack():
    x, eps, weight = gauss3d_nodes()
    entropy = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * COVARIANCE3)[1]
    prior_gap = kl(*noisy(LOW), *STANDARD)
    decoding = 0.5 * np.log1p(math.exp(-HIGH) / np.linalg.eigvalsh(COVARIANCE3)).sum()
    total = float(weight @ gaussian_bound(x, eps))
    assert total == pytest.approx(entropy + prior_gap + decoding, rel=1e-9)
    oracle = gauss3d()
    assert oracle.bound(HIGH, LOW).total.item() == pytest.approx(total, rel=1e-9)
    assert [oracle.entropy().item(), oracle.prior_gap(LOW).item()] == pytest.approx(
        [entropy, prior_gap], rel=1e-9
    )


@pytest.mark.parametrize("x", [MEAN3, np.array([2.0, -1.0, 0.5]), np.array([-3.0, 0.0, 4.0])])
def test_the_bound_of_each_example_is_its_nll_plus_the_known_slack(x):
    _, eps, _ = gauss3d_nodes()
    total = gaussian_bound(torch.from_numpy(x).expand(len(eps), 3), eps).mean().item()
    residual = x - MEAN3
    nll = 0.5 * (
        np.linalg.slogdet(2 * math.pi * COVARIANCE3)[1]
        + residual @ np.linalg.inv(COVARIANCE3) @ residual
    )
    noise_end = kl(*noisy(LOW, x), *STANDARD) - kl(*noisy(LOW, x), *noisy(LOW))
    data_end = DECODER_ENTROPY + kl(*noisy(HIGH, x), *noisy(HIGH)) - nll
    assert total == pytest.approx(nll + noise_end + data_end, rel=1e-9)
    assert -gauss3d().log_prob(torch.from_numpy(x)[None]).item() == pytest.approx(nll, rel=1e-12)


LEVELS = Lattice([-2 / 3, 0.0, 2 / 3], [0.2, 0.5, 0.3])
PMF, GRID = np.array([0.2, 0.5, 0.3]), np.array([-2 / 3, 0.0, 2 / 3])
NOISE = np.arange(-170, 171) * 0.05
PHI = np.exp(-0.5 * NOISE**2) / np.exp(-0.5 * NOISE**2).sum()


def lattice_posterior(logsnr: float):
    """log q(k | z), and the same without the prior, (level, noise, level), for z of each level and
    noise node."""
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))
    z = alpha * GRID[:, None] + sigma * NOISE
    fit = -0.5 * ((z[..., None] - alpha * GRID) / sigma) ** 2
    normalized = [
        log - np.logaddexp.reduce(log, -1, keepdims=True) for log in (fit + np.log(PMF), fit)
    ]
    return normalized


def lattice_reconstruction(logsnr: float, which: int) -> float:
    """E[−log q(k | z₀)] (0) or the decoder's E[−log p(k | z₀)] (1)."""
    log = lattice_posterior(logsnr)[which]
    return -sum(PMF[k] * (PHI @ log[k, :, k]) for k in range(3))


def lattice_mmse(logsnr: float) -> float:
    log, _ = lattice_posterior(logsnr)
    x_hat = (np.exp(log) * GRID).sum(-1)
    return math.exp(logsnr) * sum(PMF[k] * (PHI @ (GRID[k] - x_hat[k]) ** 2) for k in range(3))


def lattice_bound(schedule, steps=None):
    """The library's bound of the lattice, averaged over level, noise and time, with its graph."""
    decoder = Categorical(levels=3)
    high, low = schedule.logsnr_max, schedule.logsnr_min
    if steps is None:
        t, dt = (torch.from_numpy(a) for a in panels(np.linspace(0, 1, 15), 8))
    else:
        t, dt = torch.arange(1, steps + 1) / steps, torch.full((steps,), 1 / steps)
    n, phi = torch.from_numpy(NOISE), torch.from_numpy(PHI)
    weight = (dt[:, None, None] * torch.from_numpy(PMF)[:, None] * phi).flatten()
    shape = len(t), 3, len(n)
    data = torch.arange(3)[:, None].expand(shape).reshape(-1, 1)
    bound = elbo(
        LEVELS,
        data,
        schedule=schedule,
        decoder=decoder,
        steps=steps,
        t=t[:, None, None].expand(shape).flatten(),
        eps=n.expand(shape).reshape(-1, 1),
    )
    assert (high, low) == (schedule.logsnr_max, schedule.logsnr_min)
    return weight @ bound.total


@pytest.mark.usefixtures("float64")
def test_the_bound_of_discrete_data_is_its_entropy_plus_the_known_slack():
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-LOW))), math.sqrt(1 / (1 + math.exp(LOW)))
    z = np.linspace(-9, 9, 4001)
    q = (PMF[:, None] * np.exp(-0.5 * ((z - alpha * GRID[:, None]) / sigma) ** 2)).sum(0) / (
        sigma * math.sqrt(2 * math.pi)
    )
    prior_gap = (q * (np.log(q) + 0.5 * z**2 + 0.5 * math.log(2 * math.pi))).sum() * (z[1] - z[0])
    decoding = lattice_reconstruction(HIGH, 1) - lattice_reconstruction(HIGH, 0)
    want = -(PMF * np.log(PMF)).sum() + prior_gap + decoding
    assert decoding > 0.001
    assert lattice_bound(Linear(HIGH, LOW)).item() == pytest.approx(want, rel=1e-8)
    assert LEVELS.bound(HIGH, LOW, Categorical(levels=3)).total.item() == pytest.approx(
        want, rel=1e-8
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [1, 4])
def test_the_bound_of_a_chain_is_the_sum_of_its_terms(steps):
    lam = HIGH - (HIGH - LOW) * np.arange(1, steps + 1) / steps
    diffusion = 0.5 * math.expm1((HIGH - LOW) / steps) * sum(map(lattice_mmse, lam))
    square, signal = PMF @ GRID**2, 1 / (1 + math.exp(-LOW))
    prior = 0.5 * (signal * (square - 1) + math.log1p(math.exp(LOW)))
    assert lattice_bound(Linear(HIGH, LOW), steps).item() == pytest.approx(
        prior + diffusion + lattice_reconstruction(HIGH, 1), rel=1e-8
    )


COSINE = Cosine(13.3, -5.0)
THEOREM = {
    "elbo": (ELBO(), True),
    "sigmoid": (Sigmoid(2.0), True),
    "flow-matching": (MSE(OptimalTransport().law, Flow()), True),
    "edm-monotone": (EDM(monotone=True), True),
    "edm": (EDM(), False),
    "min-snr": (MSE(COSINE, Eps()) * MinSNR(math.exp(2)), False),
    "iddpm": (MSE(COSINE, Eps()), False),
}


@pytest.mark.parametrize("name", THEOREM)
def test_a_weighted_loss_is_a_mixture_of_bounds_of_noisier_data(name):
    """L_w = ∫ (dw/dt) L(t) dt + w(λ_max) L(0) − w(λ_min) L(1): theorem 1 of VDM++, with signs
    where w is not monotone."""
    weighting, monotone = THEOREM[name]
    oracle, high, low = gmm1d(), 10.0, -4.0
    breaks = np.union1d(np.linspace(low, high, 29), [2.0, -3.3077775])
    lam, width = (torch.from_numpy(a) for a in panels(breaks))
    lam.requires_grad_()
    (slope,) = (
        torch.autograd.grad(weighting(lam).sum(), lam)
        if name != "elbo"
        else (torch.zeros_like(lam),)
    )
    ends = weighting(torch.tensor([high, low], dtype=torch.float64))

    # L(t), the divergence of the chain from t on, from entropies
    information = oracle.mutual_information(
        torch.cat([torch.tensor([high, low], dtype=torch.float64), lam.detach()])
    )
    prior = 0.5 * (
        torch.sigmoid(torch.tensor(low)).double().item() * (SECOND_MOMENT - 1)
        + math.log1p(math.exp(low))
    )
    partial = prior + information - information[1]
    mixture = -(slope * partial[2:]) @ width + ends[0] * partial[0] - ends[1] * prior

    assert quadrature_loss(oracle, Cosine(high, low), weighting, breaks) == pytest.approx(
        mixture.item(), rel=1e-7
    )
    assert bool((slope <= 1e-12).all()) == monotone == weighting.monotone
    mass = -slope @ width / ends[1] + ends[0] / ends[1]
    assert mass.item() == pytest.approx(1.0, abs=1e-6)


def test_the_divergence_from_t_on_is_the_bound_of_the_noisy_data():
    """L(t) = E[−log q(z_t)] + prior gap − ½ log 2πe σ_t² at the optimum."""
    oracle, low = gmm1d(), -4.0
    z = np.linspace(-9, 9, 6001)
    for high in (-1.0, 2.0, 6.0):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-high))), math.sqrt(1 / (1 + math.exp(high)))
        variance = (alpha**2 * V + sigma**2)[:, None]
        q = (
            W[:, None]
            * np.exp(-0.5 * (z - alpha * M[:, None]) ** 2 / variance)
            / np.sqrt(2 * math.pi * variance)
        ).sum(0)
        entropy = -(q * np.log(np.maximum(q, 1e-300))).sum() * (z[1] - z[0])
        diffusion = quadrature_loss(oracle, Linear(high, low), ELBO(), np.linspace(low, high, 25))
        prior = 0.5 * (SECOND_MOMENT - 1) / (1 + math.exp(-low)) + 0.5 * math.log1p(math.exp(low))
        want = (
            entropy
            + oracle.prior_gap(low).item()
            - 0.5 * math.log(2 * math.pi * math.e * sigma**2)
        )
        assert prior + diffusion == pytest.approx(want, rel=1e-7)


def test_the_error_is_twice_the_derivative_of_the_information():
    """I-MMSE, with the perfect error by another quadrature and by finite differences of
    entropies."""
    oracle, h = gmm1d(), 1e-4
    lam = torch.tensor([-3.0, 0.0, 2.5, 6.0], dtype=torch.float64)
    slope = (oracle.mutual_information(lam + h) - oracle.mutual_information(lam - h)) / (2 * h)
    torch.testing.assert_close(0.5 * oracle.mmse(lam), slope, rtol=1e-6, atol=0)
    np.testing.assert_allclose(
        oracle.mmse(lam).numpy(), posterior_moments(lam.numpy())[0], rtol=1e-9
    )


def test_the_prior_term_is_the_divergence_of_gaussians():
    for low in (-12.0, -3.0, 0.5):
        x = np.array([2.0, -1.0, 0.5])
        got = prior_kl(torch.from_numpy(x)[None], low).item()
        assert got == pytest.approx(kl(*noisy(low, x), *STANDARD), rel=1e-9)
    tiny = prior_kl(torch.ones(1, 1), -20.0).item()  # float32, where one minus σ² is zero
    assert tiny == pytest.approx(0.5 * math.log1p(math.exp(-20)), rel=1e-6)
