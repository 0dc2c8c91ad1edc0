"""`docs/errata.md`: its pointers lead somewhere, and its numbers are computed again.

An entry of the page is a heading and three items. `NUMBERS` computes the numbers in bold of each,
in their order; where a formula of the library gives a number, `same` wants a second route to it.
"""

import re

import errata_book
import errata_notes
import errata_papers
import pytest
from errata_page import (
    BOOK,
    CHAPTER,
    ENTRIES,
    EQUATIONS,
    HEADINGS,
    POINTERS,
    exists,
    numbers_after,
)

NUMBERS = errata_papers.NUMBERS | errata_book.NUMBERS | errata_notes.NUMBERS


@pytest.mark.parametrize(("source", "text"), POINTERS, ids=lambda text: text[:40])
def test_what_a_row_points_to_exists(source, text):
    if source.startswith((BOOK, CHAPTER)):
        assert all(exists(source, section) for section in numbers_after("sections?", text))
    where = text.split("; ")[0]
    if source.startswith(BOOK):
        numbers = [n.split(".") for n in numbers_after("eq\\.", where)]
        assert all(int(n) <= EQUATIONS[int(chapter)] for chapter, n in numbers)
    if source.startswith("Slides"):
        assert all(1 <= int(n) <= 13 and n != "6" for n in numbers_after("eq\\.", where))
    for name, headings in HEADINGS.items():
        if source.startswith(name):
            assert re.search(headings, where)


def test_a_pointer_that_leads_nowhere_is_seen():
    assert numbers_after("sections?", "sections 3.1 and 3.1.1") == ["3.1", "3.1.1"]
    assert numbers_after("eq\\.", "eq. 1.22, 1.23 and 5.8; eq. 3.5") == [
        "1.22",
        "1.23",
        "5.8",
        "3.5",
    ]
    assert not exists(BOOK, "6.4")
    assert not exists(BOOK, "3.2.5")


def of(where: str):
    """The function of an entry: that with the longest name that its heading begins with."""
    return NUMBERS[max((name for name in NUMBERS if where.startswith(name)), key=len)]


@pytest.mark.parametrize("where", ENTRIES, ids=lambda where: where[:40])
def test_the_numbers_of_the_page(where):
    shown = [text.replace("−", "-") for text in re.findall(r"\*\*(.*?)\*\*", ENTRIES[where])]
    values = [float(value) for value in of(where)()]
    assert len(values) == len(shown) > 0
    for text, value in zip(shown, values, strict=True):
        mantissa, _, exponent = text.partition("e")
        last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(text) - value) <= 0.501 * last, (values, shown)


def test_every_entry_has_a_function_of_its_own():
    assert sorted(map(id, map(of, ENTRIES))) == sorted(map(id, NUMBERS.values()))
    assert len(ENTRIES) == 51
