"""Writers of CIFAR-10's two forms, as they are published; a small form, and damage to files."""

import gzip
import hashlib
import io
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdiff.data.cifar10 import Published
from vdiff.data.file import File


def pictures(n: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and labels of which every entry follows from its place."""
    i, j = np.arange(first, first + n)[:, None], np.arange(3072)
    return ((7 * i + j * j) % 256).astype(np.uint8), (3 * i[:, 0] + 1) % 10


def write_binary(data: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(
        bytes([label]) + row.tobytes() for row, label in zip(data, labels, strict=True)
    )


def write_python(
    data: np.ndarray, labels: np.ndarray, name: bytes = b"training batch 1 of 5"
) -> bytes:
    """What Python 2's cPickle writes in protocol 2 for {data, labels, batch_label, filenames},
    instruction by instruction."""
    memo = iter(range(1, 10**6))

    def put() -> bytes:
        i = next(memo)
        return b"q" + bytes([i]) if i < 256 else b"r" + struct.pack("<i", i)

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)])
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value))
        ) + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def items(values: list[bytes]) -> bytes:  # a thousand at a time
        chunks = [values[i : i + 1000] for i in range(0, len(values), 1000)]
        return b"".join(
            b"(" + b"".join(chunk) + b"e" if len(chunk) > 1 else chunk[0] + b"a"
            for chunk in chunks
        )

    out = b"\x80\x02}" + put() + b"(" + text(b"data") + put()
    out += b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
    out += b"K\x00\x85" + put() + b"U\x01b\x87R" + put()
    out += b"(K\x01" + integer(len(data)) + integer(3072) + b"\x86" + put()
    out += (
        b"cnumpy\ndtype\n" + put() + b"U\x02u1" + put() + b"K\x00K\x01\x87" + put() + b"R" + put()
    )
    out += (
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
        + put()
        + b"b\x89"
        + text(data.tobytes())
        + put()
        + b"tb"
    )
    out += text(b"labels") + put() + b"]" + put() + items([integer(int(k)) for k in labels])
    out += (
        text(b"batch_label")
        + put()
        + text(name)
        + put()
        + text(b"filenames")
        + put()
        + b"]"
        + put()
    )
    out += items(
        [text(b"leptodactylus_pentadactylus_s_%06d.png" % i) + put() for i in range(len(data))]
    )
    return out + b"u."


def pack(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A gzipped tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1, mtime=0)


def file_of(name: str, raw: bytes) -> File:
    return File(name, len(raw), f"sha256:{hashlib.sha256(raw).hexdigest()}")


NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def small(n: int = 4) -> tuple[Published, bytes, dict[str, bytes]]:
    """A form of `n` images to a batch with its checksums, its archive and its batches."""
    folder = "cifar-10-batches-bin"
    batches = {f"{name}.bin": write_binary(*pictures(n, i * n)) for i, name in enumerate(NAMES)}
    published = {f"{folder}/readme.html": b"<p>not read</p>"}
    published |= {f"{folder}/{name}": raw for name, raw in reversed(batches.items())}
    archive = pack(published)  # in another order, as the real one
    files = tuple(file_of(name, raw) for name, raw in batches.items())
    return Published(file_of("cifar-10-binary.tar.gz", archive), folder, files), archive, batches


def lay_out(home: Path, batches: dict[str, bytes]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for name, raw in batches.items():
        (home / name).write_bytes(raw)


def damaged(raw: bytes, count: int, seed: int, pixels: int = 3072) -> Iterator[bytes]:
    """Files with one to three changes each: bits, bytes, lengths, cuts, repetitions. Four in five
    of them fall outside the pixels, where a reader has something to misunderstand."""
    dice = random.Random(seed)
    structure = [
        i for i in range(len(raw)) if i < 400 or i > len(raw) - 700 or dice.random() < 64 / pixels
    ]
    for _ in range(count):
        bad = bytearray(raw)
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            at = min(
                dice.choice(structure) if dice.random() < 0.8 else dice.randrange(len(raw)),
                max(0, len(bad) - 1),
            )
            match dice.randrange(6):
                case 0:
                    bad[at : at + 1] = bytes([bad[at] ^ 1 << dice.randrange(8)]) if bad else b""
                case 1:
                    bad[at : at + 1] = dice.randbytes(1)
                case 2:
                    del bad[at:]
                case 3:
                    del bad[at : at + dice.choice((1, 4, 512))]
                case 4:
                    bad[at:at] = bad[at : at + dice.choice((1, 5, 512))] * dice.choice((1, 2, 50))
                case 5:
                    bad[at : at + 4] = dice.choice(
                        (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80")
                    )
        yield bytes(bad)
