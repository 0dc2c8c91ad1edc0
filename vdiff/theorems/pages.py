"""The pages that the documentation makes of the theorems and of the errata."""

from collections.abc import Sequence

import torch

from vdiff.theorems.errata import ERRATA, EXTRACTED, MISPRINTS, Erratum
from vdiff.theorems.errata.erratum import COMMON
from vdiff.theorems.theorem import EQUAL, Sides
from vdiff.theorems.verification import TOPICS, by_topic


def theorem_page() -> str:
    """Markdown: the theorems by topic, each with its source and its hypotheses.

    >>> theorem_page().splitlines()[0]
    '# Theorems'
    """
    lines = [
        "# Theorems",
        "",
        "Each is a function that computes both of its sides by different routes, one of them through the library's public functions.",
        "`vdiff.theorems.verify(names=[...])` runs them; those that say *any network* run on yours with `verify(model, data)`. Each hypothesis",
        "that is listed is also dropped: the sides must then differ.",
    ]
    for topic, theorems in by_topic().items():
        lines += ["", f"## {' '.join((TOPICS[topic].__doc__ or '').split())}", ""]
        lines += ["| theorem | source | holds if |", "|---|---|---|"]
        for theorem in theorems:
            name = f"[`{theorem.name}`](../vdiff/theorems/{topic}.py)"
            network = " *Any network.*" if theorem.any_network else ""
            cells = f"{name}<br>{theorem.statement}{network}", theorem.source
            hypotheses = "; ".join(theorem.counterexamples)
            lines.append(
                "| " + " | ".join(c.replace("|", "\\|") for c in (*cells, hypotheses)) + " |"
            )
    return "\n".join(lines) + "\n"


@torch.no_grad()
def errata_page() -> str:
    """Markdown: the errata by source, each with the printed form, the right one, and the numbers
    that show it.

    >>> "eq. 3.7" in errata_page()
    True
    """
    lines = [
        "# Errata of the sources",
        "",
        "Where the texts that this library follows are wrong, and what is right. Words in “…” are quoted; formulas are in the source's own",
        "symbols. The numbers after *Printed form* and *Right form* are computed when this page is made, for the case that is worst, and",
        "`vdiff.theorems.verify(errata=True)` prints them; the words before them are written by hand.",
        "",
        "*Left open* means that the source can be read in two ways and one of them does not hold. *Probably of the extraction* means that the",
        "slip is probably not the author's: the text was extracted from slides and pages.",
    ]
    for source in dict.fromkeys(erratum.source for erratum in ERRATA.values()):
        errata = [erratum for erratum in ERRATA.values() if erratum.source == source]
        said = "said" if source == COMMON else "printed"
        wrong = [_corrected(e) for e in errata if not e.left_open]
        left_open = [_corrected(e) for e in errata if e.left_open]
        lines += ["", f"## {source}", *_table("", ("where", said, "right", "the numbers"), wrong)]
        lines += _table("Left open:", ("where", "read as", "what holds", "the numbers"), left_open)
        for title, slips in (
            ("Misprints, which claim nothing:", MISPRINTS),
            ("Probably of the extraction:", EXTRACTED),
        ):
            lines += _table(
                title,
                ("where", "printed", "right"),
                [(m.where, m.printed, m.right) for m in slips if m.source == source],
            )
    return "\n".join(lines) + "\n"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A title and a table, or nothing where there are no rows."""
    if not rows:
        return []
    top, *table = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)
    ]
    return [*(("", title) if title else ()), "", top, "|" + "---|" * len(head), *table]


def _corrected(erratum: Erratum) -> tuple[str, ...]:
    """The row of one erratum; where the source leaves it open, a reading of it has no number of
    its own."""
    correction = erratum.correction()
    printed = "" if erratum.left_open else f" *Printed form:* {_said(correction.printed)}."
    right = f" *{'What holds' if erratum.left_open else 'Right form'}:* {_said(correction.right)}."
    return erratum.where, erratum.printed, erratum.right, erratum.evidence + printed + right


def _said(sides: Sides) -> str:
    """The case that is worst, in words."""
    left, right, _ = sides.worst
    if sides.relation == EQUAL:
        return f"{left:.5g} where the truth is {right:.5g}"
    return f"{left:.5g} ≥ {right:.5g}" if sides.holds else f"{left:.5g} ≥ {right:.5g} is false"


__all__ = ["errata_page", "theorem_page"]
