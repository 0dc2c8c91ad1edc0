"""The numbers of each step, and where they are shown: a bar, a log, TensorBoard if it is
installed. None of it can stop the training."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff.terminal import Bar, on_terminal, say

Entry = dict[str, Any]


class Reading(NamedTuple):
    """The loss of a step, the norm of its gradient, whether one of them is not finite, and whether
    a process was asked to stop."""

    step: int
    loss: float
    norm: float
    bad: bool
    stop: bool


class Readings:
    """Readings in the order of their steps, delayed by `late` steps: by one on a GPU, where the
    next is under way already, so that neither waits for the other; not at all on a CPU.

    >>> readings = Readings(late=0)
    >>> [reading.loss for reading in readings.push(0, torch.tensor([1.5, 0.1, 0.0, 0.0]))]
    [1.5]
    """

    def __init__(self, late: int) -> None:
        self.late = late
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, numbers: Tensor) -> Iterator[Reading]:
        """Readings that are due once this step has started; `numbers` are the loss, the norm, and
        two flags."""
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            numbers = numbers.to("cpu", non_blocking=True)
            event.record()
        self._pending.append((step, numbers, event))
        yield from self.rest(self.late)

    def rest(self, late: int = 0) -> Iterator[Reading]:
        """All pending readings but the last `late`."""
        while len(self._pending) > late:
            step, numbers, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, bad, stop = numbers.tolist()
            yield Reading(step, loss, norm, bad > 0, stop > 0)


class Record:
    """A progress bar with rate, time left and loss, and listeners that receive every entry of the
    log.

    Without a terminal each entry is a printed line. If a listener raises, there is a warning, and
    training continues.

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
        """Pass an entry to all listeners, with the seconds since the start."""
        entry = {**entry, "seconds": round(time.monotonic() - self.started, 3)}
        for listener in self.listeners:
            try:
                listener(entry)
            except Exception as error:
                _warn("a log", error)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def _print(entry: Entry) -> None:
    numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
    say("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


def _warn(what: str, error: Exception) -> None:
    text = f"{what} failed, training continues: {type(error).__name__}: {error}"
    warnings.warn(text, stacklevel=3)


def tensorboard(folder: Path, first: int) -> list[Callable[[Entry], None]]:
    """A listener that writes to TensorBoard, which forgets the steps after `first`; none if it is
    not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    try:
        writer: Any = SummaryWriter(str(folder), purge_step=first + 1)
    except Exception as error:
        _warn("TensorBoard", error)
        return []

    def write(entry: Entry) -> None:
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, entry["step"])
        writer.flush()

    return [write]


__all__ = ["Reading", "Readings", "Record", "tensorboard"]
