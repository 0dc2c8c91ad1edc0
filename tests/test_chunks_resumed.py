"""Estimates that were cut off resume where they stopped, with the same answer."""

from functools import cache

import pytest
import torch
from estimates import DATA, EVERY, INTEGERS, LATTICE, LEVELS, NARROW, X, fields

from vdiff.decoder import Categorical
from vdiff.likelihood import Share, compare, evaluate, ode_likelihood
from vdiff.oracle import Lattice
from vdiff.profile import Profile
from vdiff.schedule import Linear

BATCHES = {"ODE": 2, "dequantised ODE": 2, "paths": 4, "I-MMSE": 12}


class Stopped(Exception):
    """What cuts an estimate off."""


@cache
def undisturbed(name):
    """The result, and how many states another estimate keeps."""
    kept = []
    EVERY[name](batch=BATCHES[name], checkpoint=kept.append)
    return EVERY[name](batch=BATCHES[name]), len(kept)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("after", [1, 3])
def test_an_estimate_goes_on_where_it_was_cut_off(name, after):
    (whole, every), kept, told = undisturbed(name), [], []

    def checkpoint(state):
        kept.append({word: v.clone() for word, v in state.items()})
        if len(kept) == after:
            raise Stopped

    with pytest.raises(Stopped):
        EVERY[name](batch=BATCHES[name], checkpoint=checkpoint)
    rest = []
    again = EVERY[name](
        batch=BATCHES[name],
        resume=kept[-1],
        checkpoint=rest.append,
        progress=lambda done, total: told.append((done, total)),
    )
    for word, v in fields(whole).items():
        assert torch.equal(fields(again)[word], v), word
    assert again.protocol == whole.protocol
    assert len(rest) == every - after == len(told) > 0
    assert told[-1][0] == told[-1][1]
    with pytest.raises(
        ValueError, match="'resume' must be the state of this evaluation; got that of another"
    ):
        EVERY[name](batch=BATCHES[name], seed=5, resume=kept[-1])
    with pytest.raises(
        ValueError, match="'resume' must be the state of this evaluation; got that of another"
    ):
        EVERY[name](
            batch=BATCHES[name], resume=kept[-1], record={"weights file": "of another model"}
        )


def test_a_comparison_goes_on_where_it_was_cut_off():
    wrong, setting = (
        Lattice(LEVELS.level_values, [0.3, 0.3, 0.2, 0.2]),
        {"schedule": NARROW, "decoder": LEVELS, "draws": 8, "batch": 16},
    )
    data = INTEGERS.repeat(10, 1)
    whole, kept = compare(LATTICE, wrong, data, tolerance=0.05, **setting), []

    def checkpoint(state):
        kept.append({word: v.clone() for word, v in state.items()})
        if len(kept) == 20:
            raise Stopped

    with pytest.raises(Stopped):
        compare(LATTICE, wrong, data, tolerance=0.05, checkpoint=checkpoint, **setting)
    rest = []
    again = compare(
        LATTICE, wrong, data, tolerance=0.05, resume=kept[-1], checkpoint=rest.append, **setting
    )
    assert again.difference == whole.difference
    assert again.asdict() == whole.asdict()
    assert rest
    with pytest.raises(
        ValueError, match="compare: argument 'resume' must be the state of this evaluation"
    ):
        compare(
            LATTICE,
            wrong,
            data,
            tolerance=0.05,
            resume=kept[-1],
            record={"against": "another"},
            **setting,
        )


def test_a_state_knows_what_the_model_was_told_and_where_it_looked():
    """Labels, ends of the schedule, decoder and prior: with any of them changed there is nothing
    to go on from."""
    kept: list = []
    labels = torch.arange(7)

    def model(z, logsnr, label):
        return DATA(z, logsnr)

    ode_likelihood(
        model,
        X,
        schedule=NARROW,
        tolerance=1e-2,
        prior=DATA.matched(),
        checkpoint=kept.append,
        condition={"label": labels},
    )
    known = {"schedule": NARROW, "condition": {"label": labels}, "prior": DATA.matched()}
    ode_likelihood(model, X, tolerance=1e-2, resume=kept[-1], **known)
    for change in (
        {"condition": {"label": labels.flip(0)}},
        {"schedule": Linear(5.0, -8.0)},
        {"prior": None},
        {"prior": DATA},
    ):
        with pytest.raises(ValueError, match="'resume' must be the state of this evaluation"):
            ode_likelihood(model, X, tolerance=1e-2, resume=kept[-1], **known | change)
    setting = {"schedule": NARROW, "decoder": LEVELS, "draws": 8}
    evaluate(LATTICE, INTEGERS, checkpoint=kept.append, **setting)
    for change in (
        {"schedule": Linear(5.0, -8.0)},
        {"decoder": Categorical(4, levels_at_ends=True)},
        {"steps": 4},
    ):
        with pytest.raises(ValueError, match="'resume' must be the state of this evaluation"):
            evaluate(LATTICE, INTEGERS, resume=kept[-1], **setting | change)


@pytest.mark.parametrize("tolerance", [None, 0.1])
def test_a_profile_has_seen_everything_after_a_pause(tolerance):
    """And what it had seen before stays."""
    setting = {
        "schedule": NARROW,
        "decoder": LEVELS,
        "draws": 8,
        "batch": 16,
        "tolerance": tolerance,
    }
    data, kept = INTEGERS.repeat(10, 1), []

    def profile():
        made = Profile(logsnr_max=6.0, logsnr_min=-8.0, bins=7)
        made.update(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
        return made

    def checkpoint(state):
        kept.append({word: v.clone() for word, v in state.items()})
        if len(kept) == 4:
            raise Stopped

    whole, cut = profile(), profile()
    evaluate(LATTICE, data, profile=whole, **setting)
    with pytest.raises(Stopped):
        evaluate(LATTICE, data, profile=cut, checkpoint=checkpoint, **setting)
    again = profile()
    evaluate(LATTICE, data, profile=again, resume=kept[-1], **setting)
    torch.testing.assert_close(again.sums, whole.sums, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="'resume' must be the state of this evaluation"):
        evaluate(
            LATTICE,
            data,
            profile=Profile(logsnr_max=6.0, logsnr_min=-8.0, bins=9),
            resume=kept[-1],
            **setting,
        )
    doubled = profile()  # two processes that saw the same: their sum
    evaluate(
        LATTICE,
        data,
        profile=doubled,
        share=Share(0, 1, lambda v: 2 * v if v.shape == (6, 7) else v),
        **setting,
    )
    torch.testing.assert_close(doubled.sums - profile().sums, 2 * (whole.sums - profile().sums))
