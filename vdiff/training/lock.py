"""One evaluation at a time of a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vdiff.disk import open_regular


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


__all__ = ["locked"]
