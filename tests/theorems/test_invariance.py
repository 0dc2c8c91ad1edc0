"""Changing the schedule leaves the expected loss; changing the parameterization leaves the loss of
every draw."""

import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from registry import CLOSED_TARGETS, corners, made_of, moved
from registry import SCHEDULES as REGISTERED
from registry import TARGETS as REGISTERED_TARGETS

from vdiff import Denoiser, weighted_elbo
from vdiff.parameterization import Eps, Flow, PosteriorMean, Score, V, VarianceExploding, X
from vdiff.schedule import Cosine, OptimalTransport, Tabulated
from vdiff.theorems.subject import Altered, Reexpressed
from vdiff.weighting import EDM, ELBO, MSE, InDI, MinSNR, Sigmoid, loss_factor

from .reference import (
    assert_near,
    chain_loss,
    gauss3d,
    gauss3d_mmse,
    gmm1d,
    gmm2d,
    line_nodes,
    panels,
    plane_mmse,
    posterior_moments,
    quadrature_loss,
)

HIGH, LOW = 9.0, -6.0
TABLE = [9.0, 8.5, 6.0, 3.0, 2.0, -1.0, -2.0, -6.0]


SCHEDULES = {name: moved(make()) for name, make in made_of(REGISTERED, HIGH, LOW).items()}
BREAKS = np.unique(
    [*np.linspace(LOW, HIGH, 31), *itertools.chain(*map(corners, SCHEDULES.values()))]
)
WEIGHTINGS = {
    "elbo": ELBO(),
    "sigmoid": Sigmoid(2.0),
    "edm": EDM(),
    "indi": InDI(),
    "mse": MSE(Cosine(HIGH, LOW), V()),
    "min-snr": MSE(OptimalTransport(HIGH, LOW), Eps()) * MinSNR(math.exp(2.0)),
    "own": lambda logsnr: 1 + torch.sin(logsnr),
}
TARGETS = {**REGISTERED_TARGETS, "posterior mean, cosine": PosteriorMean(Cosine(HIGH, LOW), 200)}


def weighted_integral(weighting, error) -> float:
    """½ ∫ w E‖e‖² dλ."""
    lam, width = panels(BREAKS)
    return float(0.5 * (weighting(torch.from_numpy(lam)).numpy() * error(lam) * width).sum())


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    lam, width = panels(BREAKS)
    m = posterior_moments(lam)[0]
    return {
        name: float(0.5 * (w(torch.from_numpy(lam)).numpy() * m) @ width)
        for name, w in WEIGHTINGS.items()
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_leaves_the_loss(name, expected):
    got = {w: quadrature_loss(gmm1d(), SCHEDULES[name], WEIGHTINGS[w], BREAKS) for w in WEIGHTINGS}
    assert got == pytest.approx(expected, rel=2e-8)


def test_the_constant_is_the_published_one():
    assert quadrature_loss(
        gmm1d(), Cosine(13.3, -5.0), ELBO(), np.linspace(-5.0, 13.3, 31)
    ) == pytest.approx(5.929574342248, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("weighting", ["elbo", "edm", "own"])
def test_the_schedule_leaves_the_loss_of_drawn_times(name, weighting):
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {weighting}".encode()))
    oracle, schedule = gauss3d(), SCHEDULES[name]
    w = WEIGHTINGS[weighting]
    batches = [
        weighted_elbo(
            oracle,
            oracle.sample(256, generator),
            schedule=schedule,
            weighting=w,
            generator=generator,
        ).mean()
        for _ in range(60)
    ]
    assert_near(torch.stack(batches).detach(), weighted_integral(w, gauss3d_mmse))


@pytest.mark.parametrize("schedule", ["linear", "normal", "linear beta"])
def test_the_schedule_leaves_the_loss_of_a_correlated_mixture(schedule):
    lam, width = panels(np.linspace(LOW, HIGH, 8), 4)
    want = 0.5 * (1 / (1 + np.exp(lam - 2)) * plane_mmse(lam)) @ width
    generator, oracle = torch.Generator().manual_seed(5), gmm2d()
    batches = [
        weighted_elbo(
            oracle,
            oracle.sample(500, generator),
            schedule=SCHEDULES[schedule],
            weighting=Sigmoid(2.0),
            generator=generator,
        ).mean()
        for _ in range(80)
    ]
    assert_near(torch.stack(batches), want)


@pytest.mark.parametrize("s", ["cosine", "normal", "optimal transport", "linear beta", "table"])
@pytest.mark.parametrize("p", [Eps(), X(), V(), V(0.5), Flow()], ids=repr)
def test_mse_is_the_plain_loss_whatever_it_is_sampled_with(s, p):
    # the plain loss, by hand: squared error on the target, with the times of s
    times = np.sort(SCHEDULES[s].inverse(torch.from_numpy(BREAKS)).numpy())
    t, dt = (torch.from_numpy(a) for a in panels(times))
    logsnr = SCHEDULES[s](t)
    x, eps, weight = line_nodes(logsnr)
    each = len(weight) // len(t)
    level = logsnr.repeat_interleave(each)
    alpha, sigma = torch.sigmoid(level).sqrt()[:, None], torch.sigmoid(-level).sqrt()[:, None]
    prediction = biased(alpha * x + sigma * eps, level)
    a, b = (
        torch.as_tensor(c, dtype=torch.float64).expand_as(level)[:, None] for c in p.row(level)
    )
    error = (a * (x - prediction.x) + b * (eps - prediction.eps)).square().sum(1)
    plain = float(((weight * error).view(len(t), each).sum(1) * dt).sum())
    for other in ("custom", "laplace"):
        assert quadrature_loss(
            biased, SCHEDULES[other], MSE(SCHEDULES[s], p), BREAKS
        ) == pytest.approx(plain, rel=1e-6)


biased = Altered(gmm1d(), lambda prediction: 0.9 * prediction.eps + 0.1)


def test_mse_of_a_chain_is_the_mean_over_its_levels_but_the_first():
    schedule, steps = Tabulated(TABLE), len(TABLE) - 1
    lam = np.array(TABLE[1:])
    m = posterior_moments(lam)[0]
    # a constant bias adds its square, a factor c adds (1 - c)² (1 - m)
    want = ((1 + np.exp(-lam)) * (m + 0.1**2 * (1 - m) + 0.1**2)).sum() / (steps + 1)
    assert chain_loss(biased, schedule, steps, MSE(schedule, V(), steps=steps)) == pytest.approx(
        want, rel=1e-9
    )


@pytest.fixture(scope="module")
def batch():
    generator, oracle = torch.Generator().manual_seed(0), gmm2d()
    x = oracle.sample(400, generator)
    return (
        oracle,
        x,
        torch.rand(400, dtype=torch.float64, generator=generator),
        torch.randn(400, 2, dtype=torch.float64, generator=generator),
    )


@pytest.mark.parametrize("steps", [None, 10])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_parameterization_leaves_the_loss(target, steps, batch):
    oracle, x, t, eps = batch
    t = t if steps is None else (torch.floor(t * steps) + 1) / steps
    options = {
        "schedule": SCHEDULES["cosine"],
        "weighting": Sigmoid(1.0),
        "steps": steps,
        "t": t,
        "eps": eps,
    }
    torch.testing.assert_close(
        weighted_elbo(Reexpressed(oracle, target), x, **options),
        weighted_elbo(oracle, x, **options),
        rtol=1e-10,
        atol=0,
    )


def input_by_hand(target, lam):
    """c_in of a textbook."""
    alpha, sigma = torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()
    match target:
        case VarianceExploding():  # its z is x + σ̃ε
            return 1 / alpha
        case V(sigma_data=s) if s != 1.0:  # EDM's network sees z/α times 1/√(σ̃² + σ_d²)
            return 1 / (alpha * ((sigma / alpha) ** 2 + s**2).sqrt())
        case Flow():  # its z is (1 − t)x + tε with t = σ/(α + σ)
            return 1 / (alpha + sigma)
        case _:
            return 1.0


def target_by_hand(target, x, eps, z, lam):
    """The target of a textbook from (x, ε), or a prediction of it from (x̂, ε̂)."""
    alpha, sigma = torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()
    match target:
        case VarianceExploding(parameterization=inner):
            return target_by_hand(inner, x, eps, z, lam)
        case Eps():
            return eps
        case X():
            return x
        case V(sigma_data=1.0):
            return alpha * eps - sigma * x
        case V(sigma_data=s):  # minus EDM's F
            noise = sigma / alpha
            return -(noise * x - s**2 * eps) / (s * (noise**2 + s**2).sqrt())
        case Flow():
            return eps - x
        case Score():
            return -eps / sigma
        case PosteriorMean():
            lam_s = target.schedule((target.schedule.inverse(lam) - 1 / target.steps).clamp(min=0))
            return (torch.sigmoid(lam_s).sqrt() / alpha) * (
                z - (1 - torch.exp(lam - lam_s)) * sigma * eps
            )


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_network_of_any_target_is_the_same_model(target, batch):
    oracle, x, t, eps = batch

    def network(seen, logsnr):
        lam = logsnr[:, None]
        z = seen / input_by_hand(target, lam)
        exact = oracle(z, logsnr)
        return target_by_hand(target, exact.x, exact.eps, z, lam)

    options = {"schedule": SCHEDULES["cosine"], "t": t, "eps": eps}
    torch.testing.assert_close(
        weighted_elbo(Denoiser(network, target), x, **options),
        weighted_elbo(oracle, x, **options),
        rtol=1e-10,
        atol=0,
    )


@pytest.mark.parametrize("schedule", ["cosine", "normal", "table", "karras"])
@pytest.mark.parametrize(
    "weighting", [ELBO(), Sigmoid(2.0), EDM(), MSE(Cosine(HIGH, LOW), V())], ids=repr
)
@pytest.mark.parametrize("target", CLOSED_TARGETS.values(), ids=CLOSED_TARGETS)
def test_loss_factor_gives_the_loss_to_a_loop_of_ones_own(schedule, weighting, target, batch):
    oracle, x, t, eps = batch
    model, schedule = (
        Altered(oracle, lambda prediction: 0.8 * prediction.eps - 0.2),
        SCHEDULES[schedule],
    )
    logsnr = schedule(t)
    lam = logsnr[:, None]
    z = torch.sigmoid(lam).sqrt() * x + torch.sigmoid(-lam).sqrt() * eps
    prediction = model(z, logsnr)
    error = target_by_hand(target, x, eps, z, lam) - target_by_hand(
        target, prediction.x, prediction.eps, z, lam
    )
    loop = loss_factor(weighting, schedule, target)(logsnr) * error.square().sum(1)
    torch.testing.assert_close(
        loop,
        weighted_elbo(model, x, schedule=schedule, weighting=weighting, t=t, eps=eps),
        rtol=1e-10,
        atol=0,
    )
