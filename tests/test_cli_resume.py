"""What an evaluation that was interrupted leaves: a state with a checksum, from which the next one
goes on or starts again, and never a wrong number."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from evaluations import LEVELS_OF_FOUR, ORACLE, SETTING, call, made
from safetensors.torch import load, save

from vdiff.cli import evaluate as command
from vdiff.cli import resume
from vdiff.cli.resume import StateFile
from vdiff.data import Splits, splits
from vdiff.disk import acquire_lock, remove
from vdiff.likelihood import Share, evaluate
from vdiff.likelihood.protocol import versions

COST = ("--draws", 2, "--replicates", 2, "--batch", 8)  # four images at a time
STATE, RESULT = "evaluation.bound.0.safetensors", "evaluation.json"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("interrupted") / "run")


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run on twelve images, without anything of an evaluation."""
    few = [part[:12] for part in splits("digits", "data")]
    monkeypatch.setitem(command.DATA, "digits", lambda folder: Splits(*few))
    yield place
    for path in place.glob("*evaluation*"):
        remove(path)


def total(run: Path) -> dict[str, float]:
    return json.loads((run / RESULT).read_text())["total"]


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, calls: int) -> None:
    """A signal in one call of the network after `calls` of them, in the next evaluation."""
    estimate = command.evaluate_bound

    def sends(model, images, **settings):
        count = 0

        def send(*_):
            nonlocal count
            count += 1
            if count == calls:
                signal.raise_signal(number)

        with model.register_forward_pre_hook(send):
            return estimate(model, images, **settings)

    monkeypatch.setattr(command, "evaluate_bound", sends)


def calls_of(run: Path) -> int:
    """How often an evaluation asks the network in all."""
    estimate, count = command.evaluate_bound, [0]

    def counted(model, images, **settings):
        hook = model.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
        with hook:
            return estimate(model, images, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "evaluate_bound", counted)
        assert call(run, *COST) == 0
    return count[0]


@cache
def known(run: Path) -> tuple[int, dict[str, float], bytes]:
    """Of an undisturbed evaluation how often it asks the network, and its total; and the state of
    one that was interrupted in its last chunk."""
    every, whole = calls_of(run), total(run)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, signal.SIGTERM, every - 1)
        assert call(run, *COST) == 143
    (run / RESULT).unlink()
    return every, whole, (run / STATE).read_bytes()


def left_behind(run: Path) -> bytes:
    """What an evaluation that was interrupted leaves, in its place."""
    (run / STATE).write_bytes(known(run)[2])
    return known(run)[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_first_minute_keeps_what_was_evaluated(run, number, monkeypatch, capsys):
    every, whole, _ = known(run)
    remove(run / STATE)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt(patch, number, every - 1)  # in the second of three chunks, or in the third
        assert call(run, *COST) == 128 + number
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"interrupted; what was evaluated is kept in {run / STATE}: the same command" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    left = {path.name for path in run.iterdir() if "evaluation" in path.name}
    assert left == {STATE}
    assert calls_of(run) < every
    assert total(run) == whole
    assert not (run / STATE).exists()


def test_out_of_memory_keeps_what_was_evaluated_and_a_smaller_batch_continues(
    run, monkeypatch, capsys
):
    every, whole, _ = known(run)
    remove(run / STATE)
    estimate, count = command.evaluate_bound, [0]

    def fails(*_):
        count[0] += 1
        if count[0] == every - 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def full(model, images, **settings):
        with model.register_forward_pre_hook(fails):
            return estimate(model, images, **settings)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(command, "evaluate_bound", full)
        assert call(run, *COST) == 2
    said = "vdiff evaluate: out of memory: lower --batch (now 8); what was evaluated is kept in "
    said += f"{run / STATE}: the same command continues from there\n"
    assert capsys.readouterr().err == said
    assert call(run, *COST[:-1], 4) == 0  # no warning: the state is taken
    assert math.isclose(total(run)["value"], whole["value"], rel_tol=1e-6)


def test_a_signal_before_anything_was_evaluated_says_so(run, monkeypatch, capsys):
    interrupt(monkeypatch, signal.SIGTERM, 1)
    assert call(run, *COST) == 143
    assert capsys.readouterr().err == "vdiff evaluate: interrupted; nothing is kept yet\n"
    assert not list(run.glob("*evaluation*"))


def test_any_flipped_bit_of_a_state_is_noticed(run):
    raw, dice = left_behind(run), random.Random(0)
    kept = StateFile(run / STATE)
    right = kept.read()
    header = 8 + int.from_bytes(raw[:8], "little")
    places = [*range(0, header, 3), *(dice.randrange(header, len(raw)) for _ in range(60))]
    for place in places:
        broken = bytearray(raw)
        broken[place] ^= 1 << dice.randrange(8)
        (run / STATE).write_bytes(broken)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            state = kept.read()
        if state is None:
            assert len(said) == 1
            assert "is damaged" in str(said[0].message)
            assert not (run / STATE).exists()
        else:  # a name of versions, or white space
            assert all(torch.equal(state[name], right[name]) for name in right)
            assert place < header
    assert any(path.name.startswith(f"old-{STATE}") for path in run.iterdir())


@pytest.mark.parametrize("damage", ["a bit", "cut off", "empty", "no checksum", "other settings"])
def test_a_state_that_is_no_help_is_set_aside_and_the_evaluation_starts_again(run, damage):
    raw, whole = bytearray(left_behind(run)), known(run)[1]
    raw[-3] ^= 1 << 4
    plain = save({"key": torch.tensor(3), **load(bytes(raw))})
    content = {"a bit": raw, "cut off": raw[:-9], "empty": b"", "no checksum": plain}
    if damage in content:
        (run / STATE).write_bytes(content[damage])
    words = (*COST, "--seed", 1) if damage == "other settings" else COST
    with pytest.warns(
        UserWarning, match="it is kept as old-.*, and the evaluation starts"
    ) as said:
        assert call(run, *words) == 0
    assert sum("starts again" in str(one.message) for one in said) == 1
    assert (total(run) == whole) == (damage != "other settings")
    assert {path.name for path in run.glob("*evaluation*")} == {RESULT, f"old-{STATE}"}
    (run / STATE).write_bytes(raw)
    with pytest.warns(UserWarning, match="starts again"):  # a fresh name each time
        assert call(run, *COST) == 0
    assert (run / f"old-{STATE}-1").exists()


def test_a_state_goes_on_with_other_versions_with_a_warning(run, monkeypatch):
    left_behind(run)
    now = versions()
    said: list[object] = []
    monkeypatch.setattr(resume, "warn_if_versions_differ", lambda _, before: said.append(before))
    assert call(run, *COST) == 0
    assert said == [now]


def test_of_two_commands_at_once_the_second_leaves_the_file_of_the_first_alone(
    run, monkeypatch, capsys
):
    raw = left_behind(run)
    with acquire_lock(run / ".evaluation.0.lock"):
        with pytest.warns(UserWarning, match="another command evaluates to"):
            assert call(run, *COST, "--seed", 1) == 0
        interrupt(monkeypatch, signal.SIGTERM, known(run)[0] - 1)
        with pytest.warns(UserWarning, match="another command evaluates to"):
            assert call(run, *COST) == 143
        assert "interrupted; nothing is kept yet" in capsys.readouterr().err
        assert (run / STATE).read_bytes() == raw
        assert {path.name for path in run.glob("*evaluation*")} == {
            STATE,
            RESULT,
            ".evaluation.0.lock",
        }


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_has_the_name_of_the_lock_stops_nothing(run, kind, tmp_path):
    lock = run / ".evaluation.0.lock"
    {
        "link": lambda: lock.symlink_to(tmp_path / "victim"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    with pytest.warns(UserWarning, match="no state of this evaluation is kept: .* has this name"):
        assert call(run, *COST) == 0
    assert total(run)["value"] > 0
    assert not (tmp_path / "victim").exists()


def test_a_reader_that_leaves_costs_nothing(tmp_path):
    """`vdiff evaluate … 2>&1 | head -c 0`."""
    run = made(tmp_path / "run")
    words = ["evaluate", str(run), "--draws", "2", "--replicates", "2", "--batch", "128"]
    program = f"import sys; from vdiff.cli import main; sys.exit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert {path.name for path in run.glob("*evaluation*")} == {RESULT}


def test_two_processes_that_stopped_in_different_stages_agree():
    """One has a state of the second stage, the other none: both begin with the first."""
    kept: list[dict[str, torch.Tensor]] = []
    barrier, told = threading.Barrier(2, timeout=100), [torch.zeros(()), torch.zeros(())]

    def share(index: int) -> Share:
        def summed(v: torch.Tensor) -> torch.Tensor:
            told[index] = v.clone()
            barrier.wait()
            both = told[0] + told[1]
            barrier.wait()
            return v.copy_(both)

        return Share(index, 2, summed)

    def both(resume: dict[str, torch.Tensor] | None) -> list[float]:
        found = [0.0, 0.0]

        def one(index: int) -> None:
            more = {"checkpoint": kept.append, "resume": resume} if index == 0 else {}
            data = LEVELS_OF_FOUR[:20]
            report = evaluate(ORACLE, data, **SETTING, share=share(index), **more)
            found[index] = report.total.value

        threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    whole = both(None)
    second = [state for state in kept if "first_mean" in state]
    assert second
    assert whole[0] == whole[1]
    assert both(second[-1]) == whole


def test_a_kill_leaves_a_lock_that_is_free(tmp_path):
    path = tmp_path / ".lock"
    program = (
        "import sys, time; from pathlib import Path; from vdiff.disk import acquire_lock\n"
        "with acquire_lock(Path(sys.argv[1])): print(True, flush=True); time.sleep(100)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"True\n"
    with pytest.raises(TimeoutError):
        acquire_lock(path)
    child.kill()
    child.wait()
    child.stdout.close()
    acquire_lock(path).release()
