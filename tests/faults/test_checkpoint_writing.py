"""Faults 53 and 55: a checkpoint is written whole or not at all."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from points import outcome, points
from soak_training import kills

from vdiff.training import Run
from vdiff.training.checkpoint import checkpoints, prune, read, write
from vdiff.training.state import State

from .training_runs import run_of, small

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # of fork, since Python 3.12

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def killed_at(count: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed where it touches the file system for the so-manieth
    time; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda handle: (hook("open", ()), fsync(handle))[1]  # it is no event of its own
        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_fault_53_killed_at_any_moment_of_writing(tmp_path: Path) -> None:
    """Whichever touch of the file system is the last: the old checkpoint or the new one is there,
    whole, and what is left of a new one is cleared away by the next."""
    moments, old, new = 0, 0, 0

    def work() -> None:
        write(tmp_path, 2, small(2), {"best": 2})
        prune(tmp_path, 1)

    while True:
        shutil.rmtree(tmp_path)
        write(tmp_path, 1, small(1), {"best": 1})
        if not killed_at(moments + 1, work):
            break
        moments += 1
        assert checkpoints(tmp_path)
        for path in checkpoints(tmp_path):
            into = small(0)
            assert read(path, into)["best"] == (step := int(path.name[5:]))
            assert all(
                torch.equal(v, small(step)[file][k])
                for file, named in into.items()
                for k, v in named.items()
            )
        old, new = (old, new + 1) if (tmp_path / "step-00000002").exists() else (old + 1, new)
    assert moments > 15
    assert old > 10
    assert new > 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    for name in (
        ".step-00000005.partial",
        ".step-00000001.partial",
    ):  # of processes that were killed
        (tmp_path / name).mkdir()
    newest = write(tmp_path, 3, small(3), {})
    prune(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [newest]


def test_fault_53_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file, then their folder, then the name, then the folder that holds it."""
    done: list[str] = []
    replace_, fsync = os.replace, os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name),
            fsync(handle),
        ),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace_(a, b)))
    write(tmp_path, 1, small(1), {})
    assert sorted(done[:3]) == ["a.safetensors", "b.safetensors", "meta.json"]
    assert done[3:] == [".step-00000001.partial", "name", tmp_path.name]


def test_fault_53_a_training_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """A sample of what `make soak` does a hundred times."""
    assert kills(2, tmp_path, steps=20)["kills"] >= 2


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """As on a full disk, but for the number of the error: no file can grow beyond so many
    bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_fault_55_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three checkpoints finds no room, the third does; the run is what it would have
    been."""
    config = points()
    run_of(tmp_path / "whole", config)
    store, found = Run.store, []

    def store_without_room(run: Run, state: State) -> bool:
        with files_of_at_most(2000 if state.step == 8 else 10**9):
            written = store(run, state)
        found.append((state.step, written, [path.name for path in run.checkpoints.iterdir()]))
        return written

    monkeypatch.setattr(Run, "store", store_without_room)
    with pytest.warns(
        UserWarning,
        match=(
            r"no checkpoint at step 8: .*File too large.*; [\d,]+ bytes needed, "
            r"[\d,]+ free.*; the older ones are kept"
        ),
    ):
        run_of(tmp_path / "run", config)
    assert found[1] == (8, False, ["step-00000004"])
    assert found[2][1]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_fault_55_safetensors_own_error_is_one_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("vdiff.training.checkpoint.save_file", full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10))
    with pytest.raises(
        OSError, match=r"No space left on device.*; 60 bytes needed, 10 free"
    ) as caught:
        write(tmp_path, 1, small(1), {})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
