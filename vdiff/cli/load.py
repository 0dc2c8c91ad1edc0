"""What a command takes from outside: objects of a user's own, from a Python file that they name, and the device."""

import runpy
import traceback
from pathlib import Path
from typing import Any

import torch

from vdiff.errors import must


def from_file(place: str) -> Any:
    """The object NAME of FILE.py. The file is run as Python runs it, with all that it does: name only
    files that you trust.

    Raises:
        ValueError: where the file or the name is not there, or the file fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "mine.py").write_text("answer = 42")
    ...     from_file(f"{folder}/mine.py:answer")
    42
    """
    path, _, name = place.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(must("vdiff", "FILE.py:NAME", "name a file and something in it", repr(place), "for instance mine.py:model"))
    try:
        found = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        what = f"name a file that runs as Python, as {path} does not"
        came = f"{type(error).__name__}: {error}{lines[-1] if lines else ''}"
        raise ValueError(must("vdiff", "FILE.py:NAME", what, came)) from error
    if name not in found:
        known = ", ".join(key for key in found if not key.startswith("_")) or "nothing"
        raise ValueError(must("vdiff", "FILE.py:NAME", f"be something that {path} defines", repr(name), f"it has {known}"))
    return found[name]


def device_of(name: str | None) -> torch.device:
    """A device by name; without one a GPU where there is one, under torchrun each process its own.

    Raises:
        ValueError: for a name that is none, or of what this machine has not.

    >>> device_of("cpu")
    device(type='cpu')
    """
    if name is None:
        from vdiff.training.ranks import own_device

        return own_device()
    try:
        device, why = torch.empty(0, device=name).device, "it holds no values"
    except (RuntimeError, AssertionError, ImportError) as error:
        device, why = torch.device("meta"), str(error).splitlines()[0]
    if device.type == "meta":
        what = "be one of this machine: cpu, cuda or cuda:1"
        raise ValueError(must("vdiff", "device", what, repr(name), why))
    return device


__all__ = ["device_of", "from_file"]
