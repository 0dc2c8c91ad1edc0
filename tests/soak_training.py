"""`python tests/soak_training.py`: a run that is killed 100 times, 20 resumed, one on 2, 1 and 3
processes, 10,000 damaged checkpoints.

Each part counts, and raises where anything is not as it must be. `--scale 0.05` does a twentieth
of each.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from points import assert_same_to_rounding, finish, on_ranks, outcome, points, run_until, tensors
from watch import nothing_happens

from vdiff.training import Config, Run
from vdiff.training.checkpoint import checkpoints, checksum, step_of
from vdiff.training.state import State

INTERVAL = 3  # steps between checkpoints
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"name": "Linear"},
    {"name": "LearnedLinear"},
    {"name": "Spline", "knots": 5},
    {"name": "Monotone", "hidden": 7},
    {"name": "Adaptive", "bins": 6, "warmup": 2},
)


def kills(count: int, folder: Path, steps: int = 150) -> dict[str, int]:
    """Kill a training that writes checkpoints most of its time `count` times, and each time look
    at what is left.

    When it has come to its end, it must be what it would have been, to the last bit.
    """
    dice, seen = random.Random(1), Counter[str]()
    whole: dict[str, Any] = {}
    while seen["kills"] < count:
        config = points(
            network={"name": "MLP", "dims": 64, "width": 128, "depth": 2, "features": 8},
            steps=steps,
            schedule=SCHEDULES[-1],
        )
        home, patience, reached = folder / f"killed-{seen['runs']}", 0.8, 0
        while True:
            child = os.fork()
            if child == 0:
                warnings.simplefilter(
                    "ignore"
                )  # where it was killed before its first checkpoint, it says so
                try:
                    run_until(home, config, store_every=INTERVAL)
                finally:
                    os._exit(0)
            time.sleep(dice.uniform(0.02, patience))
            os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break
            seen["kills"] += 1
            last, reached = reached, look_at(home, config, seen)
            patience = (
                0.8 if reached > last else patience + 0.2
            )  # a busy machine needs more to get anywhere
        seen["runs"] += 1
        whole = whole or run_until(folder / "not killed", config, store_every=INTERVAL)
        assert outcome(home) == whole, "a run that was killed is another one"
    return dict(seen)


def look_at(home: Path, config: Config, seen: Counter[str]) -> int:
    """Every checkpoint that has its name is whole; no more steps than the interval are lost. The
    step of the newest."""
    if not (home / "config.json").exists():
        return 0
    run, state = Run(home), State(config.objective(), config)
    steps = [0]
    for path in checkpoints(run.checkpoints):
        run.read(path, state.tensors())
        steps.append(step_of(path))
    seen["while one was being written"] += any(run.checkpoints.glob(".*.partial"))
    lost = max((entry["step"] for entry in run.history()), default=0) - steps[-1]
    assert lost <= INTERVAL, f"{lost} steps lost"
    seen["most steps lost"] = max(seen["most steps lost"], lost)
    return steps[-1]


def resumes(count: int, folder: Path) -> dict[str, int]:
    """Stop runs of every schedule in a random step, once or twice: each is the same to the last
    bit."""
    dice = random.Random(2)
    wholes: dict[int, dict[str, Any]] = {}
    for i in range(count):
        kind = i % len(SCHEDULES)
        config = points(schedule=SCHEDULES[kind], accumulate=1 + kind % 3, steps=20)
        wholes[kind] = wholes.get(kind) or run_until(folder / f"whole-{kind}", config)
        for stop in sorted(dice.sample(range(1, 20), dice.choice((1, 2)))):
            run_until(folder / f"stopped-{i}", config, stop)
        assert run_until(folder / f"stopped-{i}", config) == wholes[kind], (
            f"resumed run {i} is another one"
        )
    return {"resumed": count, "to the last bit": count}


def ranks(folder: Path) -> dict[str, Any]:
    """A run on two processes, one, and three, against one that was always alone: the same to 1e-6,
    everything that is kept."""
    for name, changes in {
        "spline": {"schedule": SCHEDULES[2]},
        "adaptive": {"schedule": SCHEDULES[4]},
    }.items():
        home = folder / name
        config = points(steps=18, **changes)
        said = finish(
            on_ranks(2, home, {"do": "stop", "at": 5, "steps": 18, "accumulate": 3, **changes}),
            300,
        )
        assert [code for code, _ in said] == [143] * 2, said
        run_until(home / "0", config, 11)
        said = finish(on_ranks(3, home, {"steps": 18, "accumulate": 2, **changes}), 300)
        assert [code for code, _ in said] == [0] * 3, said
        run_until(folder / f"{name}-alone", config)
        assert_same_to_rounding(tensors(home / "0"), tensors(folder / f"{name}-alone"))
    return {"2 → 1 → 3 processes": "the same to 1e-6"}


def damaged(count: int, folder: Path) -> dict[str, int]:
    """Damage checkpoints, every second one with checksums that are right again: each is what it
    was or is refused in the library's words, no code runs, nothing is written, memory does not
    grow. What passes with new checksums has the right shapes and is finite."""
    config = points(
        network={"name": "MLP", "dims": 64, "width": 4, "depth": 1, "features": 4},
        steps=2,
        ema=[0.9],
    )
    run_until(folder / "whole", config)
    run = Run(folder / "whole")
    whole = checkpoints(run.checkpoints)[-1]
    before = {
        file: {k: v.clone() for k, v in named.items()}
        for file, named in loaded(run, whole).items()
    }
    seen: Counter[str] = Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i, (name, raw, sealed) in enumerate(damages(whole, count)):
        path = folder / whole.name
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        (path / name).write_bytes(raw)
        if sealed:
            reseal(path, name, raw)
        state = State(config.objective(), config)
        live = state.tensors()
        try:
            with nothing_happens(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that versions differ
                state.load_facts(run.read(path, live)["state"])
        except ValueError as error:
            if "' must " not in str(error) or "; got " not in str(error):
                raise AssertionError(f"{i}: refused in other words: {error}") from error
            seen["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(
                f"{i}: {name}, {len(raw)} bytes, sealed {sealed}: {type(error).__name__}: {error}"
            ) from error
        same = all(
            torch.equal(live[file][k], v)
            for file, named in before.items()
            for k, v in named.items()
        )
        assert sealed or same, f"{i}: a damaged checkpoint passed its checksums"
        assert not any(
            v.isnan().any()
            for named in live.values()
            for v in named.values()
            if v.is_floating_point()
        )
        seen[
            "loaded, what it was" if same else "loaded, other numbers with checksums of their own"
        ] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 200_000, f"memory grew by {grown:,} kB"
    return dict(seen)


def loaded(run: Run, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    live = State(run.config.objective(), run.config).tensors()
    run.read(path, live)
    return live


def reseal(path: Path, name: str, raw: bytes) -> None:
    """Right checksums for wrong content, where meta.json is still an object."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        if name != "meta.json":
            meta["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        meta.pop("sha256", None)
        (path / "meta.json").write_text(json.dumps(meta | {"sha256": checksum(meta)}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("echo it ran >&2",)


def damages(whole: Path, count: int) -> Iterator[tuple[str, bytes, bool]]:
    """A file's name, its new content, and whether its checksums shall be right again."""
    dice = random.Random(3)
    files = {file.name: file.read_bytes() for file in sorted(whole.iterdir())}
    for i in range(count):
        name = dice.choice(list(files))
        raw = bytearray(files[name])
        header = len(raw) if name == "meta.json" else 8 + int.from_bytes(raw[:8], "little")
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            at = dice.randrange(max(1, min(len(raw), header if dice.random() < 0.7 else len(raw))))
            match dice.randrange(9):
                case 0:
                    raw[at : at + 1] = (
                        bytes([raw[at] ^ 1 << dice.randrange(8)]) if at < len(raw) else b"x"
                    )
                case 1:
                    raw[at : at + 1] = dice.randbytes(1)
                case 2:
                    del raw[at:]
                case 3:
                    del raw[at : at + dice.choice((1, 8, 100))]
                case 4:
                    raw[at:at] = raw[at : at + dice.choice((1, 8, 100))] * dice.choice((1, 2, 50))
                case 5:
                    raw[at : at + 8] = dice.choice((b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)))
                case 6:
                    words = (
                        b"null",
                        b"-1",
                        b"1e999",
                        b"NaN",
                        b'"F64"',
                        b'"I8"',
                        b"[]",
                        b"{}",
                        b"true",
                        b"99999999999999999999",
                        b"[" * 5000,
                        b'"/etc/passwd"',
                        b'"../x"',
                    )
                    raw[at : at + dice.choice((0, 1, 4))] = dice.choice(words)
                case 7:
                    raw[:] = edited(raw, name, dice)
                case 8:
                    raw[:] = pickle.dumps({"model": Evil()}) if dice.random() < 0.2 else raw
        yield name, bytes(raw), i % 2 == 1


def edited(raw: bytearray, name: str, dice: random.Random) -> bytes:
    """The JSON of a file with a value replaced, a key renamed or left out, and lengths that
    fit."""
    start = 0 if name == "meta.json" else 8
    end = len(raw) if start == 0 else 8 + int.from_bytes(raw[:8], "little")
    try:
        tree = json.loads(raw[start:end])
    except (ValueError, RecursionError):
        return bytes(raw)
    place, key = tree, None
    while isinstance(place, (dict, list)) and place:
        parent = place
        key = dice.choice(list(place)) if isinstance(place, dict) else dice.randrange(len(place))
        place = place[key]
        if dice.random() < 0.3:
            break
    if key is not None:
        match dice.randrange(4):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[dice.choice(("step", "files", "x", "../x", "__metadata__"))] = parent.pop(
                    key
                )
            case _:
                parent[key] = dice.choice(
                    (
                        None,
                        -1,
                        0,
                        1,
                        2**70,
                        1e300,
                        "",
                        "F16",
                        "x",
                        [],
                        {},
                        [1, 2],
                        {"name": "Linear"},
                        True,
                        [[]] * 100,
                    )
                )
    text = json.dumps(tree).encode()
    return text if start == 0 else len(text).to_bytes(8, "little") + text + bytes(raw[end:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="a share of each part (default: all)"
    )
    parser.add_argument("--only", choices=("kills", "resumes", "ranks", "damaged"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "kills": lambda folder: kills(round(100 * options.scale), folder),
        "resumes": lambda folder: resumes(round(20 * options.scale), folder),
        "ranks": ranks,
        "damaged": lambda folder: damaged(round(10_000 * options.scale), folder),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            started = time.monotonic()
            with (
                tempfile.TemporaryDirectory() as folder,
                open(os.devnull, "w") as silence,
                redirect_stderr(silence),
            ):  # of stopped runs
                found = part(Path(folder))
            print(name, found, f"in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
