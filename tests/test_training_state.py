"""The non-tensor state of a training, and the averages of its weights."""

import pytest
import torch
from points import points

from vdiff.training.ema import EMA
from vdiff.training.state import State, is_state

GOOD = {"step": 3, "skipped": 0, "in_a_row": 0, "window": [1.5, 1], "best": None}


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": True},
        {"skipped": 0.5},
        {"window": [1.5]},
        {"window": ["1", 1]},
        {"best": {"step": 1}},
        {"other": 1},
    ],
    ids=str,
)
def test_another_form_is_no_state(change):
    assert is_state(GOOD)
    assert is_state(GOOD | {"best": {"step": 2, "bits_per_dim": 3.5}})
    assert not is_state(GOOD | change)
    assert not is_state([GOOD])


def test_facts_are_restored():
    config = points()
    state = State(config.objective(), config)
    assert is_state(state.facts())
    state.load_facts(GOOD)
    assert state.facts() == GOOD


def test_an_average_is_the_formula():
    objective = points().objective()
    ema = EMA(objective, [0.9])
    (weight, *_), (mean, *_) = objective.model.parameters(), ema.copies[0.9].model.parameters()
    expected = weight.detach().clone()
    for n in range(4):
        with torch.no_grad():
            weight += 1.0
        ema.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(mean.detach(), expected)
