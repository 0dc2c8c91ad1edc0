"""What holds of the options of every command: checked before anything is read, computed or written."""

import argparse
from pathlib import Path

from vdiff.errors import must
from vdiff.likelihood.measurement import TOLERANCES

PLACES = ("run", "against", "data", "out", "figure", "pages", "model", "grid")
MOST = dict.fromkeys(("draws", "replicates", "count", "points"), 10**9)  # more is a slip of the keyboard
LARGEST = 2**63 - 1  # of any other number: torch counts in 64 bits


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for an empty name, the home of nobody, and numbers that nothing can be computed with.

    A ~ becomes the home folder: a shell leaves it as it is behind `--out=`.

    >>> options = argparse.Namespace(command="sample", out="~/samples", count=4)
    >>> check(options)
    >>> options.out == str(Path.home() / "samples")
    True
    """
    for name, value in vars(options).items():
        if name in PLACES and value is not None:
            setattr(options, name, _place(options.command, name, value))
        elif isinstance(value, int) and name != "seed" and value > MOST.get(name, LARGEST):
            raise ValueError(must(options.command, name, f"be at most {MOST.get(name, LARGEST):,}", f"{value:,}"))
        elif name == "ode_tolerance" and not TOLERANCES[0] <= value <= TOLERANCES[1]:
            low, high = TOLERANCES
            raise ValueError(must(options.command, "ode-tolerance", f"lie between {low:g} and {high:g}", f"{value:g}"))


def _place(command: str, name: str, value: str) -> str:
    if not value:
        raise ValueError(must(command, name, "name a file or a folder", repr(value)))
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise ValueError(must(command, name, "be a path that leads somewhere", repr(value), str(error))) from None


__all__ = ["check"]
