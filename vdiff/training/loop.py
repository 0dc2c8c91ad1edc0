"""A training loop: AdamW, warm-up and cosine decay, clipping, EMA in float32, a progress bar."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vdiff.errors import must
from vdiff.groups import parameter_groups
from vdiff.objective import Objective
from vdiff.times import generator_of, offset_of, stratified
from vdiff.training.config import Config
from vdiff.training.ranks import over_ranks

Log = Callable[[dict[str, Any]], None]
PATIENCE = 10


def train(
    objective: Objective,
    data: Tensor,
    config: Config,
    *,
    log: Log | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    every: int = 500,
    quiet: bool = False,
) -> Objective:
    """Train an objective with a decoder on integer images; returns the exponential moving average of its weights.

    Batches, times and noise are pure functions of (seed, step). `log` receives a dictionary every `every` steps, with
    the validation bound of the averaged weights if `validate` is given. Steps with a loss or gradient that is not
    finite are skipped and counted; ten in a row raise.

    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}, steps=2, batch=4)
    >>> history = []
    >>> averaged = train(config.objective(), torch.randint(0, 17, (8, 1, 8, 8)), config, log=history.append, quiet=True)
    >>> history[-1]["step"], averaged.training
    (2, False)
    """
    groups = parameter_groups(objective, lr=config.lr, weight_decay=config.weight_decay, schedule_lr=config.schedule_lr)
    optimizer = torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]))
    for group in optimizer.param_groups:
        group["full_lr"] = group["lr"]
    average = AveragedModel(objective, multi_avg_fn=get_ema_multi_avg_fn(config.ema[0]))  # type: ignore[no-untyped-call]
    model_parameters = next(group["params"] for group in optimizer.param_groups if group["name"] == "model")
    dims, total, skipped, in_a_row = data[0].numel() * math.log(2), 0.0, 0, 0
    objective.train()
    bar = tqdm(range(config.steps), disable=quiet, unit="step", dynamic_ncols=True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * pace(step, config.warmup, config.steps)
        generator = generator_of(config.seed, step, device=data.device)
        rows = torch.randint(len(data), (config.batch,), generator=generator, device=data.device)
        u = stratified(config.batch, offset=offset_of(config.seed, step), device=data.device)
        loss = objective(data[rows], u=u, generator=generator).mean() / dims
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model_parameters, math.inf if config.clip is None else config.clip)
        if torch.isfinite(loss) and torch.isfinite(norm):
            optimizer.step()
            objective.update(over_ranks)
            average.update_parameters(objective)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row == PATIENCE:
                raise ValueError(
                    must(
                        "train",
                        "objective",
                        "have a finite loss",
                        f"NaN or infinity in {PATIENCE} steps in a row, up to step {step} of seed {config.seed}",
                        "lower the learning rate",
                    )
                )
        total += loss.item()
        if (step + 1) % every == 0 or step + 1 == config.steps:
            count = every if (step + 1) % every == 0 else (step + 1) % every
            entry: dict[str, Any] = {
                "step": step + 1,
                "train_bits_per_dim": total / count,
                "gradient_norm": norm.item(),
                "skipped": skipped,
            }
            if validate is not None:
                entry["selection_bits_per_dim"] = validate(average.module)
            total = 0.0
            bar.set_postfix({k.removesuffix("_bits_per_dim"): f"{v:.3f}" for k, v in entry.items() if k.endswith("dim")})
            if log is not None:
                log(entry)
    averaged = average.module
    assert isinstance(averaged, Objective)
    return averaged.eval()


def pace(step: int, warmup: int, steps: int) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to zero.

    >>> pace(0, 100, 1000), pace(550, 100, 1000)
    (0.01, 0.5)
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
