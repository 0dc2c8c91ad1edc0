"""Faults 62 to 65: the folder of a run."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from points import command, data_of, environment, outcome, points

from vdiff.training import Run, train
from vdiff.training.checkpoint import checkpoints

from .common import assert_refused
from .training_runs import run_of


def test_fault_62_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is given who has it; the lock of one that was killed is free."""
    config = points(steps=10_000)
    first = subprocess.Popen(
        command(tmp_path, {"steps": 10_000, "do": "hang", "at": 3}),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "now\n"
        with assert_refused(
            ValueError,
            "Run.open",
            "folder",
            "be used by one training at a time",
            f"process {first.pid} on {os.uname().nodename} in",
            "stop it, or take another folder",
        ):
            Run.open(tmp_path / "0", config)
        with assert_refused(
            ValueError,
            "Run.create",
            "folder",
            "be used by one training at a time",
            f"process {first.pid}",
        ):
            Run.create(tmp_path / "0", config)
        assert Run(tmp_path / "0").config == config  # to look is free
    finally:
        first.kill()
        first.communicate()
    with (
        Run.open(tmp_path / "0", config),
        assert_refused(
            ValueError, "Run.open", "folder", "be used by one training", f"process {os.getpid()}"
        ),
    ):
        Run.open(tmp_path / "0", config)
    Run.open(tmp_path / "0", config).close()


def test_fault_63_a_clock_that_runs_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = points()
    run_of(tmp_path / "whole", config)
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with Run.open(tmp_path / "run", config) as run:
        torch.manual_seed(0)
        train(config.objective(), data_of(config), config, run=run, every=4)
    for path in checkpoints(tmp_path / "run/checkpoints"):
        os.utime(
            path, (10**9 - int(path.name[5:]),) * 2
        )  # the newest by its step is the oldest by its date
    run_of(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert all(entry["seconds"] >= 0 for entry in Run(tmp_path / "run").history())


def test_fault_64_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", Path("/proc/nothing")):
        for make in (Run.open, Run.create):
            with assert_refused(
                ValueError,
                f"Run.{make.__name__}",
                "folder",
                "be one that can be written to",
                str(folder),
            ):
                make(folder, points())


def test_fault_65_relative_paths_spaces_and_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, name = points(), "mit Leerzeichen und 図形"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Run.open(name, config) as run:
        monkeypatch.chdir(tmp_path / "elsewhere")
        torch.manual_seed(0)
        train(config.objective(), data_of(config), config, run=run, every=4, quiet=True)
    assert run.folder == tmp_path / name
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(run.history()) == 3
    assert not Run(tmp_path / name).load().training
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run(f"~/{name}").folder == run.folder


def test_fault_62_a_run_that_is_only_read_is_not_trained(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    with assert_refused(
        ValueError, "train", "run", "be opened for training", "Run.open(folder, config)"
    ):
        train(config.objective(), data_of(config), config, run=Run(tmp_path), quiet=True)
    other = replace(config, lr=0.1)
    with (
        Run.open(tmp_path, config) as run,
        assert_refused(ValueError, "train", "run", "be of the config that is trained", "lr: 0.1"),
    ):
        train(other.objective(), data_of(other), other, run=run, quiet=True)
