"""How results show themselves in a notebook: HTML that is well formed, with their numbers and
nothing of a name's markup."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from registry import SCHEDULES

from vdiff import _html
from vdiff.describe import describe
from vdiff.likelihood import verify_estimators
from vdiff.theorems import verify


def parsed(thing):
    return ElementTree.fromstring(f"<div>{thing._repr_html_()}</div>")


def words(thing):
    return " ".join(" ".join(parsed(thing).itertext()).split())


def points(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_a_curve_is_scaled_to_its_largest_value_over_its_axis():
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 3.0])
    root = ElementTree.fromstring(_html.curve(x, y, "a & b"))
    high, width = _html.HEIGHT, _html.WIDTH
    assert points(root.find("polyline")) == [(0, high / 2), (width / 2, high), (width, 0)]
    assert float(root.find("line").get("y1")) == high * 0.75  # y = 0
    assert [text.text for text in root.findall("text")] == ["0", "2", "a & b"]
    assert "nothing to draw" in _html.curve(x, torch.full((3,), torch.nan), "empty")
    many = torch.linspace(0, 1, 10_000)
    assert len(_html.curve(many, many, "long")) < 5_000


def test_text_is_escaped_and_curves_are_not():
    root = ElementTree.fromstring(
        _html.table([("<b>", _html.curve(torch.ones(3), torch.ones(3), ""))])
    )
    assert root.find(".//th").text == "<b>"
    assert root.find(".//b") is None
    assert root.find(".//polyline") is not None


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_shows_itself(name):
    schedule = SCHEDULES[name](7.0, -6.0)
    root = parsed(schedule)
    levels, density = (points(line) for line in root.findall(".//polyline"))
    assert len(levels) == len(density) == _html.POINTS
    assert all(a[1] <= b[1] for a, b in pairwise(levels))  # λ falls with t
    assert root.find(".//th").text == repr(schedule)


def test_a_description_shows_itself():
    text = words(describe("edm"))
    assert "no likelihood, not even of noisier data" in text
    assert "λ = -3.31" in text
    assert len(parsed(describe("edm")).findall(".//polyline")) == 3


def test_verdicts_show_themselves():
    report = verify(names=["tweedie"])
    text = words(report)
    assert "2 of 2 as they must be" in text
    assert all(verdict.word in text for verdict in report)
    assert len(parsed(report).findall(".//tr")) == 1 + len(report)


def test_the_estimators_table_shows_itself():
    table = verify_estimators(names=["gaussian"], points=4)
    text = words(table)
    assert f"{len(table.rows)} of {len(table.rows)} passed" in text
    assert f"{table.rows[0].estimate:.5f}" in text
