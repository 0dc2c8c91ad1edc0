"""Plain data from outside stays within bounds."""

import json
from pathlib import Path

import pytest

from vdiff.training.safe_json import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_LINE,
    MAX_VALUES,
    flaw,
    json_repr,
    lines,
    parse,
    read_json,
)


def nested(depth: int) -> object:
    value: object = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def test_depth_is_bounded_before_anything_recurses():
    assert flaw(nested(MAX_DEPTH)) == ""
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        assert flaw(nested(depth)) == "a value that is nested more than 32 deep"
    assert parse(json.dumps(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        for depth in (MAX_DEPTH + 1, 2000, 10**6):
            for text in (opened * depth + "1" + closed * depth, opened * depth):
                with pytest.raises(ValueError, match=r"nested more than 32 deep|delimiter|value"):
                    parse(text)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([0] * (MAX_VALUES - 1), ""),
        ([0] * MAX_VALUES, "more than 100,000 values"),
        ([[0] * 400] * 400, "more than 100,000 values"),
        (2**63 - 1, ""),
        ({"a": [-(2**63)]}, "a whole number of more than 63 bits"),
        (float("nan"), ""),
        ({1: 2}, "a name that is not text"),
        ([b"x"], "a bytes"),
        ({"a": {1}}, "a set"),
        ((None, True, "x", 1.5), ""),
    ],
    ids=str,
)
def test_amounts_and_kinds_are_bounded(value: object, found: str):
    assert flaw(value) == found


def test_a_file_is_bounded_and_named(tmp_path: Path):
    path = tmp_path / "config.json"
    for raw, message in (
        (b"[" * 2000, "must be JSON; got a value that is nested more than 32 deep"),
        (b"{", "must be JSON; got Expecting property name"),
        (b"\xff", "must be JSON; got 'utf-8' codec"),
        (b" " * (MAX_BYTES + 1), "must have at most 16,777,216 bytes; got more"),
        (b"[1]", "must be JSON; got a list instead of values by name"),
        (b"9" * 5000, "must be JSON; got Exceeds the limit"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="argument '") as refused:
            read_json(path)
        assert f"argument '{path}' {message}" in str(refused.value)
        assert "\n" not in str(refused.value)
    path.write_bytes(b" " * (MAX_BYTES - 2) + b"{}")
    assert read_json(path) == {}


def test_lines_are_read_one_at_a_time_and_long_ones_are_left_out(tmp_path: Path):
    path = tmp_path / "log"
    whole = "x" * (MAX_LINE - 1)
    for long in (MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE - 1, 3 * MAX_LINE):
        path.write_text(f"a\n{whole}\n{'y' * long}\n\n  \nλ\n{'z' * long}", encoding="utf-8")
        assert list(lines(path)) == ["a", whole, "λ"]
    path.write_bytes(b"\xffa\r\nb")
    assert list(lines(path)) == ["\ufffda\r", "b"]


def test_a_long_value_is_not_shown_whole():
    assert json_repr(True) == "true"
    assert len(json_repr("x" * 10**6)) == 101
    assert json_repr("\x1b[2J") == "'\\x1b[2J'"
