"""Files of known content, and a lock for writing one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vdiff._validate import require
from vdiff.disk import acquire_lock
from vdiff.errors import InvalidValue

WAIT = 3600.0  # seconds another process may take to download or to make a data set


@dataclass(frozen=True)
class File:
    """A file's name, size in bytes and checksum, `algorithm:digest`."""

    name: str
    size: int
    checksum: str

    def read(self, folder: Path) -> bytes:
        """The verified content. Raises ValueError for other content, and unless this is a regular
        file inside the folder."""
        path = folder / self.name
        target, hint = path.resolve(), "name the folder it is in, or copy it"
        inside = target.is_relative_to(folder.resolve())
        require(inside, "folder", f"hold {self.name} itself", f"a link to {target}", hint)
        what = f"hold {self.name} as a regular file"
        require(path.is_file(), "folder", what, f"something else at {path}")
        with path.open("rb") as stream:
            raw = stream.read(self.size + 1)  # no more than that into memory
        self.check(raw, f" at {path}", path.stat().st_size)
        return raw

    def check(self, raw: bytes, where: str = "", size: int | None = None) -> None:
        """Raise unless this is the content; `size` is that of a file which is not read to its
        end."""
        algorithm, digest = self.checksum.split(":")
        size = len(raw) if size is None else size
        came = f"{size:,} bytes"
        if size == self.size:
            actual = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
            came = "" if actual == digest else f"{algorithm} {actual}"
        meant = f"hold {self.name} as published, {self.size:,} bytes with {algorithm} {digest}"
        hint = "it is cut off, damaged or another file: delete it, and get or make it again"
        require(not came, "folder", meant, came + where, hint)

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, {self.checksum.replace(':', ' ')})"


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Create `folder` if it is missing, and lock it while one process writes `name` into it;
    others wait. Remove the created folders again if nothing was written."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / f".{name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(path, WAIT)
        folder.mkdir(parents=True, exist_ok=True)  # who held the lock may have removed it
    except OSError as error:  # a timeout is one too
        what = f"be one that {name} can be written to, for it is not there"
        raise InvalidValue("folder", what, f"{folder}: {error}") from error
    try:
        yield
    finally:
        lock.release()
        if new and {each.name for each in folder.iterdir()} <= {path.name}:
            path.unlink(missing_ok=True)
            for each in new:
                each.rmdir()
