"""Verify the theory numerically: theorems with both of their sides, and their counterexamples.

Each entry has a theorem's name and statement, its two sides, and their allowed difference, also
in percent: smaller errors are not detected, and more --draws reduce it. Below are the
counterexamples: without a hypothesis the sides must differ. With --estimators: every estimator of
bits/dim on data with known entropy, with estimate ± standard error, truth, z-score and network
evaluations. Exits with 1 if any check fails.
"""

import argparse
from pathlib import Path

from vdiff._validate import require
from vdiff.cli.load import load_object
from vdiff.disk import write_text
from vdiff.errors import InvalidValue
from vdiff.likelihood import verify_estimators
from vdiff.likelihood.verify import Verification, cases
from vdiff.terminal import Bar, say, say_json
from vdiff.theorems import Report, verify
from vdiff.theorems.pages import theorem_page
from vdiff.theorems.subject import DRAWS

READ = {  # the options that each table reads
    "pages": ("pages",),
    "estimators": ("estimators", "names", "model", "points", "seed", "json"),
    "theorems": ("names", "model", "draws", "json"),
}


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff verify`."""
    option = parser.add_argument
    text = f"theorems or topics; with --estimators of {', '.join(cases())} (default: all)"
    option("names", nargs="*", help=text)
    text = (
        "your own model, with data as FILE.py:data: check theorems that hold for any network; "
        "with --estimators a function from an oracle to a model of your class, such as lambda "
        "oracle: Denoiser(MyNetworkAround(oracle), V()). FILE.py is run as a Python program: name "
        "only a file that you trust"
    )
    option("--model", metavar="FILE.py:NAME", help=text)
    text = "check the estimators of bits/dim instead of the theorems"
    option("--estimators", action="store_true", help=text)
    text = "data points of each case of --estimators (default: 256)"
    option("--points", type=int, help=text)
    option("--seed", type=int, help="of --estimators (default: 0)")
    text = "evaluations for each side of a sampled theorem: four times as many halve the error"
    option("--draws", type=int, help=f"{text} (default: {DRAWS})")
    text = "only write theorems.md there, as in docs/"
    option("--pages", metavar="FOLDER", help=text)
    option("--json", action="store_true", help="print JSON instead of the table")


def run(options: argparse.Namespace) -> int:
    """Print the table; 0 if everything holds."""
    _check(options)
    if options.pages:
        require(Path(options.pages).is_dir(), "pages", "be a folder that is there", options.pages)
        write_text(Path(options.pages) / "theorems.md", theorem_page())
        return 0
    if options.estimators:
        counts = {word: getattr(options, word) for word in ("points", "seed")}
        given = {word: count for word, count in counts.items() if count is not None}
        given |= {"model": load_object(options.model)} if options.model else {}
        with Bar(unit="case", label="verify") as bar:
            names = options.names or None
            estimators = verify_estimators(**given, names=names, progress=bar.to)
        _print(estimators, options)
        return 1 if estimators.failed else 0
    model = data = None
    if options.model:
        file = options.model.rpartition(":")[0]
        model, data = load_object(options.model), load_object(f"{file}:data")
    draws = DRAWS if options.draws is None else options.draws
    with Bar(unit="theorem", label="verify") as bar:
        names = options.names or None
        report = verify(model, data, names=names, draws=draws, progress=bar.to)
    _print(report, options)
    return 0 if report.ok else 1


def _print(table: Report | Verification, options: argparse.Namespace) -> None:
    if options.json:
        say_json(table.asdict())
    else:
        say(table)


def _check(options: argparse.Namespace) -> None:
    """Raise for an option that would be ignored."""
    table = next((name for name in READ if getattr(options, name, False)), "theorems")
    for word in sorted({word for words in READ.values() for word in words}):
        value = getattr(options, word)
        if word in READ[table] or value is None or value is False or value == []:
            continue
        alone = table == "theorems"
        what = "come with --estimators" if alone else f"come without --{table}"
        hint = "--draws says how much the theorems draw" if alone else "it would be ignored"
        raise InvalidValue(word, what, value, hint)
