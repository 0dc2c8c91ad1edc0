"""The pieces of an evaluation: none of them moves the mean, and each lessens the variance as it
says."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import (
    GaussianError,
    Independent,
    NoiseNorm,
    Sobol,
    Stratified,
    VarianceReduction,
    evaluate,
)
from vdiff.likelihood.density import Along, Binned, UniformDensity
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import run_pilot
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.schedule import Cosine, Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
WRONG = GaussianMixture(
    [0.6, 0.4], [[-1.2, 0.5], [0.6, 0.0]], [[0.06, 0.2], [0.09, 0.3]]
)  # a model that is not the data's
X = DATA.sample(24, torch.Generator().manual_seed(3))
SCHEDULE = Linear(9.0, -7.0)
PLAIN = VarianceReduction.plain()
PLANS = {
    "nothing": PLAIN,
    "stratified": replace(PLAIN, times=Stratified()),
    "Sobol": replace(PLAIN, times=Sobol()),
    "importance": replace(PLAIN, importance=True),
    "a schedule's density": replace(PLAIN, importance=Cosine(9.0, -7.0)),
    "noise norm": replace(PLAIN, controls=(NoiseNorm(),)),
    "Gaussian": replace(PLAIN, controls=(GaussianError(),)),
    "Gaussian of other data": replace(PLAIN, controls=(GaussianError(DATA.sample(50) + 1),)),
    "antithetic": replace(PLAIN, antithetic=True),
    "baseline": replace(PLAIN, baseline=True),
    "all": VarianceReduction(),
    "all, antithetic": VarianceReduction(antithetic=True),
    "all, independent ε": VarianceReduction(antithetic=False),
    "all, Sobol": VarianceReduction(times=Sobol()),
}


@pytest.fixture(scope="module")
def exact() -> float:
    """The diffusion term of WRONG on X: E‖ε − ε̂‖² over a fine grid of λ and 4,000 pairs of ε per
    image, in bits/dim."""
    levels = torch.linspace(-7, 9, 161, dtype=torch.float64)
    generator, total = torch.Generator().manual_seed(0), []
    for level in levels:
        eps = torch.randn(1000, 2, dtype=torch.float64, generator=generator)
        eps = (eps - eps.mean(0)) @ torch.linalg.inv(
            torch.linalg.cholesky(eps.T.cov())
        ).T  # its first two moments are exact
        many, x = torch.cat([eps, -eps]).repeat(len(X), 1), X.repeat_interleave(2000, 0)
        logsnr = level.expand(len(x))
        z = logsnr.sigmoid().sqrt()[:, None] * x + logsnr.neg().sigmoid().sqrt()[:, None] * many
        total.append((many - WRONG(z, logsnr).eps).square().sum(1).mean())
    return (0.5 * torch.trapezoid(torch.stack(total), levels) / (2 * math.log(2))).item()


@pytest.mark.parametrize("name", PLANS)
def test_no_piece_moves_the_mean(name, exact):
    report = evaluate(
        WRONG,
        X,
        schedule=SCHEDULE,
        decoder=Gaussian(),
        plan=PLANS[name],
        draws=32,
        replicates=64,
        seed=5,
    )
    assert abs(report.diffusion.value - exact) < 4 * report.diffusion.monte_carlo + 2e-4 * exact
    if name.startswith("all"):
        assert report.diffusion.monte_carlo < 0.01


def test_each_piece_lessens_the_variance():
    """Variance of one network evaluation, in the order in which the pieces are added; of each,
    that of the plan with all to its left."""
    plans = ["nothing", "stratified", "importance", "control", "all"]
    made = {
        "nothing": PLAIN,
        "stratified": PLANS["stratified"],
        "importance": VarianceReduction(controls=(), antithetic=False),
        "control": VarianceReduction(antithetic=False),
        "all": VarianceReduction(antithetic=True),
    }
    errors = [
        evaluate(
            WRONG, X, schedule=SCHEDULE, decoder=Gaussian(), plan=made[p], draws=64, replicates=16
        ).diffusion.monte_carlo
        for p in plans
    ]
    ratios = [(a / b) ** 2 for a, b in pairwise(errors)]
    assert ratios[0] > 1.1
    assert ratios[1] > 1.3
    assert ratios[2] > 3
    assert ratios[3] > 1.2


@pytest.mark.parametrize(
    "density",
    [UniformDensity(), Binned(torch.tensor([0.2, 3.0, 1.0])), Along(Cosine(9.0, -7.0), SCHEDULE)],
)
def test_a_density_is_divided_out(density):
    """∫ f dt = E f(t)/q for t placed by q, and t has the density it says."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t, q = density.place(u)
    assert ((t.square() + t) / q).mean().item() == pytest.approx(1 / 3 + 1 / 2, rel=1e-4)
    assert (t < 0.37).double().mean().item() == pytest.approx(
        (q[1:] * t.diff())[t[1:] < 0.37].sum().item(), rel=1e-3
    )


def test_a_density_that_leaves_out_a_part_is_refused():
    with pytest.raises(
        ValueError,
        match=r"evaluate: argument 'plan' must have .*, \[-7.0, 9.0\]; got \[-7.0, 5.0\]",
    ):
        evaluate(
            WRONG,
            X,
            schedule=SCHEDULE,
            decoder=Gaussian(),
            plan=VarianceReduction(importance=Cosine(5.0, -7.0)),
        )


def test_a_binned_density_maps_by_its_own_distribution_function():
    """Heights 2, 1, 1: of the draws a half, a quarter and a quarter, to thirds of time; both ends
    are there."""
    t, q = Binned(torch.tensor([2.0, 1.0, 1.0])).place(
        torch.tensor([0.0, 0.25, 0.5, 0.625, 0.75, 1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        t, torch.tensor([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 1], dtype=torch.float64)
    )
    torch.testing.assert_close(
        q, torch.tensor([1.5, 1.5, 0.75, 0.75, 0.75, 0.75], dtype=torch.float64)
    )


def test_a_binned_density_never_leaves_the_range_by_rounding():
    """Where heights are not powers of two, every fourth grid's last edge is not 1."""
    generator, ends = (
        torch.Generator().manual_seed(0),
        torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64),
    )
    for bins in (3, 7, 25, 32):
        many = 0.1 + torch.rand(100, bins, generator=generator, dtype=torch.float64)
        placed = torch.stack([Binned(heights).place(ends)[0] for heights in many])
        assert placed.min() >= 0
        assert placed.max() <= 1
        torch.testing.assert_close(placed, ends.expand(100, 3), rtol=0, atol=1e-14)


def test_a_bin_that_is_never_drawn_is_skipped():
    t, q = Binned(torch.tensor([1.0, 0.0, 1.0])).place(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    torch.testing.assert_close(t, torch.tensor([1 / 6, 2 / 3, 5 / 6], dtype=torch.float64))
    assert q.tolist() == [1.5] * 3


def test_the_density_of_a_schedule_is_its_own():
    """λ at uniform u is the schedule's, and q the ratio of the rates, here over a range of 16."""
    u, schedule = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), Cosine(9.0, -7.0)
    t, q = Along(schedule, SCHEDULE).place(u)
    torch.testing.assert_close(9 - 16 * t, schedule(u))
    torch.testing.assert_close(
        q * (schedule(u - 1e-5) - schedule(u + 1e-5)) / 2e-5,
        torch.full_like(u, 16.0),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("seed", range(3))
def test_sobols_points_are_the_radical_inverse_shifted_digit_by_digit(seed):
    """Between two points the binary digits that differ are those of the sequence, 0, 1/2, 3/4,
    1/4, 3/8, …, to thirty of them."""
    known = torch.tensor([0, 1 / 2, 3 / 4, 1 / 4, 3 / 8, 7 / 8, 5 / 8, 1 / 8], dtype=torch.float64)
    u = Sobol().draw(8, torch.Generator().manual_seed(seed), torch.device("cpu"))
    digits = (u * 2**30).floor().long()
    assert torch.equal(digits ^ digits[0], (known * 2**30).long())
    assert len(set((u * 2**30).frac().tolist())) == 8  # and below them as many uniform numbers


def test_sobols_shift_moves_all_thirty_digits():
    draws = torch.stack(
        [
            Sobol().draw(1, torch.Generator().manual_seed(s), torch.device("cpu"))[0]
            for s in range(400)
        ]
    )
    ones = torch.stack([(draws * 2**30).long() >> i & 1 for i in range(30)]).double().mean(1)
    assert ((ones - 0.5).abs() < 5 * 0.5 / 20).all()


@pytest.mark.parametrize("times", [Independent(), Stratified(), Sobol()], ids=repr)
@pytest.mark.parametrize("n", [1, 7, 8])
def test_times_are_uniform_each_and_stratified_where_they_say_so(times, n):
    draws = torch.stack(
        [times.draw(n, torch.Generator().manual_seed(s), torch.device("cpu")) for s in range(2000)]
    )
    assert ((draws >= 0) & (draws < 1)).all()
    assert abs(draws.mean() - 0.5) < 4 * draws.mean(1).std() / math.sqrt(2000) + 1e-6
    assert abs((draws**2).mean() - 1 / 3) < 4 * (draws**2).mean(1).std() / math.sqrt(2000) + 1e-6
    strata = (draws * n).floor().sort(1).values
    if not isinstance(times, Independent) and n != 7:
        assert (strata == torch.arange(n)).all()


def test_the_chains_own_steps_are_kept_and_the_density_moves_over_them():
    """Every step of a short chain by hand against the evaluation's importance sampling of
    steps."""
    decoder = Categorical(4)
    oracle = Lattice(decoder.level_values, [0.4, 0.3, 0.2, 0.1])
    data = torch.arange(4).repeat(5)[:, None]
    schedule = Cosine(7.0, -6.0)
    every = evaluate(
        oracle,
        data,
        schedule=schedule,
        decoder=decoder,
        steps=6,
        draws=6,
        replicates=200,
        batch=9999,
        plan=PLANS["stratified"],
    )
    best = evaluate(
        oracle,
        data,
        schedule=schedule,
        decoder=decoder,
        steps=6,
        draws=12,
        replicates=100,
        batch=9999,
    )
    assert abs(every.total.value - best.total.value) < 4 * math.hypot(
        every.total.monte_carlo, best.total.monte_carlo
    )
    assert best.total.monte_carlo < every.total.monte_carlo


def test_the_pilot_measures_the_variance_over_noise():
    """Its bins against 400 draws at each of many (image, t)."""
    integrand = Integrand(WRONG, X, SCHEDULE, Gaussian())
    fitted = run_pilot(integrand, replace(PLAN_WITHOUT, pilot=60_000), seed=0, batch=4096)
    bins = len(fitted.left)
    generator = torch.Generator().manual_seed(9)
    for i in (4, 12, 20):
        t = (i + torch.rand(200, generator=generator, dtype=torch.float64)) / bins
        rows = torch.randint(len(X), (200,), generator=generator)
        eps = torch.randn(200 * 400, 2, generator=generator, dtype=torch.float64)
        terms = integrand(rows.repeat_interleave(400), t.repeat_interleave(400), eps)[1].view(
            200, 400
        )
        known = terms.var(1)
        assert fitted.left[i].item() == pytest.approx(known.mean().item(), rel=0.25)


PLAN_WITHOUT = VarianceReduction(controls=(), antithetic=False)
