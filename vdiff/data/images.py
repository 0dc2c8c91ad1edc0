"""What a data set is made of."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images as levels 0 … `levels` − 1, (n, channels, height, width) in uint8, and their classes (n,) in int64.

    >>> import torch
    >>> len(Images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)))
    2
    """

    pixels: Tensor
    labels: Tensor
    levels: int = 256

    def __len__(self) -> int:
        return len(self.pixels)


__all__ = ["Images"]
