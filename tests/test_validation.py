"""A validation curve: the same times and noise at every point."""

import pytest
import torch
from points import data_of, points

from vdiff.training import Validation


def test_two_calls_give_the_same_bound_and_another_seed_another():
    config = points()
    objective, data = config.objective(), data_of(config)[:8]
    validate = Validation(data, draws=4)
    first = validate(objective)
    assert validate(objective).value == first.value
    assert first.monte_carlo > 0
    assert Validation(data, draws=4, seed=1)(objective).value != first.value


def test_a_loss_without_a_decoder_has_no_bound():
    config = points(decoder=None, weighting={"name": "Sigmoid"})
    with pytest.raises(ValueError, match="have a decoder"):
        Validation(torch.randn(8, 64))(config.objective())
