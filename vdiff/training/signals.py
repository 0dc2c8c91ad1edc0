"""Asked to stop: what a scheduler, a shell or Ctrl-C sends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # of the system, which does not wait for Python

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, note) for each in SIGNALS}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


__all__ = ["stopping"]
