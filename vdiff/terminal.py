"""Printing that cannot fail or change a terminal, and progress bars."""

import io
import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, TypeVar

from vdiff.errors import printable
from vdiff.extras import extra

COLUMNS = 80  # of printed tables and paragraphs
# a log gets a line after PAUSE seconds, or after this PART of the total and SOON seconds; the
# first one, a forecast, after SOON seconds
PAUSE, PART, SOON = 30.0, 0.1, 1.0
Item = TypeVar("Item")


def replace_unencodable() -> None:
    """Print ? for a character that the encoding of stdout lacks, such as λ in an ASCII locale.
    Python would raise. A program calls this first."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(*lines: object, file: Any = None) -> None:
    """Print lines to stdout (or a file) and flush, with control characters escaped.

    A closed pipe (`| head`) is no error. Raises OSError for a file that cannot be written to.

    >>> say("two\\nlines", "a red \\x1b[31mname")
    two
    lines
    a red \\x1b[31mname
    """
    text = "\n".join(printable(line) for item in lines for line in str(item).split("\n"))
    try:
        print(text, file=file, flush=True)
    except OSError as error:
        with suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), (file or sys.stdout).fileno())  # Python flushes at its end
        if not isinstance(error, BrokenPipeError):
            raise


def say_json(value: object) -> None:
    """Print plain data as JSON; NaN and ±∞, which JSON does not have, as null.

    >>> say_json({"bits": [1.5, float("nan")]})
    {
      "bits": [
        1.5,
        null
      ]
    }
    """
    say(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wrapped(text: object, indent: int = 2) -> str:
    """A text whose lines have at most 80 columns; what continues a line is indented.

    >>> print(wrapped("word " * 20))
    word word word word word word word word word word word word word word word word
      word word word word
    """
    fill = textwrap.TextWrapper(
        COLUMNS, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    lines = str(text).split("\n")
    return "\n".join(line if len(line) <= COLUMNS else fill.fill(line) for line in lines)


def on_terminal() -> bool:
    """Whether stderr, where progress is shown, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds in a unit that one reads at a glance.

    >>> duration(0.25), duration(90), duration(720)
    ('250 ms', '90.0 s', '12.0 min')
    """
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{1000 * seconds:,.0f} ms"


class Bar:
    """Progress on stderr: a bar in a terminal with tqdm; elsewhere a line with the time left after
    a second, after each tenth of the total or half a minute, and at the end. With a `goal`, as
    "10,000 images", a line after a second says how long all of it takes. A closed terminal is no
    error.

    >>> with Bar(4, "image", "testing", quiet=True) as bar:
    ...     bar.update(3)
    ...     bar.to(4, 10)
    >>> bar.done, bar.total
    (4, 10)
    """

    def __init__(
        self,
        total: int = 0,
        unit: str = "step",
        label: str = "",
        *,
        done: int = 0,
        quiet: bool = False,
        goal: str = "",
    ) -> None:
        self.goal = goal
        self.total, self.unit, self.label, self.done, self.quiet = total, unit, label, done, quiet
        self._began, self._first, self._bar = time.monotonic(), done, None
        self._shown = (self._began, done)
        if not quiet and on_terminal() and find_spec("tqdm"):
            with extra("train"):
                from tqdm import tqdm
            options: dict[str, Any] = {"unit": unit, "unit_scale": unit == "B", "smoothing": 0.05}
            self._bar = tqdm(total=total, initial=done, desc=label, dynamic_ncols=True, **options)

    def update(self, count: int = 1, note: str = "") -> None:
        """Add `count` to what is done. The note stands behind the bar."""
        self.to(self.done + count, note=note)

    def to(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set what is done, and a new total: for `progress=` of an evaluation."""
        more, self.done = done - self.done, done
        self.total = self.total if total is None else total
        if self.quiet:
            return
        try:
            if self.goal and self._seconds() >= SOON and self._first < done < self.total:
                self._forecast()
            if self._bar is not None:
                self._bar.total = self.total
                self._bar.set_description(self.label, refresh=False)
                self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(more)
            elif self._is_time():
                self._line()
        except OSError:  # the terminal or the log is gone
            self.quiet = True

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _forecast(self) -> None:
        """How long all of it takes, by what is done. Once."""
        share = (self.total - self._first) / (self.done - self._first)
        about, goal, self.goal = duration(self._seconds() * share), self.goal, ""
        line = f"{self.label}: about {about} for {goal}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _is_time(self) -> bool:
        since, before = time.monotonic() - self._shown[0], self._shown[1]
        much = before == self._first or self.done - before >= PART * self.total
        return since >= PAUSE or (since >= SOON and much)

    def _line(self) -> None:
        now = time.monotonic()
        self._shown, spent, made = (now, self.done), now - self._began, self.done - self._first
        text = f"{self.label}: " if self.label else ""
        text += f"{100 * self.done / self.total:.0f} %, " if self.total else ""
        text += f"{self.done:,} of {self.total:,} {self.unit}, {spent:.0f} s"
        if made > 0 and self.done < self.total:
            text += f", about {duration(spent / made * (self.total - self.done))} left"
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show the last state."""
        with suppress(OSError):
            if self._bar is not None:
                self._bar.close()
            elif not self.quiet and self._shown[1] < self.done:
                self._line()


def track(items: Sequence[Item], unit: str, label: str = "") -> Iterator[Item]:
    """Iterate over items with a `Bar`."""
    with Bar(len(items), unit, label) as bar:
        for item in items:
            yield item
            bar.update()


__all__ = [
    "Bar",
    "duration",
    "on_terminal",
    "replace_unencodable",
    "say",
    "say_json",
    "track",
    "wrapped",
]
