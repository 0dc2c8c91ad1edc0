"""Metrics: read in order and with a delay; a log whose damaged lines are skipped."""

import math

import pytest
import torch

from vdiff.training.logger import AsyncMetrics, Logger, StepMetrics, read_log, write_log


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_metrics_come_in_order_and_none_is_lost(delay):
    metrics, read = AsyncMetrics(delay=delay), []
    for step in range(5):
        numbers = torch.tensor([float(step), 2.0, step == 2, step == 4], dtype=torch.float64)
        read += metrics.push(step, numbers)
        assert [m.step for m in read] == list(range(max(0, step + 1 - delay)))
    read += metrics.rest()
    assert read == [StepMetrics(i, float(i), 2.0, i == 2, i == 4) for i in range(5)]


def test_a_listener_that_raises_stops_nothing():
    entries: list[dict[str, object]] = []

    def broken(entry: object) -> None:
        raise OSError("full")

    logger = Logger(2, "loss", quiet=True, listeners=[broken, entries.append])
    with pytest.warns(UserWarning, match="a log failed, training continues: OSError: full"):
        logger.write({"step": 1})
    assert entries[0]["step"] == 1


def test_a_log_keeps_entries_and_skips_damaged_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    entries = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.pi}]
    write_log(path, entries)
    with path.open("a") as file:
        file.write('[1]\n{"step": 1.5}\n{"step": 3, "lo')
    assert read_log(path) == entries
