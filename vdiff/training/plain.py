"""JSON from outside, within bounds: a small file cannot ask for much memory or time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdiff._validate import require
from vdiff.errors import InvalidValue

LARGEST = 1 << 24  # bytes of a file
LONGEST = 1 << 20  # bytes of a line
DEEPEST = 32  # brackets around a value
MOST = 100_000  # values in all
BITS = 63  # of an integer
SHOWN = 100  # characters of a value in a message


def parse(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for text that is not JSON, and for what `flaw`
    finds.

    >>> parse("[" * 2000 + "]" * 2000)
    Traceback (most recent call last):
        ...
    ValueError: a value that is nested more than 32 deep
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"a value that is nested more than {DEEPEST} deep") from None
    if found := flaw(value):
        raise ValueError(found)
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises InvalidValue if the file is too large or damaged."""
    with path.open("rb") as file:
        raw = file.read(LARGEST + 1)
    require(len(raw) <= LARGEST, str(path), f"have at most {LARGEST:,} bytes", "more")
    try:
        return parse(raw.decode("utf-8"))
    except ValueError as error:
        raise InvalidValue(str(path), "be JSON", error, "it is damaged") from None


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time, without empty ones and those longer than 1 MiB."""
    starts = True  # what is read starts a line
    with path.open("rb") as file:
        while part := file.readline(LONGEST):
            ends = part.endswith(b"\n") or len(part) < LONGEST
            if starts and ends and part.strip():
                yield part.decode("utf-8", "replace").rstrip("\n")
            starts = ends


def flaw(value: object) -> str:
    """Why a value is not plain data within the bounds; an empty string if it is.

    >>> flaw([2**64]), flaw({"prior": {1, 2}})
    ('a whole number of more than 63 bits', 'a set')
    """
    level, count = [value], 0
    for _ in range(DEEPEST + 1):
        count += len(level)
        if count > MOST:
            return f"more than {MOST:,} values"
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                if not all(isinstance(key, str) for key in one):
                    return "a name that is not text"
                below.extend(one.values())
            elif isinstance(one, list | tuple):
                below.extend(one)
            elif isinstance(one, int) and one.bit_length() > BITS:
                return f"a whole number of more than {BITS} bits"
            elif one is not None and not isinstance(one, int | float | str):
                return f"a {type(one).__name__}"
        if not below:
            return ""
        level = below
    return f"a value that is nested more than {DEEPEST} deep"


def shown(value: object) -> str:
    """A plain value for a message: with JSON's null, true and false, and cut if it is long."""
    return _cut(json.dumps(value) if value is None or isinstance(value, bool) else repr(value))


def word(name: str) -> str:
    """A name from outside for a message: control characters escaped, and cut if it is long."""
    return _cut(name if name.isprintable() else repr(name)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


__all__ = ["flaw", "lines", "parse", "read_json", "shown", "word"]
