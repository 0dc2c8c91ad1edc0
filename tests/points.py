"""Points with 17 levels and a small network on them: `python tests/points.py FOLDER '{"steps":
30}'` trains one, alone or as a rank.

Each further argument is a run of its own, in FOLDER/0, FOLDER/1, …: JSON with fields of the
config, and `do`, what a validation does on the last rank at the step `at`: "raise", "hang", "kill"
(the process itself, with SIGKILL), or "stop" (SIGTERM); `weights` seeds the initial weights,
`pause` is slept in each step; `source` and `workers` say how the points are given; `masked` trains
with masks.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from vdiff.masks import Absent, Bernoulli, Mixture, NothingGiven, RandomHalf
from vdiff.objective import Objective
from vdiff.training import Config, Run, distributed, rank, train
from vdiff.training.checkpoint import checkpoints, read_meta, step_of

POINTS: dict[str, Any] = {
    "network": {"name": "MLP", "dims": 64, "width": 16, "depth": 1, "features": 8},
    "parameterization": {"name": "V"},
    "schedule": {"name": "Spline", "knots": 5},
    "shape": [64],
    "level_head": False,
    "steps": 12,
    "batch": 12,
    "warmup": 3,
    "ema": [0.9, 0.99],
}


HALF = RandomHalf(dims=(-1,))
MASKS = Mixture([NothingGiven(), HALF, Absent(HALF), Bernoulli(0.5)])


def points(**changes: Any) -> Config:
    return Config(**POINTS | changes)


def data_of(config: Config) -> Tensor:
    """Points of two kinds, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    kind = torch.randint(2, (500, *(1 for _ in config.shape)), generator=generator)
    return (torch.randint(9, (500, *config.shape), generator=generator) + 8 * kind).clamp(max=16)


class Noisy(Dataset[tuple[Tensor, int]]):
    """The points with random changes, as an augmentation makes them, and their number as label."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        shift = int(torch.randint(0, 2, ())) + random.randint(0, 1) + np.random.randint(0, 2)  # noqa: NPY002
        return (self.data[i] + shift).clamp(max=16), i % 10


class Stream:
    """The points of `Noisy` in order, again and again."""

    def __init__(self, data: Tensor) -> None:
        self.items, self.next = Noisy(data), 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while self.next < len(self.items):
            self.next += 1
            yield self.items[self.next - 1]
        self.next = 0


class Resumable(Stream):
    """A stream with a state."""

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


SOURCES = {"tensor": Tensor.clone, "dataset": Noisy, "stream": Stream, "resumable": Resumable}


def outcome(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says, the checksums of all tensors included, and the log, but for
    its clock."""
    run = Run(folder)
    meta = read_meta(checkpoints(run.checkpoints)[-1])
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history()]
    return {"files": meta["files"], "state": meta["facts"]["state"], "history": history}


def command(folder: Path, *runs: dict[str, Any]) -> list[str]:
    return [sys.executable, __file__, str(folder), *(json.dumps(options) for options in runs)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def on_ranks(count: int, folder: Path, *runs: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """Processes with the environment that torchrun gives, and nobody who watches over them."""
    return launch(count, command(folder, *runs))


def answers(program: str) -> list[Any]:
    """The last line, JSON, that each of two processes of a program prints."""
    root = Path(__file__).parent.parent
    started = launch(2, [sys.executable, "-c", program], cwd=root, PYTHONPATH=str(root))
    return [json.loads(one.communicate(timeout=300)[0].splitlines()[-1]) for one in started]


def launch(
    count: int, words: list[str], cwd: Path | None = None, **more: str
) -> list[subprocess.Popen[str]]:
    """A command once for each rank."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared: Mapping[str, str] = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    places = [environment(**shared, **more, RANK=str(i), LOCAL_RANK=str(i)) for i in range(count)]
    return [subprocess.Popen(words, env=place, cwd=cwd, **pipes) for place in places]


def finish(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Their exit codes and what they said."""
    said = []
    for process in processes:
        try:
            _, errors = process.communicate(timeout=seconds)
        finally:
            process.kill()
        said.append((process.returncode, errors))
    return said


def run_until(
    folder: Path, config: Config, stop: int | None = None, **options: Any
) -> dict[str, Any]:
    """The outcome after training in this process to the end, or until a signal is sent in step
    `stop`."""
    forwards = 0

    def send(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if stop is not None and forwards == (stop - first - 1) * config.accumulate + 1:
            signal.raise_signal(signal.SIGTERM)

    torch.manual_seed(
        int(any(folder.glob("checkpoints/step-*")))
    )  # other weights, from which a resumed run must not start
    objective = config.objective()
    objective.register_forward_pre_hook(send)
    options = {"every": 1, "store_every": 100, "quiet": True, **options}
    data = SOURCES[options.pop("source", "tensor")](data_of(config))
    with Run.open(folder, config) as kept:
        first = max(map(step_of, checkpoints(kept.checkpoints)), default=0)
        code: object = 0
        try:
            train(objective, data, config, run=kept, **options)
        except SystemExit as left:
            code = left.code
    if code != (0 if stop is None else 128 + signal.SIGTERM):
        raise AssertionError(f"left with {code}")
    return outcome(folder)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All of the newest checkpoint."""
    newest = checkpoints(folder / "checkpoints")[-1]
    return {
        f"{path.stem} {name}": value
        for path in sorted(newest.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same_to_rounding(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def run(folder: Path, options: dict[str, Any], device: torch.device) -> None:
    do, at, weights, pause = (
        options.pop(key, value)
        for key, value in {"do": "", "at": 0, "weights": 0, "pause": 0}.items()
    )
    every, store_every = options.pop("every", 1), options.pop("store_every", 4)
    source, workers = options.pop("source", "tensor"), options.pop("workers", 0)
    mask = MASKS if options.pop("masked", False) else None
    config = points(**options)
    data, done = SOURCES[source](data_of(config)), 0

    def validate(averaged: Objective) -> float:
        nonlocal done
        done += 1
        time.sleep(pause)
        if done == at and rank().index == rank().world_size - 1:
            print("now", flush=True)
            match do:
                case "raise":
                    raise ValueError("as asked")
                case "hang":
                    time.sleep(600)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
        return float(done)

    torch.manual_seed(weights + rank().index)  # ranks that would differ if nobody told them
    with Run.open(folder, config) as kept:
        train(
            config.objective().to(device), data, config, workers=workers,
            run=kept, validate=validate, every=every, store_every=store_every, quiet=True,
            mask=mask,
        )  # fmt: skip


def main(folder: str, runs: list[str]) -> None:
    code: object = 0
    with distributed(timeout=20) as device:
        for i, options in enumerate(runs):
            try:
                run(Path(folder) / str(i), json.loads(options), device)
            except SystemExit as left:
                code = left.code
    sys.exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
