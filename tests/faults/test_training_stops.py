"""Faults 59 to 61: a training that a signal ends, and what it needs to resume."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points import data_of, outcome, points
from safetensors.torch import load_file
from torch import Tensor, nn

from vdiff.training import Run, train
from vdiff.training.checkpoint import checkpoints, read_meta

from .common import Net
from .training_runs import objective_of, run_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # of fork, since Python 3.12


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_fault_59_a_signal_ends_the_run_behind_its_step_with_a_checkpoint(
    name: str, code: int, tmp_path: Path
) -> None:
    """In a process of its own; a second one would end it at once: see below."""
    config = points()

    def child() -> None:
        def log(entry: dict[str, Any]) -> None:
            if entry["step"] == 2:
                os.kill(os.getpid(), getattr(signal, name))

        with Run.open(tmp_path, config) as run:
            train(
                config.objective(),
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=100,
                quiet=True,
            )

    assert exit_code(child) == code
    assert outcome(tmp_path)["state"]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def exit_code(work: Callable[[], object]) -> int:
    """Of a child that does some work."""
    child = os.fork()
    if child == 0:
        code: object = 1
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                work()
            code = 0
        except SystemExit as left:
            code = left.code
        finally:
            os._exit(int(code))  # type: ignore[call-overload]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_fault_59_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    config = points()

    def child() -> None:
        def log(entry: dict[str, Any]) -> None:
            if entry["step"] == 6:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        with Run.open(tmp_path, config) as run:
            train(
                config.objective(),
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=4,
                quiet=True,
            )

    assert exit_code(child) == -signal.SIGINT
    assert outcome(tmp_path)["state"]["step"] == 4


def test_fault_59_without_a_run_signals_are_left_alone() -> None:
    seen = []
    config = points(steps=2)
    handler = signal.getsignal(signal.SIGINT)
    train(
        config.objective(),
        data_of(config),
        config,
        log=lambda entry: seen.append(signal.getsignal(signal.SIGINT)),
        quiet=True,
    )
    assert seen == [handler]


class Random(nn.Module):
    """A network that draws from every global generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(64)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        factor = random.random() + np.random.rand() + torch.rand(1).item()  # noqa: NPY002
        return self.inner(factor * z, time)  # type: ignore[no-any-return]


def test_fault_60_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    config = points()

    def until(folder: Path, stop: int) -> dict[str, Any]:
        def log(entry: dict[str, Any]) -> None:
            random.seed(time.time())
            if entry["step"] == stop - 1:
                signal.raise_signal(signal.SIGTERM)

        torch.manual_seed(0)
        objective = objective_of(Random())
        with Run.open(folder, config) as run, contextlib.suppress(SystemExit):
            train(
                objective,
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=100,
                quiet=True,
            )
        return outcome(folder)

    whole = until(tmp_path / "whole", 0)
    assert until(tmp_path / "stopped", 5)["state"]["step"] == 5
    assert until(tmp_path / "stopped", 0) == whole


def test_fault_61_another_number_of_processes_needs_no_state_of_theirs(tmp_path: Path) -> None:
    """No generator's state is kept: what a rank draws follows from (seed, step, rank,
    micro-batch), so that a run may go on on any number of them (tests/test_ranks.py does)."""
    config = points()
    run_of(tmp_path, config)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    assert sorted(file.name for file in path.iterdir()) == [
        "ema-0.9.safetensors",
        "ema-0.99.safetensors",
        "meta.json",
        "objective.safetensors",
        "optimizer.safetensors",
    ]
    assert not any(
        "rng" in name for file in path.glob("*.safetensors") for name in load_file(file)
    )
    assert "processes" not in read_meta(path)["facts"]["state"]
