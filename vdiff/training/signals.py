"""Signals to stop, from a scheduler, a shell or Ctrl-C. Outside the main thread, where Python
allows no handlers, nothing is changed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)


@contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the caught signal, or 0. A second signal ends
    the process. Restores the previous handlers."""
    numbers: list[int] = []
    with _first_signal(numbers.append):
        yield lambda: numbers[0] if numbers else 0


class Interrupted(KeyboardInterrupt):
    """A signal with this number interrupts a command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """In this block the first signal raises Interrupted. A second one ends the process."""

    def interrupt(number: int) -> None:
        raise Interrupted(number)

    with _first_signal(interrupt):
        yield


@contextmanager
def _first_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the first signal. Signals that the parent process ignores stay ignored."""

    def handle(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # the system does not wait for Python
        act(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {each: signal.getsignal(each) for each in SIGNALS}
        before = {each: h for each, h in handlers.items() if h is not signal.SIG_IGN}
        for each in before:
            signal.signal(each, handle)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
