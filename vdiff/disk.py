"""Files that are whole or not there at all."""

import os
from pathlib import Path

from vdiff.errors import must


def commit(aside: Path, path: Path) -> None:
    """Give what was written to `aside` (a file or a folder) its name: flushed to the disk first, then renamed, so that a crash
    leaves the old or the new.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "new").write_text("whole")
    ...     commit(Path(folder) / "new", Path(folder) / "old")
    ...     (Path(folder) / "old").read_text()
    'whole'
    """
    mask = os.umask(0)
    os.umask(mask)
    for part in (*(aside.iterdir() if aside.is_dir() else ()), aside):
        if part.is_file():
            part.chmod(0o666 & ~mask)  # safetensors writes files that their owner alone can read
        _flush(part)
    os.replace(aside, path)
    _flush(path.parent)


def absolute(function: str, argument: str, place: str | Path) -> Path:
    """A path that does not depend on the working directory: without ~, its links followed.

    Raises ValueError for the home of an unknown user, and for links that lead in a circle.

    >>> absolute("example", "folder", "~no-such-user/runs")
    Traceback (most recent call last):
        ...
    ValueError: example: argument 'folder' must be a path that leads somewhere; got '~no-such-user/...
    """
    try:
        return Path(place).expanduser().resolve()
    except RuntimeError as error:
        what, came = "be a path that leads somewhere", repr(str(place))
        raise ValueError(must(function, argument, what, came, str(error))) from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["absolute", "commit"]
