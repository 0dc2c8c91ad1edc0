"""The image, the time, the noise and the mask of every slot of every step, on any number of
processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from vdiff._diffusion import GAUSSIAN, Diffusion
from vdiff._validate import require
from vdiff.data.augment import NUMBERS, augment
from vdiff.errors import InvalidValue
from vdiff.masks import MaskSampler, masks_of_step
from vdiff.times import draws_of_step, generator_of
from vdiff.training._items import seed_all
from vdiff.training.config import Config
from vdiff.training.mistakes import check_tokens
from vdiff.training.ranks import Rank
from vdiff.training.sources import Examples, Share, Source, Stream, source_of


class Batch(NamedTuple):
    """A share of a step's batch: data, uniform numbers for the times, noise, conditions, the
    numbers of the images and slots, what is modelled, None for all, and what is absent."""

    data: Tensor
    u: Tensor
    eps: Tensor
    condition: dict[str, Tensor]
    images: Tensor
    slots: range
    mask: Tensor | None = None
    absent: Tensor | None = None

    @property
    def draws(self) -> dict[str, Tensor]:
        """What an objective takes besides data and conditions."""
        masked = {"mask": self.mask, "absent": self.absent}
        draws = {"u": self.u, "eps": self.eps}
        return draws | {name: v for name, v in masked.items() if v is not None}


class Batches:
    """The batch of a step, divided over processes and micro-batches: a function of (seed, step,
    slot).

    Each pass over the data uses every image once, in its own order; a batch may end one pass and
    begin the next. Slot i of n has the time (u + i/n) mod 1, with one offset u for all processes,
    and its own generators for the noise and the mask. Share k of m has the slots k, k + m, k + 2m,
    … With `independent`, the indices of these dimensions of x have times of their own. `process`
    draws the noise, and says what data are.

    Raises ValueError if the batch cannot be divided evenly, for missing labels, and for data that
    are no tokens of the process.

    >>> config = Config(network={"name": "MLP", "dims": 2}, level_head=False, batch=4, shape=[2])
    >>> data = torch.arange(16).view(8, 2)
    >>> batch = Batches(data, config)(0, 0)
    >>> second = Batches(data, config, rank=Rank(1, 2))(0, 0)
    >>> torch.equal(second.data, batch.data[1::2]), torch.equal(second.eps, batch.eps[1::2])
    (True, True)
    """

    def __init__(
        self,
        data: Examples | Source,
        config: Config,
        *,
        labels: Tensor | None = None,
        rank: Rank = Rank(),  # noqa: B008 (a constant)
        device: torch.device | str = "cpu",
        workers: int = 0,
        mask: MaskSampler | None = None,
        independent: tuple[int, ...] = (),
        process: Diffusion = GAUSSIAN,
    ) -> None:
        parts, shares = config.accumulate, rank.world_size * config.accumulate
        came = f"{config.batch} for {rank.world_size} processes of {parts} micro-batches"
        near = shares * max(1, round(config.batch / shares))
        hint = f"shares of another size count differently: batch={near}, or change accumulate"
        require(config.batch % shares == 0, "batch", f"be a multiple of {shares}", came, hint)
        self.config, self.rank, self.shares = config, rank, shares
        self.device, self.mask, self.independent = torch.device(device), mask, independent
        self.process = process
        if not isinstance(data, Source):
            data = source_of(data, config, labels, self.device, workers)
        self.source = data
        self.stream = data if isinstance(data, Stream) else None
        if not process.continuous:
            what, hint = "be 'none' for tokens", "they are no pictures"
            require(config.augment == "none", "augment", what, config.augment, hint)
            for chunk in self.source.chunks("checking the tokens"):
                check_tokens(process, chunk, mask)
        self.null = int(config.network.get("labels") or 0) - 1  # the null class of label dropout
        if self.source.labels is not None:
            self._check_labels(self.source.labels)
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int, part: int) -> Batch:
        """The share of this process in micro-batch `part` of a step. Those of a data set of torch
        change the global generators."""
        config, share = self.config, self.share(step, part)
        slots, mine = share.slots, slice(share.slots.start, None, self.shares)
        data, labels = self.source.take(share, self.share)
        if config.conditional and self.source.labels is None:
            self._check_labels(labels)
        if not (self.process.continuous or self.source.checked):
            check_tokens(self.process, data, self.mask)
        data = data.to(self.device, non_blocking=True)
        condition = {}
        if config.augment != "none":
            generator = generator_of(config.seed, step, "augment")
            shape = (config.batch, NUMBERS)
            numbers = torch.rand(shape, generator=generator, dtype=torch.float32)[mine]
            numbers = numbers.to(self.device, non_blocking=True)
            data, changed = augment(data, config.augment, numbers)
            if config.augment == "flip-turn":
                condition["augmented"] = changed
        if config.conditional and labels is not None:
            labels = labels.to(self.device, non_blocking=True)
            condition["label"] = self._dropped(labels, step, mine)
        place = {"seed": config.seed, "step": step, "index": slots.start, "count": self.shares}
        masks = () if self.mask is None else masks_of_step(self.mask, data, **place)
        noise = None if self.process.continuous else self._noise
        u, eps = draws_of_step(data, **place, independent=self.independent, noise=noise)
        return Batch(data, u, eps, condition, share.numbers, slots, *masks)

    def _noise(self, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self.process.noise(x, None, generators)

    def share(self, step: int, part: int) -> Share:
        """The slots of a micro-batch of this process, and the numbers of their images."""
        first = part * self.rank.world_size + self.rank.index
        slots = range(first, self.config.batch, self.shares)
        return Share(step, part, slots, self.images(step)[slots.start :: self.shares])

    def images(self, step: int) -> Tensor:
        """The numbers of the images of a whole step, by slot. Those of a stream are counted."""
        count, first = self.source.count, step * self.config.batch
        numbers = torch.arange(first, first + self.config.batch)
        if count is None:
            return numbers
        passes = range(first // count, (first + self.config.batch - 1) // count + 1)
        self._orders = {
            i: self._orders[i] if i in self._orders else self._order(i, count) for i in passes
        }
        return torch.cat([self._orders[i][numbers[numbers // count == i] % count] for i in passes])

    def _order(self, i: int, count: int) -> Tensor:
        return torch.randperm(count, generator=generator_of(self.config.seed, i, "order"))

    def _dropped(self, labels: Tensor, step: int, mine: slice) -> Tensor:
        """Labels, with some replaced by the null class."""
        if not self.config.label_dropout:
            return labels
        generator = generator_of(self.config.seed, step, "label dropout")
        u = torch.rand(self.config.batch, generator=generator, dtype=torch.float64)[mine]
        dropped = (u < self.config.label_dropout).to(self.device, non_blocking=True)
        return labels.masked_fill(dropped, self.null)

    def _check_labels(self, labels: Tensor | None) -> None:
        """Raise unless there are labels where they are needed, none of them the null class."""
        if not self.config.conditional:
            return
        if labels is None:
            what = "have items (data, label) for a conditional network"
            raise InvalidValue("data", what, "items without a label", "or conditional=false")
        if self.config.label_dropout:
            largest, hint = int(labels.max()), "labels: one more than the classes"
            what = f"be below the null class, {self.null}"
            require(largest < self.null, "labels", what, f"a label {largest}", hint)


def seed_everything(seed: int, step: int, rank: Rank, part: int) -> None:
    """Seed the global generators of Python, numpy and torch (on all devices), for dropout and the
    like. The seed differs in every process and micro-batch, and is reproduced on resuming."""
    number = generator_of(seed, step, f"network {rank.index} {part}").initial_seed()
    seed_all(number)
