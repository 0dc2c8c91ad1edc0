"""A small run on images, and commands that write beside it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vdiff.cli import main
from vdiff.training import Config, Run, train

NETWORK = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
CONFIG = Config(network=NETWORK, steps=2, batch=4)
IMAGES = torch.randint(0, 17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
EVALUATE = ["--data", "digits", "--draws", "2", "--replicates", "2", "--device", "cpu", "--quiet"]

VICTIM = "mine, and nobody else's"


def trained(folder: Path, config: Config = CONFIG) -> Run:
    labels = IMAGES[:, 0, 0, 0] % 3 if config.conditional else None
    with Run.open(folder, config) as run:
        objective = config.objective()
        train(objective, IMAGES, config, run=run, every=1, quiet=True, labels=labels)
    return run


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail where something waits for ever, as a pipe without a reader does."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still there after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


OUTPUTS = {"evaluate": ("--out", "x.json"), "describe": ("--figure", "x.png")}


def call(command: str, run: Path, path: Path) -> int:
    if command == "evaluate":
        return main(["evaluate", str(run), *EVALUATE, "--out", str(path)])
    return main(["describe", "edm", "--figure", str(path)])
