"""Faults 72 and 73: logs of a training that are cut off or that fail."""

import builtins
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from points import outcome, points

from vdiff.training import Run

from .training_runs import run_of


def test_fault_72_half_a_line_in_the_log(tmp_path: Path) -> None:
    """And whole ones beyond the checkpoint: the log of a resumed run has every step once."""
    config = points()
    run_of(tmp_path / "whole", config)
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", folder)
    for step in (12,):
        shutil.rmtree(folder / f"checkpoints/step-{step:08d}")
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 13, "train_bi')
    assert [entry["step"] for entry in Run(folder).history()] == [4, 8, 12]
    run_of(folder, config)
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert (folder / "log.jsonl").read_text().count("\n") == 3


def test_fault_73_a_log_that_fails_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own, and TensorBoard."""

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (Path(folder).name, purge_step) == ("tensorboard", 1)
            self.calls = 0

        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise ConnectionError("TensorBoard is down")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )

    def log(entry: dict[str, Any]) -> None:
        raise ConnectionError("wandb is down")

    config = points()
    with (
        pytest.warns(
            UserWarning,
            match="a log failed, training continues: ConnectionError: TensorBoard is down",
        ),
        pytest.warns(UserWarning, match="ConnectionError: wandb is down"),
    ):
        run_of(tmp_path, config, log=log)
    assert outcome(tmp_path)["state"]["step"] == 12
    assert len(Run(tmp_path).history()) == 3


def test_fault_73_tensorboard_gets_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            got.clear()

        def add_scalar(self, name: str, value: float, step: int) -> None:
            got.append((name, value, step))

        def flush(self) -> None:
            pass

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )
    run_of(tmp_path, points(), validate=lambda averaged: 2.0)
    assert {name for name, _, _ in got} >= {
        "train_bits_per_dim",
        "gradient_norm",
        "lr",
        "skipped",
        "selection_bits_per_dim",
    }
    assert [step for name, _, step in got if name == "train_bits_per_dim"] == [4, 8, 12]


def test_fault_73_tensorboard_that_does_not_even_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def fails(name: str, *rest: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError("no module named tensorboard")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fails)
    run_of(tmp_path, points())
    assert outcome(tmp_path)["state"]["step"] == 12


def test_fault_73_tensorboard_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PermissionError("no place for events")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=fails)
    )
    with pytest.warns(
        UserWarning,
        match="TensorBoard failed, training continues: PermissionError: no place for events",
    ):
        run_of(tmp_path, points())
    assert outcome(tmp_path)["state"]["step"] == 12
