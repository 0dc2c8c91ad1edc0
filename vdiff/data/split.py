"""The split of a data set that has none: by a hash of each image's content."""

import hashlib
import warnings
from dataclasses import replace

import numpy as np
import torch

from vdiff._validate import require, validated
from vdiff.data.images import HELD_OUT, Images, Splits

TESTED = 10_000  # most images of a test part
COPIES = 0.05  # the share of copies from which a split warns


@validated
def split(images: Images) -> Splits:
    """Split images into three parts by a hash of their content.

    The tenth of the images with the smallest hashes (at most 10,000) is the test, the next
    twentieth (at most 1,000) the selection, and the others are to train on, each in their order.
    So the parts depend neither on the order nor on the names of the files, and images that are
    equal are in one part. Warns if more than a twentieth are copies: the parts then have other
    sizes. Raises ValueError if a part would be empty, and for NaN and infinite values.

    >>> pixels = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1)
    >>> parts = split(Images(pixels, torch.zeros(40, dtype=torch.int64)))
    >>> [len(part) for part in parts]
    [34, 2, 4]
    """
    hashes = content_hashes(images)
    ordered, count = np.sort(hashes), len(images)
    tested = min(TESTED, max(1, count // 10))
    selected = tested + min(HELD_OUT, max(1, count // 20))
    last = ordered[tested - 1]
    # also of images that equal the last, so that copies leave a selection
    through = int(np.searchsorted(ordered, last, side="right"))
    middle = ordered[min(max(selected, through + 1), count) - 1]
    masks = (hashes > middle, (hashes > last) & (hashes <= middle), hashes <= last)
    rows = [torch.from_numpy(np.flatnonzero(mask)) for mask in masks]
    train, selection, test = sizes = tuple(map(len, rows))
    _check_copies(images, len(np.unique(hashes)), sizes)
    rule = f"split by the hash of their content: {train:,} train, {selection:,} selection, "
    record = f"{images.record}; {rule}{test:,} test".removeprefix("; ")
    return Splits(*(replace(images[part], record=record) for part in rows))


def _check_copies(images: Images, different: int, sizes: tuple[int, ...]) -> None:
    """Warn if many images are copies of others. Raise if they leave a part empty."""
    count, record = len(images), images.record or "images without a record"
    parts = "{:,} train, {:,} selection, {:,} test".format(*sizes)
    came = f"{different:,} different ones of {count:,}, which give {parts}"
    hint = f"{images.example}s that are equal are in one part; {record}"
    fits, what = min(sizes) > 0, "be at least 3 that differ, with few copies"
    require(fits, f"{images.example}s", what, came, hint)
    if count - different > COPIES * count:
        text = f"{count - different:,} of {count:,} {images.example}s are copies of others"
        text += f", and all copies of one are in one part: {parts} ({record})"
        warnings.warn(text, stacklevel=4)


def whole(images: Images) -> Splits:
    """Images as each part of a data set: a test set that needs no split."""
    every = replace(images, record=f"{images.record}; all of them".removeprefix("; "))
    return Splits(every, every, every)


def content_hashes(
    images: Images,
    label: str = "splitting the images",
    *,
    finite: bool = True,
    hint: str = "",
) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """64 bits of BLAKE2b over the values of each image. With `finite`, raises ValueError for NaN
    and infinite values, with this hint for data without a record."""
    hashes: list[bytes] = []
    for part in images.chunks(label):
        bad = (~part.flatten(1).isfinite().all(1) & finite).nonzero()
        what, hint = "hold finite numbers", images.record or hint
        row = len(hashes) + int(bad[0]) if len(bad) else None
        require(row is None, "images", what, f"NaN or infinite values in row {row}", hint)
        values = part.flatten(1).contiguous().view(torch.uint8).numpy()
        hashes += [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values]
    return np.frombuffer(b"".join(hashes), np.uint64)
