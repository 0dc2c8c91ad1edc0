"""Grids of uniform numbers, and the densities that map them to times."""

import pytest
import torch

from vdiff.likelihood.density import (
    Along,
    Binned,
    Density,
    Independent,
    Sobol,
    Stratified,
    Times,
    UniformDensity,
)
from vdiff.schedule import Cosine, Linear

CPU = torch.device("cpu")
DENSITIES = [
    UniformDensity(),
    Binned(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
    Along(Cosine(9.0, -7.0), Linear(9.0, -7.0)),
]


def draws(times, n, images=200):
    return torch.stack(
        [times.draw(n, torch.Generator().manual_seed(i), CPU) for i in range(images)]
    )


@pytest.mark.parametrize("times", [Independent(), Stratified(), Sobol()], ids=repr)
def test_a_random_number_of_a_grid_is_uniform(times):
    u = draws(times, 8).flatten()
    assert 0 <= u.min() <= u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / len(u)) ** 0.5
    counts = torch.histc(u, 10, 0, 1)
    assert (counts - len(u) / 10).abs().max() < 5 * (len(u) * 0.09) ** 0.5


@pytest.mark.parametrize("times", [Stratified(), Sobol()], ids=repr)
def test_each_stratum_has_one_number(times):
    strata = draws(times, 16).mul(16).floor().sort(1).values
    assert torch.equal(strata, torch.arange(16.0).double().expand_as(strata))


def test_grids_are_equal_by_their_class():
    assert Stratified() == Stratified() != Sobol()
    assert len({Independent(), Independent(), Sobol()}) == 2
    for base in (Times, Density):
        with pytest.raises(TypeError, match="abstract"):
            base()


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: type(d).__name__)
def test_times_have_the_density(density):
    """The integral of q over [0, t(u)] is u, so that dt/du = 1/q."""
    u = torch.linspace(0.001, 0.999, 20_001, dtype=torch.float64)
    t, q = density.place(u)
    assert (t.diff() > 0).all()
    slope = torch.gradient(t, spacing=(u,))[0]
    inside = (slope * q - 1).abs()[1:-1]
    assert inside.median() < 1e-6
    assert inside.gt(1e-2).sum() <= 8  # cells with an edge of a bin


def test_a_density_with_other_ends_is_refused():
    with pytest.raises(ValueError, match="with the ends of the evaluation"):
        Along(Cosine(9.0, -6.0), Linear(9.0, -7.0))
