"""The file of the codec: whatever is not exactly a file that was written is refused, with its
reason, before anything is decoded."""

import hashlib
import json
import random
import struct
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest

from vdiff.codec.container import HEAD, MAGIC, MOST_FACTS, Container, Facts, Writer, check_same
from vdiff.errors import InvalidValue

FACTS = Facts(
    shape=[5, 1, 3, 3], dtype="uint8", data="0123456789abcdef", batches=[[2, 2], [1, 1]], start=7,
    depth=9, spacing=0.0625, steps=10, of={"weights": "a", "threads": 1}, record={},
)  # fmt: skip
WORDS = np.arange(1, 50, dtype=np.uint32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "images.vdiff"
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.words(WORDS[:20])
        writer.words(WORDS[20:])
        writer.close(FACTS)
    assert writer.size == path.stat().st_size
    return path


def sealed(payload, facts):
    """A file with its right checksum and any facts."""
    body = HEAD.pack(MAGIC, 1) + payload + facts + struct.pack("<I", len(facts))
    return body + hashlib.sha256(body).digest()


def with_facts(**changes):
    facts = {k: v for k, v in (asdict(FACTS) | changes).items() if v is not ...}
    return sealed(WORDS.tobytes(), zlib.compress(json.dumps(facts).encode()))


def test_a_file_says_what_was_written(file):
    container = Container.open(file)
    assert container.facts == FACTS
    assert container.words == len(WORDS)
    assert np.array_equal(container.read(len(WORDS), len(WORDS)), WORDS)
    assert np.array_equal(container.read(30, 4), WORDS[26:30])


def damaged(raw, rng):
    """A file with a flipped bit, another byte, a part that is lost, doubled, moved or put in."""
    at, to = sorted(rng.sample(range(len(raw) + 1), 2))
    kind = rng.randrange(6)
    if kind == 0:
        at = min(at, len(raw) - 1)
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
    if kind == 1:
        return raw[:at] + rng.randbytes(to - at) + raw[to:]
    if kind == 2:
        return raw[:at]
    if kind == 3:
        return raw[:at] + raw[to:]
    if kind == 4:
        return raw[:to] + raw[at:]
    return raw[to:] + raw[:to]


def test_a_thousand_damaged_files_are_refused(file):
    raw, rng, refused = file.read_bytes(), random.Random(0), 0
    while refused < 1000:
        other = damaged(raw, rng)
        if other == raw:
            continue
        file.write_bytes(other)
        with pytest.raises(InvalidValue):
            Container.open(file)
        refused += 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": [4, 1, 3, 3]}, "the sizes of the batches"),
        ({"shape": [5, 1, 2**30, 2**30]}, "the value of shape"),
        ({"shape": [5]}, "the value of shape"),
        ({"shape": [5, True, 3, 3]}, "the value of shape"),
        ({"dtype": "object"}, "the value of dtype"),
        ({"data": "../../etc/passwd"}, "the value of data"),
        ({"batches": [[5, 0]]}, "the value of batches"),
        ({"batches": [[2**52, 2**52]]}, "the sizes of the batches"),
        ({"shape": [2**29, 1], "batches": [[2**29, 1]]}, "the sizes of the batches"),
        ({"batches": [5]}, "the value of batches"),
        ({"batches": []}, "the sizes of the batches"),
        ({"start": -1}, "the value of start"),
        ({"start": 50}, "the words that it says"),
        ({"depth": 50}, "the words that it says"),
        ({"spacing": float("nan")}, "the value of spacing"),
        ({"spacing": 1e-9}, "the value of spacing"),
        ({"steps": "10"}, "the value of steps"),
        ({"steps": 2**70}, "whole number of more than 63 bits"),
        ({"of": []}, "the value of of"),
        ({"record": {"a": [0] * 30_000}}, "more than they may have"),
        ({"of": ...}, "the names of"),
        ({"more": 1}, "the names more"),
    ],
)
def test_facts_that_cannot_be_are_refused_under_a_right_checksum(file, changes, text):
    file.write_bytes(with_facts(**changes))
    with pytest.raises(InvalidValue, match=text):
        Container.open(file)


def test_a_small_file_does_not_become_a_large_one(file):
    bomb = zlib.compress(b"[" + b"0," * (1 << 22) + b"0]")
    assert len(bomb) < MOST_FACTS
    file.write_bytes(sealed(WORDS.tobytes(), bomb))
    with pytest.raises(InvalidValue, match="more than they may have"):
        Container.open(file)


def test_other_files_say_what_they_are(file, tmp_path):
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidValue, match="must be a compressed file"):
        Container.open(file)
    newer = HEAD.pack(MAGIC, 2) + bytes(100)
    file.write_bytes(newer)
    with pytest.raises(
        InvalidValue, match=r"must have version 1; got 2 \(a newer vdiff reads it\)"
    ):
        Container.open(file)
    file.write_bytes(HEAD.pack(MAGIC, 1) + bytes(9))
    with pytest.raises(InvalidValue, match="cut off"):
        Container.open(file)
    file.write_bytes(sealed(WORDS.tobytes()[:-1], zlib.compress(b"{}")))
    with pytest.raises(InvalidValue, match="facts of its length"):
        Container.open(file)
    with pytest.raises(OSError, match="a folder"):
        Container.open(tmp_path)


def test_a_link_to_a_file_is_read(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    assert Container.open(tmp_path / "link").facts == FACTS


def test_facts_that_could_not_be_read_are_not_written(tmp_path):
    with (
        (tmp_path / "f").open("wb") as stream,
        pytest.raises(ValueError, match="the value of start"),
    ):
        Writer(stream).close(replace(FACTS, start=0))


def test_a_difference_is_named():
    check_same({"a": 1}, {"a": 1})
    text = "must be decoded with the threads that it was written with, 4; got 1 here"
    with pytest.raises(InvalidValue, match=text):
        check_same({"weights": "w", "threads": 4}, {"weights": "w", "threads": 1})
    with pytest.raises(InvalidValue, match="the condition that it was written with, None"):
        check_same({"weights": "w"}, {"weights": "w", "condition": {}})


def test_files_without_a_kind_hold_images(file):
    file.write_bytes(with_facts(kind=..., seed=...))
    assert Container.open(file).facts == FACTS
    file.write_bytes(with_facts(kind="sounds"))
    with pytest.raises(InvalidValue, match="the value of kind"):
        Container.open(file)
