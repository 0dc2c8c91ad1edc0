"""Digits as points and a small network on them: `python tests/points.py FOLDER '{"steps": 30}'` trains one, alone or as a rank.

The second argument is JSON: fields of the config, and `do`, what a validation does on the last rank at the step `at`: "raise", "hang",
"kill" (the process itself, with SIGKILL), or "stop" (SIGTERM); `weights` seeds the initial weights, `pause` is slept in each step.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.data.digits import digits
from vdiff.objective import Objective
from vdiff.training import Config, Run, here, processes, train
from vdiff.training.checkpoint import checkpoints, read_meta

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


def points(**changes: Any) -> Config:
    return Config(**POINTS | changes)


def data_of(config: Config) -> Tensor:
    return digits().train.view(-1, *config.shape)


def outcome(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says, the checksums of all tensors included, and the log, but for its clock."""
    run = Run(folder)
    meta = read_meta(checkpoints(run.checkpoints)[-1])
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history()]
    return {"files": meta["files"], "state": meta["facts"]["state"], "history": history}


def command(folder: Path, **options: Any) -> list[str]:
    return [sys.executable, __file__, str(folder), json.dumps(options)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def on_ranks(count: int, folder: Path, **options: Any) -> list[subprocess.Popen[str]]:
    """Processes with the environment that torchrun gives, and nobody who watches over them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared: Mapping[str, str] = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    places = [environment(**shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(count)]
    return [subprocess.Popen(command(folder, **options), env=place, **pipes) for place in places]


def main(folder: str, options: dict[str, Any]) -> None:
    do, at, weights, pause, timeout = (options.pop(k, v) for k, v in {"do": "", "at": 0, "weights": 0, "pause": 0, "timeout": 60}.items())
    every, store_every = options.pop("every", 1), options.pop("store_every", 4)
    config = points(**options)
    done = 0

    def validate(averaged: Objective) -> float:
        nonlocal done
        done += 1
        time.sleep(pause)
        if done == at and here().index == here().count - 1:
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

    torch.manual_seed(weights)
    with processes(timeout) as device:
        torch.manual_seed(weights + here().index)  # ranks that would differ if nobody told them
        with Run.open(folder, config) as run:
            train(
                config.objective().to(device), data_of(config), config,
                run=run, validate=validate, every=every, store_every=store_every, quiet=True,
            )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
