"""The pilot by hand: how many pairs and bins it takes, the coefficients and variances it fits, the
density and the noise it chooses."""

import math
from dataclasses import replace

import pytest
import torch

from vdiff._diffusion import GAUSSIAN
from vdiff._partial import Partial
from vdiff.likelihood import NoiseNorm, VarianceReduction
from vdiff.likelihood.control import Control, FittedControl
from vdiff.likelihood.density import Along, Binned, UniformDensity
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import (
    PilotFit,
    _draw,
    _Regression,
    _smooth,
    bin_index,
    control_values,
    integral_by_bin,
    run_pilot,
)
from vdiff.schedule import Cosine, Linear

PLAIN = VarianceReduction(
    importance=True, controls=(), antithetic=False, baseline=False, pilot=100_000
)
MANY = 100_000


class Term(Integrand):
    """An integrand in one dimension whose diffusion term is a function of (image, t, ε), with
    levels λ = 4 − 8t and measure 8."""

    name, models, process = "evaluate", [None], GAUSSIAN

    def __init__(self, term, images=5, steps=None, evaluations=1):
        self.term, self.steps, self.each = term, steps, evaluations
        self.x, self.base = torch.zeros(images, 1, dtype=torch.float64), Linear(4.0, -4.0)
        self.seen, self.sides, self.part, self.dims = [], [], Partial(), 1

    @property
    def evaluations(self):
        return self.each

    def levels(self, t, drawn=None):
        return 4 - 8 * t, torch.full_like(t, 8.0)

    def __call__(self, rows, t, eps, drawn=None):
        self.seen.append((rows, t, eps))
        term = self.term(rows, t, eps[:, 0])
        return torch.stack([torch.zeros_like(term), term, torch.zeros_like(term)])

    def refuse_nonfinite(self, *_):
        pass


class Odd(Control, FittedControl):
    """ε itself, as a control."""

    def fit(self, x):
        return self

    def centered(self, rows, eps, logsnr):
        return eps[:, 0]


def flat(rows, t, eps):
    return 3 + eps


@pytest.mark.parametrize(
    ("pilot", "antithetic", "evaluations", "steps", "pairs", "bins"),
    [
        (8192, None, 1, None, 2048, 32),  # two ε, and their negatives
        (8192, True, 1, None, 2048, 32),
        (8192, False, 1, None, 4096, 32),
        (800, False, 1, None, 400, 25),  # sixteen pairs a bin
        (800, False, 2, None, 200, 12),
        (800, False, 1, 5, 400, 5),  # no more bins than steps
        (8, None, 1, None, 16, 1),  # never below sixteen pairs
    ],
)
def test_how_a_pilot_spends_its_evaluations(pilot, antithetic, evaluations, steps, pairs, bins):
    integrand = Term(flat, steps=steps, evaluations=evaluations)
    fitted = run_pilot(integrand, replace(PLAIN, pilot=pilot, antithetic=antithetic), 0, MANY)
    signs = 1 if antithetic is False else 2
    assert [len(rows) for rows, _, _ in integrand.seen] == [pairs] * 2 * signs
    assert (
        len(fitted.level)
        == len(fitted.left)
        == len(fitted.between)
        == len(fitted.coefficients)
        == bins
    )
    assert fitted.evaluations == 2 * signs * pairs * evaluations
    assert fitted.evaluations == pilot or pilot == 8


def test_nothing_to_fit_is_no_pilot():
    for antithetic in (False, True):
        integrand = Term(flat)
        fitted = run_pilot(
            integrand, replace(VarianceReduction.plain(), antithetic=antithetic), 0, MANY
        )
        assert (integrand.seen, fitted.evaluations, fitted.antithetic, fitted.variance) == (
            [],
            0,
            antithetic,
            {},
        )
    for change in (
        {"importance": True},
        {"importance": Linear(4.0, -4.0)},
        {"controls": (Odd(),)},
        {"baseline": True},
        {"antithetic": None},
    ):
        assert (
            run_pilot(
                Term(flat), replace(VarianceReduction.plain(), **change), 0, MANY
            ).evaluations
            > 0
        )


def test_pairs_are_at_one_place_and_images_come_about_as_often():
    integrand = Term(flat, images=7)
    _draw(integrand, (), 40, (1, -1), 3, MANY)
    (rows, t, first), (_, _, minus), (_, _, second), (_, _, minus_second) = integrand.seen
    for again_rows, again_t, _ in integrand.seen:
        assert torch.equal(again_rows, rows)
        assert torch.equal(again_t, t)
    assert torch.equal(first, -minus)
    assert torch.equal(second, -minus_second)
    assert (first != second).all()
    assert set(torch.bincount(rows).tolist()) == {5, 6}
    assert torch.equal((40 * t).floor(), torch.arange(40, dtype=t.dtype))
    more = Term(flat, images=100)
    _draw(more, (), 40, (1,), 3, MANY)
    assert len(set(more.seen[0][0].tolist())) == 40  # more images than pairs: none twice
    assert more.seen[0][0].max() >= 40


def test_a_pilot_does_not_depend_on_its_batch():
    def term(rows, t, eps):
        return rows + t * eps + eps**2

    plan = replace(PLAIN, controls=(Odd(), NoiseNorm()), antithetic=None, baseline=True, pilot=800)
    whole, parts = (run_pilot(Term(term), plan, 1, batch) for batch in (MANY, 7))
    for word in ("coefficients", "level", "left", "between"):
        assert torch.equal(getattr(whole, word), getattr(parts, word))
    assert whole.variance == parts.variance


def test_variances_of_one_evaluation_as_the_pieces_are_added():
    """Levels 0, 1, 2, 3 and deviations 1, 2, 3, 4 over quarters of time, half of each variance odd
    in ε and three tenths even."""

    def term(rows, t, eps):
        quarter = (4 * t).floor()
        even, other = (eps**2 - 1) / math.sqrt(2), torch.cos(40 * eps) * math.sqrt(2)
        return quarter + (quarter + 1) * (
            math.sqrt(0.5) * eps + math.sqrt(0.3) * even + math.sqrt(0.2) * other
        )

    plan = replace(PLAIN, controls=(NoiseNorm(),), baseline=True, pilot=200_000)
    fitted = run_pilot(Term(term), replace(plan, antithetic=True), 0, MANY)
    square, root = (1 + 4 + 9 + 16) / 4, (1 + 2 + 3 + 4) / 4
    known = {
        "plain Monte Carlo": square + 1.25,  # of 0, 1, 2, 3
        "stratified times": square,
        "importance density": root**2,
        "control variates": 0.7 * root**2,
        "antithetic noise": 2 * 0.2 * root**2,
    }
    assert list(fitted.variance) == list(known)
    for name, value in known.items():
        assert fitted.variance[name] == pytest.approx(value, rel=0.03), name
    quarter = torch.arange(32, dtype=torch.float64).div(8).floor()
    torch.testing.assert_close(fitted.level, quarter, rtol=0, atol=0.25)
    torch.testing.assert_close(
        fitted.left / (quarter + 1) ** 2,
        torch.full((32,), 0.2, dtype=torch.float64),
        rtol=0.2,
        atol=0,
    )
    torch.testing.assert_close(  # ½ m times the control is 4 (ε² − 1)
        fitted.coefficients[:, 0] / (quarter + 1),
        torch.full((32,), math.sqrt(0.3 / 2) / 4, dtype=torch.float64),
        rtol=0.1,
        atol=0,
    )
    alone = run_pilot(Term(term), plan, 0, MANY)
    assert list(alone.variance) == list(known)[:4]
    torch.testing.assert_close(
        alone.left / (quarter + 1) ** 2,
        torch.full((32,), 0.7, dtype=torch.float64),
        rtol=0.2,
        atol=0,
    )
    without = run_pilot(Term(term), replace(plan, controls=(), baseline=False), 0, MANY)
    assert list(without.variance) == list(known)[:3]
    assert not without.level.any()
    assert len(without.level) == 32


@pytest.mark.parametrize(("ratio", "chosen"), [(3.2, False), (4.3, True)])
@pytest.mark.parametrize("size", [0.2, 5.0])
def test_antithetic_noise_is_chosen_where_it_saves_three_tenths(ratio, chosen, size):
    """Of a ε + b (ε² − 1) the variance is a² + 2b², of a pair's mean 2b²; 2 · 2b² < 0.7 (a² + 2b²)
    from a² = 3.71 b² on."""

    def term(rows, t, eps):
        return size * (math.sqrt(ratio) * eps + eps**2)

    assert run_pilot(Term(term), replace(PLAIN, antithetic=None), 0, MANY).antithetic is chosen
    for asked in (False, True):
        assert (
            run_pilot(Term(term), replace(PLAIN, antithetic=asked, pilot=800), 0, MANY).antithetic
            is asked
        )


def test_the_variance_between_images_is_that_of_their_means():
    """Images with means 0, 1, 2, 3, 4: a variance of 2, whatever the noise."""
    fitted = run_pilot(
        Term(lambda rows, t, eps: rows + 0.5 * eps),
        replace(PLAIN, antithetic=None, pilot=8192),
        0,
        MANY,
    )
    torch.testing.assert_close(
        fitted.between.mean(), torch.tensor(2.0, dtype=torch.float64), rtol=0.05, atol=0
    )
    same = run_pilot(Term(flat), replace(PLAIN, pilot=8192), 0, MANY)
    assert same.between.mean() < 0.1
    assert (same.between >= 0).all()


def test_a_term_that_is_not_finite_is_told_with_its_image_and_time():
    """The first of those in a batch, whichever of prior, diffusion and reconstruction it is."""

    class Refusing(Term):
        def __call__(self, rows, t, eps, drawn=None):
            parts = super().__call__(rows, t, eps)
            parts[2, 5] = torch.inf
            return parts

        def refuse_nonfinite(self, bound, rows, t):
            self.refused = [*getattr(self, "refused", []), (bound, rows, t)]

    integrand = Refusing(flat)
    _draw(integrand, (), 16, (1,), 0, MANY)
    for (bound, rows, t), (asked, when, _) in zip(integrand.refused, integrand.seen, strict=True):
        assert (~torch.isfinite(bound)).nonzero().tolist() == [[5]]
        assert torch.equal(rows, asked)
        assert torch.equal(t, when)


def test_a_fit_of_three_pairs_by_hand():
    """Differences of the loss 2, 4, 3 and of the control 1, 2, 2: the coefficient is 16/9; two
    pairs are too few for one."""
    loss = torch.tensor([[2.0, 5.0, 4.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 2.5], [0.0, 0.0, 0.5]], dtype=torch.float64)[..., None]
    place, level = torch.zeros(3, dtype=torch.long), loss.mean()[None]
    fit, b = _Regression(loss, values, level, place), 16 / 9
    assert fit.raw.item() == pytest.approx((4 + 16 + 9) / 3 / 2)
    assert fit.coefficients.item() == pytest.approx(b)
    assert fit.left.item() == pytest.approx(
        (29 - 16 * b) / 2 / 2
    )  # one degree of freedom went into the coefficient
    rest = [
        (y - b * v - loss.mean().item())
        for y, v in zip(loss.flatten().tolist(), values.flatten().tolist(), strict=True)
    ]
    assert fit.between.item() == pytest.approx(
        max(0.0, sum(rest[i] * rest[i + 3] for i in range(3)) / 3)
    )
    few = _Regression(loss[:, :2], values[:, :2], level, place[:2])
    assert few.coefficients.item() == 0
    assert few.left.item() == few.raw.item() == pytest.approx((4 + 16) / 2 / 2)
    assert few.between.item() == pytest.approx(
        max(0.0, ((2 - level) * (0 - level) + (5 - level) * (1 - level)).item() / 2)
    )


def test_a_control_that_helps_nothing_is_left_out():
    """Orthogonal differences: a coefficient would cost a degree of freedom and save nothing."""
    loss = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0] * 4], dtype=torch.float64)
    values = torch.tensor([[1.0, 1.0, 1.0, 1.1], [0.0] * 4], dtype=torch.float64)[..., None]
    fit = _Regression(
        loss, values, torch.zeros(1, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    )
    assert fit.coefficients.item() == 0
    assert fit.left.item() == fit.raw.item() == 0.5


def test_two_controls_take_more_than_four_pairs():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
    loss, level = (
        values @ torch.tensor([3.0, 2.0], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
    )
    known = torch.tensor([[3.0, 2.0]], dtype=torch.float64)
    for pairs in (4, 5):
        fit = _Regression(
            loss[:, :pairs], values[:, :pairs], level, torch.zeros(pairs, dtype=torch.long)
        )
        torch.testing.assert_close(fit.coefficients, known * (pairs == 5))


def test_a_controls_unit_does_not_matter():
    """One of size 1e-9 beside one of size one: neither is taken for rounding of the other."""
    generator, unit = (
        torch.Generator().manual_seed(0),
        torch.tensor([1.0, 1e-9], dtype=torch.float64),
    )
    values = torch.randn(2, 40, 2, dtype=torch.float64, generator=generator) * unit
    loss = (values * torch.tensor([3.0, 2e9], dtype=torch.float64)).sum(2)
    fit = _Regression(
        loss, values, torch.zeros(1, dtype=torch.float64), torch.zeros(40, dtype=torch.long)
    )
    torch.testing.assert_close(
        fit.coefficients[0] * unit, torch.tensor([3.0, 2.0], dtype=torch.float64)
    )


def test_bins_are_fitted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 40, 1, dtype=torch.float64, generator=generator)
    place = torch.arange(40) % 2
    loss = torch.where(place == 0, 3.0, -2.0) * values[..., 0] + torch.where(place == 0, 1.0, 7.0)
    fit = _Regression(loss, values, torch.tensor([1.0, 5.0], dtype=torch.float64), place)
    torch.testing.assert_close(
        fit.coefficients[:, 0], torch.tensor([3.0, -2.0], dtype=torch.float64)
    )
    assert fit.left.max() < 1e-20
    torch.testing.assert_close(
        fit.between, torch.tensor([0.0, 4.0], dtype=torch.float64)
    )  # of what the level leaves, 7 − 5


def test_a_draw_has_its_controls_and_its_level_taken_off():
    """Two bins: (term − coefficient · ½ m ε − level of the bin)/q + the mean level."""
    fitted = PilotFit(
        VarianceReduction(),
        controls=(Odd(), NoiseNorm()),
        coefficients=torch.tensor([[0.5, 0.0], [0.25, 0.125]], dtype=torch.float64),
        level=torch.tensor([2.0, 6.0], dtype=torch.float64),
    )
    t, q, eps = torch.tensor([0.2, 0.9]), torch.tensor([2.0, 0.5]), torch.tensor([[3.0], [-3.0]])
    found = fitted.diffusion(
        Term(flat), torch.tensor([0, 1]), t, q, eps, torch.tensor([10.0, 20.0])
    )
    known = [
        (10 - 0.5 * 4 * 3 - 2) / 2 + 4,
        (20 - 0.25 * 4 * -3 - 0.125 * 4 * (9 - 1) - 6) / 0.5 + 4,
    ]
    torch.testing.assert_close(found, torch.tensor(known, dtype=torch.float64))
    bare = replace(fitted, controls=()).diffusion(
        Term(flat), torch.tensor([0, 1]), t, q, eps, torch.tensor([10.0, 20.0])
    )
    torch.testing.assert_close(
        bare, torch.tensor([(10 - 2) / 2 + 4, (20 - 6) / 0.5 + 4], dtype=torch.float64)
    )


def test_control_values_are_half_the_measure_times_each():
    found = control_values(
        Term(flat),
        (Odd(), NoiseNorm()),
        torch.tensor([0]),
        torch.tensor([0.5]),
        torch.tensor([[3.0]]),
    )
    assert found.tolist() == [[4 * 3, 4 * (9 - 1)]]
    assert control_values(
        Term(flat), (), torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2, 1)
    ).shape == (2, 0)


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 7])
def test_the_integral_of_a_baseline_by_bins_of_another_number(bins):
    """Of a function constant on thirds, against a sum on a grid that both numbers of bins
    divide."""
    level, n = torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64), 3 * 4 * 7
    fine = level.repeat_interleave(n // 3) / n
    torch.testing.assert_close(integral_by_bin(level, bins), fine.view(bins, -1).sum(1))


def test_every_time_has_a_bin():
    assert bin_index(torch.tensor([0.0, 0.24, 0.25, 0.99, 1.0]), 4).tolist() == [0, 0, 1, 3, 3]


@pytest.mark.parametrize(
    ("variances", "known"),
    [
        ([0.0, 0.0, 4.0, 0.0, 0.0, 0.0], [1.0, 3.0, 4.0, 3.0, 1.0, 0.0]),
        ([4.0, 0.0, 0.0, 0.0], [4.0, 3.0, 1.0, 0.0]),
        ([0.0, 0.0, 0.0, 4.0], [0.0, 1.0, 3.0, 4.0]),
        ([5.0], [5.0]),
    ],
)
def test_a_bin_takes_the_largest_of_its_neighbors_smoothed(variances, known):
    assert _smooth(torch.tensor(variances)).tolist() == known


LEFT = torch.tensor([1.0, 1, 1, 9, 9, 9, 4, 4], dtype=torch.float64)
BETWEEN = torch.tensor([5.0, 5, 5, 5, 1, 1, 1, 1], dtype=torch.float64)


@pytest.mark.parametrize("times", [1, 2, 16])
def test_the_best_density_is_stationary(times):
    """v/q² + 3B/q⁴ is the same in all bins, with B = b/(12 · 0.15² K²), and no density near it has
    a smaller ∫ v/q + B/q³."""
    fitted = PilotFit(VarianceReduction(), left=LEFT, between=BETWEEN)
    q, v, b = fitted.best(times), _smooth(LEFT), _smooth(BETWEEN) / (12 * 0.15**2 * times**2)
    assert q.mean().item() == pytest.approx(1, abs=1e-9)
    slope = v / q**2 + 3 * b / q**4
    torch.testing.assert_close(slope, slope.mean().expand(8), rtol=1e-8, atol=0)
    least = (v / q + b / q**3).mean()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = q * (1 + 0.02 * torch.randn(8, dtype=q.dtype, generator=generator))
        other /= other.mean()
        assert (v / other + b / other**3).mean() > least


def test_without_a_spread_between_images_the_density_is_the_root_of_the_variance():
    root = _smooth(LEFT).sqrt()
    for scale in (1e-20, 1.0, 1e20):
        torch.testing.assert_close(
            PilotFit(VarianceReduction(), left=scale * LEFT, between=0 * LEFT).best(3),
            root / root.mean(),
        )


def test_without_noise_the_density_is_the_fourth_root_of_the_spread_between_images():
    root = _smooth(BETWEEN) ** 0.25
    torch.testing.assert_close(
        PilotFit(VarianceReduction(), left=0 * LEFT, between=BETWEEN).best(3), root / root.mean()
    )


@pytest.mark.parametrize("pairs", [False, True])
def test_a_tenth_of_a_fitted_density_is_uniform(pairs):
    fitted = PilotFit(VarianceReduction(), left=LEFT, between=BETWEEN, antithetic=pairs)
    made = fitted.prepared(Term(flat), 8).density
    assert isinstance(made, Binned)
    torch.testing.assert_close(
        made.heights, 0.9 * fitted.best(4 if pairs else 8) + 0.1
    )  # a pair has one time


def test_the_density_is_the_plans():
    fitted, schedule = PilotFit(VarianceReduction(), left=LEFT), Cosine(4.0, -4.0)
    made = (
        replace(fitted, plan=VarianceReduction(importance=schedule))
        .prepared(Term(flat), 8)
        .density
    )
    assert isinstance(made, Along)
    assert made.schedule is schedule
    assert (
        type(
            replace(fitted, plan=VarianceReduction(importance=False))
            .prepared(Term(flat), 8)
            .density
        )
        is UniformDensity
    )
    assert isinstance(replace(fitted, left=1e-9 * LEFT).prepared(Term(flat), 8).density, Binned)
    assert (
        type(replace(fitted, left=0 * LEFT).prepared(Term(flat), 8).density) is UniformDensity
    )  # nothing to follow
