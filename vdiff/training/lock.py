"""One training at a time in a folder."""

import json
import os
import socket
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
    os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # the lock itself would follow a link
    lock = FileLock(path)
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


__all__ = ["hold"]
