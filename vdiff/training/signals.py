"""Asked to stop: what a scheduler, a shell or Ctrl-C sends."""

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
def stopping() -> Iterator[Callable[[], int]]:
    """A function that says which signal has asked this process to stop, 0 while none has. Another
    one ends it at once.

    Handlers are those of before again afterwards. Outside the main thread, where Python allows
    none, nothing is changed.

    >>> with stopping() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     asked() == signal.SIGTERM
    True
    """
    caught: list[int] = []
    with _first_signal(caught.append):
        yield lambda: caught[0] if caught else 0


class Interrupted(KeyboardInterrupt):
    """A signal ends the command; `number` is the signal's.

    >>> Interrupted(signal.SIGTERM).number == signal.SIGTERM
    True
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal raises Interrupted where the program is. Another one ends the
    process at once.

    >>> try:
    ...     with interruptible():
    ...         signal.raise_signal(signal.SIGTERM)
    ... except Interrupted as error:
    ...     error.number == signal.SIGTERM
    True
    """

    def leave(number: int) -> None:
        raise Interrupted(number)

    with _first_signal(leave):
        yield


@contextmanager
def _first_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the first signal; those that the parent process switched off stay off."""

    def handle(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # of the system, which does not wait for Python
        act(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        known = {each: signal.getsignal(each) for each in SIGNALS}
        before = {each: now for each, now in known.items() if now is not signal.SIG_IGN}
        for each in before:
            signal.signal(each, handle)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


__all__ = ["Interrupted", "interruptible", "stopping"]
