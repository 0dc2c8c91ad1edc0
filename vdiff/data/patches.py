"""Patches of two photographs, in CIFAR-10's form: real image content for machines without
CIFAR-10."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from vdiff.data.cifar10 import BATCH, RECORD, encode_binary, read_batches
from vdiff.data.file import File, writing
from vdiff.data.images import HELD_OUT, Images, joined
from vdiff.disk import absolute, atomic_rename, new_folder
from vdiff.errors import InvalidValue
from vdiff.extras import extra

SIDE, PERIOD = 32, 160
TRAIN, SELECTION, TEST = (0, 80), (80, 112), (112, 160)  # columns of every 160
NAMES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
SUMS = "SHA256SUMS"


def patches(folder: str | Path) -> tuple[Images, Images]:
    """50,000 training and 10,000 test patches of 32×32 pixels from scikit-learn's china.jpg and
    flower.jpg; the class is the photograph.

    The photographs are cut into vertical bands: 80 columns for training, 32 for the selection (the
    last 1,000 training images, which `splits` holds out) and 48 for the test. No two parts share a
    pixel. Patches of one band overlap: they hold far less data than CIFAR-10, and bits/dim on them
    compare with nothing else. The first call writes them to `folder`/patches (184 MB) in the
    binary form of CIFAR-10, with checksums.
    """
    home = absolute("folder", folder) / "patches"
    if not home.exists():
        with writing(home.parent, home.name):
            if not home.exists():  # another process was first
                _make(home)
    return read_batches(file.read(home) for file in _files(home))


def _make(home: Path) -> None:
    """Write all files into a new folder, then rename it."""
    aside = new_folder(home.with_name(f"{home.name}.part"))
    parts = (_cut(*TRAIN, 5 * BATCH - HELD_OUT), _cut(*SELECTION, HELD_OUT), _cut(*TEST, BATCH))
    every = joined(parts)
    sums = ""
    for i, name in enumerate(NAMES):
        raw = encode_binary(every[i * BATCH : (i + 1) * BATCH])
        (aside / name).write_bytes(raw)
        sums += f"{hashlib.sha256(raw).hexdigest()}  {name}\n"
    (aside / SUMS).write_text(sums, encoding="utf-8")
    atomic_rename(aside, home)


def _files(home: Path) -> list[File]:
    """The files that SHA256SUMS lists."""
    path, lines = home / SUMS, list[str]()
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 16).splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if sorted(sums) != sorted(NAMES):
        what, hint = (
            f"hold patches/{SUMS} with all six batches",
            f"delete {home}: it is made again",
        )
        raise InvalidValue("folder", what, f"{len(sums)} of them", hint)
    return [File(name, BATCH * RECORD, f"sha256:{sums[name]}") for name in NAMES]


def _cut(first: int, last: int, count: int) -> Images:
    """`count` different patches from columns `first` to `last` − 1 of every period, shuffled."""
    with extra("train"):
        from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images)
    # (photograph, y, x, channel, SIDE, SIDE)
    windows = sliding_window_view(photographs, (SIDE, SIDE), axis=(1, 2))
    _, rows, columns = windows.shape[:3]
    left = np.array([x for x in range(columns) if first <= x % PERIOD <= last - SIDE])
    chosen = np.random.RandomState(first).permutation(len(photographs) * rows * len(left))[:count]
    photograph, y, x = np.unravel_index(chosen, (len(photographs), rows, len(left)))
    pixels, labels = windows[photograph, y, left[x]], photograph.astype(np.int64)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))
