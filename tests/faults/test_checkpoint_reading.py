"""Faults 54, 56 and 57: checkpoints that are damaged, of another run, or no checkpoints."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from points import outcome, points
from safetensors.torch import save_file
from soak_training import damaged

from vdiff.cli import main
from vdiff.training import Run
from vdiff.training.checkpoint import checkpoints, checksum, read, write

from .common import assert_refused, assert_refused_with
from .training_runs import run_of, small


def test_fault_54_damaged_checkpoints_are_what_they_were_or_refused(tmp_path: Path) -> None:
    """A sample of the ten thousand of `make soak`."""
    assert set(damaged(100, tmp_path)) >= {"refused", "loaded, what it was"}


def damage(path: Path, how: str) -> None:
    file = path / ("meta.json" if "meta" in how else "optimizer.safetensors")
    raw = bytearray(file.read_bytes())
    match how.split()[0]:
        case "cut":
            del raw[len(raw) // 2 :]
        case "flipped":
            raw[len(raw) // 2] ^= 1
        case "empty":
            raw.clear()
        case "missing":
            file.unlink()
            return
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "flipped",
        "empty",
        "missing",
        "cut meta",
        "flipped meta",
        "empty meta",
        "missing meta",
    ],
)
def test_fault_54_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    how: str, tmp_path: Path
) -> None:
    config = points()
    run_of(tmp_path, config)
    whole = outcome(tmp_path)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]
    damage(tmp_path / "checkpoints/step-00000012", how)
    with pytest.warns(
        UserWarning, match=r"checkpoint '.*step-00000012' must .*; the one before it is used"
    ):
        run_of(tmp_path, config)
    assert outcome(tmp_path) == whole
    assert (tmp_path / "checkpoints/refused-step-00000012").is_dir()


def test_fault_54_where_none_can_be_used_nothing_starts_again_in_silence(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    for path in checkpoints(tmp_path / "checkpoints"):
        damage(path, "cut")
    for _ in range(2):  # nor at the second attempt
        kept = "step-00000012, step-00000008, step-00000004"
        said = rf"none of the 3 checkpoints in .*to start anew, take another folder.*{kept}"
        with pytest.warns(UserWarning, match="is cut off"), pytest.raises(ValueError, match=said):
            run_of(tmp_path, config)


def test_fault_56_a_run_of_another_config_shows_the_difference(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    changed = replace(config, lr=0.5, network=config.network | {"width": 17})
    with assert_refused_with(
        ValueError,
        "Run.open: config must be that of the run in .. network: { .. lr: 0.5, where "
        "it was 0.002 .. take another folder",
    ):
        Run.open(tmp_path, changed)
    with Run.open(
        tmp_path, replace(config, accumulate=3)
    ) as run:  # computed in another way, and the same
        assert run.config.accumulate == 3
    with assert_refused(
        ValueError,
        "Run.open",
        "folder",
        "hold no run yet",
        "resume='auto' (--resume auto) resumes it",
    ):
        Run.open(tmp_path, config, resume="never")
    with assert_refused(
        ValueError, "Run.open", "resume", "be one of 'auto', 'never'", "did you mean 'auto'?"
    ):
        Run.open(tmp_path, config, resume="atuo")


def test_fault_56_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    config, other = points(), points(steps=16, lr=0.1)
    run_of(tmp_path / "run", config)
    run_of(tmp_path / "other", other)
    shutil.copytree(
        tmp_path / "other/checkpoints/step-00000016", tmp_path / "run/checkpoints/step-00000016"
    )
    whole = outcome(tmp_path / "run")["files"]
    with pytest.warns(
        UserWarning,
        match=(
            r"must be of this run's config; got steps: 12, where it was 16; "
            r"lr: 0\.002, where it was 0\.1"
        ),
    ):
        run_of(tmp_path / "run", config)
    assert outcome(tmp_path / "run")["files"] != whole


def test_fault_56_another_architecture_and_another_version(tmp_path: Path) -> None:
    """As after a change of the code: the config is the same and the tensors are not."""
    path = write(tmp_path, 3, small(3), {})
    into = small(0)
    into["b"] = {"y": torch.zeros(3, 2), "z": torch.zeros(1)}
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path / "b.safetensors"),
        "have the tensors of this architecture",
        "z [1] is missing; n [] is unknown here; y is [2, 3], here [3, 2]",
    ):
        read(path, into)
    assert into["a"]["x"].abs().sum() == 0
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path / "a.safetensors"),
        "have x in torch.float64",
        "torch.float32",
    ):
        read(path, {"a": {"x": torch.zeros(7, dtype=torch.float64)}})
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path),
        "hold c.safetensors",
        "a.safetensors, b.safetensors",
        "no part of this checkpoint",
    ):
        read(path, {"c": {}})
    meta = json.loads((path / "meta.json").read_text())
    reseal(path, meta | {"format": 2})
    with assert_refused(
        ValueError, "checkpoint", str(path), "have format 1", "got 2", "another version of vdiff"
    ):
        read(path, small(0))


def reseal(path: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with its right checksum, as somebody would who means it."""
    meta.pop("sha256", None)
    (path / "meta.json").write_text(json.dumps(meta | {"sha256": checksum(meta)}))


def test_fault_56_other_versions_of_the_libraries_are_warned_of(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    meta = json.loads((path / "meta.json").read_text())
    meta["facts"]["versions"]["torch"] = "1.0"
    reseal(path, meta)
    with pytest.warns(UserWarning, match="'torch': '1.0'}: not bit for bit"):
        run_of(tmp_path, config)


def test_fault_56_the_command_line_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = points()
    run_of(tmp_path, config)
    save_file({"model.network.layers.0.weight": torch.zeros(1)}, tmp_path / "ema.safetensors")
    assert main(["sample", str(tmp_path)]) == 2
    assert "have the tensors of this architecture" in capsys.readouterr().err


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".bin"])
def test_fault_57_a_pickle_is_never_opened(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = points(), tmp_path / "ran"
    run_of(tmp_path / "run", config)
    evil = tmp_path / f"run/model{suffix}"
    evil.write_bytes(pickle.dumps({"model": Evil(trace)}))
    words = (
        "which is never unpickled",
        "unpickling runs whatever code is in it",
        "safetensors.torch.save_file",
    )
    with assert_refused(
        ValueError, "checkpoint", str(evil), "be safetensors", f"a {suffix} file", *words
    ):
        Run(tmp_path / "run").load(evil.name)
    with assert_refused(
        ValueError, "checkpoint", str(evil), "be a folder of safetensors and JSON", *words
    ):
        read(evil, {})
    with assert_refused_with(
        ValueError,
        "Run.open: resume must be one of 'auto', 'never' .. unpickling runs whatever code is "
        "in it",
    ):
        Run.open(tmp_path / "run", config, resume=str(evil))
    assert not trace.exists()


def test_fault_57_a_pickle_in_the_place_of_a_checkpoints_file_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = write(tmp_path, 1, small(1), {})
    raw = pickle.dumps(Evil(trace))
    (path / "a.safetensors").write_bytes(raw)
    with assert_refused(
        ValueError, "checkpoint", str(path), "hold a.safetensors as it was written"
    ):
        read(path, small(0))
    meta = json.loads((path / "meta.json").read_text())
    import hashlib

    meta["files"]["a.safetensors"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    reseal(path, meta)
    with assert_refused(
        ValueError, "checkpoint", str(path / "a.safetensors"), "be in the form of safetensors"
    ):
        read(path, small(0))
    assert not trace.exists()
    pickle.loads(raw)
    assert trace.exists()  # it was malicious
