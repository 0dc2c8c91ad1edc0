"""Every data set by its name."""

from collections.abc import Callable
from pathlib import Path

import torch

from vdiff.data.cifar10 import cifar10
from vdiff.data.digits import LEVELS, digits
from vdiff.data.images import Images
from vdiff.data.patches import patches
from vdiff.errors import did_you_mean, must


def _digits(folder: str | Path) -> tuple[Images, Images]:
    """Without the 200 images that the demo selects with."""
    split = digits()
    train, test = split.train.to(torch.uint8), split.test.to(torch.uint8)
    return Images(train, split.train_labels, LEVELS), Images(test, split.test_labels, LEVELS)


DATASETS: dict[str, Callable[[str | Path], tuple[Images, Images]]] = {"cifar10": cifar10, "digits": _digits, "patches": patches}


def dataset(name: str, folder: str | Path = "data") -> tuple[Images, Images]:
    """The training and the test images of "cifar10", "digits" or "patches", read from `folder` and, where it is not there
    yet, downloaded or made there.

    Images are levels in uint8, ready for a decoder with `levels`. Raises ValueError for another name (with the nearest one),
    and for files that are missing or are not what they should be.

    >>> train, test = dataset("digits")
    >>> train.pixels.shape, test.pixels.dtype, test.levels
    (torch.Size([1300, 1, 8, 8]), torch.uint8, 17)
    """
    if name not in DATASETS:
        raise ValueError(must("dataset", "name", f"be one of {', '.join(DATASETS)}", repr(name), did_you_mean(str(name), DATASETS)))
    return DATASETS[name](folder)


__all__ = ["DATASETS", "dataset"]
