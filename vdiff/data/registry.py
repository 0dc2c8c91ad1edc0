"""All data sets by name."""

from collections.abc import Callable
from pathlib import Path

import torch

from vdiff._validate import require, validated
from vdiff.data.cifar10 import cifar10
from vdiff.data.cifar10 import is_available as cifar10_is_there
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
    """The training and the test images of "cifar10", "digits" or "patches", read from `folder`.
    Missing files are downloaded or created there.

    Images are grey levels in uint8, ready for a decoder with `levels`. Raises ValueError for an
    unknown name, and for files that are missing or damaged.

    >>> train, test = dataset("digits")
    >>> train.pixels.shape, test.pixels.dtype, test.levels
    (torch.Size([1300, 1, 8, 8]), torch.uint8, 17)
    """
    what, hint = f"be one of {', '.join(DATASETS)}", did_you_mean(str(name), DATASETS)
    require(name in DATASETS, "name", what, repr(name), hint)
    return DATASETS[name](folder)


def is_available(name: str, folder: str | Path = "data") -> bool:
    """Whether `dataset(name, folder)` would download and create nothing."""
    if name == "patches":
        return (absolute("folder", folder) / "patches").exists()
    return name == "digits" or cifar10_is_there(folder)


@validated
def splits(name: str, folder: str | Path = "data") -> Splits:
    """A data set in three parts, to train on, to select with and to test once, at the end.

    The selection is held out of the training images: the last 1,000 of CIFAR-10 and the patches,
    200 of the digits. Arguments and errors are those of `dataset`.

    >>> [len(part) for part in splits("digits")]
    [1300, 200, 297]
    """
    if name == "digits":
        return _digit_splits()
    train, test = dataset(name, folder)
    return Splits(train[:-HELD_OUT], train[-HELD_OUT:], test)
