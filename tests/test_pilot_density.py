"""The density of times that a pilot chooses."""

from dataclasses import replace

import pytest
import torch
from pilots import Term, flat

from vdiff.likelihood import VarianceReduction
from vdiff.likelihood.density import Along, Binned, UniformDensity
from vdiff.likelihood.pilot import PilotFit, _smooth
from vdiff.schedule import Cosine

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
