"""Objects of a user's own, from a Python file that they name."""

import runpy
from pathlib import Path
from typing import Any

from vdiff.errors import must


def from_file(place: str) -> Any:
    """What FILE.py:NAME says; the file is run as Python runs it.

    Raises:
        ValueError: where the file or the name is not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "mine.py").write_text("answer = 42")
    ...     from_file(f"{folder}/mine.py:answer")
    42
    """
    path, _, name = place.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(must("vdiff", "FILE.py:NAME", "name a file and something in it", repr(place), "for instance mine.py:model"))
    found = runpy.run_path(path)
    if name not in found:
        known = ", ".join(key for key in found if not key.startswith("_")) or "nothing"
        raise ValueError(must("vdiff", "FILE.py:NAME", f"be something that {path} defines", repr(name), f"it has {known}"))
    return found[name]


__all__ = ["from_file"]
