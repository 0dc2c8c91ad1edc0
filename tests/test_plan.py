"""The pieces of an evaluation: none of them moves the mean, and each lessens the variance as it
says."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from registry import ORACLES

from vdiff import Prediction
from vdiff.data.digits import LEVELS, digits
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import (
    GaussianError,
    Independent,
    NoiseNorm,
    Plan,
    Sobol,
    Stratified,
    evaluate,
)
from vdiff.likelihood.density import Along, Binned, Density
from vdiff.likelihood.integrand import Difference, Finite, Integrand, finite_images
from vdiff.likelihood.pilot import run_pilot
from vdiff.oracle import Gaussian as OneGaussian
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps
from vdiff.schedule import Cosine, Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
WRONG = GaussianMixture(
    [0.6, 0.4], [[-1.2, 0.5], [0.6, 0.0]], [[0.06, 0.2], [0.09, 0.3]]
)  # a model that is not the data's
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
        "importance": Plan(controls=(), antithetic=False),
        "control": Plan(antithetic=False),
        "all": Plan(antithetic=True),
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
    "control",
    [NoiseNorm(), GaussianError(), GaussianError(X[:5]), GaussianError(full=1)],
    ids=repr,
)
@pytest.mark.parametrize("level", [-6.0, 0.0, 3.0, 9.0])
def test_a_control_has_mean_zero_given_the_image(control, level):
    n = 40_000
    fitted, eps = (
        control.fit(X),
        torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    for row in (0, 7):
        values = fitted.centered(
            torch.full((n,), row), eps, torch.full((n,), level, dtype=torch.float64)
        )
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


def test_the_gaussians_error_is_that_of_the_gaussians_denoiser():
    """‖ε − ε̂‖² of the Gaussian's own denoiser minus E[‖e‖² | x] = ‖I − σ²C⁻¹‖² + α²σ²‖C⁻¹(x −
    m)‖²."""
    x = DATA.sample(5000, torch.Generator().manual_seed(0))
    covariance = x.T.cov(correction=0)
    covariance = torch.lerp(
        covariance, covariance.diagonal().mean() * torch.eye(2, dtype=x.dtype), 1e-3
    )
    fitted, gaussian = (
        GaussianError().fit(x),
        GaussianMixture([1.0], x.mean(0)[None], covariance[None]),
    )
    eps = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for level in (-4.0, 1.0, 6.0):
        logsnr = torch.full((50,), level, dtype=torch.float64)
        a2, s2 = logsnr[0].sigmoid(), (-logsnr[0]).sigmoid()
        error = (eps - gaussian(a2.sqrt() * x[:50] + s2.sqrt() * eps, logsnr).eps).square().sum(1)
        inverse = torch.linalg.inv(a2 * covariance + s2 * torch.eye(2))
        given = (torch.eye(2) - s2 * inverse).square().sum() + a2 * s2 * (
            (x[:50] - x.mean(0)) @ inverse
        ).square().sum(1)
        torch.testing.assert_close(
            fitted.centered(torch.arange(50), eps, logsnr), error - given, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("held_out", "ridge", "bias"),
    [
        ("test", 1e-4, 0.0183),
        ("test and selection", 1e-4, 0.0370),
        ("test", 1e-6, 0.0780),
        ("test", 1e-3, -0.0783),
        ("train", 1e-9, 0.0),
    ],
)
def test_a_mean_over_data_in_place_of_that_given_the_image_biases_held_out_digits(
    held_out, ridge, bias
):
    """½ ∫ of the Gaussian's E[‖e_g‖² | x] over held-out images less that over the Gaussian's own
    law, λ from −7 to 9, coefficient one.

    The Gaussian is fitted to the 1,300 training images, `ridge` added to its variances. Directions
    in which training images hardly vary and others do make a bias that grows as the ridge falls; a
    large ridge makes one of the other sign.
    """
    split, decoder = digits(), Categorical(LEVELS)
    train = decoder.encode(split.train).double().flatten(1)
    parts = {
        "test": split.test,
        "test and selection": torch.cat([split.test, split.selection]),
        "train": split.train,
    }
    x = decoder.encode(parts[held_out]).double().flatten(1)
    gaussian = OneGaussian(train.mean(0), train.T.cov(correction=0) + ridge * torch.eye(64))
    ends = torch.tensor([9.0, -7.0], dtype=torch.float64)
    given, over_data = (
        (gaussian.information(x, end.expand(len(x))).mean() for end in ends),
        gaussian.mutual_information(ends),
    )
    bits = (next(given) - next(given) - (over_data[0] - over_data[1])) / (64 * math.log(2))
    assert bits.item() == pytest.approx(bias, abs=6e-4)


def test_a_mean_given_the_image_biases_no_held_out_digits():
    split, decoder = digits(), Categorical(LEVELS)
    test = decoder.encode(split.test)
    fitted, n = GaussianError(decoder.encode(split.train)).fit(test), 20_000
    rows, eps = (
        torch.arange(n) % len(test),
        torch.randn(n, 64, generator=torch.Generator().manual_seed(0)),
    )
    for level in (-1.0, 3.0, 7.0):
        values = fitted.centered(rows, eps, torch.full((n,), level))
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


@pytest.mark.parametrize(
    "density",
    [Density(), Binned(torch.tensor([0.2, 3.0, 1.0])), Along(Cosine(9.0, -7.0), SCHEDULE)],
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
        match=(
            r"evaluate: argument 'plan' must have .* the ends of the evaluation, \[-7.0, 9.0\]; "
            r"got \[-7.0, 5.0\]"
        ),
    ):
        evaluate(
            WRONG,
            X,
            schedule=SCHEDULE,
            decoder=Gaussian(),
            plan=Plan(importance=Cosine(5.0, -7.0)),
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


def test_pairs_of_noise_are_halves_of_what_is_asked():
    alone = Plan().noise(
        (6, 3), False, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)
    )
    pairs = Plan().noise(
        (6, 3), True, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)
    )
    assert (alone.shape, pairs.shape, alone.dtype) == ((6, 3), (6, 3), torch.float64)
    assert torch.equal(pairs[3:], -pairs[:3])
    assert len(set(alone.flatten().tolist())) == 18
    assert len(set(pairs[:3].flatten().tolist())) == 9


def test_the_norm_of_noise_minus_its_mean():
    eps = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    assert NoiseNorm().fit(eps).centered(torch.tensor([0, 1]), eps, torch.zeros(2)).tolist() == [
        1 + 4 - 2,
        9 - 2,
    ]


def test_images_that_are_all_the_same_give_a_control_that_is_zero():
    """No variance: σ²C⁻¹ = I, and the Gaussian's denoiser knows x."""
    fitted = GaussianError().fit(torch.full((4, 2), 3.0))
    assert (
        fitted.centered(torch.arange(4), torch.randn(4, 2), torch.zeros(4)).abs() < 1e-12
    ).all()


def test_many_dimensions_have_a_diagonal_covariance():
    """Correlated data: from one dimension more than `full` on the control is that of each
    dimension by itself."""
    x = (
        torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * torch.tensor([1.0, 1.0])
        + 0.1 * X[:1]
    )
    x = x + 0.1 * torch.randn(
        200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    rows, eps, level = (
        torch.arange(3),
        torch.tensor([[1.0, -1.0], [0.5, 0.5], [2.0, 0.0]], dtype=torch.float64),
        torch.zeros(3),
    )
    whole, two, one = (
        GaussianError(full=full).fit(x).centered(rows, eps, level) for full in (4096, 2, 1)
    )
    assert torch.equal(two, whole)
    apart = [
        GaussianError().fit(x[:, i : i + 1]).centered(rows, eps[:, i : i + 1], level)
        for i in range(2)
    ]
    torch.testing.assert_close(one, apart[0] + apart[1], rtol=1e-3, atol=1e-3)
    assert ((one - whole).abs() > 0.1).any()


def test_a_control_of_other_data_is_fitted_to_them():
    other = DATA.sample(50, torch.Generator().manual_seed(8)) * 2 + 1
    mean, covariance = other.mean(0), other.T.cov(correction=0)
    covariance = torch.lerp(
        covariance, covariance.diagonal().mean() * torch.eye(2, dtype=other.dtype), 1e-3
    )
    inverse = torch.linalg.inv(0.5 * covariance + 0.5 * torch.eye(2))  # λ = 0
    eps = torch.randn(len(X), 2, dtype=X.dtype, generator=torch.Generator().manual_seed(2))
    error = eps - math.sqrt(0.5) * (math.sqrt(0.5) * (X - mean) + math.sqrt(0.5) * eps) @ inverse
    given = (torch.eye(2) - 0.5 * inverse).square().sum() + 0.25 * (
        (X - mean) @ inverse
    ).square().sum(1)
    found = (
        GaussianError(other)
        .fit(X)
        .centered(torch.arange(len(X)), eps, torch.zeros(len(X), dtype=X.dtype))
    )
    torch.testing.assert_close(found, error.square().sum(1) - given, rtol=1e-5, atol=1e-6)


def test_the_levels_of_an_integrand_are_linear_and_a_chain_keeps_its_steps():
    data = torch.arange(4)[:, None]
    oracle, decoder = ORACLES["lattice"](), Categorical(4)
    limit, t = (
        Integrand(oracle, data, Cosine(9.0, -7.0), decoder),
        torch.tensor([0.1, 0.25, 0.9], dtype=torch.float64),
    )
    level, measure = limit.levels(t)
    torch.testing.assert_close(level, 9 - 16 * t)
    torch.testing.assert_close(measure, torch.full_like(t, 16.0))
    chain = Integrand(oracle, data, Cosine(9.0, -7.0), decoder, steps=4)
    assert chain.times(t).tolist() == [0.25, 0.5, 1.0]
    torch.testing.assert_close(
        chain.levels(t)[0], Cosine(9.0, -7.0)(torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64))
    )


@pytest.mark.parametrize("kind", [Integrand, Difference])
def test_the_error_of_the_last_call_and_its_diffusion_term_agree(kind):
    """½ m ‖ε − ε̂‖² with m = 16."""
    models = [WRONG] if kind is Integrand else [WRONG, DATA]
    integrand, t = (
        kind(*models, X, SCHEDULE, Gaussian()),
        torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64),
    )
    rows, eps = (
        torch.tensor([3, 1, 4]),
        torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    terms = [
        8
        * (
            eps
            - one(
                X[rows] * (9 - 16 * t).sigmoid().sqrt()[:, None]
                + (16 * t - 9).sigmoid().sqrt()[:, None] * eps,
                9 - 16 * t,
            ).eps
        )
        .square()
        .sum(1)
        for one in models
    ]
    found = integrand(rows, t, eps)
    torch.testing.assert_close(found[1], terms[0] if kind is Integrand else terms[0] - terms[1])
    level, error = integrand.squared_error()
    torch.testing.assert_close(level, 9 - 16 * t)
    torch.testing.assert_close(8 * error, terms[-1])  # of the model that was called last


def test_a_bound_that_is_not_finite_is_named_by_its_first_draw():
    integrand = Integrand(WRONG, X, SCHEDULE, Gaussian())
    rows, t = torch.tensor([7, 5, 3, 2]), torch.tensor([0.0, 0.25, 0.5, 1.0])
    integrand.refuse_nonfinite(torch.zeros(4), rows, t)
    with pytest.raises(
        ValueError, match=r"got NaN or infinity on image 5 at λ = 5 \(2 of 4 draws of its batch\)$"
    ):
        integrand.refuse_nonfinite(torch.tensor([1.0, torch.nan, 0.0, -torch.inf]), rows, t)


def test_conditions_go_along_with_the_images_that_are_finite():
    data = torch.tensor(
        [[[0.0], [1.0]], [[torch.nan], [2.0]], [[3.0], [4.0]], [[5.0], [torch.inf]]]
    )
    condition = {
        "label": torch.tensor([5, 6, 7, 8]),
        "text": torch.arange(8).view(4, 2),
        "table": torch.zeros(3),
        "scale": 2.0,
    }
    kept, told, places = finite_images(data, condition)
    assert places.tolist() == [0, 2]
    assert torch.equal(kept, data[[0, 2]])
    assert told["label"].tolist() == [5, 7]
    assert told["text"].tolist() == [[0, 1], [4, 5]]
    assert told["table"] is condition["table"]
    assert told["scale"] == 2.0


def test_a_prediction_that_is_not_finite_is_named_by_its_first_example():
    z = torch.zeros(3, 2)
    z[1, 1] = z[2, 0] = torch.nan
    model = Finite(lambda z, logsnr: Prediction(z, logsnr, z, Eps()), torch.tensor([4, 9, 6]))
    assert torch.equal(model(z[:1], torch.zeros(1)).out, z[:1])
    with pytest.raises(
        ValueError,
        match=r"argument 'model' must be finite; got NaN or infinity for example 9 at λ = 1.5$",
    ):
        model(z, torch.tensor([0.5, 1.5, 2.5]))


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
    oracle = ORACLES["lattice"]()
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
    design = run_pilot(integrand, replace(PLAN_WITHOUT, pilot=60_000), seed=0, batch=4096)
    bins = len(design.left)
    generator = torch.Generator().manual_seed(9)
    for i in (4, 12, 20):
        t = (i + torch.rand(200, generator=generator, dtype=torch.float64)) / bins
        rows = torch.randint(len(X), (200,), generator=generator)
        eps = torch.randn(200 * 400, 2, generator=generator, dtype=torch.float64)
        terms = integrand(rows.repeat_interleave(400), t.repeat_interleave(400), eps)[1].view(
            200, 400
        )
        known = terms.var(1)
        assert design.left[i].item() == pytest.approx(known.mean().item(), rel=0.25)


PLAN_WITHOUT = Plan(controls=(), antithetic=False)
