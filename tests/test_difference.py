"""The difference between two bounds at one (t, ε): along two paths, with a mask, in pairs."""

import pytest
import torch
from conditionals import Bent, Told

from vdiff import elbo
from vdiff.decoder import Gaussian
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.integrand import Integrand
from vdiff.schedule import Cosine, Linear

MODEL = Told([1.0], [[0.2, 0.0, -0.1]], [[[1.0, 0.8, 0.3], [0.8, 1.5, 0.5], [0.3, 0.5, 0.7]]])
X = MODEL.sample(5, 0)
ENDS = (8.0, -9.0)
ONE, OTHER = Bent(*ENDS, [0.9, -0.8, 0.0]), Bent(*ENDS, [-0.5, 0.6, 0.2])
ROWS, TIMES = torch.tensor([3, 1, 4]), torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
EPS = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)


def parts(schedule, mask=None):
    bound = elbo(
        MODEL, X[ROWS], schedule=schedule, decoder=Gaussian(), t=TIMES, eps=EPS,
        mask=None if mask is None else mask[ROWS],
    )  # fmt: skip
    return torch.stack([bound.prior, bound.diffusion, bound.reconstruction])


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("pair", [(ONE, OTHER), (ONE, Linear(*ENDS))], ids=["paths", "path, line"])
def test_two_paths_are_at_the_same_time_and_noise(pair, mask):
    difference = Difference(MODEL, MODEL, X, pair, Gaussian(), mask=mask)
    known = parts(pair[0], mask) - parts(pair[1], mask)
    torch.testing.assert_close(difference(ROWS, TIMES, EPS), known, rtol=1e-12, atol=1e-12)
    assert not known[[0, 2]].any()  # the same ends
    assert known[1].abs().min() > 1e-3


def test_a_single_level_is_that_of_one_line_between_the_ends():
    """Two scalar schedules are two densities of one bound."""
    difference = Difference(MODEL, MODEL, X, (Cosine(*ENDS), Linear(*ENDS)), Gaussian())
    assert not difference(ROWS, TIMES, EPS).any()
    assert difference.paths_of_controls == 1


def test_controls_are_taken_along_both_paths():
    difference = Difference(MODEL, MODEL, X, (ONE, OTHER), Gaussian())
    assert difference.paths_of_controls == 2
    for found, path in zip(difference.all_levels(TIMES), (ONE, OTHER), strict=True):
        at = path.at(TIMES, ndim=2)
        assert torch.equal(found[0], at.logsnr)
        assert torch.equal(found[1], at.rate)
    same = Difference(MODEL, Told([1.0], [[0.0] * 3], [torch.eye(3).tolist()]), X, ONE, Gaussian())
    assert same.paths_of_controls == len(same.all_levels(TIMES)) == 1
    chains = Difference(MODEL, MODEL, X, (ONE, OTHER), Gaussian(), (4, 8))
    assert chains.all_levels(TIMES)[1][0].equal(
        OTHER.at(torch.tensor([1, 5, 7]) / 8, 8, ndim=2)[0]
    )


def test_the_curve_of_a_path_is_by_the_mean_over_dimensions():
    of_path = Integrand(MODEL, X, ONE, Gaussian()).mean_levels(TIMES)
    torch.testing.assert_close(of_path, ONE.at(TIMES, ndim=2).logsnr.mean(1))
    of_line = Integrand(MODEL, X, Cosine(*ENDS), Gaussian()).mean_levels(TIMES)
    torch.testing.assert_close(of_line, 8 - 17 * TIMES)
