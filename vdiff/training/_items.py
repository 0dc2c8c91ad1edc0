"""The items of a data set of torch or of a stream, as data and labels."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vdiff._validate import require
from vdiff.errors import InvalidType, shown
from vdiff.times import generator_of
from vdiff.training.mistakes import channels_hint

Taken = tuple[Tensor, Tensor | None]  # data (batch, …) and labels (batch,)
PICTURES = "a picture needs a transform, such as torchvision's PILToTensor"
TOKENS = "token ids are a tensor (n, length) of integers: torch.tensor(ids)"


class Items(Dataset[Taken]):
    """The items of a data set of torch, each drawn with random numbers of its own."""

    def __init__(self, data: Any, seed: int, shape: list[int]) -> None:
        self.data, self.seed, self.shape = data, seed, shape

    def __getitem__(self, key: tuple[int, int, int]) -> Taken:
        step, slot, number = key
        seed_all(generator_of(self.seed, step, f"item {slot}").initial_seed())
        try:
            return example(self.data[number], self.shape, f"item {number}")
        except Exception as error:
            error.add_note(f"train: at item {number} of the data set, slot {slot} of step {step}")
            raise


def example(item: Any, shape: list[int], name: str) -> Taken:
    """An item of a data set as data and a label, if it has one. Raises InvalidValue unless the
    data have the shape."""
    label: Any = None
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        item, label = (*item, None)[:2]
    if isinstance(item, np.ndarray | np.generic):
        item = torch.from_numpy(np.asarray(item))
    if not isinstance(item, Tensor):
        first = (*item, None)[0] if isinstance(item, list) else item
        hint = TOKENS if isinstance(first, int) else PICTURES
        raise InvalidType(
            "data", "have items that are a tensor or (tensor, label)", shown(item), hint
        )
    hint = channels_hint(item.shape, shape)
    if item.shape[1:] == tuple(shape):
        hint = "items, not batches: DataLoader(…, batch_size=None)"
    what, came = f"have items of the config's shape {shape}", f"{list(item.shape)} at {name}"
    require(list(item.shape) == shape, "data", what, came, hint)
    return item, None if label is None else torch.as_tensor(label, dtype=torch.int64)


def stack(items: list[Taken]) -> Taken:
    """Examples as a batch."""
    labels = [label for _, label in items if label is not None]
    return torch.stack([data for data, _ in items]), torch.stack(labels) if labels else None


def seed_all(number: int) -> None:
    """Seed the global generators of Python, numpy and torch (on all devices)."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (the generator that networks share)
