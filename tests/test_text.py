"""Text as bytes: every byte once, parts without copies, a user's files."""

import inspect
import re
import textwrap
from pydoc_data.topics import topics

import pytest
import torch

from vdiff.data import Text, text, text_from
from vdiff.data.text import docstrings_of, without_copies


def read(part):
    """The documents that the windows hold."""
    real = ~part.absent
    return bytes(part.tokens[real].tolist())


def paragraphs(content):
    return {" ".join(p.split()) for p in re.split(r"\n\s*\n", content.decode()) if p.split()}


@pytest.mark.parametrize("length", [7, 64, 100_000])
def test_each_byte_is_in_one_window(length):
    for part in text(length):
        assert part.tokens.shape == part.absent.shape == (len(part.tokens), length)
        assert read(part) == b"".join(part.documents.values())
        assert int((~part.absent).sum()) == part.bytes
        starts = [0]
        for document in part.documents.values():
            starts.append(starts[-1] + -(-len(document) // length))
        assert starts[-1] == len(part.tokens)
        for first, document in zip(starts, part.documents.values(), strict=False):
            assert bytes(part.tokens[first].tolist())[: len(document)] == document[:length]


def test_the_parts_are_topics_and_docstrings_without_copies():
    parts = text()
    names = [set(part.documents) for part in parts]
    assert not names[0] & names[1]
    assert not names[2] & (names[0] | names[1])
    every = {name: d for part in parts for name, d in part.documents.items()}
    kept = [paragraphs(document) for document in every.values()]
    assert sum(map(len, kept)) == len(set.union(*kept))
    whole = {*topics.values(), inspect.getdoc(textwrap), inspect.getdoc(textwrap.wrap)}
    assert set.union(*(paragraphs(t.encode()) for t in whole)) <= set.union(*kept)
    assert not any(re.search(r"(^|/)tests?/|site-packages|pydoc_data", name) for name in every)
    total = sum(part.bytes for part in parts)
    assert 0.07 < parts.test.bytes / total <= 0.1
    assert 0.03 < parts.selection.bytes / total <= 0.05
    assert f"{parts.test.bytes:,} bytes" in parts.test.record


def test_docstrings_of_a_module_its_classes_and_functions():
    source = b"""'M.'
class A:
    '''C.

    More.'''
    async def f(self): 'F.'
    def g(self): return 'no docstring'
"""
    assert docstrings_of(source) == "M.\n\nC.\n\nMore.\n\nF."
    assert docstrings_of(b"print 'Python 2'") == docstrings_of(b"\0") == ""


def test_half_a_surrogate_pair_in_a_docstring_becomes_a_question_mark():
    text = docstrings_of(rb"'half \ud800 of a pair'")
    assert without_copies({"a": text})["a"] == b"half ? of a pair"


def test_the_split_does_not_depend_on_the_order_of_documents():
    documents = {str(i): bytes([65 + i % 26]) * (20 + i) for i in range(60)}
    parts = Text(documents, 8).split()
    again = Text(dict(reversed(documents.items())), 8).split()
    assert [set(part.documents) for part in parts] == [set(part.documents) for part in again]
    with pytest.raises(ValueError, match="'documents' must fill three parts; got 2 of 40 bytes"):
        Text({"a": b"a" * 20, "b": b"b" * 20}, 8).split()


def test_windows_for_training_overlap():
    train = Text({"a": b"abcd", "b": b"efg"}, 3)
    assert [bytes(row.tolist()) for row in train.windows(2)] == [b"abc", b"cde", b"efg"]
    assert len(train.windows()) == 5
    assert train.windows().untyped_storage().nbytes() == 7
    with pytest.raises(ValueError, match="as many bytes as one window, 9; got 7"):
        Text(train.documents, 9).windows()


def test_own_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes("grün".encode())
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "c.md").write_bytes(b"other")
    found = text_from(tmp_path, 4)
    assert dict(found.documents) == {"a.txt": b"one\r\n", "sub/b.txt": "grün".encode()}
    assert found.tokens.shape == (4, 4)
    assert found.bytes == 10
    assert text_from(str(tmp_path / "c.md")).documents == {"c.md": b"other"}
    assert set(text_from(tmp_path, pattern="*.md").documents) == {"c.md"}


def test_files_that_are_not_text_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"'path' must be a file or a folder; got .*which does not"
    ):
        text_from(tmp_path / "no.txt")
    with pytest.raises(ValueError, match=r"'path' must hold files \*.txt; got none in"):
        text_from(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must hold text; got .*empty.txt, which is empty"):
        text_from(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        ValueError, match=r"be text in UTF-8; got .*empty.txt, where byte 3 is not"
    ):
        text_from(tmp_path)
    with pytest.raises(ValueError, match="'length' must"):
        text_from(tmp_path, 0)


def test_tokens_are_what_the_losses_take():
    from vdiff import weighted_elbo
    from vdiff.discrete import Masked, TokenDenoiser
    from vdiff.nn import Transformer
    from vdiff.schedule import Linear

    part = text(32).test
    model = TokenDenoiser(Transformer(256, length=32, width=8, depth=1, heads=1), Masked(256))
    rows = part.absent.any(1).nonzero()[:4, 0]
    loss = weighted_elbo(
        model, part.tokens[rows], schedule=Linear(9.0, -9.0), absent=part.absent[rows]
    )
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
