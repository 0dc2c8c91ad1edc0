"""Every data set by its name."""

from collections.abc import Callable
from pathlib import Path

import torch

from vdiff._validate import require, validated
from vdiff.data.cifar10 import cifar10
from vdiff.data.cifar10 import is_there as cifar10_is_there
from vdiff.data.digits import LEVELS, digits
from vdiff.data.images import HELD_OUT, Images, Splits
from vdiff.data.patches import patches
from vdiff.disk import absolute
from vdiff.errors import did_you_mean


def _digit_splits() -> Splits:
    split = digits()
    pairs = (
        (split.train, split.train_labels),
        (split.selection, split.selection_labels),
        (split.test, split.test_labels),
    )
    return Splits(*(Images(images.to(torch.uint8), labels, LEVELS) for images, labels in pairs))


def _digits(folder: str | Path) -> tuple[Images, Images]:
    """Without the 200 images that the demo selects with."""
    return _digit_splits()[::2]


DATASETS: dict[str, Callable[[str | Path], tuple[Images, Images]]] = {
    "cifar10": cifar10,
    "digits": _digits,
    "patches": patches,
}


@validated
def dataset(name: str, folder: str | Path = "data") -> tuple[Images, Images]:
    """The training and the test images of "cifar10", "digits" or "patches", read from `folder`
    and, where they are missing, downloaded or made there.

    Images are levels in uint8, ready for a decoder with `levels`. Raises ValueError for another
    name, and for files that are missing or are not what they should be.

    >>> train, test = dataset("digits")
    >>> train.pixels.shape, test.pixels.dtype, test.levels
    (torch.Size([1300, 1, 8, 8]), torch.uint8, 17)
    """
    known, near = f"be one of {', '.join(DATASETS)}", did_you_mean(str(name), DATASETS)
    require(name in DATASETS, "name", known, repr(name), near)
    return DATASETS[name](folder)


def is_there(name: str, folder: str | Path = "data") -> bool:
    """Whether `dataset(name, folder)` would only read: nothing is downloaded and nothing made."""
    if name == "patches":
        return (absolute("folder", folder) / "patches").exists()
    return name == "digits" or cifar10_is_there(folder)


@validated
def splits(name: str, folder: str | Path = "data") -> Splits:
    """A data set in three parts, to train on, to select with and to test once, at the end.

    The selection is held out of the training images: of CIFAR-10 and the patches the last 1,000
    (those of the patches lie in bands of their own), of the digits 200. Arguments and errors are
    those of `dataset`.

    >>> [len(part) for part in splits("digits")]
    [1300, 200, 297]
    """
    if name == "digits":
        return _digit_splits()
    train, test = dataset(name, folder)
    return Splits(train[:-HELD_OUT], train[-HELD_OUT:], test)


__all__ = ["DATASETS", "dataset", "is_there", "splits"]
