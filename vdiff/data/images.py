"""The images of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HELD_OUT = 1000  # training images of CIFAR-10 and of the patches, the last, that select


@dataclass(frozen=True)
class Images:
    """Images as levels 0 … `levels` − 1, (n, channels, height, width) in uint8, and their classes
    (n,) in int64.

    >>> pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> len(Images(pixels, torch.zeros(2, dtype=torch.int64)))
    2
    """

    pixels: Tensor
    labels: Tensor
    levels: int = 256

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> "Images":
        return Images(self.pixels[rows], self.labels[rows], self.levels)


def joined(parts: Sequence[Images]) -> Images:
    """Parts of a data set as one."""
    pixels, labels = ([getattr(part, name) for part in parts] for name in ("pixels", "labels"))
    return Images(torch.cat(pixels), torch.cat(labels))


class Splits(NamedTuple):
    """Images to train on, to select with (a validation curve, a checkpoint, a setting), and to
    test once, at the end.

    >>> Splits._fields
    ('train', 'selection', 'test')
    """

    train: Images
    selection: Images
    test: Images


__all__ = ["HELD_OUT", "Images", "Splits", "joined"]
