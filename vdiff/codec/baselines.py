"""How many bytes general compressors need for the same images."""

import gzip
import io
import lzma
import math
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
from torch import Tensor

from vdiff.codec._identity import in_chunks
from vdiff.extras import extra

MOST_PIXELS = 1 << 26  # of a picture
BYTES = 256  # levels of a byte


def baselines(data: Tensor | np.ndarray, levels: int) -> dict[str, int]:
    """The bytes of PNG, gzip, xz and zstd, each at its highest level, for images as they are in
    memory, a byte a value where all levels fit into one.

    All PNG images are tiles of one picture: a file for each would mostly be headers. PNG is left
    out for other images than (n, 1 or 3, height, width) of bytes, and for very many; zstd where
    neither Python's module `zstandard` nor the program `zstd` is installed.

    >>> sorted(baselines(np.zeros((4, 1, 8, 8), np.uint8), 17))[:3]
    ['PNG', 'gzip', 'xz']
    """
    sizes = {}
    pictures = levels <= BYTES and data.ndim == 4 and data.shape[1] in (1, 3)
    if pictures and math.prod(data.shape) <= MOST_PIXELS:
        sizes["PNG"] = _png(np.concatenate([part.numpy() for part in in_chunks(data)]))
    kind = "u1" if levels <= BYTES else "<u4" if levels > BYTES**2 else "<u2"
    with tempfile.TemporaryFile() as raw:
        for part in in_chunks(data):
            raw.write(part.numpy().astype(kind).tobytes())
        for name, size in {"gzip": _gzip, "xz": _xz, "zstd": _zstd}.items():
            raw.seek(0)
            found = size(raw)
            sizes |= {} if found is None else {name: found}
    return sizes


class _Counter(io.RawIOBase):
    """A file that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, raw: Any) -> int:
        count = len(memoryview(raw))
        self.size += count
        return count


def _png(images: np.ndarray) -> int:
    """The smaller of one column of tiles and a square of them."""
    with extra("train"):
        from PIL import Image
    count, channels, height, width = images.shape
    sizes = []
    for columns in {1, math.ceil(math.sqrt(count))}:
        rows = -(-count // columns)
        tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
        tiles[:count] = images
        grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
        pixels = grid.reshape(rows * height, columns * width, channels)
        counter = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        picture.save(counter, "png", optimize=True)
        sizes.append(counter.tell())
    return min(sizes)


def _gzip(raw: IO[bytes]) -> int:
    counter = _Counter()
    with gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=9, mtime=0) as out:
        shutil.copyfileobj(raw, out)
    return counter.size


def _xz(raw: IO[bytes]) -> int:
    counter = _Counter()
    stream: Any = counter
    with lzma.LZMAFile(stream, "wb", preset=9 | lzma.PRESET_EXTREME) as out:
        shutil.copyfileobj(raw, out)
    return counter.size


def _zstd(raw: IO[bytes]) -> int | None:
    if find_spec("zstandard"):
        import importlib

        counter = _Counter()
        compressor = importlib.import_module("zstandard").ZstdCompressor(level=22)
        compressor.copy_stream(raw, counter)
        return counter.size
    program = shutil.which("zstd")
    if program is None:
        return None
    command = [program, "--ultra", "-22", "-c"]
    return len(subprocess.run(command, stdin=raw, capture_output=True, check=True).stdout)
