"""Published training settings, one file each: its docstring says what it reproduces, `CONFIG` is
all of it.

    python examples/cifar10.py --recipe vdm --data DIR

The mathematics of an objective is `vdiff.recipe(name)`'s, where it has one of that name; here are
the networks, optimizers, batches and durations around it. Numbers are bits/dim on CIFAR-10's test
set unless a file says otherwise; "steps a second" are the authors'.
"""

import importlib
from pathlib import Path

from vdiff.errors import did_you_mean
from vdiff.training import Config

NAMES = tuple(
    sorted(
        path.stem.replace("_", "-")
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "__init__"
    )
)


def load(name: str) -> Config:
    """The settings of a recipe; an unknown name is answered with the nearest."""
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        raise ValueError(f"there is no recipe {name!r}, but {', '.join(NAMES)} ({near})")
    config: Config = importlib.import_module(f"recipes.{name.replace('-', '_')}").CONFIG
    return config


def about(name: str) -> str:
    """What its file says on top."""
    load(name)
    return (importlib.import_module(f"recipes.{name.replace('-', '_')}").__doc__ or "").strip()
