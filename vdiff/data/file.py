"""Files of known content, and the right to write one: what data is read from."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vdiff.disk import open_regular
from vdiff.errors import InvalidValue
from vdiff.extras import extra

WAIT = 3600.0  # seconds another process may take to download or to make a data set


@dataclass(frozen=True)
class File:
    """A file by its name, its size in bytes and its checksum, `algorithm:digest`."""

    name: str
    size: int
    checksum: str

    def read(self, folder: Path) -> bytes:
        """All of it, verified. Raises ValueError if it is not a regular file inside the folder, or
        has other content."""
        path = folder / self.name
        if not path.resolve().is_relative_to(folder.resolve()):
            came, hint = f"a link to {path.resolve()}", "name the folder it is in, or copy it"
            raise InvalidValue("folder", f"hold {self.name} itself", came, hint)
        if not path.is_file():
            what, came = f"hold {self.name} as a regular file", f"something else at {path}"
            raise InvalidValue("folder", what, came)
        size = path.stat().st_size
        if size != self.size:  # before anything is read into memory
            raise self._other(f"{size:,} bytes at {path}")
        with path.open("rb") as stream:
            raw = stream.read(self.size + 1)
        self.check(raw, f" at {path}")
        return raw

    def check(self, raw: bytes, where: str = "") -> None:
        """Raise unless this is the content."""
        algorithm, digest = self.checksum.split(":")
        if len(raw) != self.size:
            raise self._other(f"{len(raw):,} bytes{where}")
        came = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
        if came != digest:
            raise self._other(f"{algorithm} {came}{where}")

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, {self.checksum.replace(':', ' ')})"

    def _other(self, came: str) -> ValueError:
        checksum = self.checksum.replace(":", " ")
        meant = f"hold {self.name} as published, {self.size:,} bytes with {checksum}"
        hint = "it is cut off, damaged or another file: delete it, and get or make it again"
        return InvalidValue("folder", meant, came, hint)


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Lock `folder`, which is made if it is missing, while one process makes `name` in it; others
    wait. The lock of a process that died is free."""
    with extra("train"):
        from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".{name}.lock"
        os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # the lock itself would follow a link
        lock = FileLock(path, timeout=WAIT)
        lock.acquire()
    except OSError as error:  # a timeout is one too
        what = f"be one that {name} can be written to, for it is not there"
        raise InvalidValue("folder", what, f"{folder}: {error}") from error
    try:
        yield
    finally:
        lock.release()


__all__ = ["File", "writing"]
