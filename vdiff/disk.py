"""Files that are whole or not there at all, and that stay where they were asked for.

New content goes into a new file beside its place, is flushed to the disk, and takes its name only
then: a crash leaves the old file or the new one. A name that exists is never opened for writing,
so that a link which somebody put there leads nowhere, and no pipe hangs.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vdiff.errors import InvalidValue

DAY = 86_400.0  # seconds
# a link is not followed, and a pipe without a reader does not block
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe"}
_KINDS |= {stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new file to write to, with the suffix of `path`; it replaces `path` when the block ends,
    and is removed if the block raises.

    The mode is that of the file that is replaced, else the default. A link at `path` is replaced,
    not followed.

    Raises:
        OSError: if a folder, a device or a pipe has the name, or the file cannot be written; the
            old file stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "new.txt") as aside:
    ...         _ = aside.write_text("whole")
    ...     (Path(folder) / "new.txt").read_text(), len(list(Path(folder).iterdir()))
    ('whole', 1)
    """
    before = _mode(path)
    if before is not None and not (stat.S_ISREG(before) or stat.S_ISLNK(before)):
        raise _no_file(path, before)
    kept = stat.S_IMODE(before) if before is not None and stat.S_ISREG(before) else None
    aside = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _AS_IT_IS
    try:
        os.close(os.open(aside, flags, 0o666 if kept is None else 0o600))
    except OSError as error:
        error.filename = str(path)  # nobody knows the other name
        raise
    try:
        mode = stat.S_IMODE(aside.lstat().st_mode) if kept is None else kept
        yield aside
        aside.chmod(mode)  # safetensors writes files that their owner alone can read
        commit(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; raises as `atomic_write`."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def open_regular(path: Path, flags: int) -> int:
    """A handle of a regular file, which is made if it is missing and `flags` have O_CREAT.

    Raises OSError if the name is that of a link or anything else but a file.
    """
    try:
        handle = os.open(path, flags | _AS_IT_IS, 0o666)
    except OSError as error:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            raise _no_file(path, mode) from error
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise _no_file(path, mode)
    return handle


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is made if it is missing, behind one that a full disk
    cut off; raises as `open_regular`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Path(folder) / "log"
    ...     _ = log.write_text("cut o")
    ...     append_line(log, "two")
    ...     log.read_text()
    'cut o\\ntwo\\n'
    """
    handle = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    with open(handle, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        file.write(b"\n" * torn + f"{line}\n".encode())


def new_folder(path: Path) -> Path:
    """An empty folder at `path`; whatever has the name is removed."""
    remove(path)
    path.mkdir(parents=True)
    return path


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder if it is there; what a link points to stays."""
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        shutil.rmtree(path, ignore_errors=True)
    elif mode is not None:
        path.unlink(missing_ok=True)


def commit(aside: Path, path: Path) -> None:
    """Give a new file or folder its name: it is flushed to the disk first, then renamed."""
    if aside.is_dir():
        mode = stat.S_IMODE(aside.lstat().st_mode) & 0o666
        for part in aside.iterdir():
            part.chmod(mode)  # safetensors writes files that their owner alone can read
            _flush(part)
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def absolute(argument: str, place: str | Path) -> Path:
    """A path without ~ and links, which does not depend on the working directory. Raises
    ValueError for the home of an unknown user, and for circular links."""
    try:
        return Path(place).expanduser().resolve()
    except RuntimeError as error:
        what, came = "be a path that leads somewhere", repr(str(place))
        raise InvalidValue(argument, what, came, str(error)) from None


def sweep(folder: Path) -> None:
    """Delete the partial files of processes that were killed a day ago or earlier."""
    for left in folder.glob(".*.partial*"):
        if left.lstat().st_mtime < time.time() - DAY:
            remove(left)


def no_room(error: Exception, path: Path, needed: int) -> OSError:
    """The error of a file that could not be written, with the bytes that it needs and those that
    are free.

    >>> str(no_room(OSError(errno.EFBIG, "File too large"), Path("weights"), 1234))
    "[Errno 27] File too large; 1,234 bytes needed, ... free: 'weights'"
    """
    free = shutil.disk_usage(path.parent).free
    number = getattr(error, "errno", None) or (errno.ENOSPC if free < needed else errno.EIO)
    said = getattr(error, "strerror", None) or str(error)
    return OSError(number, f"{said}; {needed:,} bytes needed, {free:,} free", str(path))


def check_output(argument: str, path: Path) -> None:
    """Raise ValueError unless a file that somebody named can be written: before anything is
    computed.

    What has the name already must be a regular file, for it is replaced."""
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        came = f"{path}, {_kind(mode)}"
        raise InvalidValue(argument, "be a new file or one to replace", came)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        what = "be in a folder that can be written to"
        raise InvalidValue(argument, what, str(path.parent), f"--{argument} FILE")


def _mode(path: Path) -> int | None:
    """What a name stands for, a link for itself; None if it is free."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _no_file(path: Path, mode: int) -> OSError:
    text = f"{_kind(mode)} has this name, where a file is written"
    return OSError(errno.EEXIST, text, str(path))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = [
    "absolute",
    "append_line",
    "atomic_write",
    "check_output",
    "commit",
    "new_folder",
    "no_room",
    "open_regular",
    "remove",
    "sweep",
    "write_text",
]
