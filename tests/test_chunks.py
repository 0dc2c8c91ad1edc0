"""Long estimates in pieces: shared over processes, told of; the same answer each time."""

import json
import re

import pytest
import torch
from estimates import EVERY, INTEGERS, LATTICE, LEVELS, NARROW, fields, of_levels, of_paths
from points import answers

from vdiff.likelihood import Share, Uniform, dequantized_ode
from vdiff.likelihood.chunks import OtherProcessFailed, Run, run_in_chunks
from vdiff.likelihood.digest import state_key


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
from estimates import of_levels, of_paths
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
