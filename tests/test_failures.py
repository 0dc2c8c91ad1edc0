"""Errors of a training step: what they tell."""

import json

import pytest
import torch
from points import data_of, points

from vdiff.training.batches import Batches
from vdiff.training.failures import memory_hint, not_finite, step_report
from vdiff.training.ranks import Rank


def test_the_report_of_a_step_does_not_depend_on_the_number_of_processes(tmp_path):
    config, reports = points(), []
    torch.manual_seed(0)
    objective = config.objective()
    for rank in (Rank(), Rank(1, 3)):
        reports.append(step_report(objective, Batches(data_of(config), config, rank=rank), 4))
    one, three = (report["slots"] for report in reports)
    assert [row["slot"] for row in one] == list(range(config.batch))
    for a, b in zip(one, three, strict=True):
        assert (a["image"], a["slot"]) == (b["image"], b["slot"])
        assert (a["t"], a["loss"]) == pytest.approx((b["t"], b["loss"]), rel=1e-4)


def test_the_error_of_a_step_names_its_file(tmp_path):
    config = points()
    batches = Batches(data_of(config), config)
    error = not_finite(config.objective(), batches, 4, 10, tmp_path)
    path = tmp_path / "nonfinite-00000004.json"
    assert "in 10 steps in a row, up to step 4 of seed 0 (lower the learning rate" in str(error)
    assert str(path) in str(error)
    assert len(json.loads(path.read_text())["slots"]) == config.batch


def test_only_an_out_of_memory_error_gets_the_hint():
    with pytest.raises(RuntimeError) as error, memory_hint(points(), Rank()):
        raise RuntimeError("a wrong shape")
    assert not hasattr(error.value, "__notes__")
