"""What ends a training: losses that are not finite, memory, and signals."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vdiff.disk import write_text
from vdiff.errors import out_of_memory
from vdiff.objective import Objective
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.config import Config
from vdiff.training.ranks import Place


def not_finite(
    objective: Objective, batches: Batches, step: int, in_a_row: int, folder: Path | None
) -> ValueError:
    """The error of a step whose loss or gradient is not finite; its images, times and losses go to
    nonfinite-….json in `folder`."""
    text = (
        f"train: the loss or its gradient was NaN or infinity in {in_a_row} steps in a row, "
        f"up to step {step} of seed {batches.config.seed} (lower the learning rate"
    )
    if folder is not None:
        path = folder / f"nonfinite-{step:08d}.json"
        write_text(path, json.dumps(looked_at(objective, batches, step), indent=1) + "\n")
        text += f"; the images, times and losses of that step are in {path}"
    return ValueError(f"{text})")


@torch.no_grad()
def looked_at(objective: Objective, batches: Batches, step: int) -> dict[str, Any]:
    """The image, time, log-SNR and loss in nats of every slot of a step, of all processes,
    computed again as they were."""
    config, count, names = (
        batches.config,
        batches.place.count,
        ("slot", "image", "t", "logsnr", "loss"),
    )
    single = replace(config, accumulate=batches.shares)
    whole = Batches(batches.data, single, labels=batches.labels, device=batches.device)
    rows: list[dict[str, Any]] = []
    for part in range(batches.shares):  # micro-batch i of process j is share i·count + j
        seed_everything(config.seed, step, Place(part % count, count), part // count)
        batch = whole(step, part)
        with autocast(config, batches.device):
            loss = objective(batch.data, u=batch.u, eps=batch.eps, condition=batch.condition)
        t = objective.times(batch.u)
        numbers = (batch.images, t, objective.schedule(t), loss)
        columns = (batch.slots, *(column.tolist() for column in numbers))
        for row in zip(*columns, strict=True):
            values = (v if math.isfinite(v) else str(v) for v in row)
            rows.append(dict(zip(names, values, strict=True)))
    about = {
        "step": step,
        "seed": config.seed,
        "processes": count,
        "accumulate": config.accumulate,
    }
    return about | {"slots": sorted(rows, key=lambda row: row["slot"])}


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """bf16 for the network if the config says so; log-SNRs and losses are computed without it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast)


@contextmanager
def memory_hint(config: Config, place: Place) -> Iterator[None]:
    """Add to an out-of-memory error what one can change.

    >>> config = Config(network={"name": "MLP", "dims": 2})
    >>> try:
    ...     with memory_hint(config, Place()): raise torch.OutOfMemoryError("CUDA out of memory")
    ... except torch.OutOfMemoryError as error: print(error.__notes__[0])
    train: a batch of 128 in 1 micro-batches on 1 processes is 128 images at a time: raise ...
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            batch, parts, count = config.batch, config.accumulate, place.count
            error.add_note(
                f"train: a batch of {batch} in {parts} micro-batches on {count} processes is "
                f"{batch // (parts * count)} images at a time: raise accumulate, which leaves the "
                "result as it is; or lower the batch, take more processes, autocast, or a network "
                "with checkpoint=True"
            )
        raise


__all__ = ["autocast", "looked_at", "memory_hint", "not_finite"]
