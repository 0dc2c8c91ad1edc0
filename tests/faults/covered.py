"""Which faults have tests: they carry their numbers, `def test_fault_52_...`."""

import re
from collections import Counter
from pathlib import Path

ALL = range(1, 78)


def covered() -> Counter[int]:
    """How many tests each fault has, in all of tests/."""
    sources = (
        path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")
    )
    return Counter(
        int(number)
        for source in sources
        for number in re.findall(r"^def test_fault_(\d\d)_", source, re.MULTILINE)
    )
