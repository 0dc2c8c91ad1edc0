"""The command line: `vdiff <command> …`. Each command is a module with `add(parser)` and
`run(options)`."""

import argparse
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vdiff._validate import require
from vdiff.cli import compress, decompress, describe, evaluate, sample, train, verify
from vdiff.cli.own_code import explain
from vdiff.cli.parser import one_line, parser_of
from vdiff.cli.resume import EVALUATED
from vdiff.errors import InvalidValue, out_of_memory
from vdiff.likelihood.stages import TOLERANCES
from vdiff.sampling import SolverError
from vdiff.terminal import replace_unencodable, say

COMMANDS = {"train": train, "evaluate": evaluate, "sample": sample}
COMMANDS |= {"compress": compress, "decompress": decompress}
COMMANDS |= {"describe": describe, "verify": verify}
# options that take memory, and the value from which an out-of-memory error names them
LARGE = {"batch": 1} | dict.fromkeys(("draws", "count", "steps", "points"), 10**6)
EXPECTED = (TypeError, ValueError, OSError, ImportError, SolverError)
PATHS = ("run", "what", "against", "data", "out", "png", "figure", "pages", "model", "grid")
MOST = dict.fromkeys(
    ("draws", "replicates", "count", "points", "images"), 10**9
)  # more is a typing error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. It is 2 if an argument or a run folder is wrong, a
    solver gives up, memory runs out or a library is missing, 130 after Ctrl-C, and 143 if SIGTERM
    ended an evaluation. An error is one line on stderr; one of the user's own code has the lines
    of that code below it.

    >>> main(["sample", "no-such-folder"])
    2
    """
    replace_unencodable()
    name, options = "vdiff", argparse.Namespace()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        options = parser_of(COMMANDS).parse_args(given)
        name = f"vdiff {options.command}"
        check_options(options)
        with _warnings_in_a_line(name):
            code: int = COMMANDS[options.command].run(options)
        return code
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", [])
        say(f"{name}: {'; '.join(('interrupted', *notes))}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    except Exception as error:
        why = _why(options, error)
        if why is None:
            raise
    say(f"{name}: {why}", file=sys.stderr)
    return 2


def _why(options: argparse.Namespace, error: Exception) -> str | None:
    """What to say of an error; None for one that no command expects."""
    if out_of_memory(error):
        return one_line(_no_memory(options, error))
    if text := explain(error, options):
        return text
    return one_line(str(error)) if isinstance(error, EXPECTED) else None


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for an empty path, the home of an unknown user, and numbers that are too
    large. Replaces ~ by the home folder: a shell does not expand it behind `--out=`."""
    low, high = TOLERANCES
    for name, value in vars(options).items():
        if name in PATHS and value is not None:
            require(bool(value), name, "name a file or a folder", repr(value))
            try:
                setattr(options, name, str(Path(value).expanduser()))
            except RuntimeError as error:
                what = "be a path that leads somewhere"
                raise InvalidValue(name, what, repr(value), str(error)) from None
        elif isinstance(value, int) and name != "seed":
            most = MOST.get(name, 2**63 - 1)  # torch counts in 64 bits
            require(value <= most, name, f"be at most {most:,}", f"{value:,}")
        elif name == "ode_tolerance":
            what = f"lie between {low:g} and {high:g}"
            require(low <= value <= high, "ode-tolerance", what, f"{value:g}")


def _no_memory(options: argparse.Namespace, error: BaseException) -> str:
    if options.command == "train":  # its batch is a setting
        notes = getattr(error, "__notes__", None) or ["lower the batch: --set batch=…"]
        return f"out of memory: {'; '.join(notes)}"
    given = {name: getattr(options, name, None) or 0 for name in LARGE}
    lower = [f"--{name} (now {value})" for name, value in given.items() if value >= LARGE[name]]
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(EVALUATED)]
    what = [*([f"lower {' or '.join(lower)}"] if lower else []), *notes]
    return f"out of memory{': ' if what else ''}{'; '.join(what)}"


@contextmanager
def _warnings_in_a_line(name: str) -> Iterator[None]:
    def formatted(message: Warning | str, *_: object, **__: object) -> str:
        return f"{name}: warning: {one_line(str(message))}\n"

    before = warnings.formatwarning
    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


__all__ = ["main"]
