"""Samples of a run over tokens: `samples.npy`, and `samples.txt` where they are bytes of texts."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.disk import atomic_write
from vdiff.errors import printable
from vdiff.objective import Objective
from vdiff.sampling import TOKEN_STEPS, per_sample_generators, sample
from vdiff.terminal import Bar, say

BYTES = 256  # values of a byte
STEPS = 100
UNUSED = {  # option: its default, and why tokens have no other
    "png": (None, "tokens are no picture"),
    "gif": (False, "tokens are no picture"),
    "clip": (False, "tokens have no range"),
    "draw": (False, "tokens are drawn already"),
    "spacing": ("uniform", "the times of the run's schedule are even"),
}


def check(options: argparse.Namespace) -> None:
    """Raise for an option that tokens do not have."""
    what = "be left out for a run over tokens"
    for name, (default, why) in UNUSED.items():
        value = getattr(options, name)
        require(value == default, name, what, value, why)
    fits = options.grid in ("cosine", "run")
    require(fits, "grid", what, options.grid, "the levels are those of the run's schedule")
    one = f"be one of {', '.join(TOKEN_STEPS)} for a run over tokens"
    require(options.step in TOKEN_STEPS, "step", one, options.step)


def write(
    options: argparse.Namespace,
    objective: Objective,
    drawing: tuple[Callable[..., Any], Any],
    shape: list[int],
    classes: Tensor | None,
    folder: Path,
) -> int:
    """Draw the tokens with a model and a step, (count, *shape), and write them."""
    model, step = drawing
    settings: dict[str, Any] = {"schedule": objective.schedule, "steps": options.steps or STEPS}
    drawn = list[Tensor]()
    goal = f"{options.count:,} samples"
    with Bar(options.count, "sample", "sample", quiet=options.quiet, goal=goal) as bar:
        for first in range(0, options.count, options.batch):
            numbers = range(first, min(first + options.batch, options.count))
            condition = {}
            if classes is not None:
                label = classes[torch.tensor(numbers) % len(classes)]
                condition["label"] = label.to(next(objective.parameters()).device)
            own = {"generator": per_sample_generators(options.seed, numbers)} | settings
            start = (len(numbers), *shape)
            drawn.append(sample(model, start, step=step, condition=condition, **own).cpu())
            bar.update(len(numbers))
    tokens = torch.cat(drawn).numpy()
    process: Any = diffusion_of(objective.model)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "samples.npy") as aside, aside.open("wb") as file:
        np.save(file, tokens.astype(np.min_scalar_type(process.states - 1)))
    if process.vocabulary == process.values == BYTES and tokens.ndim == 2:
        texts = [bytes(row).decode("utf-8", "replace") for row in tokens.astype(np.uint8)]
        with atomic_write(folder / "samples.txt") as aside:
            aside.write_text("\n".join([*texts, ""]), encoding="utf-8", newline="")
    say(f"{options.count} samples of {settings['steps']} steps in {printable(str(folder))}")
    return 0
