"""What training says while it runs: a bar, a log, TensorBoard where it is installed. None of it
can stop the training."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdiff.terminal import Bar, on_terminal, say

Entry = dict[str, Any]


class Record:
    """A progress bar with rate, time left and loss, and every entry of the log to all that take
    it.

    Without a terminal each entry is a printed line. A listener that raises is warned of, and
    training goes on.

    >>> entries = []
    >>> with Record(10, "bits_per_dim", quiet=True, listeners=[entries.append]) as record:
    ...     record.advance(1.5)
    ...     record.write({"step": 1, "train_bits_per_dim": 1.5})
    >>> entries[0]["step"]
    1
    """

    def __init__(
        self,
        steps: int,
        unit: str,
        *,
        first: int = 0,
        quiet: bool = False,
        listeners: list[Callable[[Entry], None]] | None = None,
    ) -> None:
        self.unit = unit.replace("_per_", "/")
        shown, self.started = not quiet and on_terminal(), time.monotonic()
        self.listeners = [*(listeners or []), *([] if quiet or shown else [_print])]
        self.bar = Bar(steps, "step", done=first, quiet=not shown)

    def advance(self, loss: float) -> None:
        """One step done."""
        self.bar.update(note=f"{loss:.3f} {self.unit}")

    def write(self, entry: Entry) -> None:
        """Hand an entry to the log, with the seconds since the start."""
        entry = {**entry, "seconds": round(time.monotonic() - self.started, 3)}
        for listener in self.listeners:
            try:
                listener(entry)
            except Exception as error:
                warnings.warn(
                    f"a log failed, training goes on: {type(error).__name__}: {error}",
                    stacklevel=2,
                )

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def _print(entry: Entry) -> None:
    numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
    say("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


def tensorboard(folder: Path, first: int) -> list[Callable[[Entry], None]]:
    """A listener that writes to TensorBoard, what it has of steps after `first` dropped; none
    where it is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(tensorboard(Path(folder), 0)) <= 1
    True
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    try:
        writer: Any = SummaryWriter(str(folder), purge_step=first + 1)
    except Exception as error:
        warnings.warn(
            f"TensorBoard failed, training goes on: {type(error).__name__}: {error}", stacklevel=2
        )
        return []

    def write(entry: Entry) -> None:
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, entry["step"])
        writer.flush()

    return [write]


__all__ = ["Record", "tensorboard"]
