"""What a replicate adds to the sums of an evaluation, by hand."""

import torch

from vdiff.decoder import Categorical
from vdiff.likelihood import Share
from vdiff.likelihood.estimate import RunningMoments
from vdiff.likelihood.tally import BINS, Tally

DECODER = Categorical(levels=4)


def test_a_replicate_adds_to_the_tally_the_curve_the_weights_and_what_is_not_finite():
    """Images 2 and 0 of three, two draws each, twice."""
    found = Tally.empty(3)
    parts = torch.tensor(
        [[1.0, 1, 2, 2], [9.0, 9, 9, 9], [0.5, 1.5, 4, 4]], dtype=torch.float64
    )  # the second is not used
    first, second = (
        torch.tensor([-3.0, 5, 1, 2], dtype=torch.float64),
        torch.tensor([1.0, 1, -7, 0], dtype=torch.float64),
    )
    t = torch.tensor([0.0, 0.99, 0.5, 0.51], dtype=torch.float64)
    rows, well, level = (
        torch.tensor([2, 0]),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(BINS, dtype=torch.float64),
    )
    found.add(rows, parts, first, t, well, level)
    assert found.terms.mean[:, [2, 0]].tolist() == [[1, 2], [1, 1.5], [1, 4], [3, 7.5]]
    assert not found.nonfinite.any()
    found.add(rows, parts, second, t, torch.tensor([True, True, False, True]), level)
    assert found.terms.count.tolist() == [[2, 0, 2]]
    assert found.terms.mean[:, [2, 0]].tolist() == [[1, 2], [1, -1], [1, 4], [3, 5]]
    assert found.terms.variances()[1, [2, 0]].tolist() == [0, 12.5]  # 1 and 1; 1.5 and −3.5
    curve = torch.zeros(3, BINS, dtype=torch.float64)
    curve[2, 0], curve[2, 39], curve[0, 20] = (
        -2,
        6,
        -4,
    )  # t = 0.5 and 0.51 are in one of forty bins
    assert torch.equal(found.curve, curve)
    assert found.weights[[2, 0]].tolist() == [
        [3 + 5 + 1 + 1, 9 + 25 + 1 + 1, 5],
        [1 + 2 + 7, 1 + 4 + 49, 7],
    ]
    assert not found.weights[1].any()
    torch.testing.assert_close(found.nonfinite, torch.tensor([1.51, 0, 1.99], dtype=torch.float64))


def test_the_integral_of_a_baseline_lies_where_the_baseline_does():
    """Two draws of 5 and 6 at one time, each of which holds 4 = 1 + 3 of a baseline that lies in
    bins 7 and 30."""
    found, level = Tally.empty(1), torch.zeros(BINS, dtype=torch.float64)
    level[7], level[30] = 1.0, 3.0
    draws, t = (
        torch.tensor([5.0, 6.0], dtype=torch.float64),
        torch.full((2,), 0.5, dtype=torch.float64),
    )
    found.add(
        torch.tensor([0]),
        torch.zeros(3, 2, dtype=torch.float64),
        draws,
        t,
        torch.zeros(2, dtype=torch.bool),
        level,
    )
    known = torch.zeros(1, BINS, dtype=torch.float64)
    known[0, 20], known[0, 7], known[0, 30] = (5 - 4) + (6 - 4), 2 * 1, 2 * 3
    assert torch.equal(found.curve, known)
    assert found.terms.mean[1].item() == 5.5


def test_processes_add_their_measurements_but_for_the_first_stages():
    mine = Tally.empty(2)
    for v in mine.state().values():
        v += 1
    mine.first = RunningMoments.empty(4, 2)
    whole = mine.over(Share(0, 2, lambda v: 3 * v))
    assert all(
        (v == 3).all() for name, v in whole.state().items() if not name.startswith("first_")
    )
    assert whole.first is mine.first
    again = Tally.of(mine.state())
    again.curve += 1
    again.first.mean += 1
    assert (mine.curve == 1).all()
    assert not mine.first.mean.any()
    assert set(mine.state()) == set(again.state()) == set(whole.state())
