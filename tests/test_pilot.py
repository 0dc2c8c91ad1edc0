"""The pilot by hand: how many pairs and bins it takes, the variances it fits, and the noise it
chooses."""

import math
from dataclasses import replace

import pytest
import torch
from pilots import Odd, Term, flat

from vdiff.likelihood import NoiseNorm, VarianceReduction
from vdiff.likelihood.pilot import _draw, run_pilot
from vdiff.schedule import Linear

PLAIN = VarianceReduction(
    importance=True, controls=(), antithetic=False, baseline=False, pilot=100_000
)
MANY = 100_000


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
