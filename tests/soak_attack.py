"""`python tests/soak_attack.py`: 600 runs with flipped bits, 150 evaluations that are killed, and
25 pairs of commands at once.

Each ends in the right number or in one line, and writes nothing outside its run. Each part counts,
and raises where anything is not as it must be. `--scale 0.05` does a twentieth of each.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdiff.cli import evaluate, main, resume
from vdiff.data import Splits, splits
from vdiff.training import Config, Run, train

CONFIG = Config(
    network={
        "name": "UNet",
        "channels": 1,
        "channels_out": 17,
        "width": 8,
        "multipliers": [1],
        "heads": 1,
    },
    steps=4,
    batch=4,
    ema=[0.9],
)
COST = ["--data", "digits", "--draws", "32", "--replicates", "4", "--device", "cpu", "--quiet"]
COST += ["--batch", "32"]  # an image at a time
SAMPLE = ["--count", "2", "--steps", "3", "--device", "cpu", "--quiet"]
STATE = "evaluation.bound.0.safetensors"
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
}
_written: list[str] | None = None


def _watch(event: str, given: tuple[Any, ...]) -> None:
    if _written is None:
        return
    if event in CHANGES:
        _written.extend(os.fspath(one) for one in given if isinstance(one, str | os.PathLike))
    elif event == "open" and isinstance(given[0], str):
        flags = given[2] if isinstance(given[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(given[0])


sys.addaudithook(_watch)


@contextmanager
def only_within(folder: Path) -> Iterator[None]:
    """Raises AssertionError where the block writes, renames or deletes anything elsewhere."""
    global _written
    _written = []
    try:
        yield
    finally:
        places, _written = _written, None
        outside = [p for p in places if not Path(p).is_relative_to(folder) and p != os.devnull]
        assert not outside, f"written outside of the run: {outside}"


def make(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run with everything that a run can hold, the state of an interrupted evaluation included,
    and what its commands say of it."""
    few = Splits(*(part[:8] for part in splits("digits", "data")))
    evaluate.DATA["digits"] = lambda folder: few
    run = folder / "run"
    torch.manual_seed(0)
    with Run.open(run, CONFIG) as opened, warnings.catch_warnings():
        images = few.train.pixels
        train(CONFIG.objective(), images, CONFIG, run=opened, every=1, store_every=2, quiet=True)
    right = {"load": weights(run), "history": len(Run(run).history())}
    for command, name in (("evaluate", "evaluation.json"), ("sample", "samples/samples.npz")):
        code, _, said = call(command, run)
        assert code == 0, said
        right[command] = answer(command, run)
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    stop_after_a_chunk(run)
    return run, right


def stop_after_a_chunk(run: Path) -> None:
    """Interrupt an evaluation once its first image is done."""
    write = resume.StateFile.__call__

    def stop(kept: resume.StateFile, state: dict[str, torch.Tensor]) -> None:
        write(kept, state)
        raise KeyboardInterrupt

    try:
        resume.StateFile.__call__ = stop  # type: ignore[method-assign]
        assert call("evaluate", run)[0] == 130
    finally:
        resume.StateFile.__call__ = write  # type: ignore[method-assign]
    assert (run / STATE).exists()


def call(command: str, run: Path, *more: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it says."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("always")
        options = {"evaluate": COST, "sample": SAMPLE}[command]
        code = main([command, str(run), *options, *more])
    return code, out.getvalue(), errors.getvalue()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Run(run).load().state_dict()


def answer(command: str, run: Path) -> Any:
    """The numbers that a command wrote."""
    if command == "evaluate":
        return json.loads((run / "evaluation.json").read_text())["total"]
    with np.load(run / "samples" / "samples.npz") as kept:
        return kept["data"].tolist()


def flips(count: int, folder: Path) -> dict[str, int]:
    """Flip one to three bits of one file of a run, and load, evaluate or sample it."""
    run, right = make(folder)
    dice, seen, whole = random.Random(1), Counter[str](), folder / "whole"
    shutil.copytree(run, whole)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.name != ".lock")
    names = [str(path.relative_to(whole)) for path in files]
    for i in range(count):
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        name, bits = names[i % len(names)], dice.choice((1, 1, 2, 3))
        if name.startswith("checkpoints") and dice.random() < 0.8:
            (run / "ema.safetensors").unlink()  # then the newest checkpoint is read
        raw = bytearray((run / name).read_bytes())
        header = 8 + int.from_bytes(raw[:8], "little") if name.endswith("tensors") else len(raw)
        for _ in range(bits):
            end = header if dice.random() < 0.5 else len(raw)
            raw[dice.randrange(min(end, len(raw)))] ^= 1 << dice.randrange(8)
        (run / name).write_bytes(raw)
        actions = ("evaluate",) if name == STATE else ("load", "load", "evaluate", "sample")
        action = dice.choice(actions)
        try:
            with only_within(run):
                ended = loaded(run, right) if action == "load" else ended_well(action, run, right)
        except Exception as error:
            raise AssertionError(f"{i}: {bits} bits of {name}, {action}: {error!r}") from error
        seen[f"{Path(name).name if name == STATE else action}: {ended}"] += 1
    return dict(sorted(seen.items()))


def loaded(run: Path, right: dict[str, Any]) -> str:
    """Load a run from Python: its weights as they were, or a ValueError in the library's words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = weights(run)
            entries = len(Run(run).history())
        except ValueError as error:
            said = str(error)
            found, entries = {}, 0
    if not found:
        faults = said.split("\n")  # a config names all of its own, each in a line
        subjects = ("argument '", "checkpoint '", "none of the ")
        assert all(fault.isprintable() for fault in faults), said
        assert all(any(one in fault for one in subjects) for fault in faults), said
        return "refused"
    assert right["history"] - 2 <= entries <= right["history"] + 1, f"{entries} lines of the log"
    assert found.keys() == right["load"].keys()
    assert all(torch.equal(value, right["load"][name]) for name, value in found.items())
    return "as it was"


def ended_well(command: str, run: Path, right: dict[str, Any]) -> str:
    """A command on a damaged run: the right numbers, or one line."""
    code, out, errors = call(command, run)
    lines = errors.splitlines()
    assert all(line.startswith(f"vdiff {command}: ") for line in lines), errors
    said = [line for line in lines if ": warning: " not in line]
    if code == 0:
        assert answer(command, run) == right[command], "a wrong number"
        assert not said, errors
        return "set aside, then right" if "starts again" in errors else "right"
    assert code == 2, (code, errors)
    assert len(said) == 1, errors
    assert out == "", out
    return "refused"


def stops(count: int, folder: Path) -> dict[str, int]:
    """Kill or interrupt an evaluation at random times; the next one says what one that was never
    disturbed says."""
    run, right = make(folder)
    (run / STATE).unlink()
    dice, seen = random.Random(2), Counter[str]()
    resume.PAUSE = -1.0  # a state after each chunk, so that kills meet its writing
    started = time.monotonic()
    assert started_in_a_child(run)() == 0
    long = time.monotonic() - started
    while seen["stopped"] < count:
        child = started_in_a_child(run)
        number = dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        time.sleep(dice.uniform(0.0, long))
        code = child(number)
        if code == 0:
            seen["had ended before"] += 1
            assert answer("evaluate", run) == right["evaluate"], "a wrong number"
            continue
        assert code in (128 + number, -number), f"{number.name} ended with {code}"
        seen["stopped"] += 1
        seen["left a state"] += (run / STATE).exists()
        if dice.random() < 0.5:
            code, _, errors = call("evaluate", run)
            assert code == 0, errors
            assert "starts again" not in errors, errors
            assert answer("evaluate", run) == right["evaluate"], "a wrong number"
            seen["the next one was right"] += 1
            left = {path.name for path in run.glob("*evaluation*")}
            assert left == {"evaluation.json"}, left
            (run / "evaluation.json").unlink()
    return dict(seen)


def started_in_a_child(run: Path, *more: str) -> Callable[..., int]:
    """Begin an evaluation in a process of its own; the function sends a signal, if one is given,
    and waits for its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = call("evaluate", run, *more)[0]
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        finally:
            os._exit(code)

    def end(number: int = 0) -> int:
        if number:
            os.kill(child, number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return end


def pairs(count: int, folder: Path) -> dict[str, int]:
    """Two evaluations of one run at once: both end, the file is whole and that of one of them, and
    nothing else is left."""
    run, right = make(folder)
    (run / STATE).unlink()
    assert call("evaluate", run, "--seed", "1")[0] == 0
    answers = [right["evaluate"], answer("evaluate", run)]
    dice, seen = random.Random(3), Counter[str]()
    resume.PAUSE = -1.0
    for _ in range(count):
        (run / "evaluation.json").unlink()
        first = started_in_a_child(run)
        time.sleep(dice.uniform(0.0, 0.3))
        second = started_in_a_child(run, "--seed", "1")
        assert (first(), second()) == (0, 0)
        seen[f"the file is that of {answers.index(answer('evaluate', run)) + 1}"] += 1
        assert {path.name for path in run.glob("*evaluation*")} == {"evaluation.json"}
    return dict(seen)


PARTS: dict[str, tuple[Callable[[int, Path], dict[str, int]], int]] = {
    "flips": (flips, 600),
    "stops": (stops, 150),
    "pairs": (pairs, 25),
}


def run_parts() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of each (default: all)")
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (part, count) in PARTS.items():
        if options.only in (None, name):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found = part(max(1, round(count * options.scale)), Path(folder).resolve())
            print(name, found, f"in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    run_parts()
