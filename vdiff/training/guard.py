"""What a step can fail of, said so that it can be helped: losses that are not finite, and
memory."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vdiff.disk import write_text
from vdiff.errors import must, out_of_memory
from vdiff.objective import Objective
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.config import Config
from vdiff.training.ranks import Place


def not_finite(
    objective: Objective, batches: Batches, step: int, in_a_row: int, folder: Path | None
) -> ValueError:
    """The error of a step whose loss or gradient is not finite; what it looked at goes to
    nonfinite-….json in `folder`.

    >>> config = Config(network={"name": "MLP", "dims": 2}, level_head=False, parameterization={"name": "V"}, batch=2, shape=[2])
    >>> str(not_finite(config.objective(), Batches(torch.zeros(4, 2, dtype=torch.int64), config), 7, 10, None))
    "train: argument 'objective' must have a finite loss, with a gradient of finite norm; got NaN or infinity in 10 steps in a row, up to step 7 of seed 0 (lower ...
    """
    came = f"NaN or infinity in {in_a_row} steps in a row, up to step {step} of seed {batches.config.seed}"
    hint = "lower the learning rate"
    if folder is not None:
        path = folder / f"nonfinite-{step:08d}.json"
        write_text(path, json.dumps(looked_at(objective, batches, step), indent=1) + "\n")
        hint += f"; the images, times and losses of that step are in {path}"
    return ValueError(
        must(
            "train", "objective", "have a finite loss, with a gradient of finite norm", came, hint
        )
    )


@torch.no_grad()
def looked_at(objective: Objective, batches: Batches, step: int) -> dict[str, Any]:
    """The image, time, log-SNR and loss in nats of every slot of a step, of all processes,
    computed again as they were.

    >>> config = Config(network={"name": "MLP", "dims": 2}, level_head=False, parameterization={"name": "V"}, batch=2, shape=[2])
    >>> seen = looked_at(config.objective(), Batches(torch.zeros(4, 2, dtype=torch.int64), config), 7)
    >>> seen["seed"], [list(slot) for slot in seen["slots"]][0]
    (0, ['slot', 'image', 't', 'logsnr', 'loss'])
    """
    config, count = batches.config, batches.place.count
    whole = Batches(
        batches.data,
        replace(config, accumulate=batches.shares),
        labels=batches.labels,
        device=batches.device,
    )
    rows: list[dict[str, Any]] = []
    for part in range(batches.shares):  # micro-batch i of process j is share i·count + j
        seed_everything(config.seed, step, Place(part % count, count), part // count)
        batch = whole(step, part)
        with autocast(config, batches.device):
            loss = objective(batch.data, u=batch.u, eps=batch.eps, condition=batch.condition)
        t = objective.times(batch.u)
        columns = (
            batch.slots,
            batch.images.tolist(),
            t.tolist(),
            objective.schedule(t).tolist(),
            loss.tolist(),
        )
        rows += [
            dict(zip(("slot", "image", "t", "logsnr", "loss"), row, strict=True))
            for row in zip(*columns, strict=True)
        ]
    slots = [
        {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
        for row in sorted(rows, key=lambda row: row["slot"])
    ]
    return {
        "step": step,
        "seed": config.seed,
        "processes": count,
        "accumulate": config.accumulate,
        "slots": slots,
    }


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """bf16 for the network where the config says so; levels and losses switch it off where they
    are computed.

    >>> config = Config(network={"name": "MLP", "dims": 2}, autocast=True)
    >>> with autocast(config, torch.device("cpu")): torch.is_autocast_enabled("cpu")
    True
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast)


@contextmanager
def memory_hint(config: Config, place: Place) -> Iterator[None]:
    """Adds to an error for want of memory what there is to do.

    >>> config = Config(network={"name": "MLP", "dims": 2})
    >>> try:
    ...     with memory_hint(config, Place()): raise torch.OutOfMemoryError("CUDA out of memory")
    ... except torch.OutOfMemoryError as error: print(error.__notes__[0])
    train: a batch of 128 in 1 micro-batches on 1 processes is 128 images at a time: raise accumulate, ...
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            batch, parts, count = config.batch, config.accumulate, place.count
            error.add_note(
                f"train: a batch of {batch} in {parts} micro-batches on {count} processes is {batch // (parts * count)} images at a time: "
                "raise accumulate, which leaves the result as it is; or lower the batch, take more processes, autocast, "
                "or a network with checkpoint=True"
            )
        raise


__all__ = ["autocast", "looked_at", "memory_hint", "not_finite"]
