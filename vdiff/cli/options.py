"""What holds of the options of every command, checked before anything is read or computed."""

import argparse
from pathlib import Path

from vdiff.errors import must
from vdiff.likelihood.measurement import TOLERANCES

PLACES = ("run", "against", "data", "out", "figure", "pages", "model", "grid")
# more is a slip of the keyboard
MOST = dict.fromkeys(("draws", "replicates", "count", "points"), 10**9)
LARGEST = 2**63 - 1  # of any other number: torch counts in 64 bits


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for an empty name, the home of an unknown user, and numbers that are too
    large.

    A ~ becomes the home folder: a shell leaves it as it is behind `--out=`.

    >>> options = argparse.Namespace(command="sample", out="~/samples", count=4)
    >>> check(options)
    >>> options.out == str(Path.home() / "samples")
    True
    """
    for name, value in vars(options).items():
        if name in PLACES and value is not None:
            setattr(options, name, _place(options.command, name, value))
        elif (
            isinstance(value, int) and name != "seed" and value > (most := MOST.get(name, LARGEST))
        ):
            raise ValueError(must(options.command, name, f"be at most {most:,}", f"{value:,}"))
        elif name == "ode_tolerance" and not TOLERANCES[0] <= value <= TOLERANCES[1]:
            what = "lie between {:g} and {:g}".format(*TOLERANCES)
            raise ValueError(must(options.command, "ode-tolerance", what, f"{value:g}"))


def _place(command: str, name: str, value: str) -> str:
    if not value:
        raise ValueError(must(command, name, "name a file or a folder", repr(value)))
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        what = "be a path that leads somewhere"
        raise ValueError(must(command, name, what, repr(value), str(error))) from None


__all__ = ["check"]
