"""Files that are written whole or not at all, and only where they were asked for.

New content goes into a temporary file beside the target, is flushed to the disk, and is then
renamed: a crash leaves the old file or the new one. An existing name is never opened for writing,
so that no link is followed and no pipe blocks.
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
from typing import TYPE_CHECKING

from vdiff.errors import InvalidValue
from vdiff.extras import extra

if TYPE_CHECKING:
    from filelock import BaseFileLock

DAY = 86_400.0  # seconds
# follow no link, and do not block on a pipe without a reader
_SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe"}
_KINDS |= {stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file with the suffix of `path`. It replaces `path` when the block ends,
    and is removed if the block raises.

    A replaced file keeps its mode. A link at `path` is replaced, not followed. Raises OSError if a
    folder, a device or a pipe has the name, or the file cannot be written; the old file stays.

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
    try:
        os.close(open_new(aside, 0o666 if kept is None else 0o600))
    except OSError as error:
        _name(error, path, aside)
        raise
    try:
        mode = stat.S_IMODE(aside.lstat().st_mode) if kept is None else kept
        yield aside
        aside.chmod(mode)  # safetensors writes files that their owner alone can read
        atomic_rename(aside, path)
    except OSError as error:
        _name(error, path, aside)
        raise
    finally:
        aside.unlink(missing_ok=True)


def _name(error: OSError, path: Path, aside: Path) -> None:
    """Name the file that was asked for: the temporary name would tell the user nothing."""
    if error.errno is not None and error.filename in (None, str(aside)):
        error.filename = str(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file with `atomic_write`."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def open_new(path: Path, mode: int = 0o666) -> int:
    """Create a file and open it for writing; returns its descriptor. Raises OSError if anything
    has the name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS, mode)


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file; returns its descriptor. Raises OSError if a link, or anything else but
    a file, has the name."""
    try:
        handle = os.open(path, flags | _SAFE_FLAGS, 0o666)
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


def acquire_lock(path: Path, timeout: float = 0.0) -> "BaseFileLock":
    """Lock a file of this name, and wait for it up to `timeout` seconds. The lock ends when it is
    released, or when the process ends. Raises OSError; `filelock.Timeout` is one."""
    with extra("train"):
        from filelock import FileLock

    os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # FileLock itself would follow a link
    lock = FileLock(path)
    lock.acquire(timeout=timeout, blocking=timeout > 0)
    return lock


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, on a new line if the last one was cut off. Creates a missing
    file; raises as `open_regular`.

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
    """Create an empty folder; whatever has the name is removed."""
    remove(path)
    path.mkdir(parents=True)
    return path


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder with its content, if it exists."""
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        shutil.rmtree(path, ignore_errors=True)
    elif mode is not None:
        path.unlink(missing_ok=True)


def atomic_rename(aside: Path, path: Path) -> None:
    """Flush a new file or folder to the disk, then rename it."""
    if aside.is_dir():
        mode = stat.S_IMODE(aside.lstat().st_mode) & 0o666
        for part in aside.iterdir():
            part.chmod(mode)  # safetensors writes files that their owner alone can read
            _flush(part)
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def absolute(argument: str, place: str | Path) -> Path:
    """An absolute path without ~ and links. Raises ValueError for the home of an unknown user, and
    for circular links."""
    try:
        return Path(place).expanduser().resolve()
    except RuntimeError as error:
        what, came = "be a path that leads somewhere", repr(str(place))
        raise InvalidValue(argument, what, came, str(error)) from None


def remove_stale(folder: Path) -> None:
    """Delete the partial files of processes that were killed a day ago or earlier."""
    for left in folder.glob(".*.partial*"):
        if left.lstat().st_mtime < time.time() - DAY:
            remove(left)


def write_error(error: Exception, path: Path, needed: int) -> OSError:
    """The error of a file that could not be written, with the bytes needed and free."""
    free = shutil.disk_usage(path.parent).free
    number = getattr(error, "errno", None) or (errno.ENOSPC if free < needed else errno.EIO)
    why = getattr(error, "strerror", None) or str(error)
    return OSError(number, f"{why}; {needed:,} bytes needed, {free:,} free", str(path))


def check_output(argument: str, path: Path) -> None:
    """Raise ValueError unless a file of this name can be written or replaced. Call it before
    anything is computed."""
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        came = f"{path}, {_kind(mode)}"
        raise InvalidValue(argument, "be a new file or one to replace", came)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        what = "be in a folder that can be written to"
        raise InvalidValue(argument, what, str(path.parent), f"--{argument} FILE")


def _mode(path: Path) -> int | None:
    """The mode of a path (of a link itself); None if nothing has the name."""
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
    "absolute", "acquire_lock", "append_line", "atomic_rename", "atomic_write", "check_output",
    "new_folder", "open_new", "open_regular", "remove", "remove_stale", "write_error",
    "write_text",
]  # fmt: skip
