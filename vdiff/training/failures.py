"""Errors of a training step: non-finite losses and out-of-memory."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff._partial import Partial
from vdiff.disk import write_text
from vdiff.errors import out_of_memory
from vdiff.objective import Objective
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.config import Config
from vdiff.training.mistakes import MISSING
from vdiff.training.ranks import Rank


def not_finite(
    objective: Objective, batches: Batches, step: int, in_a_row: int, folder: Path | None
) -> ValueError:
    """The error for a non-finite loss or gradient. The images, times and losses of the step are
    written to nonfinite-….json in `folder`."""
    repeats = batches.stream is None or batches.stream.can_repeat(step)
    cause = "lower the learning rate"
    if repeats and _holds_nan(batches, step):
        cause = f"the data hold NaN or infinity: {MISSING}"
    text = (
        f"train: the loss or its gradient was NaN or infinity in {in_a_row} steps in a row, "
        f"up to step {step} of seed {batches.config.seed} ({cause}"
    )
    if folder is not None and repeats:
        path = folder / f"nonfinite-{step:08d}.json"
        write_text(path, json.dumps(step_report(objective, batches, step), indent=1) + "\n")
        text += f"; the images, times and losses of that step are in {path}"
    return ValueError(f"{text})")


def _holds_nan(batches: Batches, step: int) -> bool:
    """Whether the data of a step are not finite outside of what is absent."""
    for part in range(batches.config.accumulate):
        batch = batches(step, part)
        bad = ~batch.data.isfinite()
        if (bad if batch.absent is None else bad & ~batch.absent).any():
            return True
    return False


@torch.no_grad()
def step_report(objective: Objective, batches: Batches, step: int) -> dict[str, Any]:
    """The image, time, log-SNR and loss in nats of every slot of a step, of all processes,
    computed again."""
    config, count = batches.config, batches.rank.world_size
    names = ("slot", "image", "t", "logsnr", "loss", "modelled")
    single = replace(config, accumulate=batches.shares)
    draws: dict[str, Any] = {"mask": batches.mask, "independent": batches.independent}
    draws["process"] = batches.process
    of_all = Batches(batches.source, single, device=batches.device, **draws)
    rows: list[dict[str, Any]] = []
    for part in range(batches.shares):  # micro-batch i of process j is share i·count + j
        batch = of_all(step, part)
        seed_everything(config.seed, step, Rank(part % count, count), part // count)
        with autocast(config, batches.device):
            loss = objective(batch.data, condition=batch.condition, **batch.draws)
        t = objective.loss.times(batch.u)[0]
        numbers = [batch.images, t, objective.schedule.mean_logsnr(t), loss]
        if batch.mask is not None:
            numbers.append(Partial.of(batch.data, batch.mask, batch.absent).dims(batch.data))
        columns = (batch.slots, *(map(_plain, column) for column in numbers))
        for row in zip(*columns, strict=True):
            rows.append(dict(zip(names, row, strict=False)))
    about = {"step": step, "seed": config.seed, "processes": count}
    about |= {"accumulate": config.accumulate}
    return about | {"slots": sorted(rows, key=lambda row: row["slot"])}


def _plain(value: Tensor) -> Any:
    """An example's number, or a list of those of its dimensions, for JSON."""
    if value.ndim:
        return [_plain(v) for v in value.flatten()]
    number = value.item()
    return number if math.isfinite(number) else str(number)


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """bf16 for the network if the config says so. Log-SNRs and losses do not use it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast)


@contextmanager
def memory_hint(config: Config, rank: Rank) -> Iterator[None]:
    """Add to an out-of-memory error what the user can change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            batch, parts, count = config.batch, config.accumulate, rank.world_size
            error.add_note(
                f"train: a batch of {batch} in {parts} micro-batches on {count} processes is "
                f"{batch // (parts * count)} images at a time: raise accumulate, which leaves the "
                "result as it is; or lower the batch, take more processes, autocast, or a network "
                "with checkpoint=True"
            )
        raise
