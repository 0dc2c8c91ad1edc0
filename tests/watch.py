"""What Python does while something is read: code that runs, processes, connections, files that are
written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping

WATCHED = {
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "os.remove",
    "os.rename",
    "os.mkdir",
}
_events: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if _events is not None and (event in WATCHED or writes):
        _events.append(f"{event} {arguments}")


sys.addaudithook(_watch)


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Raises AssertionError where the block does any of it, whether it ends well or not."""
    global _events
    off = jaxtyping.config.jaxtyping_disable  # a first check of shapes compiles code
    jaxtyping.config.update("jaxtyping_disable", True)
    _events = []
    try:
        yield
    finally:
        happened, _events = _events, None
        jaxtyping.config.update("jaxtyping_disable", off)
        if happened:
            raise AssertionError(f"{happened}")
