"""The effective weighting w(λ) of every recipe and of every named weighting is its published
formula, constant included."""

import math

import numpy as np
import pytest
import torch

from vdiff import recipe, weighted_elbo
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.recipes import RECIPES
from vdiff.schedule import Cosine, Laplace, Normal, OptimalTransport, Tabulated
from vdiff.schedule.law import HyperbolicSecant
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Custom,
    Debiased,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    loss_factor,
)

from .reference import gmm1d

PI, exp = math.pi, np.exp
LAMBDAS = np.linspace(-11.5, 11.5, 20)  # twenty log-SNRs, none at a corner or at zero


def sig(lam):
    return 1 / (1 + exp(-lam))


def sech(u):
    return 1 / np.cosh(u)


def normal(lam, mean, std):
    return exp(-0.5 * ((lam - mean) / std) ** 2) / (std * math.sqrt(2 * PI))


def iddpm(lam, s=0.008):
    signal = math.cos(PI * s / (2 * (1 + s))) ** 2 * sig(lam)
    return (
        2
        * (1 + s)
        / PI
        * sig(-lam)
        * np.sqrt(signal / (sig(-lam) + sig(lam) * math.sin(PI * s / (2 * (1 + s))) ** 2))
    )


def edm(lam):
    return 8 * normal(lam, 2.4, 2.4) * (exp(-lam) + 0.25)


EDM_PEAK = -3.3077775
PUBLISHED = {  # name: (w(λ), monotone, peak)
    "ddpm-continuous": (
        lambda lam: 2 * sig(-lam) / np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(exp(-lam))),
        False,
        -0.92189,
    ),
    "iddpm": (iddpm, False, None),
    "vdm": (lambda lam: 1 + 0 * lam, True, None),
    "vdmpp-sigmoid": (lambda lam: sig(2 - lam), True, None),
    "vdmpp-edm-monotone": (lambda lam: edm(np.maximum(lam, EDM_PEAK)), True, EDM_PEAK),
    "edm": (edm, False, EDM_PEAK),
    "flow-matching": (lambda lam: exp(-lam / 2), True, None),
    "sd3": (lambda lam: 2 * normal(lam, 0, 2) * (1 + exp(-lam / 2)) ** 2, False, None),
    "v-prediction": (lambda lam: 2 / PI * exp(-lam / 2), True, None),
    "p2": (lambda lam: sech(lam / 2) / (1 + exp(lam)) / PI, False, -math.log(3)),
    "min-snr": (lambda lam: sech(lam / 2) * np.minimum(1, 5 * exp(-lam)) / PI, False, 0.0),
    "indi": (lambda lam: 0.25 * exp(-lam) * sech(lam / 4) ** 2, True, None),
}
COSINE = HyperbolicSecant()
NAMED = {
    "elbo": (ELBO(), lambda lam: 1 + 0 * lam, True, None),
    "cosine-eps": (MSE(COSINE, Eps()), lambda lam: sech(lam / 2) / PI, False, 0.0),
    "cosine-x": (MSE(COSINE, X()), lambda lam: exp(-lam) * sech(lam / 2) / PI, True, None),
    "path-velocity": (
        MSE(COSINE, V()) * Custom(lambda lam: torch.full_like(lam, PI**2 / 4)),
        lambda lam: PI / 2 * exp(-lam / 2),
        True,
        None,
    ),
    "truncated-snr": (
        MSE(COSINE, Eps()) * TruncatedSNR(),
        lambda lam: sech(lam / 2) * np.maximum(1, exp(-lam)) / PI,
        True,
        None,
    ),
    "p2-half": (
        MSE(COSINE, Eps()) * P2(gamma=0.5),
        lambda lam: sech(lam / 2) * (1 + exp(lam)) ** -0.5 / PI,
        False,
        -math.log(2),
    ),
    "p2-k": (P2(gamma=2.0, k=3.0), lambda lam: (3 + exp(lam)) ** -2.0, True, None),
    "soft-min-snr": (
        MSE(COSINE, Eps()) * SoftMinSNR(5.0),
        lambda lam: sech(lam / 2) * sig(math.log(5) - lam) / PI,
        False,
        -0.457,
    ),
    "debiased": (MSE(COSINE, Eps()) * Debiased(), lambda lam: 2 * sig(-lam) / PI, True, None),
    "laplace": (
        MSE(Laplace(0.5, 2.0).law, Eps()),
        lambda lam: exp(-np.abs(lam - 0.5) / 2) / 2,
        False,
        0.5,
    ),
    "sigmoid": (Sigmoid(-1.0), lambda lam: sig(-1 - lam), True, None),
    "min-snr-of-v": (
        MSE(COSINE, V()) * MinSNR(5.0),
        lambda lam: 2 / PI * exp(-lam / 2) * np.minimum(1, 5 * exp(-lam)),
        True,
        None,
    ),
    "edm-of-another-scale": (
        EDM(0.0, 1.0, 2.0),
        lambda lam: 2 / 4 * normal(lam, 0, 1) * (exp(-lam) + 4),
        False,
        None,
    ),
    "flow-logit-normal": (
        MSE(Normal(-1.0, 3.0).law, Flow()),
        lambda lam: 2 * normal(lam, -1, 3) * (1 + exp(-lam / 2)) ** 2,
        False,
        None,
    ),
    "indi": (InDI(), lambda lam: exp(-lam) * sech(lam / 4) ** 2 / 4, True, None),
}
ALL = {name: (recipe(name).weighting, *rest) for name, rest in PUBLISHED.items()} | {
    f"{name}*": case for name, case in NAMED.items()
}


def test_every_recipe_is_here():
    assert set(RECIPES) == set(PUBLISHED) | {"ddpm"}


@pytest.mark.parametrize("name", ALL)
def test_the_effective_weighting_is_the_published_one(name):
    weighting, formula, _, _ = ALL[name]
    np.testing.assert_allclose(
        weighting(torch.from_numpy(LAMBDAS)).numpy(),
        formula(LAMBDAS),
        rtol=1e-7 if "monotone" in name else 1e-12,
    )


@pytest.mark.parametrize("name", ALL)
def test_whether_it_is_monotone_is_known(name):
    weighting, formula, monotone, _ = ALL[name]
    grid = formula(np.linspace(-40, 40, 20_001))
    assert bool((np.diff(grid) <= 1e-12 * grid[:-1]).all()) == monotone
    assert weighting.monotone == monotone


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if case[3] is not None])
def test_the_peak_is_where_it_was_published(name):
    weighting, formula, _, peak = ALL[name]
    grid = np.linspace(-5, 5, 100_001)
    assert formula(grid).max() == pytest.approx(formula(np.array(peak)), rel=1e-7)
    assert weighting.peak == pytest.approx(peak, abs=6e-4 if name == "soft-min-snr*" else 6e-6)


def test_the_peak_of_a_plateau_is_its_end():
    assert (ELBO() * MinSNR(5.0)).peak == pytest.approx(math.log(5), abs=1e-9)
    assert TruncatedSNR().peak == -40.0


class WithBump(Weighting):
    """It rises at λ = 5 alone, and stays far below its largest value."""

    def weight_at(self, logsnr):
        return 10 * torch.sigmoid(-logsnr) + torch.exp(-((logsnr - 5) ** 2))


def test_a_weighting_that_rises_anywhere_is_not_monotone():
    assert not WithBump().monotone


def test_ddpm_in_continuous_time_has_the_published_values():
    w = recipe("ddpm-continuous").weighting(
        torch.tensor([-0.92189, 5.0, -5.0, -10.0], dtype=torch.float64)
    )
    assert w.tolist() == pytest.approx([0.20229, 0.0254, 0.1407, 0.1002], abs=5e-5)


def test_ddpm_is_the_inverse_of_the_steps_own_weight():
    beta = np.linspace(1e-4, 0.02, 1000)
    log_signal = np.log1p(-beta).cumsum()
    lam = log_signal - np.log(-np.expm1(log_signal))
    vlb = 0.5 * np.expm1(lam[:-1] - lam[1:])  # of t = 2 … 1000
    weighting = recipe("ddpm").weighting
    some = np.linspace(2, 1000, 20).round().astype(int)
    np.testing.assert_allclose(
        weighting(torch.from_numpy(lam[some - 1])).numpy(), 1 / (1000 * vlb[some - 2]), rtol=1e-10
    )
    assert weighting.peak == pytest.approx(lam[350 - 1], abs=0.01)
    assert not weighting.monotone


def test_truncation_moves_only_the_constant():
    a, b = math.atan(exp(-13.3 / 2)), math.atan(exp(2.5))
    lam = torch.from_numpy(LAMBDAS[np.abs(LAMBDAS - 4) < 8])
    want = 2 / PI * (PI / 2) / (b - a) * torch.exp(-lam / 2)
    torch.testing.assert_close(MSE(Cosine(13.3, -5.0), V())(lam), want, rtol=1e-12, atol=0)


def test_identities_between_named_weightings():
    lam = torch.from_numpy(LAMBDAS)
    pairs = [
        (
            MSE(OptimalTransport().law, Flow()),
            Custom(lambda v: 0.5 * PI * MSE(COSINE, V())(v)),
        ),  # flow matching is v-prediction under cosine
        (SoftMinSNR(4.0), Sigmoid(math.log(4.0))),  # k-diffusion's soft-min-snr on F at σ_d = ½
        (P2(gamma=1.0), Sigmoid(0.0)),
        (MSE(COSINE, Eps()) * Debiased(), Custom(lambda v: 2 / PI * Sigmoid(0.0)(v))),
    ]
    for left, right in pairs:
        torch.testing.assert_close(left(lam), right(lam), rtol=1e-12, atol=0)


def test_the_weighting_of_a_chain_is_zero_off_its_levels():
    """Level λ_max is the decoder's, and a chain looks nowhere beyond λ_min: no infinity, no
    leak."""
    table = Tabulated.linear_betas()
    w = MSE(table, Eps(), steps=999)
    assert w(
        torch.tensor(
            [table.logsnr_max, table.logsnr_max + 1, table.logsnr_min - 1], dtype=torch.float64
        )
    ).tolist() == [0.0, 0.0, 0.0]
    assert (w(table.table[1:]) > 0).all()
    steps = torch.expm1(table.table[:-1] - table.table[1:])
    assert torch.allclose(w(table.table[1:]), 2 / (1000 * steps), rtol=1e-9)


@pytest.mark.parametrize("target", [Eps(), V(0.5)], ids=repr)
def test_the_factor_of_a_loop_over_a_chain(target):
    """factor(λ)·‖o − ô‖² is the loss of the chain, example by example; without `steps`, that of
    continuous time."""
    oracle, schedule = gmm1d(), Cosine(9.0, -6.0)
    x, t = oracle.sample(7), torch.arange(1, 8, dtype=torch.float64) / 7
    eps, logsnr = torch.randn(7, 1, dtype=torch.float64), schedule(t)
    z = logsnr.sigmoid().sqrt()[:, None] * x + (-logsnr).sigmoid().sqrt()[:, None] * eps
    error = (oracle(z, logsnr).as_target(target) - target.target(x, eps, logsnr)).square().sum(1)
    for steps in (7, None):
        factor = loss_factor(Sigmoid(1.0), schedule, target, steps=steps)
        expected = weighted_elbo(
            oracle, x, schedule=schedule, weighting=Sigmoid(1.0), steps=steps, t=t, eps=eps
        )
        assert torch.allclose(factor(logsnr) * error, expected, rtol=1e-9)
