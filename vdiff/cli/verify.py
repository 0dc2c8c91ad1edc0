"""Verify the theory numerically: theorems with both of their sides, their counterexamples, and the errata of the sources.

Each line is a theorem: its left side, its right side, how far they lie apart and may; and, indented, what must fail where a
hypothesis is dropped. With --estimators instead: every estimator of bits against data whose bits are known, estimate ± standard error,
truth, z-score and network evaluations. Exits with 1 where anything is not as it must be.
"""

import argparse
from pathlib import Path

from vdiff.cli.load import from_file
from vdiff.disk import write_text
from vdiff.errors import must
from vdiff.likelihood import verify_estimators
from vdiff.likelihood.verify import cases
from vdiff.terminal import say
from vdiff.theorems import verify
from vdiff.theorems.pages import errata_page, theorem_page


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff verify`.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> parser.parse_args(["chains", "--errata"]).names
    ['chains']
    """
    parser.add_argument("names", nargs="*", help=f"theorems or topics; with --estimators of {', '.join(cases())} (default: all)")
    parser.add_argument(
        "--model",
        metavar="FILE.py:NAME",
        help="a model of yours, with data as FILE.py:data beside it: what holds of any network; with --estimators a function from an "
        "oracle to a model of your class, for instance lambda oracle: Denoiser(MyNetworkAround(oracle), V()). "
        "FILE.py is run as a Python program: name only a file that you trust",
    )
    parser.add_argument("--estimators", action="store_true", help="the estimators of bits instead of the theorems")
    parser.add_argument("--points", type=int, default=256, help="data points of each case of --estimators (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --estimators (default: %(default)s)")
    parser.add_argument("--pages", metavar="FOLDER", help="write theorems.md and errata.md instead, as in docs/")
    parser.add_argument("--errata", action="store_true", help="the errata of the sources instead of the theorems")


def run(options: argparse.Namespace) -> int:
    """Print the table; 0 where all is as it must be.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> run(parser.parse_args(["tweedie"]))         # doctest: +ELLIPSIS
    theorem ...
    0
    """
    if options.pages:
        if not Path(options.pages).is_dir():
            raise ValueError(must("verify", "pages", "be a folder that is there", options.pages))
        for name, page in (("theorems", theorem_page), ("errata", errata_page)):
            write_text(Path(options.pages) / f"{name}.md", page())
        return 0
    if options.estimators:
        given = {"model": from_file(options.model)} if options.model else {}
        found = verify_estimators(**given, names=options.names or None, points=options.points, seed=options.seed)
        say(found)
        return 1 if found.failed else 0
    model = data = None
    if options.model:
        model, data = from_file(options.model), from_file(options.model.rpartition(":")[0] + ":data")
    report = verify(model, data, names=options.names or None, errata=options.errata)
    say(report)
    return 0 if report.ok else 1


__all__ = ["add", "run"]
