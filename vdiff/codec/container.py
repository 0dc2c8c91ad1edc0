"""The file of a codec: compressed words between a magic number and facts about them.

    8 bytes   89 56 44 49 46 46 0D 0A, "VDIFF" with a byte that text lacks and a line end
    4 bytes   version
    4n bytes  payload, 32-bit words; the last is the top of the stack
    m bytes   facts, JSON behind zlib
    4 bytes   m
    32 bytes  SHA-256 of all before

Numbers are little-endian. The facts come last, so that a payload of any size is written as it
grows. `Container.open` checks all of it before a word is used, and takes no memory but for the
facts, which have at most 64 KiB of JSON.
"""

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vdiff._validate import require
from vdiff.disk import open_regular
from vdiff.errors import InvalidValue, printable
from vdiff.extras import extra

MAGIC = b"\x89VDIFF\r\n"
VERSION = 1
HEAD, LENGTH = struct.Struct("<8sI"), struct.Struct("<I")
DIGEST = 32
MOST_FACTS = 1 << 16  # bytes
CHUNK = 1 << 20  # bytes that are read at a time
MOST_VALUES = 1 << 40  # of all images
MOST_STEPS = 10**5  # T
MOST_AT_ONCE = 1 << 28  # values of a batch
KINDS = ("latents", "masks", "any order")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
HASH = re.compile(r"[0-9a-f]{16}")
Identity = dict[str, Any]


def _whole(least: int, most: int = 2**53) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _hash(value: Any) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def _shape(value: Any) -> bool:
    fits = isinstance(value, list) and len(value) > 1 and all(map(_whole(1), value))
    return fits and math.prod(value) <= MOST_VALUES


def _batches(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value)
    return pairs and all(_whole(1)(number) for pair in value for number in pair)


def _spacing(value: Any) -> bool:
    return isinstance(value, float) and 2.0**-20 <= value <= 1


def _plain(value: Any) -> bool:
    return isinstance(value, dict)


@dataclass(frozen=True)
class Facts:
    """What a file says of its payload.

    Attributes:
        shape, dtype, data: of the images, with their hash.
        batches: [size, count] of the batches, in the order in which they are decoded.
        start: words that the stack had before the first image.
        depth: words that must be on the stack before a batch is popped.
        spacing, steps: h of the grids, and T.
        of: what the decoder must have too: weights, chain, software, …
        record: the user's own words.
        kind: of the code: latents of images, masks of tokens, or tokens in any order. A file
            without it holds images.
        seed: of the noise that masks tokens; 0 is not written.
    """

    shape: list[int]
    dtype: str
    data: str
    batches: list[list[int]]
    start: int
    depth: int
    spacing: float
    steps: int
    of: Identity
    record: dict[str, Any]
    kind: str = KINDS[0]
    seed: int = 0

    @classmethod
    def parse(cls, raw: bytes) -> "Facts":
        """Facts from a file. Raises ValueError for what they cannot be."""
        with extra("codec"):
            from vdiff.training.safe_json import parse_object
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(raw, MOST_FACTS)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not inflate.eof or inflate.unused_data:
            raise ValueError("more than they may have")
        found = DEFAULTS | parse_object(text)
        names = {field.name for field in fields(cls)}
        if found.keys() != names:
            raise ValueError(f"the names {', '.join(sorted(found.keys() ^ names))}")
        for name, fits in CHECKS.items():
            if not fits(found[name]):
                raise ValueError(f"the value of {name}")
        facts = cls(**found)
        values = math.prod(facts.shape[1:])
        images = sum(size * count for size, count in facts.batches)
        if images != facts.shape[0] or max(b[0] for b in facts.batches) * values > MOST_AT_ONCE:
            raise ValueError("the sizes of the batches")
        return facts


CHECKS: dict[str, Callable[[Any], bool]] = {
    "shape": _shape, "dtype": lambda v: v in DTYPES, "data": _hash, "batches": _batches,
    "start": _whole(1), "depth": _whole(1), "spacing": _spacing,
    "steps": _whole(1, MOST_STEPS), "of": _plain, "record": _plain,
    "kind": lambda v: v in KINDS, "seed": _whole(0),
}  # fmt: skip


DEFAULTS: dict[str, Any] = {"kind": KINDS[0], "seed": 0}  # not written


class Writer:
    """Writes a file to an open stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hash, self.size = stream, hashlib.sha256(), 0
        self._write(HEAD.pack(MAGIC, VERSION))

    def words(self, words: NDArray[np.uint32]) -> None:
        """Append words to the payload, which begins at its bottom."""
        self._write(words.astype("<u4").tobytes())

    def close(self, facts: Facts) -> None:
        """Write the facts and the checksum. Raises ValueError for facts that could not be read."""
        told = {k: v for k, v in asdict(facts).items() if k not in DEFAULTS or v != DEFAULTS[k]}
        raw = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        raw = zlib.compress(raw, 9)
        Facts.parse(raw)
        self._write(raw + LENGTH.pack(len(raw)))
        self._write(self._hash.digest())

    def _write(self, raw: bytes) -> None:
        self._stream.write(raw)
        self._hash.update(raw)
        self.size += len(raw)


class Container:
    """A file that has passed every check which needs no model."""

    def __init__(self, path: Path, facts: Facts, words: int) -> None:
        self.path, self.facts, self.words = path, facts, words

    @classmethod
    def open(cls, path: Path) -> "Container":
        """Check a file. Raises InvalidValue where it is no such file, is cut off or damaged, or
        was written by a newer version."""
        path = path.resolve()
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            head = stream.read(HEAD.size)
            whole = len(head) == HEAD.size
            magic, version = HEAD.unpack(head) if whole else (head, 0)
            hint = "vdiff compress writes such files"
            same = magic == MAGIC
            require(same, "path", "be a compressed file", f"{path}, other bytes", hint)
            what, hint = f"have version {VERSION}", "a newer vdiff reads it"
            require(version == VERSION, "path", what, version, hint)
            least = HEAD.size + LENGTH.size + DIGEST
            require(size >= least, "path", "be whole", f"{path}, {size:,} bytes", "it is cut off")
            _check_digest(stream, path, size)
            end = size - DIGEST - LENGTH.size
            stream.seek(end)
            length = LENGTH.unpack(stream.read(LENGTH.size))[0]
            start = end - length
            fits = length <= MOST_FACTS and start >= HEAD.size and (start - HEAD.size) % 4 == 0
            require(fits, "path", "have facts of its length", f"{length:,} bytes")
            stream.seek(start)
            raw = stream.read(length)
        try:
            facts = Facts.parse(raw)
        except ValueError as error:
            raise InvalidValue("path", "have sound facts", printable(str(error))) from None
        words = (start - HEAD.size) // 4
        sound = facts.start <= words and facts.depth <= words
        require(sound, "path", "have the words that it says", f"{words:,}")
        return cls(path, facts, words)

    def read(self, end: int, count: int) -> NDArray[np.uint32]:
        """`count` words of the payload, below word number `end`."""
        with os.fdopen(open_regular(self.path, os.O_RDONLY), "rb") as stream:
            stream.seek(HEAD.size + 4 * (end - count))
            raw = stream.read(4 * count)
        require(len(raw) == 4 * count, "path", "stay as it is while it is read", "a shorter file")
        return np.frombuffer(raw, "<u4").astype(np.uint32)


def _check_digest(stream: BinaryIO, path: Path, size: int) -> None:
    """Raise unless the last bytes are the SHA-256 of all others."""
    stream.seek(0)
    digest, left = hashlib.sha256(), size - DIGEST
    while left and (part := stream.read(min(CHUNK, left))):
        digest.update(part)
        left -= len(part)
    same = left == 0 and stream.read(DIGEST + 1) == digest.digest()
    hint = "it is cut off or damaged: nothing of it can be decoded"
    require(same, "path", "have its own checksum", f"{path}, another one", hint)


def check_same(written: Identity, here: Identity) -> None:
    """Raise InvalidValue for the first fact that is another one here than where a file was
    written."""
    for name in {**here, **written}:
        own, its = here.get(name), written.get(name)
        if own != its:
            got, what = f"{own} here", f"be decoded with the {name} that it was written with"
            hint = HINTS.get(name, "")
            raise InvalidValue("path", f"{what}, {its}", got, hint)


HINTS = {
    "threads": "torch.set_num_threads(…): sums of another number differ in their last bits",
    "weights": "those of another model, or of another training step",
    "torch": "install that version: another one may compute other last bits",
}
