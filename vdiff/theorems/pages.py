"""The page of the documentation that lists the theorems."""

from vdiff.theorems.verification import TOPICS, by_topic


def theorem_page() -> str:
    """Markdown: the theorems by topic, each with its source and its hypotheses.

    >>> theorem_page().splitlines()[0]
    '# Theorems'
    """
    lines = [
        "# Theorems",
        "",
        "Each theorem is a function that computes both sides by different routes, one of them",
        "through the library's public functions. `vdiff.theorems.verify(names=[...])` runs them;",
        "those that say *any network* run on yours with `verify(model, data)`. Each hypothesis",
        "listed is also dropped once: the sides must then differ.",
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
