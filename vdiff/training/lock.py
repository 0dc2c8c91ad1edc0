"""One training at a time in a folder, and one evaluation at a time of a file."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vdiff.disk import open_regular
from vdiff.errors import must
from vdiff.training.plain import read_json


def hold(folder: Path) -> FileLock:
    """The lock of a folder, until it is released or its process ends, however it ends: one left
    behind is free.

    Raises ValueError that says who holds it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = hold(Path(folder))
    ...     try: hold(Path(folder))
    ...     except ValueError as error: print(error)                                       # doctest: +ELLIPSIS
    ...     lock.release()
    Run: argument 'folder' must be used by one training at a time; got process ... on ... in ...
    """
    path = folder / ".lock"
    lock = _open(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = _holder(path)
        hint = "wait for it or stop it, or take another folder"
        raise ValueError(
            must(
                "Run", "folder", "be used by one training at a time", f"{holder} in {folder}", hint
            )
        ) from error
    with open(open_regular(path, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
    return lock


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone has the lock of that name within the block. The lock's file is
    there meanwhile.

    Raises OSError if the file cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder) / "a") as alone, locked(Path(folder) / "a") as too:
    ...         alone, too
    (True, False)
    """
    lock = _open(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # some systems keep a file that is open
            path.unlink()
        lock.release()


def _open(path: Path) -> FileLock:
    os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # the lock itself would follow a link
    return FileLock(path)


def _holder(path: Path) -> str:
    try:
        who = read_json("Run", path)
        return f"process {who['pid']} on {who['host']}"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # it has taken the lock and not yet said who it is
        return "another process"


__all__ = ["hold", "locked"]
