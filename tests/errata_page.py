"""What `docs/errata.md` says: the numbers of its entries, and what each points to."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "errata.md"
BOOK, CHAPTER = "Foundations of Diffusion Models", "DDPM from a Variational Derivation"
# the subsections of each section of the book, and the numbered equations of each chapter
SUBSECTIONS = {"1.1": 6, "1.2": 4, "1.3": 4, "1.4": 3, "2.1": 2, "2.2": 2, "2.3": 5, "3.1": 2}
SUBSECTIONS |= {"3.2": 4, "1.5": 0, "2.4": 0, "6.1": 0, "6.2": 0}
SUBSECTIONS |= {f"{chapter}.{part}": 0 for chapter in (4, 5) for part in range(1, 7)}
EQUATIONS = {1: 30, 2: 41, 3: 11, 4: 7, 5: 8, 6: 4}
HEADINGS = {
    "The Hidden Variance Reduction": "The Evidence Lower Bound|But Why?"
    "|The Hidden Variance Reduction|Variance Evolution",
    "The DDPM Simple Loss": "the claim|The Simple Loss Drops the Weight|Why the Reweighting Helps",
}


def parsed() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The numbers' text of each entry, and (source, pointer) of every entry and misprint."""
    entries, pointers = {}, []
    for chapter in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        source = chapter.split("\n")[0]
        for entry in chapter.split("\n### ")[1:]:
            where, *body = entry.split("\n\n")[0].split("\n")
            text = " ".join(line.strip() for line in body)
            assert re.match(r"- (Printed: .* - Right|Read as: .* - What holds): ", text), where
            entries[where] = text.split("- Numbers: ")[1]
            right = re.split("- Right: |- What holds: ", text)[1].split("- Numbers")[0]
            pointers.append((source, f"{where}; {right}"))
        rows = re.findall(r"^\| (?!where)([^|]+) \|", chapter, re.MULTILINE)
        pointers += [(source, row) for row in rows]
    return entries, pointers


ENTRIES, POINTERS = parsed()


def numbers_after(words: str, text: str) -> list[str]:
    found = re.findall(rf"{words} ((?:\d+(?:\.\d+)*(?:, | and | to )?)+)", text)
    return re.findall(r"\d+(?:\.\d+)*", " ".join(found))


def exists(source: str, section: str) -> bool:
    if source.startswith(CHAPTER):
        return section in {f"14.5.{i}" for i in range(1, 7)}
    chapter, part, *below = section.split(".")
    have = SUBSECTIONS.get(f"{chapter}.{part}", -1)
    return have >= 0 and all(int(n) <= have for n in below)
