"""The images of a data set."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vdiff.data.mapped import Mapped
from vdiff.terminal import Bar, on_terminal

HELD_OUT = 1000  # training images of CIFAR-10 and of the patches, the last, that select
CHUNK = 1 << 22  # values that are read at a time
FEW = 64  # values, of which all may lie in [0, 1] by chance


@dataclass(frozen=True)
class Images:
    """Images as levels 0 … `levels` − 1, (n, channels, height, width) in uint8, and their classes
    (n,) in int64.

    Attributes:
        store: the images, or where they lie in a file.
        levels: None for floating data, such as latents.
        names: of the classes, in order; empty if there are none, and all labels are 0.
        record: where the images come from, how they were read and split, in one line.
        example: what one of them is called in a message, such as "text" for tokens.

    >>> pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> len(Images(pixels, torch.zeros(2, dtype=torch.int64)))
    2
    """

    store: Tensor | Mapped
    labels: Tensor
    levels: int | None = 256
    names: tuple[str, ...] = ()
    record: str = ""
    example: str = "image"

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: slice | Tensor) -> "Images":
        return replace(self, store=self.store[rows], labels=self.labels[rows])

    @property
    def pixels(self) -> Tensor:
        """All images as a tensor. Those of a file are read into memory."""
        return self.store if isinstance(self.store, Tensor) else self.store.read()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.store.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Some images, (rows, channels, height, width)."""
        return self.store[rows] if isinstance(self.store, Tensor) else self.store[rows].read()

    def chunks(self, label: str) -> Iterator[Tensor]:
        """All images in order, some at a time, with a progress bar."""
        step = max(1, CHUNK // max(1, math.prod(self.shape)))
        with Bar(len(self), self.example, label, quiet=not on_terminal()) as bar:
            for first in range(0, len(self), step):
                part = self[first : first + step].pixels
                yield part
                bar.update(len(part))


def like_pixels(values: Tensor) -> str:
    """The range in which floating values look like pixels: "[0, 1]", or "[-1, 1]" and "[0, 255]"
    for levels of bytes there; an empty string for other data, and for few values.

    >>> like_pixels(torch.rand(2, 100)), like_pixels(torch.randn(2, 100))
    ('[0, 1]', '')
    """
    if not values.is_floating_point() or values.numel() < FEW:
        return ""
    low, high = values.aminmax()
    if low >= 0 and high <= 1 and low < high:
        return "[0, 1]"
    for name, levels in {"[-1, 1]": 127.5 * (values.double() + 1), "[0, 255]": values}.items():
        of_bytes = levels.min() >= 0 and 128 <= levels.max() <= 255  # smaller numbers are counts
        if of_bytes and bool((levels - levels.round()).abs().max() < 1e-3):
            return name
    return ""


def joined(parts: Sequence[Images]) -> Images:
    """Parts of a data set as one."""
    first, labels = parts[0], torch.cat([part.labels for part in parts])
    if isinstance(first.store, Mapped):  # all of one file
        rows = [part.store.rows for part in parts if isinstance(part.store, Mapped)]
        return replace(first, store=replace(first.store, rows=torch.cat(rows)), labels=labels)
    return replace(first, store=torch.cat([part.pixels for part in parts]), labels=labels)


class Splits(NamedTuple):
    """Images to train on, to select with (a validation curve, a checkpoint, a setting), and to
    test once, at the end.

    >>> Splits._fields
    ('train', 'selection', 'test')
    """

    train: Images
    selection: Images
    test: Images
