"""The progress of an evaluation, and what warned meanwhile."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vdiff.terminal import Bar, say


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Yield a list of the texts of all warnings of the block. They are shown as usual."""
    with warnings.catch_warnings():
        heard: list[str] = []
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **more: Any) -> None:
            heard.append(str(message))
            show(message, *rest, **more)

        warnings.showwarning = note
        yield heard


@contextmanager
def progress_bar(
    quiet: bool, label: str, unit: str, total: int | None = None, goal: str = ""
) -> Iterator[Any]:
    """Yield a function for `progress=`. It prints the total before the first evaluation, then
    shows a bar. The total may grow."""
    announced = quiet
    with Bar(unit="eval", label=label, quiet=quiet, goal=goal) as bar:

        def show(done: int, total: int) -> None:
            nonlocal announced
            if not announced:
                say(f"{label}: {total:,} {unit}", file=sys.stderr)
                announced = True
            bar.to(done, total)

        if total is not None:
            show(0, total)
        yield show
