"""The split of a data set that has none: by a hash of each image's content."""

import hashlib
from dataclasses import replace

import numpy as np
import torch

from vdiff._validate import require, validated
from vdiff.data.images import HELD_OUT, Images, Splits, joined

TESTED = 10_000  # most images of a test part


@validated
def split(images: Images) -> Splits:
    """Split images into three parts by a hash of their content.

    The tenth of the images with the smallest hashes (at most 10,000) is the test, the next
    twentieth (at most 1,000) the selection, and the others are to train on, each in their order.
    So the parts depend neither on the order nor on the names of the files, and images that are
    equal are in one part. Raises ValueError if a part would be empty.

    >>> pixels = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1)
    >>> parts = split(Images(pixels, torch.zeros(40, dtype=torch.int64)))
    >>> [len(part) for part in parts]
    [34, 2, 4]
    """
    hashes = content_hashes(images)
    ordered, count = np.sort(hashes), len(images)
    tested = min(TESTED, max(1, count // 10))
    selected = tested + min(HELD_OUT, max(1, count // 20))
    last, middle = ordered[tested - 1], ordered[min(selected, count) - 1]
    masks = (hashes > middle, (hashes > last) & (hashes <= middle), hashes <= last)
    rows = [torch.from_numpy(np.flatnonzero(mask)) for mask in masks]
    came = f"{len(np.unique(hashes))} different ones of {count}"
    require(all(map(len, rows)), "images", "be at least 3 that differ", came, images.record)
    train, selection, test = (len(part) for part in rows)
    rule = f"split by the hash of their content: {train:,} train, {selection:,} selection, "
    record = f"{images.record}; {rule}{test:,} test".removeprefix("; ")
    return Splits(*(replace(images[part], record=record) for part in rows))


def whole(parts: Splits) -> Splits:
    """All images of a data set as each of its parts: a test set that needs no split."""
    origin = parts.train.record.split("; split by")[0]
    everything = replace(joined(parts), record=f"{origin}; all of them")
    return Splits(everything, everything, everything)


def content_hashes(images: Images) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """64 bits of BLAKE2b over the values of each image."""
    hashes: list[bytes] = []
    for part in images.chunks("splitting the images"):
        values = part.flatten(1).contiguous().view(torch.uint8).numpy()
        hashes += [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values]
    return np.frombuffer(b"".join(hashes), np.uint64)


__all__ = ["split", "whole"]
