"""Data by name or by path."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from vdiff._validate import Count, Given, Whole, require, validated
from vdiff.data.arrays import SUFFIXES, read_arrays
from vdiff.data.cifar10 import PUBLISHED
from vdiff.data.cifar10 import is_available as cifar10_is_there
from vdiff.data.folder import Alpha, Reading, Resampling, read_folder
from vdiff.data.images import Images, Splits, joined
from vdiff.data.registry import DATASETS, splits
from vdiff.data.split import split
from vdiff.disk import absolute
from vdiff.errors import did_you_mean


def _channels(value: Any, argument: str, given: Given) -> Any:
    require(value in (1, 3), argument, "be 1, grey, or 3, RGB", value)
    return value


OPTIONS = ("size", "resampling", "channels", "alpha", "levels")  # of a path
Levels = Annotated[int, Whole(2, "256 for bytes", 65536)]
Channels = Annotated[int, _channels]


@validated
def load(
    path: str | Path,
    folder: str | Path = "data",
    *,
    size: Count | None = None,
    resampling: Resampling = "bicubic",
    channels: Channels | None = None,
    alpha: Alpha = "refuse",
    levels: Levels | None = None,
    tokens: bool = False,
) -> Splits:
    """A data set in three parts, to train on, to select with and to test once, at the end.

    `load_images` says what is read. CIFAR-10, the patches and the digits have their published
    split; all other data are split by a hash of each image's content: a tenth is the test, a
    twentieth the selection. The `record` of each part says how it was read and split.

    Args:
        path: a name, "cifar10", "digits" or "patches", whose files are in `folder`; or what
            `load_images` takes.

    >>> parts = load("digits")
    >>> [len(part) for part in parts], parts.train.record
    ([1300, 200, 297], 'digits: 1,300 train, 200 selection, 297 test')
    """
    options = {"size": size, "channels": channels, "levels": levels}
    found = absolute("path", path)
    if str(path) in DATASETS or has_own_split(path):
        given = [word for word, value in options.items() if value is not None]
        came = "".join(f"{word}={options[word]}" for word in given[:1])
        what = f"be left out for {path}, which has a form of its own"
        require(not given, given[0] if given else "size", what, came)
        return _published(str(path), folder, found)
    reading = Reading(size, resampling, channels, alpha, levels)
    return split(_read(path, found, reading, tokens))


@validated
def load_images(
    path: str | Path,
    *,
    size: Count | None = None,
    resampling: Resampling = "bicubic",
    channels: Channels | None = None,
    alpha: Alpha = "refuse",
    levels: Levels | None = None,
    tokens: bool = False,
) -> Images:
    """All images of a folder or a file, without a split: for a test set.

    A folder holds pictures (PNG, JPEG, WebP, BMP, TIFF, PGM, PPM); its subfolders, if there are
    any, are the classes. A .npy or an uncompressed .npz file is mapped, so that it may be larger
    than memory: images (n, height, width), (n, height, width, channels) or (n, channels, height,
    width), in the .npz as `images` beside `labels`; floating data have any shape. A folder with
    CIFAR-10, or its archive, gives all of it, the training images first.

    Args:
        size: resize the shorter side of each picture to it, then take the central square. Without
            it all pictures have one size.
        resampling: of Pillow: "nearest", "box", "bilinear", "bicubic" or "lanczos".
        channels: 1 converts pictures to grey (ITU-R 601), 3 grey ones to RGB. Without it all have
            the same channels.
        alpha: "drop" ignores an alpha channel; "refuse" raises.
        tokens: True for token ids (n, length) of any integer type, which have no levels.
        levels: of pictures, a power of two: their upper bits are kept. Without it they are the
            256 of bytes, and pictures of 16 bits raise. Of arrays, the number that they have.

    Raises ValueError, which names the file, for one that cannot be read or does not fit.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as home:
    ...     np.save(f"{home}/own.npy", np.zeros((4, 8, 8, 3), np.uint8))
    ...     images = load_images(f"{home}/own.npy")
    ...     images.pixels.shape, images.levels
    (torch.Size([4, 3, 8, 8]), 256)
    """
    found = absolute("path", path)
    if str(path) in DATASETS or has_own_split(path):
        return joined(_published(str(path), "data", found))
    return _read(path, found, Reading(size, resampling, channels, alpha, levels), tokens)


def is_path(name: str) -> bool:
    """Whether a name in a config is a path: it has a separator, or the suffix of a file of arrays.

    >>> is_path("photos/"), is_path("photos.npz"), is_path("digits")
    (True, True, False)
    """
    return Path(name).suffix in SUFFIXES or any(c in name for c in (os.sep, os.altsep) if c)


def has_own_split(path: str | Path) -> bool:
    """Whether a path leads to CIFAR-10, which has a published split."""
    return cifar10_is_there(_home(absolute("path", path)))


def _home(path: Path) -> Path:
    """The folder of an archive of CIFAR-10; any other path itself."""
    return path.parent if path.name == PUBLISHED.archive.name else path


def _published(name: str, folder: str | Path, path: Path) -> Splits:
    """A data set with a split of its own, with its record."""
    parts = splits(name, folder) if name in DATASETS else splits("cifar10", _home(path))
    name = name if name in DATASETS else "cifar10"
    train, selection, test = (f"{len(part):,}" for part in parts)
    record = f"{name}: {train} train, {selection} selection, {test} test"
    return Splits(*(replace(part, record=record) for part in parts))


def _read(path: str | Path, found: Path, reading: Reading, tokens: bool) -> Images:
    """The images of a folder of pictures, or of a file of arrays."""
    what = f"be one of {', '.join(DATASETS)}, a folder of pictures, or a .npy or .npz file"
    came, hint = f"{path}, which does not exist", did_you_mean(str(path), DATASETS)
    require(found.exists(), "path", what, came, hint)
    if found.is_dir():
        hint = "vdiff.data.text_from(folder, 128) reads files of text"
        require(not tokens, "path", "be a .npy or .npz file of token ids", found, hint)
        levels = reading.levels or 256
        hint = "the upper bits of each channel are kept"
        require(levels & (levels - 1) == 0, "levels", "be a power of two", levels, hint)
        return read_folder(found, reading)
    require(found.suffix in SUFFIXES, "path", what, f"the file {path}")
    given = {"size": reading.size, "channels": reading.channels}
    for word, value in given.items():
        what, hint = "be left out for arrays", "they are read as they are"
        require(value is None, word, what, value, hint)
    return read_arrays(found, levels=reading.levels, alpha=reading.alpha, tokens=tokens)
