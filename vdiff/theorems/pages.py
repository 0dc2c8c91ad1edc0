"""The pages that the documentation makes of the theorems and of the errata."""

import torch

from vdiff.theorems.errata import ERRATA, MISPRINTS
from vdiff.theorems.theorem import EQUAL, Sides, Theorem
from vdiff.theorems.topics import TOPICS, by_topic

TEST = "../tests/theorems/test_verify.py"


def theorem_page() -> str:
    """Markdown: the theorems by topic, each with its source, its hypotheses, its counterexamples, its code and its test.

    >>> theorem_page().splitlines()[0]
    '# Theorems'
    """
    lines = [
        "# Theorems",
        "",
        "Each is a function that computes both of its sides by different routes, and runs with `vdiff.theorems.verify(names=[...])`;",
        "those that say *any network* run on yours with `verify(model, data)`. Where a hypothesis is dropped the sides must",
        "differ, and that is run too.",
    ]
    docs = {topic.__name__.rpartition(".")[2]: topic.__doc__ or "" for topic in TOPICS}
    for topic, theorems in by_topic().items():
        lines += ["", f"## {docs[topic].strip()}", "", "| theorem | source | holds if | test |", "|---|---|---|---|"]
        lines += [_row(topic, theorem) for theorem in theorems]
    return "\n".join(lines) + "\n"


def _row(topic: str, theorem: Theorem) -> str:
    network = " *Any network.*" if theorem.any_network else ""
    dropped = "".join(f"<br>*fails without:* {c.dropped}" for c in theorem.counterexamples)
    cells = [f"[`{theorem.name}`](../vdiff/theorems/{topic}.py)<br>{theorem.statement}{network}", theorem.source, theorem.given + dropped]
    test = f"[`{theorem.name}`]({TEST})"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {test} |"


@torch.no_grad()
def errata_page() -> str:
    """Markdown: the errata by source, each with the printed form, the right one, and the numbers that show it.

    >>> "eq. 3.7" in errata_page()
    True
    """
    lines = [
        "# Errata of the sources",
        "",
        "Where the texts that this library follows are wrong, with what is right. What stands after *printed form* and *right form*",
        "is computed when this page is made, for the case that is worst, and `vdiff.theorems.verify(errata=True)` prints it; the words",
        "before it are written by hand.",
    ]
    for source in dict.fromkeys(erratum.source for erratum in ERRATA.values()):
        lines += ["", f"## {source}", "", "| where | printed | right | the numbers |", "|---|---|---|---|"]
        for erratum in (e for e in ERRATA.values() if e.source == source):
            correction = erratum.correction()
            numbers = f"{erratum.evidence} *Printed form:* {_said(correction.printed)}. *Right form:* {_said(correction.right)}."
            cells = [erratum.where, erratum.printed, erratum.right, numbers]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += _misprints(source)
    return "\n".join(lines) + "\n"


def _misprints(source: str) -> list[str]:
    """The mere misprints of one source, which have no numbers."""
    rows = [[m.where, m.printed, m.right] for m in MISPRINTS if m.source == source]
    if not rows:
        return []
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["", "Misprints, which claim nothing:", "", "| where | printed | right |", "|---|---|---|", *table]


def _said(sides: Sides) -> str:
    """The case that is worst, in words."""
    left, right, _ = sides.worst
    if sides.relation == EQUAL:
        return f"{left:.5g} where the truth is {right:.5g}"
    return f"{left:.5g} ≥ {right:.5g}" if sides.holds else f"{left:.5g} ≥ {right:.5g} is false"


__all__ = ["errata_page", "theorem_page"]
