"""Long estimates in pieces: cut off and taken up again, shared over processes, told of; the same
answer each time."""

import json
import re
from functools import cache

import pytest
import torch
from points import answers

from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import (
    Hutchinson,
    Share,
    TruncatedNormal,
    Uniform,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
)
from vdiff.likelihood.chunks import OtherProcessFailed, Run, run_in_chunks
from vdiff.likelihood.digest import state_key
from vdiff.likelihood.importance import path_importance
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.profile import Profile
from vdiff.schedule import Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
X = DATA.sample(7, torch.Generator().manual_seed(0))
LEVELS = Categorical(4)
LATTICE = Lattice(LEVELS.level_values, [0.4, 0.3, 0.2, 0.1])
INTEGERS = torch.arange(4).repeat(2)[:7, None]
NARROW = Linear(6.0, -8.0)


def of_ode(**options):
    return ode_likelihood(
        DATA, X, schedule=NARROW, trace=Hutchinson(probes=3), tolerance=1e-3, audit=True, **options
    )


def of_levels(**options):
    given = {
        "dequantization": TruncatedNormal(LEVELS, 6.0),
        "samples": 2,
        "audit": True,
        "tolerance": 1e-3,
    }
    return dequantized_ode(LATTICE, INTEGERS, schedule=NARROW, **given, **options)


def of_paths(**options):
    return path_importance(
        DATA,
        X,
        schedule=NARROW,
        decoder=Gaussian(),
        steps=3,
        samples=2,
        **{"replicates": 3, "batch": 4} | options,
    )


def of_error(**options):
    return immse(
        DATA,
        X,
        schedule=NARROW,
        gaussian=DATA.matched(),
        draws=4,
        replicates=3,
        **{"batch": 12} | options,
    )


EVERY = {"ODE": of_ode, "dequantised ODE": of_levels, "paths": of_paths, "I-MMSE": of_error}
BATCHES = {"ODE": 2, "dequantised ODE": 2, "paths": 4, "I-MMSE": 12}


class Stopped(Exception):
    """What cuts an estimate off."""


def fields(found):
    """Every tensor of a result."""
    return {name: v for name, v in vars(found).items() if isinstance(v, torch.Tensor)}


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


@pytest.mark.parametrize("name", EVERY)
def test_two_shares_make_a_whole(name):
    """Each process fills its own examples and adds the others': here the first is run before the
    second, which adds what it found."""
    options = {"batch": 1} if "ODE" in name else {}  # a batch moves a solver's answer
    whole, kept = EVERY[name](**options), []
    EVERY[name](share=Share(0, 2), checkpoint=kept.append, **options)
    found = iter([v for word, v in kept[-1].items() if word not in ("done", "key")])

    def add(v):
        return v if v.shape == (1,) else v + next(found)  # the first sum is whether one has failed

    both = EVERY[name](share=Share(1, 2, add), **options)
    for word, v in fields(whole).items():
        torch.testing.assert_close(fields(both)[word], v)
    assert both.protocol["processes"] == 2


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


def test_pieces_are_batches_of_what_is_left_of_a_share():
    """Five rows, of which the second of two processes has 1 and 3; then the first, of which one
    repetition of a row was done."""
    setting = {
        "shapes": {"v": (2,), "n": ()},
        "repetitions": 2,
        "rows": 5,
        "key": state_key("test"),
    }
    asked, seen, kept = [], [], []

    def work(repetition, rows):
        asked.append((repetition, rows.tolist()))
        return {
            "v": torch.stack([rows, rows + 10 * repetition], 1).float(),
            "n": rows - repetition,
        }

    def course(share, **options):
        return Run(
            2,
            0,
            share,
            lambda done, total: seen.append((done, total)),
            lambda state: kept.append({k: v.clone() for k, v in state.items()}),
            **options,
        )

    found = run_in_chunks(work, run=course(Share(1, 2)), **setting)
    assert asked == [(0, [1, 3]), (1, [1, 3])]
    assert seen == [(2, 4), (4, 4)]
    assert found["v"][1].tolist() == [[0, 0], [1, 11], [0, 0], [3, 13], [0, 0]]
    assert found["n"].tolist() == [[0, 1, 0, 3, 0], [0, 0, 0, 2, 0]]
    assert found["v"].dtype == torch.float64
    assert [state["done"].tolist() for state in kept] == [
        [[0, 1, 0, 1, 0], [0] * 5],
        [[0, 1, 0, 1, 0]] * 2,
    ]
    asked.clear()
    seen.clear()
    kept.clear()
    run_in_chunks(work, run=course(Share(0, 2)), **setting)
    assert asked == [(0, [0, 2]), (0, [4]), (1, [0, 2]), (1, [4])]
    assert seen == [(2, 6), (3, 6), (5, 6), (6, 6)]
    half = kept[0]
    asked.clear()
    seen.clear()
    run_in_chunks(work, run=course(Share(0, 2), resume=half), **setting)
    assert asked == [(0, [4]), (1, [0, 2]), (1, [4])]
    assert seen == [(3, 6), (5, 6), (6, 6)]
    assert half["done"].sum() == 2  # the given state is as it was


def test_where_one_process_fails_all_do():
    """A process told that another failed raises too, instead of waiting for it."""
    setting = {"shapes": {"v": ()}, "repetitions": 1, "rows": 4, "key": state_key("test")}
    elsewhere = Run(2, 0, Share(0, 2, lambda v: v + 1))
    with pytest.raises(OtherProcessFailed, match=r"^another process failed"):
        run_in_chunks(lambda i, rows: {"v": rows}, run=elsewhere, **setting)

    def fails(i, rows):
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        run_in_chunks(fails, run=Run(2, 0, Share(0, 2)), **setting)
    said = []
    with pytest.raises(ZeroDivisionError, match="here"):
        run_in_chunks(
            fails,
            run=Run(2, 0, Share(0, 2, lambda v: said.append(v.tolist()) or v)),
            **setting,
        )
    assert said == [[1.0]]  # the others, who wait there


PROGRAM = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, "tests")
from test_chunks import of_levels, of_paths
from vdiff.flow import SolverError
from vdiff.likelihood.chunks import OtherProcessFailed
from vdiff.training.ranks import share_of_rank
dist.init_process_group("gloo")
share = share_of_rank()
found = [of_levels(share=share), of_paths(share=share)]
try:
    of_levels(share=share, max_evaluations=1 if share.index else 10_000)
    failed = "no"
except (SolverError, OtherProcessFailed) as error:
    failed = type(error).__name__
print(json.dumps([share.index, [one.replicates.tolist() for one in found], failed]), flush=True)
dist.destroy_process_group()
"""


def test_two_processes_give_the_same_answer_and_fail_together():
    said = answers(PROGRAM)
    alone = [of_levels().replicates, of_paths().replicates]
    for rank, (index, found, failed) in enumerate(said):
        assert index == rank
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(
                torch.tensor(one, dtype=torch.float64), other, rtol=1e-3, atol=1e-3
            )
        assert failed == ("OtherProcessFailed", "SolverError")[rank]


def test_the_uniform_bin_and_its_protocol():
    found = dequantized_ode(
        LATTICE,
        INTEGERS,
        dequantization=Uniform(LEVELS),
        schedule=NARROW,
        record={"split": "test"},
    )
    known = found.protocol
    assert (known["K"], known["replicates"], known["seed"], known["split"], known["images"]) == (
        1,
        2,
        0,
        "test",
        7,
    )
    assert known["dequantization"] == "Uniform(Categorical(levels=4, levels_at_ends=False))"
    assert known["NFE"] == pytest.approx(found.evaluations.double().mean().item() / 2, abs=0.06)
    assert known["prior"] == "N(0, I)"
    assert json.loads(json.dumps(known, allow_nan=False)) == known
    assert re.search(r"dequantization +Uniform\(", str(found))
