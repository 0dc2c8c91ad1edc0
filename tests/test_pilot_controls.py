"""The coefficients and the baseline that a pilot fits, against fits by hand."""

from dataclasses import replace

import pytest
import torch
from pilots import Odd, Term, flat

from vdiff.likelihood import NoiseNorm, VarianceReduction
from vdiff.likelihood.pilot import (
    PilotFit,
    _Regression,
    _smooth,
    bin_index,
    control_values,
    integral_by_bin,
)


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
