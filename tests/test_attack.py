"""A sample of what `tests/soak_attack.py` does."""

import os

import pytest
from soak_attack import flips, pairs, stops

from vdiff.cli import evaluate, resume

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
    pytest.mark.filterwarnings("ignore"),  # of damaged files; the soak looks at what is printed
]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soak changes both."""
    monkeypatch.setattr(resume, "PAUSE", resume.PAUSE)
    monkeypatch.setitem(evaluate.DATA, "digits", evaluate.DATA["digits"])


def test_flipped_bits_end_in_the_right_number_or_in_one_line(tmp_path):
    assert sum(flips(10, tmp_path).values()) == 10


def test_an_evaluation_that_is_killed_is_right_the_next_time(tmp_path):
    assert stops(2, tmp_path)["stopped"] == 2


def test_two_evaluations_at_once_leave_one_whole_file(tmp_path):
    assert sum(pairs(1, tmp_path).values()) == 1
