"""Every record is asked for by a test of this folder, or its quantity is named among those that
wait."""

import importlib
from collections import Counter
from pathlib import Path

from oracle_records import LATER, RECORDS, asked


def test_every_record_is_asked_for():
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(path.stem)
    waiting = {r["id"] for r in RECORDS if r["quantity"] in LATER}
    missing = Counter(r["quantity"] for r in RECORDS if r["id"] not in asked | waiting)
    assert not missing, f"records that no test asks for: {dict(missing)}"
    assert not asked & waiting, (
        "these quantities are tested: take them off the list of those that wait"
    )
    assert set(LATER) <= {r["quantity"] for r in RECORDS}
