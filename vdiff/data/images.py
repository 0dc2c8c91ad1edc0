"""What a data set is made of."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

HELD_OUT = 1000  # training images of CIFAR-10 and of the patches, the last, that select


@dataclass(frozen=True)
class Images:
    """Images as levels 0 … `levels` − 1, (n, channels, height, width) in uint8, and their classes
    (n,) in int64.

    >>> import torch
    >>> len(Images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)))
    2
    """

    pixels: Tensor
    labels: Tensor
    levels: int = 256

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> "Images":
        return Images(self.pixels[rows], self.labels[rows], self.levels)


class Splits(NamedTuple):
    """Images to train on, to select with (a validation curve, a checkpoint, a setting), and to
    test at the end.

    >>> import torch
    >>> images = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    >>> [len(part) for part in Splits(images[:3], images[3:5], images[5:])]
    [3, 2, 1]
    """

    train: Images
    selection: Images
    test: Images


__all__ = ["HELD_OUT", "Images", "Splits"]
