"""A recipe's training step in compiled bf16 beside float32: is it right, and how much faster?"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any, NamedTuple
from unittest import mock

import torch
from measure import peak, seconds
from torch import nn

from vdiff.training import Config
from vdiff.training.trainer import Trainer

LOSS, GRADIENT = 0.01, 0.1  # how far compiled bf16 may be from float32


def shortened(config: Config, quick: bool) -> Config:
    """A recipe that compiles sooner: every kind of operation of its step, in fewer blocks. Nothing
    is random but the batch, and the gradient is not clipped."""
    network = config.network | {"dropout": 0.0}
    if network["name"] == "VDMUNet":
        network |= {"depth": 1 if quick else 2}
    else:
        network |= {"multipliers": [1, 1] if quick else [1, 2], "attention": [1]}
    if quick:
        network |= {"width": 8} | ({"embedding": 16, "groups": 4} if "groups" in network else {})
    return replace(config, network=network, batch=2 if quick else 64, warmup=0, clip=None)


class Steps:
    """Training steps of a recipe from given weights: loss and gradient of the first one, time and
    memory of the later ones."""

    def __init__(self, config: Config, device: torch.device, steps: int) -> None:
        torch.manual_seed(0)
        objective = config.objective()
        with torch.no_grad():  # layers that begin at zero would hide the others
            for p in objective.model.parameters():
                p += 0.02 * torch.randn_like(p)
        images = torch.randint(0, 256, (2 * config.batch, *config.shape), dtype=torch.uint8)
        trainer = Trainer(objective.to(device), images, config)
        self.loss = trainer.step(0, int)[0].item()
        gradients = [p.grad for p in trainer.network_parameters if p.grad is not None]
        self.gradient = torch.cat([g.float().flatten() for g in gradients])
        trainer.step(1, int)
        times = [seconds(partial(trainer.step, 2 + i, int), device) for i in range(steps)]
        self.seconds = sorted(times)[len(times) // 2]
        self.memory = peak(partial(trainer.step, 2 + steps, int), device) / 2**20
        self.finite = all(bool(p.isfinite().all()) for p in trainer.network_parameters)


@contextlib.contextmanager
def compiling(quick: bool) -> Iterator[Any]:
    """Compile anew and never fall back in silence; in small only trace. Yields the counts."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    traced = partialmethod(nn.Module.compile, backend="eager")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
        if quick:
            stack.enter_context(mock.patch.object(nn.Module, "compile", traced))
        yield torch._dynamo.utils.counters["stats"]


class Row(NamedTuple):
    """Compiled bf16 beside float32: how far apart loss and gradient are, whether it is right, and
    seconds and MiB of both."""

    loss: float
    gradient: float
    graphs: int
    right: bool
    seconds: tuple[float, float]
    memory: tuple[float, float]


def compare(config: Config, device: torch.device, quick: bool = False) -> Row:
    """A recipe's step in float32 and in compiled bf16, from the same weights, images and noise."""
    config, count = shortened(config, quick), 1 if quick else 10
    plain = replace(config, autocast=False, compile=False, channels_last=False)
    a = Steps(plain, device, count)
    with compiling(quick) as counts:
        b = Steps(replace(config, autocast=True, compile=True), device, count)
        graphs = counts["unique_graphs"]
    loss = abs(b.loss / a.loss - 1)
    gradient = ((b.gradient - a.gradient).norm() / a.gradient.norm()).item()
    right = b.finite and loss < LOSS and gradient < GRADIENT and graphs > 0
    return Row(loss, gradient, graphs, right, (a.seconds, b.seconds), (a.memory, b.memory))
