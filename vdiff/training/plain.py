"""Plain data from outside: JSON within bounds, so that a small file cannot ask for much."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdiff.errors import must

LARGEST = 1 << 24  # bytes of a file
LONGEST = 1 << 20  # bytes of a line
DEEPEST = 32  # brackets around a value
MOST = 100_000  # values in all
BITS = 63  # of an integer
SHOWN = 100  # characters of a value in a message


def parse(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for text that is not JSON, and for what `flaw` finds.

    >>> parse('{"lr": 1e-3}')
    {'lr': 0.001}
    >>> parse("[" * 2000 + "]" * 2000)
    Traceback (most recent call last):
        ...
    ValueError: a value that is nested more than 32 deep
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"a value that is nested more than {DEEPEST} deep") from None
    found = flaw(value)
    if found:
        raise ValueError(found)
    return value


def read_json(function: str, path: Path) -> Any:
    """What a file of JSON says. Raises ValueError, in the name of `function`, for one that is too
    large or damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "config.json").write_text("[1, 2]")
    ...     read_json("Run", Path(folder) / "config.json")
    [1, 2]
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(must(function, str(path), f"have at most {LARGEST:,} bytes", "more"))
    try:
        return parse(raw.decode("utf-8"))
    except ValueError as error:
        raise ValueError(must(function, str(path), "be JSON", error, "it is damaged")) from None


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time; none that is empty or longer than 1 MiB.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "log").write_text("one\\n\\n" + "2" * 2**21 + "\\nthree")
    ...     list(lines(Path(folder) / "log"))
    ['one', 'three']
    """
    starts = True  # what is read starts a line
    with path.open("rb") as file:
        while part := file.readline(LONGEST):
            ends = part.endswith(b"\n") or len(part) < LONGEST
            if starts and ends and part.strip():
                yield part.decode("utf-8", "replace").rstrip("\n")
            starts = ends


def flaw(value: object) -> str:
    """What in a value is no plain data within bounds; an empty string where all of it is.

    >>> flaw({"name": "UNet", "multipliers": [1, 2]})
    ''
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
    """A plain value as a message shows it: JSON's null, true and false, and not all of a long one.

    >>> shown(None), shown("Cosine"), shown(False)
    ('null', "'Cosine'", 'false')
    """
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def word(name: str) -> str:
    """A name from outside as a message shows it: without control characters, a long one cut off.

    >>> word("lr"), word("lr\\x1b[2J")
    ('lr', 'lr\\\\x1b[2J')
    """
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


__all__ = ["flaw", "lines", "parse", "read_json", "shown", "word"]
