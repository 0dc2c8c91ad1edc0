"""The chain of T steps tends to continuous time: L_T − L_∞ = c₁/T + O(T⁻²), from above along
refinements, and not otherwise."""

import math

import numpy as np
import pytest
import torch

from vdiff import weighted_elbo
from vdiff.oracle import Lattice
from vdiff.schedule import Cosine, Linear, LinearBeta, OptimalTransport
from vdiff.theorems.subject import Altered

from .reference import (
    SECOND_MOMENT,
    assert_near,
    chain_loss,
    gauss3d,
    gauss3d_covariance,
    gauss3d_mmse,
    gauss3d_nodes,
    gmm1d,
    panels,
    posterior_moments,
)

HIGH, LOW = 5.0, -5.0
A, B = math.atan(math.exp(-HIGH / 2)), math.atan(math.exp(-LOW / 2))
T0, T1 = 1 / (1 + math.exp(HIGH / 2)), 1 / (1 + math.exp(LOW / 2))
SCHEDULES = {  # with −λ'(t) as a function of λ, from the literature
    "linear": (Linear(HIGH, LOW), lambda lam: (HIGH - LOW) + 0 * lam),
    "cosine": (
        Cosine(HIGH, LOW),
        lambda lam: 4 * (B - A) / np.sin(2 * np.arctan(np.exp(-lam / 2))),
    ),
    "optimal-transport": (
        OptimalTransport(HIGH, LOW),
        lambda lam: (T1 - T0) * 8 * np.cosh(lam / 4) ** 2,
    ),
    "linear-beta": (
        LinearBeta(HIGH, LOW),
        lambda lam: (
            span_beta() * (1 + np.exp(lam)) * np.sqrt(0.01 + 39.8 * np.log1p(np.exp(-lam)))
        ),
    ),
}


def span_beta() -> float:
    """The part of DDPM's own time between the ends: t solves ∫β = softplus(−λ)."""
    start, stop = (
        2 * b / (0.1 + math.sqrt(0.01 + 39.8 * b))
        for b in (math.log1p(math.exp(-HIGH)), math.log1p(math.exp(-LOW)))
    )
    return stop - start


def gauss3d_chain_loss(schedule, steps: int) -> float:
    x, eps, weight = gauss3d_nodes()
    t = torch.arange(1, steps + 1, dtype=torch.float64).repeat_interleave(64) / steps
    loss = weighted_elbo(
        gauss3d(),
        x.repeat(steps, 1),
        schedule=schedule,
        steps=steps,
        t=t,
        eps=eps.repeat(steps, 1),
    )
    return float(weight.repeat(steps) @ loss) / steps


CASES = {
    "mixture": (
        chain_loss,
        lambda lam: posterior_moments(lam)[0],
        lambda lam: posterior_moments(lam)[1],
    ),
    "gaussian": (lambda _, *call: gauss3d_chain_loss(*call), gauss3d_mmse, gauss3d_covariance),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_the_first_order_of_the_discretization(case, name):
    loss, error, covariance = CASES[case]
    schedule, rate = SCHEDULES[name]
    lam, width = panels(np.linspace(LOW, HIGH, 21))
    limit = 0.5 * error(lam) @ width
    c1 = 0.25 * (covariance(lam) * rate(lam)) @ width  # ¼ ∫ E‖Cov(ε|z)‖² λ'² dt
    excess = np.array([n * (loss(gmm1d(), schedule, n) - limit) for n in (64, 128, 256, 512)])
    assert excess[-1] == pytest.approx(c1, rel=0.05)
    for order in (1, 2, 3):  # Richardson
        excess = (2**order * excess[1:] - excess[:-1]) / (2**order - 1)
    assert excess[0] == pytest.approx(c1, rel=5e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_refinement_lowers_the_perfect_bound(name):
    lam, width = panels(np.linspace(LOW, HIGH, 21))
    losses = [chain_loss(gmm1d(), SCHEDULES[name][0], 2**k) for k in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0.5 * posterior_moments(lam)[0] @ width


def test_a_finite_chain_depends_on_the_shape_of_its_schedule():
    lam = LOW + (HIGH - LOW) * np.array([0.75, 0.5, 0.25, 0.0])
    want = 0.5 * np.expm1(2.5) * posterior_moments(lam)[0].sum()
    assert chain_loss(gmm1d(), SCHEDULES["linear"][0], 4) == pytest.approx(want, rel=1e-9)
    assert chain_loss(gmm1d(), SCHEDULES["cosine"][0], 4) > 1.05 * want


def coin_mmse(lam: float) -> float:
    """E(ε − ε̂)² for x = ±1: ρ·(1 − E tanh(ρ + √ρ n)), ρ = e^λ."""
    n = np.linspace(-14, 14, 56001)
    phi = np.exp(-0.5 * n**2) / math.sqrt(2 * math.pi)
    rho = math.exp(lam)
    return rho * float(
        (phi * 2 / (1 + np.exp(np.minimum(2 * (rho + math.sqrt(rho) * n), 700)))).sum()
        * (n[1] - n[0])
    )


def coin_chain_loss(high: float, low: float, steps: int) -> float:
    """Through the library: ε of each z at each step, on the trapezoid rule."""
    oracle, schedule = Lattice([-1.0, 1.0], [0.5, 0.5]), Linear(high, low)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    n = torch.arange(-1200, 1201, dtype=torch.float64) * 0.01
    weight = torch.exp(-0.5 * n**2)
    x, eps = (
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat_interleave(len(n), 0),
        n.repeat(2)[:, None],
    )
    each = [
        weighted_elbo(oracle, x, schedule=schedule, steps=steps, t=time.expand(len(x)), eps=eps)
        @ weight.repeat(2)
        for time in t
    ]
    return float(torch.stack(each).sum() / (2 * weight.sum() * steps))


@pytest.mark.parametrize(
    ("high", "low", "published"),
    [
        (12.0, -6.0, {1: 81176, 2: 10.95, 3: 90.96, 4: 8.21, 5: 7.58}),
        (13.3, -5.0, {2: 31.5, 3: 84.35}),
    ],
)
def test_one_more_step_may_raise_the_bound(high, low, published):
    for steps, value in published.items():
        lam = high - (high - low) * np.arange(1, steps + 1) / steps
        got = coin_chain_loss(high, low, steps)
        assert got == pytest.approx(
            0.5 * np.expm1((high - low) / steps) * sum(map(coin_mmse, lam)), rel=1e-8
        )
        assert got == pytest.approx(value, rel=1e-3)
    assert coin_chain_loss(high, low, 3) > coin_chain_loss(high, low, 2)


def test_refinement_may_raise_the_bound_of_a_bad_denoiser():
    bad = Altered(
        gmm1d(),
        lambda p: (
            (p.z - 3 * torch.sigmoid(p.logsnr).sqrt()[:, None] * p.x)
            * torch.sigmoid(-p.logsnr).rsqrt()[:, None]
        ),
    )
    schedule, losses = Linear(13.3, -5.0), {}
    for steps in (1, 2, 4, 64):
        lam = 13.3 - 18.3 * np.arange(1, steps + 1) / steps
        m = posterior_moments(lam)[0]
        m = m + 4 * (np.exp(lam) * SECOND_MOMENT - m)  # an estimate c x̂ with c = 3
        losses[steps] = chain_loss(bad, schedule, steps)
        assert losses[steps] == pytest.approx(0.5 * np.expm1(18.3 / steps) * m.sum(), rel=1e-8)
    assert [losses[n] for n in (1, 2, 4)] == pytest.approx([1.683e5, 6.45e5, 6.566e5], rel=1e-3)
    assert losses[64] > losses[4]


def test_the_bound_of_a_denoiser_that_says_zero_does_not_depend_on_the_steps():
    zero = Altered(gmm1d(), lambda p: p.z * torch.sigmoid(-p.logsnr).rsqrt()[:, None])
    want = 0.5 * (math.exp(HIGH) - math.exp(LOW)) * SECOND_MOMENT
    for steps in (1, 3, 7, 100):
        assert chain_loss(zero, SCHEDULES["cosine"][0], steps) == pytest.approx(want, rel=1e-9)


def test_drawn_steps_have_the_expectation_of_the_chain():
    generator, oracle = torch.Generator().manual_seed(1), gauss3d()
    schedule, steps = SCHEDULES["cosine"][0], 7
    draws = [
        weighted_elbo(
            oracle,
            oracle.sample(64, generator),
            schedule=schedule,
            steps=steps,
            generator=generator,
        ).mean()
        for _ in range(300)
    ]
    assert_near(torch.stack(draws), gauss3d_chain_loss(schedule, steps))
