"""Schedules whose rate is 0 at an end: azula's two, one that rests at both ends, and one of a user
with closed forms."""

import math

import pytest
import torch
from registry import ORACLES

from vdiff import Denoiser, Objective, elbo, sample, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.describe import describe
from vdiff.diagnosis import diagnose
from vdiff.likelihood import VarianceReduction, evaluate, immse
from vdiff.objective import Weighted
from vdiff.oracle import Gaussian, Lattice
from vdiff.parameterization import Eps, V
from vdiff.profile import Profile
from vdiff.recipes import Recipe
from vdiff.sampling import leading, trailing
from vdiff.schedule import Custom, Linear, Schedule, Shifted
from vdiff.weighting import ELBO, MSE, loss_factor

ALPHA_MIN = SIGMA_MIN = 1e-3


def vp(t):
    """azula's VPSchedule: α = exp(½ log(α_min) t²), σ² = 1 − α² + σ_min²."""
    alpha = torch.exp(0.5 * math.log(ALPHA_MIN) * t**2)
    return 2 * torch.log(alpha / torch.sqrt(1 - alpha**2 + SIGMA_MIN**2))


def cosine(t):
    """azula's CosineSchedule: α = cos(arccos(√α_min) t), σ² = 1 − α² + σ_min²."""
    alpha = torch.cos(math.acos(math.sqrt(ALPHA_MIN)) * t)
    return 2 * torch.log(alpha / torch.sqrt(1 - alpha**2 + SIGMA_MIN**2))


def smoother(t):
    return 8 - 14 * t**3 * (10 - 15 * t + 6 * t**2)


class Power(Schedule):
    """Flat beyond rounding near t = 0, with closed forms."""

    def __init__(self, power):
        super().__init__(8.0, -6.0)
        self.power = power

    def logsnr_at(self, t):
        return 8 - 14 * t**self.power

    def rate_at(self, t, logsnr):
        return 14 * self.power * t ** (self.power - 1)

    def time_at(self, logsnr):
        return ((8 - logsnr) / 14).clamp(0, 1) ** (1 / self.power)

    def density_at(self, logsnr):
        return 1 / self.rate_at(self.time_at(logsnr), logsnr)


class Swing(Schedule):
    """At rest at both ends, to rounding at t = 1, with an inverse of its own."""

    def __init__(self):
        super().__init__(10.0, -6.0)

    def logsnr_at(self, t):
        return 2 + 8 * torch.cos(math.pi * t)

    def rate_at(self, t, logsnr):
        return 8 * math.pi * torch.sin(math.pi * t)

    def time_at(self, logsnr):
        return torch.acos(((logsnr - 2) / 8).clamp(-1, 1)) / math.pi


MADE = {
    "vp": lambda: Custom(vp),
    "cosine": lambda: Custom(cosine),
    "swing": Swing,
    "swing, by a function": lambda: Custom(lambda t: 2 + 8 * torch.cos(math.pi * t)),
    "shifted": lambda: Shifted(Custom(vp), -2.0),
    "smooth step": lambda: Custom(lambda t: 8 - 14 * (3 * t**2 - 2 * t**3)),  # −0 at t = 1
    "smoother step": lambda: Custom(smoother),
    "shifted smoother step": lambda: Shifted(Custom(smoother), 1.0),
}
ORACLE = ORACLES["plane"]()
TIMES = torch.tensor(
    [0.0, 1e-12, 1e-9, 1e-7, 1e-4, 0.3, 0.9, 1 - 1e-7, 1 - 1e-12, 1.0], dtype=torch.float64
)


@pytest.mark.parametrize("name", MADE)
def test_losses_are_finite_and_exact_at_an_end_that_rests(name):
    schedule = MADE[name]()
    generator = torch.Generator().manual_seed(0)
    x = ORACLE.sample(len(TIMES), generator)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    model = Denoiser(lambda z, logsnr: torch.tanh(z), V())
    loss = weighted_elbo(model, x, schedule=schedule, t=TIMES, eps=eps)
    assert torch.isfinite(loss).all()
    assert loss[0] < 1e-3 * loss.max()  # nothing happens where λ stands still
    plain = weighted_elbo(
        model, x, schedule=schedule, weighting=MSE(schedule, V()), t=TIMES, eps=eps
    )
    logsnr = schedule(TIMES)
    alpha, sigma = logsnr.sigmoid().sqrt()[:, None], (-logsnr).sigmoid().sqrt()[:, None]
    written = (torch.tanh(alpha * x + sigma * eps) - (alpha * eps - sigma * x)).square().sum(1)
    inside = (TIMES > 1e-6) & (TIMES < 1 - 1e-6)
    torch.testing.assert_close(plain[inside], written[inside], rtol=1e-4, atol=0.0)
    assert torch.isfinite(plain).all()
    assert (plain < 20 * written).all()  # closer to the end than λ has digits
    assert torch.isfinite(weighted_elbo(model, x, schedule=schedule, steps=5, eps=eps)).all()
    for weighting in (MSE(schedule, V()), ELBO()):
        factor = loss_factor(weighting, schedule, V())
        assert torch.isfinite(factor(logsnr)).all()
        assert torch.isfinite(factor(logsnr.float())).all()
    objective = Objective(model, schedule=schedule, loss=Weighted(MSE(schedule, V())))
    assert torch.isfinite(objective(x, t=TIMES, eps=eps)).all()
    decoder = Categorical(17)
    pixels = torch.randint(0, 17, (len(TIMES), 2), generator=generator)
    assert torch.isfinite(
        elbo(model, pixels, schedule=schedule, decoder=decoder, t=TIMES.float()).total
    ).all()


@pytest.mark.parametrize("name", MADE)
def test_the_density_is_large_there_and_normalised(name):
    schedule = MADE[name]()
    span = schedule.logsnr_max - schedule.logsnr_min
    ends = torch.tensor([schedule.logsnr_max, schedule.logsnr_min], dtype=torch.float64)
    density = schedule.density(torch.cat([ends, ends + torch.tensor([1.0, -1.0])]))
    assert torch.isfinite(density).all()
    assert density[0] > 10 / span
    assert density.max() <= 1e6 / span
    assert (density[2:] == 0).all()
    assert schedule.rate(torch.zeros((), dtype=torch.float64)) == 0
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(
        schedule.density(schedule(t)) * schedule.rate(t), torch.ones_like(t), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(schedule.inverse(schedule(t)), t, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["vp", "cosine", "swing"])
def test_the_expected_loss_is_that_of_any_other_schedule(name):
    schedule, n = MADE[name](), 20_000
    x = ORACLE.sample(n, torch.Generator().manual_seed(1))
    model = Denoiser(lambda z, logsnr: torch.tanh(z), V())
    losses = []
    for one in (schedule, Linear(schedule.logsnr_max, schedule.logsnr_min)):
        generator = torch.Generator().manual_seed(2)
        losses.append(weighted_elbo(model, x, schedule=one, generator=generator))
    error = sum(loss.var() / n for loss in losses).sqrt()
    assert (losses[0].mean() - losses[1].mean()).abs() < 4 * error


@pytest.mark.parametrize("name", MADE)
def test_samplers_take_it_as_a_grid(name):
    schedule, z = MADE[name](), torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    for options in (
        {"schedule": schedule, "steps": 8},
        {"levels": trailing(schedule, 9)},
        {"levels": leading(schedule, 9)},
    ):
        assert torch.isfinite(sample(ORACLE, z, **options)).all()


def test_evaluations_along_it_agree():
    schedule, decoder = Swing(), Categorical(levels=2)
    oracle, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]] * 8)
    found = [
        evaluate(oracle, data, schedule=schedule, decoder=decoder, plan=p)
        for p in (VarianceReduction(), VarianceReduction(importance=schedule))
    ]
    error = math.hypot(*(one.total.monte_carlo for one in found))
    assert abs(found[0].total.value - found[1].total.value) < 4 * error
    x = torch.randn(32, 1, generator=torch.Generator().manual_seed(4))
    estimates = [
        immse(
            Gaussian([0.0], [[1.0]]), x, schedule=one, gaussian=Gaussian([0.0], [[1.2]]), draws=64
        ).mean
        for one in (schedule, Linear(10.0, -6.0))
    ]
    assert estimates[0] == pytest.approx(estimates[1], abs=0.01)


def test_what_describes_it_is_finite():
    schedule = Custom(vp)
    described = describe(Recipe("azula", schedule, V(), MSE(schedule, V())))
    t = schedule(torch.tensor([0.75, 0.25], dtype=torch.float64)).tolist()
    assert f"half in λ from {t[0]:.1f} to {t[1]:.1f}" in str(described)
    profile = Profile(logsnr_max=schedule.logsnr_max, logsnr_min=schedule.logsnr_min, bins=20)
    profile.update(torch.linspace(-6.9, 13.8, 200), torch.ones(200))
    assert 0 < diagnose(profile, schedule).effective < 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda t: -((t - 0.5) ** 3), "rate_at"),  # at rest in the middle
        (lambda t: -10 * (t - 0.3) ** 3 + 0 * t, "rate_at"),
        (lambda t: 5 - 40 * (t - 0.25) ** 2, "strictly decreasing"),
        (
            lambda t: torch.where(t < 0.2, 5 - 0 * t, 6 - 5 * t),
            "strictly decreasing",
        ),  # flat from the end on
    ],
    ids=["middle", "inside", "rises", "flat"],
)
def test_rest_inside_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        Custom(function)


@pytest.mark.parametrize(
    "rate",
    [lambda t: 10 * t - 1, lambda t: torch.where(t == 0, torch.nan, 20 * t)],
    ids=["negative", "nan"],
)
def test_a_rate_that_is_wrong_at_an_end_is_refused(rate):
    with pytest.raises(ValueError, match="rate_at"):
        Custom(lambda t: 10 - 10 * t**2, rate)


def test_eps_too():
    schedule = Custom(cosine)
    model = Denoiser(lambda z, logsnr: torch.zeros_like(z), Eps())
    eps = torch.ones(len(TIMES), 3)
    loss = weighted_elbo(
        model, eps, schedule=schedule, weighting=MSE(schedule, Eps()), t=TIMES, eps=eps
    )
    inside = (TIMES > 1e-6) & (TIMES < 1 - 1e-6)
    torch.testing.assert_close(
        loss[inside], torch.full_like(loss[inside], 3.0), rtol=1e-4, atol=0.0
    )
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("power", [3, 4, 6])
@pytest.mark.parametrize("shift", [None, 1.0])
def test_a_fall_below_rounding_is_a_fall(power, shift):
    """λ alone does not tell the rate there; the four methods still agree."""
    schedule = Power(power) if shift is None else Shifted(Power(power), shift)
    schedule.check()
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    got = weighted_elbo(ORACLE, ORACLE.sample(4000), schedule=schedule, t=t).mean()
    linear = Linear(schedule.logsnr_max, schedule.logsnr_min)
    want = weighted_elbo(ORACLE, ORACLE.sample(4000), schedule=linear, t=t)
    assert (got - want.mean()).abs() < 0.1 * want.mean()


class Wrong(Power):
    def density_at(self, logsnr):
        return 1.001 * super().density_at(logsnr)


class Halts(Power):
    """It does not move before t = 0.1."""

    def logsnr_at(self, t):
        return 8 - 14 * ((t - 0.1).clamp(min=0) / 0.9) ** self.power

    def rate_at(self, t, logsnr):
        return super().rate_at((t - 0.1).clamp(min=0) / 0.9, logsnr) / 0.9


@pytest.mark.parametrize(
    ("schedule", "said"), [(Wrong(4), "one over rate_at"), (Halts(2), "strictly decreasing")]
)
def test_what_is_wrong_is_still_seen(schedule, said):
    with pytest.raises(ValueError, match=said):
        schedule.check()
