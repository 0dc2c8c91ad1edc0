"""Which images of other data a run was trained on: hashes of its training examples, in its
folder."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdiff.data.images import Images
from vdiff.data.split import content_hashes
from vdiff.disk import atomic_write
from vdiff.training.mistakes import MISSING

FOLDER = "trained_on"  # of a run: a file for each data set
MOST = 1 << 16  # hashes of a data set that are kept, the smallest: of more examples a sample
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


class Overlap(NamedTuple):
    """Of some images, `compared` could be compared with the training examples, and `found` of
    these are among them, bit for bit."""

    found: int
    compared: int
    images: int

    def __str__(self) -> str:
        if self.compared == self.images:
            return f"{self.found:,} of the {self.images:,} images"
        return f"{self.found:,} of a sample of {self.compared:,} of the {self.images:,} images"


def remember(run: Path, data: object, fingerprint: str, *, finite: bool = True) -> None:
    """Write the hashes of the examples of a data set, unless they are there. A data set of torch
    and a stream have none. If the disk is full, there is a warning. With `finite`, raises
    ValueError for NaN and infinite values: only a mask can say that these are absent."""
    path = _file(run, fingerprint)
    if not isinstance(data, Tensor | Images) or path.is_file():
        return
    kept = np.unique(_hashes(data, finite))[:MOST]
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as aside:
            np.save(aside, kept)
    except OSError as error:
        what = "an evaluation will not know which images were trained on"
        warnings.warn(f"{what}: {error}", stacklevel=2)


def overlap(run: Path, fingerprints: Sequence[str], data: Tensor | Images) -> Overlap | None:
    """How many of some images a run was trained on. None if its examples are not recorded."""
    known = [_read(_file(run, fingerprint)) for fingerprint in fingerprints]
    hashes, found, compared = _hashes(data), np.zeros(len(data), bool), np.ones(len(data), bool)
    if not known:
        return None
    for examples in known:
        if examples is None:
            return None
        found |= np.isin(hashes, examples)
        if len(examples) == MOST:  # beyond the largest one, nothing is known
            compared &= hashes <= examples[-1]
    return Overlap(int((found & compared).sum()), int(compared.sum()), len(data))


def _file(run: Path, fingerprint: str) -> Path:
    """The file of a data set, by the hash of its fingerprint without its labels."""
    name = fingerprint.partition(",")[0].encode()
    return run / FOLDER / f"{hashlib.sha256(name).hexdigest()[:16]}.npy"


def _read(path: Path) -> Hashes | None:
    """Hashes in ascending order; None if there are none, or the file is damaged."""
    try:
        if not path.is_file() or path.stat().st_size > 8 * MOST + 1024:
            return None
        hashes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = (
        hashes.ndim == 1 and hashes.dtype == np.uint64 and bool((hashes[1:] > hashes[:-1]).all())
    )
    return hashes if fits else None


def _hashes(data: Tensor | Images, finite: bool = False) -> Hashes:
    """64 bits for each example. Whole numbers in memory have the same in every dtype."""
    images = data if isinstance(data, Images) else Images(data, torch.empty(0))
    if isinstance(images.store, Tensor) and not images.store.is_floating_point():
        images = replace(images, store=_narrow(images.store.detach().cpu()))
    return content_hashes(images, "hashing the images", finite=finite, hint=MISSING)


def _narrow(values: Tensor) -> Tensor:
    """Whole numbers in the first dtype that holds them all: a byte, 16 bits, or their own."""
    if values.dtype == torch.uint8 or values.numel() == 0:
        return values
    low, high = (int(values.to(torch.int64).aminmax()[i]) for i in (0, 1))
    for dtype in (torch.uint8, torch.uint16):
        if low >= 0 and high <= torch.iinfo(dtype).max:
            return values.to(dtype)
    return values
