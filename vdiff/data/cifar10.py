"""CIFAR-10, 60,000 photographs of 32×32 pixels in ten classes, from its binary archive."""

import gzip
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from vdiff._validate import require, validated
from vdiff.data.file import File
from vdiff.data.images import Images, joined
from vdiff.disk import absolute
from vdiff.errors import InvalidValue

SHAPE, CLASSES, BATCH = (3, 32, 32), 10, 10_000
RECORD = 1 + 3 * 32 * 32
HOME = "https://www.cs.toronto.edu/~kriz/"


@validated
def decode_binary(raw: bytes) -> Images:
    """Decode a batch of the binary archive: for each image a byte for its class, then 1,024 bytes
    each for red, green and blue, row by row.

    >>> decode_binary(bytes([7] + 3072 * [255])).labels
    tensor([7])
    """
    if not raw or len(raw) % RECORD:
        what, came = f"hold records of {RECORD:,} bytes", f"{len(raw):,} bytes"
        raise InvalidValue("raw", what, came, "the file is cut off")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    data, labels = records[:, 1:].copy(), records[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        came = f"{labels.max()} at image {int(labels.argmax())}"
        raise InvalidValue("raw", f"hold classes 0 to {CLASSES - 1}", came)
    return Images(torch.from_numpy(data).view(-1, *SHAPE), torch.from_numpy(labels))


def encode_binary(images: Images) -> bytes:
    """The inverse of `decode_binary`."""
    labels = images.labels[:, None].to(torch.uint8)
    return torch.cat([labels, images.pixels.flatten(1)], 1).numpy().tobytes()


@dataclass(frozen=True)
class Published:
    """CIFAR-10 as published: an archive of a folder with five training batches and a test
    batch."""

    archive: File
    folder: str
    batches: tuple[File, ...]


# sizes and checksums: those of TensorFlow Datasets and torchvision-ruby
DIGESTS = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
ARCHIVE = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
PUBLISHED = Published(
    File("cifar-10-binary.tar.gz", 170_052_171, ARCHIVE),
    "cifar-10-batches-bin",
    tuple(File(name, BATCH * RECORD, f"sha256:{digest}") for name, digest in DIGESTS.items()),
)
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz")  # the same images
CONVERSION = """\
import numpy, pathlib, pickle
pathlib.Path("cifar-10-batches-bin").mkdir(exist_ok=True)
for path in pathlib.Path("cifar-10-batches-py").glob("*_batch*"):
    batch = pickle.loads(path.read_bytes(), encoding="latin1")
    images = numpy.c_[numpy.uint8(batch["labels"]), batch["data"]]
    images.tofile(f"cifar-10-batches-bin/{path.name}.bin")"""


def cifar10(folder: str | Path, *, download: bool = True) -> tuple[Images, Images]:
    """The 50,000 training and 10,000 test images, in their published order.

    They are read from `folder`, which holds the archive or its unpacked files. Sizes and checksums
    are verified each time, and nothing is unpacked onto the disk. A missing archive (170 MB) is
    downloaded, but only into a folder that is new, empty or holds only data sets of vdiff. Raises
    ValueError with what was found and what to put where. The Python archive holds pickles and is
    not read; the error then has the lines that convert it.

    Learning Multiple Layers of Features from Tiny Images, A. Krizhevsky, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    folder = absolute("folder", folder)
    batches = _find(folder)
    if batches is not None:
        return read_batches(batches)
    reason, others = "", _others(folder)
    _refuse_pickles(folder)
    if download and not others:
        from vdiff.data.download import Unreachable
        from vdiff.data.download import download as fetch

        try:
            fetch(HOME + PUBLISHED.archive.name, PUBLISHED.archive, folder)
        except Unreachable as error:
            reason = f"; its download failed: {error}"
        batches = _find(folder)
    if batches is None:
        hint = f"put {PUBLISHED.archive} from {HOME.rstrip('/')} there as it is"
        hint += "; dataset('patches') needs no download"
        if others:
            hint = f"a folder with other things gets no download: name a new one, or {hint}; "
            hint += "vdiff.data.load reads images of your own"
        came = _what_there_is(folder, others) + reason
        raise InvalidValue("folder", "hold CIFAR-10", came, hint)
    return read_batches(batches)


def read_batches(batches: Iterable[bytes]) -> tuple[Images, Images]:
    """The images of all training batches, and of the test batch, which is the last."""
    *train, test = [decode_binary(raw) for raw in batches]
    return joined(train), test


def _find(folder: Path) -> Iterator[bytes] | None:
    """The batches, if all of them are there."""
    home, archive = folder / PUBLISHED.folder, PUBLISHED.archive
    if all((home / file.name).exists() for file in PUBLISHED.batches):
        return (file.read(home) for file in PUBLISHED.batches)
    if (folder / archive.name).exists():
        return unpack(archive.read(folder), PUBLISHED)
    return None


def is_available(folder: str | Path) -> bool:
    """Whether a folder holds files with the names of CIFAR-10, or the Python archive, which
    `cifar10` does not read."""
    folder = absolute("folder", folder)
    return _find(folder) is not None or bool(_pickled(folder))


def _pickled(folder: Path) -> list[str]:
    return [name for name in PICKLED if (folder / name).exists()]


def _refuse_pickles(folder: Path) -> None:
    """Raise if the folder holds only the Python archive, with the lines that convert it."""
    there = _pickled(folder)
    if there:
        came = f"{there[0]} in {folder}, whose pickles are not read: they can run code"
        hint = (
            f"put {PUBLISHED.archive.name} there, which holds the same images; or, if you trust "
            "the Python archive, unpack it and run these lines in that folder"
        )
        error = InvalidValue("folder", "hold the binary form of CIFAR-10", came, hint)
        raise ValueError(f"dataset: {error}\n{CONVERSION}")


def _others(folder: Path) -> list[str]:
    """What a folder holds besides data sets of vdiff; the path itself if it is no folder."""
    if not folder.is_dir():
        return [folder.name] if os.path.lexists(folder) else []
    archive = PUBLISHED.archive.name
    own = {"patches", "patches.part", PUBLISHED.folder, archive, f"{archive}.part"}
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name not in own and not name.startswith("."))


def _what_there_is(folder: Path, others: list[str]) -> str:
    if others and not folder.is_dir():
        return f"a file, {folder}"
    home = folder / PUBLISHED.folder
    if home.exists():
        missing = [file.name for file in PUBLISHED.batches if not (home / file.name).exists()]
        return f"{home} without {', '.join(missing)}"
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        return f"nothing of it in {folder}, which holds {', '.join(others[:3])}{more}"
    return f"nothing of it in {folder}"


def unpack(archive: bytes, form: Published) -> Iterator[bytes]:
    """The verified batches in an archive. Nothing is written, links raise, and no more is unpacked
    than the size of the batches."""
    wanted = {f"{form.folder}/{file.name}": file for file in form.batches}
    contents: dict[str, bytes] = {}
    whole = f"hold {form.archive.name} whole"
    try:
        stream = _Bounded(archive, sum(file.size for file in form.batches) + (1 << 20))
        with tarfile.open(fileobj=stream, mode="r|") as members:  # type: ignore[call-overload]
            for member in members:
                file = wanted.get(member.name)
                if file is not None:
                    if not member.isreg() or member.size != file.size:
                        came = f"{member.size:,} bytes" if member.isreg() else "a link or a device"
                        meant = f"a file of {file.size:,} bytes"
                        raise ValueError(f"{member.name} is {came} instead of {meant}")
                    contents[file.name] = members.extractfile(member).read()
                    file.check(contents[file.name], f" in {form.archive.name}")
    except Exception as error:  # gzip, zlib and tarfile each have their own
        raise InvalidValue("folder", whole, f"an archive that breaks: {error}") from error
    missing = [file.name for file in form.batches if file.name not in contents]
    require(not missing, "folder", whole, f"one without {', '.join(missing)}")
    return (contents.pop(file.name) for file in form.batches)


class _Bounded:
    """A gzipped stream that raises after `limit` bytes: a small archive can hold any number of
    zeros."""

    def __init__(self, packed: bytes, limit: int) -> None:
        self.stream, self.left = gzip.GzipFile(fileobj=BytesIO(packed)), limit

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)  # tarfile asks for 10 kB at a time
        self.left -= len(chunk)
        if self.left < 0:
            raise ValueError("it unpacks to more than the batches it should hold")
        return chunk
