"""An evaluation resumes where it was cut off, and is the same over two processes."""

import math
from functools import cache

import pytest
import torch
from evaluations import LEVELS_OF_FOUR, ORACLE, SETTING
from points import answers

from vdiff.cli import resume
from vdiff.likelihood import Report, evaluate


class Stopped(Exception):
    """What cuts an evaluation off."""


@cache
def undisturbed() -> tuple[Report, int]:
    """The report, and how many states another evaluation keeps."""
    kept: list[object] = []
    evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING, checkpoint=kept.append)
    return evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING), len(kept)


@pytest.mark.parametrize("after", [1, 9, 13])
def test_an_evaluation_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, after):
    """In the first stage and in the second; through the file that the command keeps."""
    monkeypatch.setattr(resume, "PAUSE", -1.0)
    whole, every = undisturbed()
    kept, calls = resume.StateFile(tmp_path / "state.safetensors"), []

    def checkpoint(state: dict[str, torch.Tensor]) -> None:
        kept(state)
        calls.append(state)
        if len(calls) == after:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING, checkpoint=checkpoint)
    rest: list[object] = []
    again = evaluate(
        ORACLE,
        LEVELS_OF_FOUR,
        **SETTING,
        resume=resume.StateFile(kept.path).read(),
        checkpoint=rest.append,
    )
    assert again.total == whole.total
    assert again.asdict()["diagnostics"] == whole.asdict()["diagnostics"]
    assert len(rest) == every - after
    with pytest.raises(
        ValueError, match="'resume' must be the state of this evaluation; got that of another"
    ):
        evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING, seed=1, resume=kept.read())


PROGRAM = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, "tests")
from evaluations import LEVELS_OF_FOUR, ORACLE, SETTING
from vdiff.flow import SolverError
from vdiff.likelihood import evaluate
from vdiff.training.ranks import share_of_rank
dist.init_process_group("gloo")
report = evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING, share=share_of_rank())
try:
    wrong = lambda z, logsnr: type("P", (), {})()
    evaluate(wrong, LEVELS_OF_FOUR, **SETTING, share=share_of_rank())
except TypeError:
    pass
total, count = report.total, report.protocol["processes"]
print(json.dumps([dist.get_rank(), total.value, total.monte_carlo, count]), flush=True)
dist.destroy_process_group()
"""


def test_two_processes_give_the_same_answer():
    said = answers(PROGRAM)
    alone = evaluate(ORACLE, LEVELS_OF_FOUR, **SETTING).total
    for rank, (index, value, error, processes) in enumerate(said):
        assert (index, processes) == (rank, 2)
        assert value == pytest.approx(alone.value, rel=1e-6)
        assert error == pytest.approx(alone.monte_carlo, rel=1e-4)
    assert math.isfinite(alone.value)
