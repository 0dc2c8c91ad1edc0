"""Checks of the options of every command, before anything is read or computed."""

import argparse
from pathlib import Path

from vdiff._validate import require
from vdiff.errors import InvalidValue
from vdiff.likelihood.stages import TOLERANCES

PLACES = ("run", "against", "data", "out", "figure", "pages", "model", "grid")
# more is a slip of the keyboard
MOST = dict.fromkeys(("draws", "replicates", "count", "points"), 10**9)
LARGEST = 2**63 - 1  # of any other number: torch counts in 64 bits


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for an empty name, the home of an unknown user, and numbers that are too
    large.

    A ~ becomes the home folder: a shell leaves it as it is behind `--out=`."""
    low, high = TOLERANCES
    for name, value in vars(options).items():
        if name in PLACES and value is not None:
            setattr(options, name, _place(name, value))
        elif isinstance(value, int) and name != "seed":
            most = MOST.get(name, LARGEST)
            require(value <= most, name, f"be at most {most:,}", f"{value:,}")
        elif name == "ode_tolerance":
            what = f"lie between {low:g} and {high:g}"
            require(low <= value <= high, "ode-tolerance", what, f"{value:g}")


def _place(name: str, value: str) -> str:
    require(bool(value), name, "name a file or a folder", repr(value))
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        what = "be a path that leads somewhere"
        raise InvalidValue(name, what, repr(value), str(error)) from None


__all__ = ["check"]
