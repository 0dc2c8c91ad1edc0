"""JSON from outside, within bounds: a small file cannot take much memory or time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdiff._validate import require
from vdiff.errors import InvalidValue

MAX_BYTES = 1 << 24  # bytes of a file
MAX_LINE = 1 << 20  # bytes of a line
MAX_DEPTH = 32  # brackets around a value
MAX_VALUES = 100_000  # values in all
MAX_BITS = 63  # of an integer
MAX_SHOWN = 100  # characters of a value in a message


def parse(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or has a `flaw`.

    >>> parse("[" * 2000 + "]" * 2000)
    Traceback (most recent call last):
        ...
    ValueError: a value that is nested more than 32 deep
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"a value that is nested more than {MAX_DEPTH} deep") from None
    if why := flaw(value):
        raise ValueError(why)
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The value of a JSON text that is an object, {"name": value, …}. Raises as `parse`."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of values by name")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InvalidValue if it is no file, too large or damaged."""
    require(path.is_file(), str(path), "be a file", "a folder, a pipe, or nothing")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    require(len(raw) <= MAX_BYTES, str(path), f"have at most {MAX_BYTES:,} bytes", "more")
    try:
        return parse_object(raw.decode("utf-8"))
    except ValueError as error:
        raise InvalidValue(str(path), "be JSON", error, "it is damaged") from None


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time. Skips empty lines and those of more than 1 MiB."""
    starts = True  # whether this part starts a line
    with path.open("rb") as file:
        while part := file.readline(MAX_LINE):
            ends = part.endswith(b"\n") or len(part) < MAX_LINE
            if starts and ends and part.strip():
                yield part.decode("utf-8", "replace").rstrip("\n")
            starts = ends


def flaw(value: object) -> str:
    """Why a value is not plain data, or is out of bounds; an empty string if it is fine."""
    level, count = [value], 0
    for _ in range(MAX_DEPTH + 1):
        count += len(level)
        if count > MAX_VALUES:
            return f"more than {MAX_VALUES:,} values"
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    return "a name that is not text"
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                return f"a whole number of more than {MAX_BITS} bits"
            elif item is not None and not isinstance(item, int | float | str):
                return f"a {type(item).__name__}"
        if not below:
            return ""
        level = below
    return f"a value that is nested more than {MAX_DEPTH} deep"


def json_repr(value: object) -> str:
    """A plain value for a message, with JSON's null, true and false, shortened if it is long."""
    return _shorten(json.dumps(value) if value is None or isinstance(value, bool) else repr(value))


def printable_name(name: str) -> str:
    """A name from outside for a message: control characters escaped, shortened if it is long."""
    return _shorten(name if name.isprintable() else repr(name)[1:-1])


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
