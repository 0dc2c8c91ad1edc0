"""A bound's parts, its units and the terms of a chain."""

import math

import pytest
import torch

from vdiff.bound import Bound, Drawn

PRIOR, DIFFUSION, RECONSTRUCTION = torch.tensor([[0.5, 1.0], [2.0, 3.0], [0.25, 0.0]])


def bound(drawn=None):
    return Bound(PRIOR, DIFFUSION, RECONSTRUCTION, dims=4, drawn=drawn)


def test_the_total_is_the_sum_and_bits_are_of_a_dimension():
    assert bound().total.tolist() == [2.75, 4.0]
    bits = [2.75 / (4 * math.log(2)), 4.0 / (4 * math.log(2))]
    assert bound().bits_per_dim.tolist() == pytest.approx(bits, rel=1e-6)
    parts = bound().parts()
    assert list(parts) == ["prior", "diffusion", "reconstruction", "total"]
    torch.testing.assert_close(sum(list(parts.values())[:3]), parts["total"])


def test_a_step_that_was_drawn_twice_is_averaged_and_one_that_was_not_is_missing():
    """Of four steps the first example drew 1 and 3, the second 1 twice; a term is T times a
    step's."""
    times = torch.tensor([0.25, 0.25]), torch.tensor([0.75, 0.25])
    terms = torch.tensor([4.0, 8.0]), torch.tensor([12.0, 16.0])
    named = bound(Drawn(4, times, terms)).terms(nats=True)
    assert list(named) == ["L_0", "L_1", "L_3", "L_5"]
    assert named["L_0"] is RECONSTRUCTION or torch.equal(named["L_0"], RECONSTRUCTION)
    assert named["L_1"].tolist() == [1.0, 3.0]
    assert named["L_3"][0] == 3.0
    assert named["L_3"][1].isnan()
    in_bits = bound(Drawn(4, times, terms)).terms()
    torch.testing.assert_close(in_bits["L_1"], named["L_1"] / (4 * math.log(2)))


def test_continuous_time_has_no_terms():
    with pytest.raises(ValueError, match=r"Bound\.terms: argument 'steps' must be given to elbo"):
        bound().terms()
    with pytest.raises(ValueError, match="be i/2 with i = 1 … 2"):
        bound(Drawn(2, (torch.tensor([0.3, 0.5]),), (PRIOR,))).terms()
