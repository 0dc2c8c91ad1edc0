"""Describe what an objective really optimises: its weighting over log-SNR, whether it is a
likelihood bound, and at which log-SNRs its signal lies.

An objective is the name of a published recipe, or FILE.py:NAME with a `Recipe` of yours, or
with an `Objective` over tokens. FILE.py is run as a Python program: name only a file that you
trust.
"""

import argparse
from typing import Any

from vdiff.cli.load import load_object, output_file
from vdiff.describe import Description, TokenDescription, describe
from vdiff.errors import printable
from vdiff.recipes import RECIPES, TOKEN_RECIPES
from vdiff.terminal import say, say_json, wrapped


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff describe`."""
    parser.add_argument(
        "objective",
        nargs="?",
        help=f"FILE.py:NAME, or one of {', '.join((*RECIPES, *TOKEN_RECIPES))}",
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="OTHER", help="objectives to compare it with"
    )
    parser.add_argument(
        "--all", action="store_true", help="every published Gaussian recipe, as one table"
    )
    parser.add_argument("--figure", metavar="PNG", help="draw weightings, densities and signals")
    parser.add_argument("--json", action="store_true", help="print JSON, a list of objectives")


def run(options: argparse.Namespace) -> int:
    """Print the description, or the table of several."""
    figure = None if options.figure is None else output_file("figure", options.figure)
    if figure is not None and not figure.suffix:
        figure = output_file("figure", figure.with_suffix(".png"))
    names = list(RECIPES) if options.all else [options.objective, *options.compare]
    if names[0] is None:
        raise ValueError("name an objective, or --all")
    described = [describe(load_object(name) if ":" in name else name) for name in names]
    tokens = [each for each in described if isinstance(each, TokenDescription)]
    if tokens:
        if figure is not None or len(tokens) < len(described):
            raise ValueError("an objective over tokens has no figure, and none to compare it with")
        if options.json:
            say_json([each.asdict() for each in tokens])
        for each in [] if options.json else tokens:
            say(wrapped(each, 12))
        return 0
    if figure is not None:
        from vdiff import plots

        named = {printable(each.recipe.name): each for each in described}
        plots.save(figure, plots.objectives(named))
    if options.json:
        say_json([_numbers(each, described[0]) for each in described])
        return 0
    if len(described) == 1 or not options.all:
        say(wrapped(described[0], 12))
    if len(described) > 1:
        say(_table(described))
    if figure is not None:
        say(f"figure in {printable(str(figure))}")
    return 0


def _numbers(each: Description, first: Description) -> dict[str, Any]:
    """A description as plain data; quantiles are λ by the share of the density below them."""
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = {
        name: {share: each.quantile(density, share) for share in shares}
        for name, density in (("draws", each.draws), ("signal", each.signal))
    }
    return {
        "objective": each.recipe.name,
        "source": each.recipe.source,
        "weighting": repr(each.recipe.weighting),
        "monotone": each.monotone,
        "negative mass": each.negative_mass(),
        "peak": None if each.flat else each.peak,
        "plateau": each.plateau,
        **quantiles,
        f"signal shared with {first.recipe.name}": each.overlap(first),
    }


def _table(described: list[Description]) -> str:
    """One line each: monotone or not, the peak, where half of the signal lies, and the signal
    shared with the first."""
    wide = max(20, 1 + max(len(each.recipe.name) for each in described))
    middle = "half of the signal, λ"
    lines = [f"{'objective':<{wide}}{'monotone':>9}{'peak λ':>15}{middle:>24}{'shared':>8}"]
    for each in described:
        low, high = (each.quantile(each.signal, mass) for mass in (0.25, 0.75))
        middle = f"{low:.1f} to {high:.1f}"
        lines.append(
            f"{each.recipe.name:<{wide}}{'yes' if each.monotone else 'no':>9}{_peak(each):>15}"
            f"{middle:>24}{each.overlap(described[0]):>8.0%}"
        )
    return "\n".join(
        [*lines, f"shared: the part of the signal shared with {described[0].recipe.name}"]
    )


def _peak(each: Description) -> str:
    """Where w is largest: a λ, or from where to where where that is a plateau."""
    if each.flat:
        return "flat"
    if each.plateau:
        low, high = each.plateau
        return f"{low:.1f} to {high:.1f}"
    return f"{round(each.peak, 2) + 0.0:.2f}"
