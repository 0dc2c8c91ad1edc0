"""What a command takes from outside: objects of a user's own, from a Python file that they name, and the device."""

import runpy
from pathlib import Path
from typing import Any

import torch

from vdiff.errors import must
from vdiff.training.ranks import own_device


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


def device_of(name: str | None) -> torch.device:
    """A device by name; without one a GPU where there is one, under torchrun each process its own.

    Raises:
        ValueError: for a name that is none.

    >>> device_of("cpu")
    device(type='cpu')
    """
    if name is None:
        return own_device()
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(must("vdiff", "device", "be a device of torch", repr(name), "cpu, cuda or cuda:1")) from None


__all__ = ["device_of", "from_file"]
