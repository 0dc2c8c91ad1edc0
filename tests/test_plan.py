"""The pieces of an evaluation: none of them moves the mean, and each lessens the variance as it says."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vdiff import Cosine, GaussianMixture, Lattice, Linear
from vdiff.data.digits import LEVELS, digits
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import GaussianError, Independent, NoiseNorm, Plan, Sobol, Stratified, evaluate
from vdiff.likelihood.density import Along, Binned, Density
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import run_pilot
from vdiff.oracle import Gaussian as OneGaussian

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
WRONG = GaussianMixture([0.6, 0.4], [[-1.2, 0.5], [0.6, 0.0]], [[0.06, 0.2], [0.09, 0.3]])  # a model that is not the data's
X = DATA.sample(24, torch.Generator().manual_seed(3))
SCHEDULE = Linear(9.0, -7.0)
PLAIN = Plan.plain()
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
    "all": Plan(),
    "all, antithetic": Plan(antithetic=True),
    "all, independent ε": Plan(antithetic=False),
    "all, Sobol": Plan(times=Sobol()),
}


@pytest.fixture(scope="module")
def exact() -> float:
    """The diffusion term of WRONG on X: E‖ε − ε̂‖² over a fine grid of λ and 4,000 pairs of ε per image, in bits/dim."""
    levels = torch.linspace(-7, 9, 161, dtype=torch.float64)
    generator, total = torch.Generator().manual_seed(0), []
    for level in levels:
        eps = torch.randn(1000, 2, dtype=torch.float64, generator=generator)
        eps = (eps - eps.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(eps.T.cov())).T  # its first two moments are exact
        many, x = torch.cat([eps, -eps]).repeat(len(X), 1), X.repeat_interleave(2000, 0)
        logsnr = level.expand(len(x))
        z = logsnr.sigmoid().sqrt()[:, None] * x + logsnr.neg().sigmoid().sqrt()[:, None] * many
        total.append((many - WRONG(z, logsnr).eps).square().sum(1).mean())
    return (0.5 * torch.trapezoid(torch.stack(total), levels) / (2 * math.log(2))).item()


@pytest.mark.parametrize("name", PLANS)
def test_no_piece_moves_the_mean(name, exact):
    report = evaluate(WRONG, X, schedule=SCHEDULE, decoder=Gaussian(), plan=PLANS[name], draws=32, replicates=64, seed=5)
    assert abs(report.diffusion.value - exact) < 4 * report.diffusion.monte_carlo + 2e-4 * exact
    if name.startswith("all"):
        assert report.diffusion.monte_carlo < 0.01


def test_each_piece_lessens_the_variance():
    """Variance of one network evaluation, in the order in which the pieces are added; of each, that of the plan with all to its left."""
    plans = ["nothing", "stratified", "importance", "control", "all"]
    made = {
        "nothing": PLAIN,
        "stratified": PLANS["stratified"],
        "importance": Plan(controls=(), antithetic=False),
        "control": Plan(antithetic=False),
        "all": Plan(antithetic=True),
    }
    errors = [
        evaluate(WRONG, X, schedule=SCHEDULE, decoder=Gaussian(), plan=made[p], draws=64, replicates=16).diffusion.monte_carlo
        for p in plans
    ]
    ratios = [(a / b) ** 2 for a, b in pairwise(errors)]
    assert ratios[0] > 1.1
    assert ratios[1] > 1.3
    assert ratios[2] > 3
    assert ratios[3] > 1.2


@pytest.mark.parametrize("control", [NoiseNorm(), GaussianError(), GaussianError(X[:5]), GaussianError(full=1)], ids=repr)
@pytest.mark.parametrize("level", [-6.0, 0.0, 3.0, 9.0])
def test_a_control_has_mean_zero_given_the_image(control, level):
    n = 40_000
    fitted, eps = control.fit(X), torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for row in (0, 7):
        values = fitted.centered(torch.full((n,), row), eps, torch.full((n,), level, dtype=torch.float64))
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


def test_the_gaussians_error_is_that_of_the_gaussians_denoiser():
    """‖ε − ε̂‖² of the Gaussian's own denoiser minus E[‖e‖² | x] = ‖I − σ²C⁻¹‖² + α²σ²‖C⁻¹(x − m)‖²."""
    x = DATA.sample(5000, torch.Generator().manual_seed(0))
    covariance = x.T.cov(correction=0)
    covariance = torch.lerp(covariance, covariance.diagonal().mean() * torch.eye(2, dtype=x.dtype), 1e-3)
    fitted, gaussian = GaussianError().fit(x), GaussianMixture([1.0], x.mean(0)[None], covariance[None])
    eps = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for level in (-4.0, 1.0, 6.0):
        logsnr = torch.full((50,), level, dtype=torch.float64)
        a2, s2 = logsnr[0].sigmoid(), (-logsnr[0]).sigmoid()
        error = (eps - gaussian(a2.sqrt() * x[:50] + s2.sqrt() * eps, logsnr).eps).square().sum(1)
        inverse = torch.linalg.inv(a2 * covariance + s2 * torch.eye(2))
        given = (torch.eye(2) - s2 * inverse).square().sum() + a2 * s2 * ((x[:50] - x.mean(0)) @ inverse).square().sum(1)
        torch.testing.assert_close(fitted.centered(torch.arange(50), eps, logsnr), error - given, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("held_out", "ridge", "bias"),
    [("test", 1e-4, 0.0183), ("test and selection", 1e-4, 0.0370), ("test", 1e-6, 0.0780), ("test", 1e-3, -0.0783), ("train", 1e-9, 0.0)],
)
def test_a_mean_over_data_in_place_of_that_given_the_image_biases_held_out_digits(held_out, ridge, bias):
    """½ ∫ of the Gaussian's E[‖e_g‖² | x] over held-out images less that over the Gaussian's own law, λ from −7 to 9, coefficient one.

    The Gaussian is fitted to the 1,300 training images, `ridge` added to its variances. Directions in which training images hardly
    vary and others do make a bias that grows as the ridge falls; a large ridge makes one of the other sign.
    """
    split, decoder = digits(), Categorical(LEVELS)
    train = decoder.encode(split.train).double().flatten(1)
    parts = {"test": split.test, "test and selection": torch.cat([split.test, split.selection]), "train": split.train}
    x = decoder.encode(parts[held_out]).double().flatten(1)
    gaussian = OneGaussian(train.mean(0), train.T.cov(correction=0) + ridge * torch.eye(64))
    ends = torch.tensor([9.0, -7.0], dtype=torch.float64)
    given, over_data = (gaussian.information(x, end.expand(len(x))).mean() for end in ends), gaussian.mutual_information(ends)
    bits = (next(given) - next(given) - (over_data[0] - over_data[1])) / (64 * math.log(2))
    assert bits.item() == pytest.approx(bias, abs=6e-4)


def test_a_mean_given_the_image_biases_no_held_out_digits():
    split, decoder = digits(), Categorical(LEVELS)
    test = decoder.encode(split.test)
    fitted, n = GaussianError(decoder.encode(split.train)).fit(test), 20_000
    rows, eps = torch.arange(n) % len(test), torch.randn(n, 64, generator=torch.Generator().manual_seed(0))
    for level in (-1.0, 3.0, 7.0):
        values = fitted.centered(rows, eps, torch.full((n,), level))
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


@pytest.mark.parametrize("density", [Density(), Binned(torch.tensor([0.2, 3.0, 1.0])), Along(Cosine(9.0, -7.0), SCHEDULE)])
def test_a_density_is_divided_out(density):
    """∫ f dt = E f(t)/q for t placed by q, and t has the density it says."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t, q = density.place(u)
    assert ((t.square() + t) / q).mean().item() == pytest.approx(1 / 3 + 1 / 2, rel=1e-4)
    assert (t < 0.37).double().mean().item() == pytest.approx((q[1:] * t.diff())[t[1:] < 0.37].sum().item(), rel=1e-3)


def test_a_density_that_leaves_out_a_part_is_refused():
    with pytest.raises(ValueError, match=r"Plan: argument 'importance' must have the ends of the evaluation, \[-7, 9\]; got \[-7, 5\]"):
        evaluate(WRONG, X, schedule=SCHEDULE, decoder=Gaussian(), plan=Plan(importance=Cosine(5.0, -7.0)))


@pytest.mark.parametrize("times", [Independent(), Stratified(), Sobol()], ids=repr)
@pytest.mark.parametrize("n", [1, 7, 8])
def test_times_are_uniform_each_and_stratified_where_they_say_so(times, n):
    draws = torch.stack([times.draw(n, torch.Generator().manual_seed(s), torch.device("cpu")) for s in range(2000)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert abs(draws.mean() - 0.5) < 4 * draws.mean(1).std() / math.sqrt(2000) + 1e-6
    assert abs((draws**2).mean() - 1 / 3) < 4 * (draws**2).mean(1).std() / math.sqrt(2000) + 1e-6
    strata = (draws * n).floor().sort(1).values
    if not isinstance(times, Independent) and n != 7:
        assert (strata == torch.arange(n)).all()


def test_the_chains_own_steps_are_kept_and_the_density_moves_over_them():
    """Every step of a short chain by hand against the evaluation's importance sampling of steps."""
    decoder = Categorical(4)
    oracle = Lattice(decoder.grid, [0.4, 0.3, 0.2, 0.1])
    data = torch.arange(4).repeat(5)[:, None]
    schedule = Cosine(7.0, -6.0)
    every = evaluate(
        oracle, data, schedule=schedule, decoder=decoder, steps=6, draws=6, replicates=200, batch=9999, plan=PLANS["stratified"]
    )
    best = evaluate(oracle, data, schedule=schedule, decoder=decoder, steps=6, draws=12, replicates=100, batch=9999)
    assert abs(every.total.value - best.total.value) < 4 * math.hypot(every.total.monte_carlo, best.total.monte_carlo)
    assert best.total.monte_carlo < every.total.monte_carlo


def test_the_pilot_measures_the_variance_over_noise():
    """Its bins against 400 draws at each of many (image, t)."""
    integrand = Integrand(WRONG, X, SCHEDULE, Gaussian())
    design = run_pilot(integrand, replace(PLAN_WITHOUT, pilot=60_000), seed=0, batch=4096)
    bins = len(design.left)
    generator = torch.Generator().manual_seed(9)
    for i in (4, 12, 20):
        t = (i + torch.rand(200, generator=generator, dtype=torch.float64)) / bins
        rows = torch.randint(len(X), (200,), generator=generator)
        eps = torch.randn(200 * 400, 2, generator=generator, dtype=torch.float64)
        terms = integrand(rows.repeat_interleave(400), t.repeat_interleave(400), eps)[1].view(200, 400)
        known = terms.var(1)
        assert design.left[i].item() == pytest.approx(known.mean().item(), rel=0.25)


PLAN_WITHOUT = Plan(controls=(), antithetic=False)
