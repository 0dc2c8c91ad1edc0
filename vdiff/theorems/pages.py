"""The page of the documentation that lists the theorems."""

from vdiff.theorems.theorem import Theorem
from vdiff.theorems.topics import TOPICS, by_topic

TEST = "../tests/theorems/test_verify.py"


def theorem_page() -> str:
    """Markdown: the theorems by topic, each with its source, its hypotheses, its counterexamples,
    its code and its test.

    >>> theorem_page().splitlines()[0]
    '# Theorems'
    """
    lines = [
        "# Theorems",
        "",
        "Each is a function that computes both of its sides, by different routes as far as there are two, and runs with",
        "`vdiff.theorems.verify(names=[...])`; those that say *any network* run on yours with `verify(model, data)`. Where a hypothesis is",
        "dropped the sides must differ, and that is run too. A few are about the mathematics alone and use no formula of the library",
        "(`naive-walk`, `jensen-direction`): each formula has other theorems and tests of its own.",
    ]
    docs = {topic.__name__.rpartition(".")[2]: topic.__doc__ or "" for topic in TOPICS}
    for topic, theorems in by_topic().items():
        lines += [
            "",
            f"## {' '.join(docs[topic].split())}",
            "",
            "| theorem | source | holds if | test |",
            "|---|---|---|---|",
        ]
        lines += [_row(topic, theorem) for theorem in theorems]
    return "\n".join(lines) + "\n"


def _row(topic: str, theorem: Theorem) -> str:
    network = " *Any network.*" if theorem.any_network else ""
    dropped = "".join(f"<br>*fails without:* {c.dropped}" for c in theorem.counterexamples)
    cells = [
        f"[`{theorem.name}`](../vdiff/theorems/{topic}.py)<br>{theorem.statement}{network}",
        theorem.source,
        theorem.given + dropped,
    ]
    test = f"[`{theorem.name}`]({TEST})"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {test} |"


__all__ = ["theorem_page"]
