"""The metrics of each step, and where they go: a progress bar, a log, TensorBoard if it is
installed. Errors here never stop the training."""

import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff.disk import write_text
from vdiff.terminal import Bar, on_terminal, say
from vdiff.training.safe_json import lines, parse_object

Entry = dict[str, Any]


class StepMetrics(NamedTuple):
    """The loss of a step, the norm of its gradient, whether one of them is not finite, and whether
    a process received a signal to stop."""

    step: int
    loss: float
    norm: float
    bad: bool
    stop: bool


class AsyncMetrics:
    """The metrics of each step, read `delay` steps later. With a delay of one, a GPU computes the
    next step meanwhile."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, numbers: Tensor) -> Iterator[StepMetrics]:
        """Add a step with its loss, norm and two flags; yields the metrics that are due."""
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            numbers = numbers.to("cpu", non_blocking=True)
            event.record()
        self._pending.append((step, numbers, event))
        yield from self.rest(self.delay)

    def rest(self, keep: int = 0) -> Iterator[StepMetrics]:
        """All pending metrics but the last `keep`."""
        while len(self._pending) > keep:
            step, numbers, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, bad, stop = numbers.tolist()
            yield StepMetrics(step, loss, norm, bad > 0, stop > 0)


class Logger:
    """A progress bar with rate, time left and loss, and listeners that receive every log entry.

    Without a terminal, entries are printed. If a listener raises, there is a warning, and training
    continues.
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
        """Advance the bar by one step."""
        self.bar.update(note=f"{loss:.3f} {self.unit}")

    def write(self, entry: Entry) -> None:
        """Pass an entry to all listeners, with the seconds since the start."""
        entry = {**entry, "seconds": round(time.monotonic() - self.started, 3)}
        for listener in self.listeners:
            try:
                listener(entry)
            except Exception as error:
                _warn("a log", error)

    def __enter__(self) -> "Logger":
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
    """A listener that writes to TensorBoard and replaces entries after step `first`; none if it is
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


def read_log(path: Path) -> list[Entry]:
    """All entries of a log.jsonl. Incomplete and damaged lines are skipped."""
    entries = []
    for line in lines(path) if path.is_file() else ():
        try:
            entry = parse_object(line)
        except ValueError:
            continue
        if type(entry.get("step", 0)) is int:
            entries.append(entry)
    return entries


def write_log(path: Path, entries: list[Entry]) -> None:
    """Write entries as a log.jsonl."""
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
