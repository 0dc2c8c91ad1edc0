"""The adaptive density: unbiased whatever it was told, close to the best, the same however its
statistics came together."""

import math

import pytest
import torch
from registry import ORACLES

from vdiff import Denoiser, weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps
from vdiff.profile import Profile
from vdiff.schedule import Adaptive, Histogram, Linear
from vdiff.times import generator_of


def gmm1d() -> GaussianMixture:
    return ORACLES["mixture"]()


def told(schedule: Adaptive, seed: int = 0, n: int = 4000) -> Adaptive:
    generator = torch.Generator().manual_seed(seed)
    logsnr = schedule.logsnr_min + (schedule.logsnr_max - schedule.logsnr_min) * torch.rand(
        n, generator=generator, dtype=torch.float64
    )
    schedule.observe(
        logsnr, (1 + torch.sin(logsnr)) * torch.rand(n, generator=generator, dtype=torch.float64)
    )
    schedule.update()
    return schedule


@pytest.mark.parametrize(("first_moment", "best"), [(False, 76.883925), (True, 77.673816)])
def test_it_comes_close_to_the_least_variance(first_moment, best):
    """Losses of a perfect denoiser, from the uniform density on; the variance is measured by
    single draws of the result."""
    oracle, schedule = gmm1d(), Adaptive(13.3, -5.0, first_moment=first_moment)
    for step in range(300):
        generator = generator_of(0, step)
        weighted_elbo(
            oracle, oracle.sample(256, generator), schedule=schedule, generator=generator
        )
        schedule.update()
    lam = torch.linspace(-5, 13.3, 2001, dtype=torch.float64)
    reference = 0.5 * oracle.mmse(lam)
    drawn, n = [], 200_000
    generator = generator_of(0, 0, "measure")
    with torch.no_grad():
        x, t = oracle.sample(n, generator), torch.rand(n, generator=generator, dtype=torch.float64)
        for s in (schedule, Linear(13.3, -5.0)):
            drawn.append(
                weighted_elbo(oracle, x, schedule=s, t=t, generator=generator_of(0, 1, "measure"))
            )
    variance, uniform = drawn[0].var().item(), drawn[1].var().item()
    error = (drawn[0] - drawn[0].mean()).square().std().item() / math.sqrt(n)
    assert variance < best * 1.05 + 4 * error
    assert variance > best - 4 * error
    assert variance < 0.8 * uniform
    for loss in drawn:
        assert abs(loss.mean() - torch.trapezoid(reference, lam)) < 4 * loss.std() / math.sqrt(n)


def test_no_gradient_passes_through_the_density():
    schedule = told(Adaptive(10.0, -10.0, bins=20))
    assert list(schedule.parameters()) == []
    logsnr, rate, _, learn = schedule.at(torch.rand(5, dtype=torch.float64))
    assert (logsnr.requires_grad, rate.requires_grad) == (False, False)
    value = torch.ones(5, requires_grad=True)
    assert learn(value, 1) is value


def test_it_waits_until_it_has_seen_enough_and_never_leaves_a_bin_out():
    schedule = Adaptive(4.0, -4.0, bins=4, warmup=10, floor=0.01)
    level = torch.tensor([-3.0, 3.0])
    for _ in range(20):
        assert torch.equal(schedule.mass, torch.full((4,), 0.25, dtype=torch.float64))
        schedule.observe(level, torch.tensor([0.0, 2.0]))
        schedule.update()
    for _ in range(200):
        schedule.observe(level, torch.tensor([0.0, 2.0]))
        schedule.update()
    # what was never seen is taken for the mean of what was: 0, 1, 1, 2
    torch.testing.assert_close(
        schedule.mass, 0.01 / 4 + 0.99 * torch.tensor([0.0, 0.25, 0.25, 0.5], dtype=torch.float64)
    )
    schedule.check()


def test_old_observations_fade():
    schedule = Adaptive(1.0, -1.0, bins=2, warmup=1, decay=0.5, floor=1e-9, first_moment=True)
    level = torch.tensor([-0.5, 0.5])
    for value in (1.0, 4.0, 2.0):
        schedule.observe(level, torch.tensor([value, 1.0]))
        schedule.update()
    of_first = (0.25 * 1 + 0.5 * 4 + 2) / 1.75
    assert schedule.mass[0].item() == pytest.approx(of_first / (of_first + 1), rel=1e-6)


def test_statistics_come_together_in_any_way():
    """In one call, in two, or on two ranks: the same density."""
    generator = torch.Generator().manual_seed(1)
    logsnr, value = (
        20 * torch.rand(600, generator=generator) - 10,
        torch.rand(600, generator=generator),
    )
    value = value * (1 + (logsnr > 0))
    whole, parts, ranks = (Adaptive(10.0, -10.0, bins=10, warmup=1) for _ in range(3))
    whole.observe(logsnr, value)
    whole.update()
    for part in (slice(0, 100), slice(100, 600)):
        parts.observe(logsnr[part], value[part])
    parts.update()
    other = Adaptive(10.0, -10.0, bins=10, warmup=1)
    ranks.observe(logsnr[::2], value[::2])
    other.observe(logsnr[1::2], value[1::2])
    ranks.update(lambda sums: sums.clone() + other.noted.sums)
    for one in (parts, ranks):
        torch.testing.assert_close(one.mass, whole.mass)
        torch.testing.assert_close(one.profile.sums, whole.profile.sums)
    assert whole.mass.max() > 1.2 * whole.mass.min()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_notes_that_are_not_finite_are_dropped(bad):
    schedule = told(Adaptive(10.0, -10.0, bins=10))
    before = schedule.mass.clone()
    schedule.observe(torch.tensor([0.0, 1.0]), torch.tensor([bad, 5.0]))
    schedule.update()
    assert schedule.mass.isfinite().all()
    torch.testing.assert_close(schedule.mass, before)
    assert not schedule.noted.sums.any()


def test_validation_and_chains_leave_it_as_it_is():
    oracle, schedule = gmm1d(), Adaptive(10.0, -10.0)
    x = oracle.sample(64)
    with torch.no_grad():
        weighted_elbo(oracle, x, schedule=schedule)
    weighted_elbo(oracle, x, schedule=schedule, steps=10)
    schedule.eval()
    weighted_elbo(oracle, x, schedule=schedule)
    assert not schedule.noted.sums.any()
    schedule.train()
    weighted_elbo(oracle, x, schedule=schedule)
    assert schedule.noted.count.sum() == 64


def test_the_noted_value_is_the_weighted_error():
    schedule, weight = told(Adaptive(10.0, -10.0, bins=20)), 0.25
    x = torch.randn(500, 2)
    model = Denoiser(lambda z, logsnr: torch.zeros_like(z), Eps())  # ‖ε − ε̂‖² = ‖ε‖²
    eps = torch.randn(500, 2)
    weighted_elbo(
        model,
        x,
        schedule=schedule,
        weighting=lambda logsnr: torch.full_like(logsnr, weight),
        eps=eps,
    )
    assert schedule.noted.sums[1].sum().item() == pytest.approx(
        weight * eps.square().sum().item(), rel=1e-5
    )


def test_a_histogram_is_made_of_what_is_known():
    profile = Profile(logsnr_max=2.0, logsnr_min=-2.0, bins=4)
    profile.update(torch.tensor([-1.5, -0.5, 1.5]), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(
        Histogram.optimal(profile).mass * 8,
        torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=torch.float64),
    )
    halved = Histogram.optimal(profile, lambda logsnr: torch.where(logsnr > 0, 0.5, 1.0))
    torch.testing.assert_close(
        halved.mass * 5.5, torch.tensor([1.0, 2.0, 1.0, 1.5], dtype=torch.float64)
    )
    with pytest.raises(
        ValueError, match="Histogram: argument 'mass' must be finite and positive; got 0 at bin 1"
    ):
        Histogram([1.0, 0.0])
    with pytest.raises(ValueError, match="Histogram: argument 'mass' must be a vector"):
        Histogram(torch.ones(2, 2))
    with pytest.raises(ValueError, match="Adaptive: argument 'decay' must lie in"):
        Adaptive(decay=1.5)


def test_the_best_density_is_of_the_fourth_moment():
    """Bins with the same mean error and another spread: √E‖e‖⁴ is the value's second moment."""
    profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
    profile.update(torch.tensor([-0.5, -0.5, 0.5, 0.5]), torch.tensor([2.0, 2.0, 0.5, 3.5]))
    ratio = math.sqrt((0.5**2 + 3.5**2) / 2) / 2
    low, high = Histogram.optimal(profile).mass.tolist()
    assert high / low == pytest.approx(ratio)


@pytest.mark.parametrize("first_moment", [False, True])
def test_an_adaptive_density_is_of_its_moment(first_moment):
    """Bins with the same mean error and another spread differ only in the fourth moment."""
    schedule = Adaptive(1.0, -1.0, bins=2, warmup=1, floor=1e-9, first_moment=first_moment)
    schedule.observe(torch.tensor([-0.5, -0.5, 0.5, 0.5]), torch.tensor([2.0, 2.0, 0.5, 3.5]))
    schedule.update()
    ratio = 1.0 if first_moment else math.sqrt((0.5**2 + 3.5**2) / 2) / 2
    low, high = schedule.mass.tolist()
    assert high / low == pytest.approx(ratio, rel=1e-6)


def test_bins_that_are_hardly_looked_at_pass_the_check():
    """Between two times of the even grid, several bins with rates of their own."""
    mass = torch.ones(100, dtype=torch.float64)
    mass[40:45] = torch.tensor([1e-4, 1e-5, 3e-4, 1e-6, 1e-5])
    schedule = Histogram(mass, 13.3, -5.0)
    assert schedule.check() is schedule
