"""Where a training takes its examples from: a tensor, images in a file, a data set of torch, or a
stream."""

import abc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vdiff._validate import require
from vdiff.data.images import Images, Splits
from vdiff.errors import InvalidType, InvalidValue, shown
from vdiff.times import generator_of
from vdiff.training._items import Items, Taken, example, seed_all, stack
from vdiff.training.config import Config
from vdiff.training.loading import fingerprint, fingerprint_of
from vdiff.training.mistakes import channels_hint

Examples = Tensor | Images | Dataset[Any] | Iterable[Any]
SAMPLED = 32  # items of a data set that are hashed


class Share(NamedTuple):
    """The slots of a micro-batch of this process, and the numbers of their examples."""

    step: int
    part: int
    slots: range
    numbers: Tensor


class Source(abc.ABC):
    """Examples for the slots of a step.

    Attributes:
        count: the number of examples; None for a stream.
        labels: of all examples, if they are known before the training.
        record: where the examples come from and how they were split; may be empty.
        checked: whether `chunks` gives all examples.
    """

    count: int | None = None
    labels: Tensor | None = None
    record: str = ""
    checked = False

    def chunks(self, label: str) -> Iterator[Tensor]:
        """All examples, some at a time, where they are known before the training."""
        yield from ()

    @abc.abstractmethod
    def take(self, share: Share, share_of: Callable[[int, int], Share]) -> Taken:
        """The examples of a micro-batch. `share_of` gives any other (step, part) of this process,
        so that it can be loaded early."""

    @abc.abstractmethod
    def fingerprint(self, conditional: bool) -> str:
        """The hash of the data, and of the labels if the network is given them."""


class Resident(Source):
    """A tensor, which is moved to the device once."""

    checked = True

    def __init__(
        self, data: Tensor, labels: Tensor | None, record: str, device: torch.device
    ) -> None:
        self.data, self.count, self.record = data.to(device), len(data), record
        self.labels = None if labels is None else labels.to(device)

    def chunks(self, label: str) -> Iterator[Tensor]:
        yield self.data.cpu()

    def take(self, share: Share, share_of: Callable[[int, int], Share]) -> Taken:
        # a blocking copy would wait for the device
        chosen = share.numbers.to(self.data.device, non_blocking=True)
        return self.data[chosen], None if self.labels is None else self.labels[chosen]

    def fingerprint(self, conditional: bool) -> str:
        return fingerprint(self.data, self.labels if conditional else None)


class OnDisk(Source):
    """Images in a file, of which each step reads its own."""

    checked = True

    def __init__(self, images: Images, labels: Tensor | None) -> None:
        self.count, self.labels, self.record = len(images), labels, images.record
        self.images = images if labels is None else replace(images, labels=labels)

    def chunks(self, label: str) -> Iterator[Tensor]:
        return self.images.chunks(label)

    def take(self, share: Share, share_of: Callable[[int, int], Share]) -> Taken:
        labels = None if self.labels is None else self.labels[share.numbers]
        return self.images.take(share.numbers), labels

    def fingerprint(self, conditional: bool) -> str:
        return fingerprint_of([self.images], conditional)


class MapStyle(Source):
    """A map-style data set of torch, with workers that load the next batches."""

    def __init__(self, data: Any, config: Config, workers: int) -> None:
        self.items, self.count = Items(data, config.seed, config.shape), len(data)
        require(self.count > 0, "data", "have items", f"{type(data).__name__} of length 0")
        self.config, self.workers = config, workers
        self._loader: Iterator[Taken] | None = None
        self._due: tuple[int, int] | None = None  # what the loader gives next
        self._last: tuple[tuple[int, int], Taken] | None = None

    def take(self, share: Share, share_of: Callable[[int, int], Share]) -> Taken:
        if not self.workers:
            return stack([self.items[key] for key in keys_of(share)])
        place = (share.step, share.part)
        if self._last is None or self._last[0] != place:
            if self._loader is None or self._due != place:
                self._loader = self._from(place, share_of)
            self._last = (place, next(self._loader))
            self._due = self._after(*place)
        return self._last[1]

    def _after(self, step: int, part: int) -> tuple[int, int]:
        return (step, part + 1) if part + 1 < self.config.accumulate else (step + 1, 0)

    def _from(self, place: tuple[int, int], share_of: Callable[[int, int], Share]) -> Any:
        def keys() -> Iterator[list[tuple[int, int, int]]]:
            now = place
            while now[0] < self.config.steps:
                yield keys_of(share_of(*now))
                now = self._after(*now)

        return iter(
            DataLoader(
                self.items,
                batch_sampler=keys(),  # keys, where torch has numbers
                num_workers=self.workers,
                collate_fn=stack,
                pin_memory=torch.cuda.is_available(),
            )
        )

    def fingerprint(self, conditional: bool) -> str:
        """The hash of some items: all of them may take hours."""
        assert self.count is not None
        numbers = np.linspace(0, self.count - 1, min(self.count, SAMPLED)).astype(int).tolist()
        data, labels = stack([self.items[(0, 0, number)] for number in numbers])
        name = f"{type(self.items.data).__name__} of {self.count:,} items, of {len(data)} "
        return name + fingerprint(data, labels if conditional else None)


class Stream(Source):
    """An iterable of examples without numbers. Every process draws all of it, and uses its own
    slots."""

    def __init__(self, data: Any, config: Config) -> None:
        self.data, self.config = data, config
        self.resumes = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")
        self._iterator: Iterator[Any] | None = None
        self._drawn: tuple[int, list[Taken]] = (-1, [])

    def take(self, share: Share, share_of: Callable[[int, int], Share]) -> Taken:
        if self._drawn[0] != share.step:
            seed_all(generator_of(self.config.seed, share.step, "stream").initial_seed())
            self._drawn = (share.step, [self._draw() for _ in range(self.config.batch)])
        return stack([self._drawn[1][slot] for slot in share.slots])

    def _draw(self) -> Taken:
        for _ in range(2):  # at its end, the stream starts again
            self._iterator = self._iterator or iter(self.data)
            for item in self._iterator:
                return example(item, self.config.shape, "an item")
            self._iterator = None
        raise InvalidValue("data", "yield items each time it is iterated over", "none")

    def can_repeat(self, step: int) -> bool:
        """Whether the examples of a step can be taken again."""
        return self._drawn[0] == step

    def state(self) -> Any:
        """What a checkpoint must hold to resume, plain data; None if the stream has no state."""
        if not self.resumes:
            return None
        state = self.data.state_dict()
        try:
            same = json.loads(json.dumps(state, allow_nan=False)) == state
        except (TypeError, ValueError):
            same = False
        what, hint = "have a state_dict() of plain data, as JSON has it", "numbers, text and lists"
        require(same, "data", what, shown(state), hint)
        return state

    def load(self, state: Any) -> None:
        """Resume from a state."""
        if self.resumes and state is not None:
            self.data.load_state_dict(state)

    def fingerprint(self, conditional: bool) -> str:
        return f"{type(self.data).__name__}, a stream without a hash"


def source_of(
    data: Examples, config: Config, labels: Tensor | None, device: torch.device, workers: int = 0
) -> Source:
    """The source of the data that a user gives. Raises for data of another shape than the
    config's, and for other data."""
    if isinstance(data, Tensor | Images):
        require(workers == 0, "workers", "be 0 unless data is a map-style Dataset", workers)
        return _of_images(data, config, labels, device)
    if isinstance(data, Mapping):  # a tokenizer's output
        what, key = "be a tensor (n, length) of token ids, no dict", next(iter(data), "input_ids")
        raise InvalidType("data", what, type(data).__name__, f"data[{key!r}]")
    other = isinstance(data, str | bytes | np.ndarray | Splits)
    if other or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        what = "be a tensor, Images, a torch.utils.data.Dataset or an iterable of examples"
        hint = "vdiff.data.load(path).train, or torch.from_numpy(array)"
        raise InvalidType("data", what, type(data).__name__, hint)
    what, hint = "be left out for a Dataset", "its items are (data, label)"
    require(labels is None, "labels", what, labels, hint)
    numbered = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if numbered and not isinstance(data, IterableDataset):
        return MapStyle(data, config, workers)
    require(workers == 0, "workers", "be 0 for an iterable", workers, "it may have its own")
    return Stream(data, config)


def _of_images(
    data: Tensor | Images, config: Config, labels: Tensor | None, device: torch.device
) -> Source:
    got = None if labels is None else tuple(labels.shape)
    own = isinstance(data, Images) and labels is None
    what = f"be given, ({len(data)},), for a conditional network"
    fits = own or not config.conditional or got == (len(data),)
    require(fits, "labels", what, got)
    images = data if isinstance(data, Images) else Images(data, torch.empty(0))
    what = f"be (n, *shape) with the config's shape {config.shape}"
    hint = channels_hint(images.shape, config.shape)
    require(list(images.shape) == config.shape, "data", what, (len(images), *images.shape), hint)
    labels = None if not config.conditional else images.labels if own else labels
    if isinstance(images.store, Tensor):
        return Resident(images.store, labels, images.record, device)
    return OnDisk(images, labels)


def keys_of(share: Share) -> list[tuple[int, int, int]]:
    """The step, the slot and the number of each example."""
    pairs = zip(share.slots, share.numbers.tolist(), strict=True)
    return [(share.step, slot, number) for slot, number in pairs]
