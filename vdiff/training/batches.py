"""The image, the time and the noise of every slot of every step, on any number of processes."""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdiff._precision import at_least_float32
from vdiff._validate import require
from vdiff.data.augment import NUMBERS, augment
from vdiff.times import generator_of, offset_of, stratified
from vdiff.training.config import Config
from vdiff.training.ranks import Rank


class Batch(NamedTuple):
    """A share of a step's batch: data, uniform numbers for the times, noise, conditions, and the
    numbers of the images and slots."""

    data: Tensor
    u: Tensor
    eps: Tensor
    condition: dict[str, Tensor]
    images: Tensor
    slots: range


class Batches:
    """The batch of a step, divided over processes and micro-batches: a function of (seed, step,
    slot).

    Each pass over the data uses every image once, in its own order; a batch may end one pass and
    begin the next. Slot i of n has the time (u + i/n) mod 1, with one offset u for all processes,
    and its own generator for the noise. Share k of m has the slots k, k + m, k + 2m, …

    Raises ValueError if the batch cannot be divided evenly, and for missing labels.

    >>> config = Config(network={"name": "MLP", "dims": 2}, level_head=False, batch=4, shape=[2])
    >>> data = torch.arange(16).view(8, 2)
    >>> batch = Batches(data, config)(0, 0)
    >>> second = Batches(data, config, rank=Rank(1, 2))(0, 0)
    >>> torch.equal(second.data, batch.data[1::2]), torch.equal(second.eps, batch.eps[1::2])
    (True, True)
    """

    def __init__(
        self,
        data: Tensor,
        config: Config,
        *,
        labels: Tensor | None = None,
        rank: Rank = Rank(),  # noqa: B008 (a constant)
        device: torch.device | str = "cpu",
    ) -> None:
        parts, shares = config.accumulate, rank.world_size * config.accumulate
        came = f"{config.batch} for {rank.world_size} processes of {parts} micro-batches"
        near = shares * max(1, round(config.batch / shares))
        hint = (
            f"shares of another size would count differently: batch={near}, or change accumulate"
        )
        require(config.batch % shares == 0, "batch", f"be a multiple of {shares}", came, hint)
        got = None if labels is None else tuple(labels.shape)
        what = f"be given, ({len(data)},), for a conditional network"
        require(not config.conditional or got == (len(data),), "labels", what, got)
        what = f"be (n, *shape) with the config's shape {config.shape}"
        require(list(data.shape[1:]) == config.shape, "data", what, tuple(data.shape))
        self.data, self.labels = data.to(device), None if labels is None else labels.to(device)
        self.config, self.rank, self.shares = config, rank, shares
        self.device = torch.device(device)
        default = at_least_float32(torch.get_default_dtype())
        self.dtype = data.dtype if data.is_floating_point() else default
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int, part: int) -> Batch:
        """The share of this process in micro-batch `part` of a step."""
        config = self.config
        slots = range(part * self.rank.world_size + self.rank.index, config.batch, self.shares)
        mine = slice(slots.start, None, self.shares)
        # a blocking copy would wait for the device
        chosen = self.images(step)[mine].to(self.device, non_blocking=True)
        data, condition = self.data[chosen], {}
        if config.augment != "none":
            generator = generator_of(config.seed, step, "augment")
            shape = (config.batch, NUMBERS)
            numbers = torch.rand(shape, generator=generator, dtype=torch.float32)[mine]
            numbers = numbers.to(self.device, non_blocking=True)
            data, changed = augment(data, config.augment, numbers)
            if config.augment == "flip-turn":
                condition["augmented"] = changed
        if config.conditional and self.labels is not None:
            condition["label"] = self.labels[chosen]
        grid: Any = {"offset": offset_of(config.seed, step), "index": slots.start}
        u = stratified(len(slots), count=self.shares, device=self.device, **grid)
        eps = torch.empty(data.shape, dtype=self.dtype, device=self.device)
        for row, slot in zip(eps, slots, strict=True):
            row.normal_(generator=generator_of(config.seed, step, slot, self.device))
        return Batch(data, u, eps, condition, chosen, slots)

    def images(self, step: int) -> Tensor:
        """The numbers of the images of a whole step, by slot."""
        count, first = len(self.data), step * self.config.batch
        numbers = torch.arange(first, first + self.config.batch)
        passes = range(first // count, (first + self.config.batch - 1) // count + 1)
        self._orders = {
            i: self._orders[i] if i in self._orders else self._order(i) for i in passes
        }
        return torch.cat([self._orders[i][numbers[numbers // count == i] % count] for i in passes])

    def _order(self, i: int) -> Tensor:
        return torch.randperm(len(self.data), generator=generator_of(self.config.seed, i, "order"))


def seed_everything(seed: int, step: int, rank: Rank, part: int) -> None:
    """Seed the global generators of Python, numpy and torch (on all devices), for dropout and the
    like. The seed differs in every process and micro-batch, and is reproduced on resuming."""
    number = generator_of(seed, step, f"network {rank.index} {part}").initial_seed()
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (the generator that networks share)


__all__ = ["Batch", "Batches", "seed_everything"]
