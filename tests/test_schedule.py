"""A schedule is the quantile function of a distribution over log-SNR: the four methods agree, and
with the literature."""

import inspect
import math

import numpy as np
import pytest
import scipy.stats
import torch
from registry import SCHEDULES as REGISTERED
from registry import corners, moved
from scipy.integrate import quad
from scipy.special import expit

from vdiff import schedule as schedule_room
from vdiff.schedule import (
    Cosine,
    Custom,
    Karras,
    LearnedLinear,
    LinearBeta,
    Normal,
    Schedule,
    SignalPower,
    Spectral,
    Tabulated,
)
from vdiff.schedule.law import (
    DoubleExponential,
    Gaussian,
    HyperbolicSecant,
    LinearBetaLaw,
    Logistic,
    OffsetCosine,
)
from vdiff.schedule.sigmoid import RescaledSigmoidLaw


class Bisected(Schedule):
    """Two methods and nothing else: the inverse by bisection, the density from the rate."""

    def logsnr_at(self, t):
        return 10 - 8 * t - 6 * t**3

    def rate_at(self, t, logsnr):
        return 8 + 18 * t**2


NAMED = {
    f"{name}, {ends}": moved(make(*ends))
    for name, make in REGISTERED.items()
    for ends in ((13.3, -5.0), (6.0, -9.0))
}
DEFAULT = {  # every class of the room that needs no argument
    name: cls()
    for name in schedule_room.__all__
    if inspect.isclass(cls := getattr(schedule_room, name))
    and issubclass(cls, Schedule)
    and cls is not Schedule
    and all(p.default is not p.empty for p in inspect.signature(cls).parameters.values())
}
MORE = {
    "linear beta, other rates": LinearBeta(8.0, -7.0, beta_min=0.2, beta_max=15.0),
    "normal, wide": Normal(-1.0, 2.0, 6.0, -7.0),
    "spectral, its own ends": Spectral([0.1, 1.0, 3.0]),
    "table, linear": Tabulated.linear_betas(levels=50),
    "table, cosine": Tabulated.cosine_betas(levels=50),
    "falling": Custom(lambda t: 4 - 5 * torch.sin(0.5 * math.pi * t) ** 2 - 5 * t),
    "bisected": Bisected(10.0, -4.0),
}
SCHEDULES = NAMED | DEFAULT | MORE
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@schedules
def test_it_runs_from_its_first_end_to_its_last_and_back(schedule):
    schedule.check()
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    logsnr = schedule(t)
    assert [logsnr[0].item(), logsnr[-1].item()] == pytest.approx(
        [schedule.logsnr_max, schedule.logsnr_min], rel=1e-9, abs=1e-9
    )
    torch.testing.assert_close(schedule.inverse(logsnr), t, rtol=0, atol=1e-9)
    outside = torch.tensor([schedule.logsnr_max + 1, schedule.logsnr_min - 1], dtype=torch.float64)
    assert schedule.inverse(outside, clamp=True).tolist() == pytest.approx([0.0, 1.0], abs=1e-18)
    assert schedule.density(outside).tolist() == [0.0, 0.0]


@schedules
def test_the_rate_is_the_derivative_and_the_density_its_inverse(schedule):
    t, h = torch.linspace(0.001, 0.999, 331, dtype=torch.float64) + 1e-5, 1e-6
    if isinstance(schedule, Tabulated):  # between the corners
        t = (torch.arange(schedule.steps, dtype=torch.float64) + 0.3) / schedule.steps
    rate = (schedule(t - h) - schedule(t + h)) / (2 * h)
    kink = (schedule(t) - getattr(getattr(schedule, "law", None), "mean", math.inf)).abs() > 0.01
    torch.testing.assert_close(schedule.rate(t)[kink], rate.detach()[kink], rtol=2e-5, atol=0)
    torch.testing.assert_close(
        schedule.density(schedule(t)) * schedule.rate(t), torch.ones_like(t), rtol=1e-9, atol=0
    )


@schedules
def test_the_density_integrates_to_the_time(schedule):
    even = np.linspace(schedule.logsnr_min, schedule.logsnr_max, 120)
    breaks = np.union1d(even, corners(schedule))
    breaks = breaks[(breaks >= schedule.logsnr_min) & (breaks <= schedule.logsnr_max)]
    u, w = np.polynomial.legendre.leggauss(8)
    half, middle = 0.5 * np.diff(breaks)[:, None], 0.5 * (breaks[1:] + breaks[:-1])[:, None]
    mass = (half * w * schedule.density(torch.from_numpy(middle + half * u)).detach().numpy()).sum(
        1
    )
    assert mass.sum() == pytest.approx(1.0, abs=1e-8)
    np.testing.assert_allclose(
        1 - np.cumsum(mass),
        schedule.inverse(torch.from_numpy(breaks[1:]), clamp=True).detach().numpy(),
        atol=1e-8,
    )


@schedules
@pytest.mark.parametrize("steps", [1, 49, 1000])
def test_a_step_is_the_difference_of_its_levels(schedule, steps):
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    delta = schedule.delta(t, steps)
    torch.testing.assert_close(
        delta, schedule((t - 1 / steps).clamp(min=0)) - schedule(t), rtol=1e-9, atol=1e-12
    )
    assert delta.sum().item() == pytest.approx(schedule.logsnr_max - schedule.logsnr_min, rel=1e-9)
    logsnr, measure = schedule.at(t, steps)[:2]
    torch.testing.assert_close(logsnr, schedule(t))
    torch.testing.assert_close(measure, steps * torch.expm1(delta), rtol=1e-9, atol=1e-300)
    _, rate = schedule.at(t)[:2]
    torch.testing.assert_close(rate, schedule.rate(t))


@schedules
def test_the_precision_of_what_comes_back(schedule):
    t = torch.linspace(0, 1, 101)
    for dtype, back in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        given = t.to(dtype)
        logsnr = schedule(given)
        assert (
            logsnr.dtype
            == schedule.rate(given).dtype
            == schedule.density(logsnr).dtype
            == schedule.inverse(logsnr).dtype
            == back
        )
        torch.testing.assert_close(logsnr.double(), schedule(given.double()), rtol=1e-7, atol=1e-6)
        torch.testing.assert_close(
            schedule.rate(given).double(), schedule.rate(given.double()), rtol=1e-7, atol=0
        )


LAWS = [
    (HyperbolicSecant(1.5), scipy.stats.hypsecant(1.5, 2.0)),
    (Logistic(0.0, 2.0), scipy.stats.logistic(0.0, 2.0)),
    (Logistic(-1.0, 0.7), scipy.stats.logistic(-1.0, 0.7)),
    (Gaussian(2.4, 2.4), scipy.stats.norm(2.4, 2.4)),
    (DoubleExponential(0.5, 1.3), scipy.stats.laplace(0.5, 1.3)),
]


@pytest.mark.parametrize(
    ("law", "reference"), LAWS, ids=lambda v: repr(v) if hasattr(v, "icdf") else ""
)
def test_laws_are_scipys(law, reference):
    lam = np.linspace(-9, 9, 37)
    at = torch.from_numpy(lam)
    np.testing.assert_allclose(law.density(at).numpy(), reference.pdf(lam), rtol=1e-10)
    np.testing.assert_allclose(law.cdf(at).numpy(), reference.cdf(lam), rtol=1e-10)
    np.testing.assert_allclose(
        law.sf(at).numpy(), reference.cdf(2 * reference.mean() - lam), rtol=1e-10
    )  # symmetric about the mean
    t = np.array([1e-9, 1e-3, 0.2, 0.5, 0.7, 0.999])
    np.testing.assert_allclose(
        law.icdf(torch.from_numpy(t)).numpy(), reference.isf(t), rtol=1e-9, atol=1e-12
    )


def rescaled_sigmoid(t, start, end, temperature):
    """arXiv:2301.10972, algorithm 1."""
    low, high, at = (expit(v / temperature) for v in (start, end, start + t * (end - start)))
    return (high - at) / (high - low)


@pytest.mark.parametrize(
    ("law", "signal"),
    [
        (
            OffsetCosine(0.008),
            lambda t: (
                (
                    math.cos((t + 0.008) / 1.008 * math.pi / 2)
                    / math.cos(0.008 / 1.008 * math.pi / 2)
                )
                ** 2
            ),
        ),
        (HyperbolicSecant(), lambda t: math.cos(t * math.pi / 2) ** 2),
        (LinearBetaLaw(0.1, 20.0), lambda t: math.exp(-quad(lambda s: 0.1 + 19.9 * s, 0, t)[0])),
        (LinearBetaLaw(0.3, 12.0), lambda t: math.exp(-quad(lambda s: 0.3 + 11.7 * s, 0, t)[0])),
        (Logistic(), lambda t: (1 - t) ** 2 / ((1 - t) ** 2 + t**2)),
        (RescaledSigmoidLaw(-2.0, 3.0, 0.7), lambda t: rescaled_sigmoid(t, -2.0, 3.0, 0.7)),
    ],
    ids=lambda v: repr(v) if hasattr(v, "icdf") else "",
)
def test_laws_are_the_published_signals(law, signal):
    """α² at time t of each paper, rescaled to preserve the variance."""
    t = np.linspace(0.01, 0.99, 33)
    lam = [math.log(signal(s) / (1 - signal(s))) for s in t]
    np.testing.assert_allclose(law.icdf(torch.from_numpy(t)).numpy(), lam, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        law.sf(torch.tensor(lam, dtype=torch.float64)).numpy(), t, rtol=1e-9
    )
    np.testing.assert_allclose(
        law.cdf(torch.tensor(lam, dtype=torch.float64)).numpy(), 1 - t, rtol=1e-9
    )
    h = 1e-5
    slope = (law.icdf(torch.from_numpy(t - h)) - law.icdf(torch.from_numpy(t + h))).numpy() / (
        2 * h
    )
    np.testing.assert_allclose(
        law.density(torch.tensor(lam, dtype=torch.float64)).numpy(), 1 / slope, rtol=1e-6
    )


def test_spectral_has_the_moments_of_the_errors_of_its_gaussian():
    """d/dλ of E‖e‖²/d is a mixture of logistic densities: its mean and variance, by quadrature."""
    variances = np.array([4.0, 0.5, 0.02, 0.3])
    law = Spectral(torch.from_numpy(variances)).law

    def density(lam):
        rising = 1 / (1 + np.exp(-(lam + np.log(variances))))
        return (rising * (1 - rising)).mean()

    def moments(p):
        mean = quad(lambda lam: lam * p(lam), -50, 50, limit=200)[0]
        return mean, quad(lambda lam: (lam - mean) ** 2 * p(lam), -50, 50, limit=200)[0]

    own = moments(lambda lam: law.density(torch.tensor(lam, dtype=torch.float64)).item())
    assert own == pytest.approx(moments(density), rel=1e-7)
    schedule = Spectral(torch.from_numpy(variances))
    ends = [own[0] + sign * 4 * math.sqrt(own[1] * 3) / math.pi for sign in (1, -1)]
    assert [schedule.logsnr_max, schedule.logsnr_min] == pytest.approx(ends)


@pytest.mark.parametrize(
    ("schedule", "weight"),
    [
        (SignalPower(6.0, -7.0), lambda lam: 1 / (1 + math.exp(-lam))),
        (Karras(0.01, 30.0, 5.0), lambda lam: math.exp(-lam / 10)),
        (LinearBeta(5.0, -6.0), lambda lam: 1 / (1 + math.exp(lam)) / beta_at(lam)),
    ],
    ids=lambda v: repr(v) if isinstance(v, Schedule) else "",
)
def test_densities_are_those_that_are_named(schedule, weight):
    """Up to normalisation, which is by quadrature: a constant that is wrong moves each of them."""
    whole = quad(weight, schedule.logsnr_min, schedule.logsnr_max)[0]
    lam = np.linspace(schedule.logsnr_min + 0.1, schedule.logsnr_max - 0.1, 23)
    expected = [weight(v) / whole for v in lam]
    found = schedule.density(torch.from_numpy(lam)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def beta_at(lam):
    """DDPM's β(t) where ∫β = softplus(−λ)."""
    return math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(math.exp(-lam)))


def test_normal_is_edms_and_sd3s_noise():
    generator = np.random.default_rng(0)
    noise = np.exp(-1.2 + 1.2 * generator.normal(size=100_000))  # EDM: ln σ ~ N(−1.2, 1.2²)
    t = 1 / (1 + np.exp(-(0.5 + 1.1 * generator.normal(size=100_000))))  # SD3: logit t ~ N(m, s²)
    for lam, schedule in (
        (-2 * np.log(noise), Normal()),
        (2 * np.log((1 - t) / t), Normal(-1.0, 2.2)),
    ):
        mean, std = schedule.law.mean, schedule.law.std
        assert abs(lam.mean() - mean) < 4 * std / 100_000**0.5
        assert abs(lam.var() / std**2 - 1) < 4 * (2 / 100_000) ** 0.5


def test_tables_are_numpys():
    beta = np.linspace(1e-4, 0.02, 1000)
    signal = np.cumprod(1 - beta.astype(np.longdouble))
    table = Tabulated.linear_betas()
    np.testing.assert_allclose(
        table.table.numpy(), np.log(signal / (1 - signal)).astype(float), rtol=1e-12, atol=1e-14
    )
    assert (table.logsnr_max, table.logsnr_min) == pytest.approx((9.210240, -10.117673), abs=5e-7)
    t = torch.arange(1000, dtype=torch.float64) / 999
    torch.testing.assert_close(
        table(t), table.table, rtol=1e-12, atol=1e-12
    )  # level i stands at (i − 1)/(n − 1)
    angle = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    clipped = np.minimum(1 - np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 0.999)
    signal = np.cumprod(1 - clipped)
    np.testing.assert_allclose(
        Tabulated.cosine_betas().table.numpy(), np.log(signal / (1 - signal)), rtol=1e-9
    )


def test_karras_is_the_published_grid():
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(Karras(0.002, 80.0).sigmas(18).numpy(), want, rtol=1e-10)


def test_moving_a_schedule_keeps_lambda_out_of_half_precision():
    for schedule in (Tabulated.linear_betas(levels=20), LearnedLinear(7.0, -3.0)):
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        before = schedule(t).detach().clone()
        assert torch.equal(schedule.half().bfloat16().float()(t), before)
        assert {v.dtype for v in (*schedule.parameters(), *schedule.buffers())} == {torch.float64}


@pytest.mark.parametrize(
    "schedule",
    [Normal(0.0, 1.0, 8.0, -8.0), Normal(0.0, 1.0, 12.0, 5.0), Cosine(40.0, -40.0, offset=0.008)],
    ids=repr,
)
def test_far_tails_keep_their_digits(schedule):
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(
        schedule(t),
        torch.tensor([schedule.logsnr_max, schedule.logsnr_min], dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )
    assert torch.allclose(schedule.check().inverse(schedule(t)), t, atol=1e-9)


def test_linear_beta_refuses_what_lies_beyond_its_last_time():
    with pytest.raises(ValueError, match=r"LinearBeta: argument 'logsnr_m"):
        LinearBeta(9.0, -15.0)
