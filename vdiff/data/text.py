"""Text as bytes: the documentation that ships with Python, and your own files."""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from platform import python_version
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from vdiff._validate import Count, require, validated
from vdiff.disk import absolute
from vdiff.errors import InvalidValue

PARAGRAPH = re.compile(r"(?<=\n)\n+")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_DOCUMENTATION = {"site-packages", "test", "tests", "idle_test", "pydoc_data"}  # folders
TESTED, SELECTED = 10, 20  # a part has at most one byte in so many


@dataclass(frozen=True, eq=False)
class Text:
    """Documents by name, as bytes, in windows of `length`.

    Every document begins with a window of its own, and its last window is padded: each byte is in
    exactly one window, and no window has two documents.

    >>> text = Text({"a": b"to be", "b": b"or"}, length=3)
    >>> text.tokens, text.absent, text.bytes
    (tensor([[116, 111,  32],
            [ 98, 101,   0],
            [111, 114,   0]], dtype=torch.uint8), tensor([[False, False, False],
            [False, False,  True],
            [False, False,  True]]), 7)
    """

    documents: Mapping[str, bytes]
    length: int
    record: str = ""  # where the text comes from and how it was split, in one line

    @property
    def bytes(self) -> int:
        """How many bytes the text has."""
        return sum(map(len, self.documents.values()))

    @property
    def tokens(self) -> Tensor:
        """The bytes as tokens, (windows, length) in uint8, and 0 where a window is padded."""
        return _padded(self.documents.values(), self.length, 0)

    @property
    def absent(self) -> Tensor:
        """True where a window is padded, (windows, length)."""
        present = [bytes(len(document)) for document in self.documents.values()]
        return _padded(present, self.length, 1).bool()

    def windows(self, stride: Count = 1) -> Tensor:
        """Windows for training, which overlap: one at each `stride` bytes of the documents joined,
        (windows, length) in uint8. With a stride of 1 they take no more memory than the text."""
        joined = as_tensor(b"".join(self.documents.values()))
        what = f"have as many bytes as one window, {self.length}"
        require(len(joined) >= self.length, "documents", what, len(joined))
        return joined.unfold(0, self.length, stride)

    def split(self) -> "TextSplits":
        """Three parts, by whole documents, by a hash of their names.

        In the order of the hashes, a document goes to the test as long as that has at most a tenth
        of all bytes, else to the selection as long as that has at most a twentieth, else to the
        training part. Raises ValueError if a part would be empty.
        """
        names = sorted(self.documents, key=_hash)
        test = self._first(names, self.bytes / TESTED)
        selection = self._first([n for n in names if n not in test], self.bytes / SELECTED)
        train = [name for name in self.documents if name not in test | selection]
        came = f"{len(names)} of {self.bytes:,} bytes"
        hint = "a twentieth of all bytes must hold one document, and a tenth another"
        require(bool(test and selection and train), "documents", "fill three parts", came, hint)
        return TextSplits(*(self._part(part) for part in (train, selection, test)))

    def _first(self, names: list[str], most: float) -> set[str]:
        """The first of these documents that fit into so many bytes, where a longer one is left
        out."""
        chosen, taken = set(), 0
        for name in names:
            if taken + len(self.documents[name]) <= most:
                chosen.add(name)
                taken += len(self.documents[name])
        return chosen

    def _part(self, names: set[str] | list[str]) -> "Text":
        documents = {name: d for name, d in self.documents.items() if name in names}
        part = Text(documents, self.length)
        rule = f"{len(documents)} documents of {part.bytes:,} bytes, split by a hash of the name"
        return Text(documents, self.length, f"{self.record}; {rule}".removeprefix("; "))


class TextSplits(NamedTuple):
    """Text to train on, to select with (a validation curve, a setting), and to test once, at the
    end.

    >>> TextSplits._fields
    ('train', 'selection', 'test')
    """

    train: Text
    selection: Text
    test: Text


@validated
def text(length: Count = 128) -> TextSplits:
    """English text that is installed with Python: the topics of its help and the docstrings of its
    standard library, in windows of `length` bytes.

    A document is a topic, or all docstrings of a module. They share many paragraphs ("compound"
    has those of "for", "while", …). Each paragraph is kept in the shortest document that has it,
    and left out of the others, so that no paragraph of the test is in the training part. Python
    3.11 has about 2.1 MB of such text; other versions and installations have others, as `record`
    says.

    >>> parts = text(64)
    >>> parts.test.tokens.shape[1], parts.test.bytes == int((~parts.test.absent).sum())
    (64, True)
    """
    documents = _installed()
    modules = sum(name.endswith(".py") for name in documents)
    record = (
        f"{len(documents) - modules} topics and the docstrings of {modules} modules of Python "
        f"{python_version()}, each paragraph once"
    )
    return Text(documents, length, record).split()


@cache
def _installed() -> Mapping[str, bytes]:
    """Topics by name and docstrings by path in the standard library, without copies."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    docstrings = {
        path.relative_to(root).as_posix(): docstrings_of(path.read_bytes())
        for path in sorted(root.rglob("*.py"))
        if not NO_DOCUMENTATION & set(path.relative_to(root).parts)
    }
    return MappingProxyType(without_copies({**topics, **docstrings}))


def docstrings_of(source: bytes) -> str:
    """The docstrings of a module, its classes and functions, with an empty line between them;
    none where the source cannot be parsed.

    >>> docstrings_of(b"'About it.'\\ndef f():\\n    'Returns it.'\\n")
    'About it.\\n\\nReturns it.'
    """
    with warnings.catch_warnings(action="ignore"):  # of the source
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return ""
    nodes = (node for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


@validated
def text_from(path: str | Path, length: Count = 128, *, pattern: str = "*.txt") -> Text:
    """Your own text, in UTF-8, in windows of `length` bytes: a file, or all files of a folder and
    its subfolders whose name fits the pattern. `.split()` makes three parts of a folder's.

    Raises ValueError if nothing is there, or a file is empty or not UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.txt").write_text("Zürich", encoding="utf-8")
    ...     text_from(folder, 4).bytes
    7
    """
    home = absolute("path", path)
    require(home.exists(), "path", "be a file or a folder", f"{path}, which does not exist")
    files = [home]
    if home.is_dir():
        files = sorted(file for file in home.rglob(pattern) if file.is_file())
        hint = "pattern='*.md' reads others"
        require(bool(files), "path", f"hold files {pattern}", f"none in {path}", hint)
    documents = {}
    for file in files:
        name = file.relative_to(home).as_posix() if home.is_dir() else file.name
        documents[name] = _utf8(file)
    return Text(documents, length, f"{len(documents)} files of {path}")


def without_copies(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Each text in UTF-8, without the paragraphs that a shorter text has; white space does not
    make a paragraph another. Texts of which nothing is left are left out. Half of a surrogate pair
    becomes "?".

    >>> without_copies({"all": "One.\\n\\nTwo.\\n", "one": "One.\\n"})
    {'all': b'Two.\\n', 'one': b'One.\\n'}
    """
    seen: set[str] = set()
    kept: dict[str, bytes] = {}
    sizes = {name: len(text.encode(errors="replace")) for name, text in texts.items()}
    for name in sorted(texts, key=lambda name: (sizes[name], name)):
        paragraphs = []
        for paragraph in PARAGRAPH.split(texts[name]):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                paragraphs.append(paragraph)
                seen.add(words)
        if paragraphs:
            kept[name] = "\n".join(paragraphs).encode(errors="replace")
    return {name: kept[name] for name in texts if name in kept}


def as_tensor(content: bytes) -> Tensor:
    """Bytes as tokens, (n,) in uint8."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _padded(contents: Iterable[bytes], length: int, fill: int) -> Tensor:
    """Windows of each content, of which the last is filled up, (windows, length)."""
    rows = [content + bytes([fill]) * (-len(content) % length) for content in contents]
    return as_tensor(b"".join(rows)).view(-1, length)


def _utf8(file: Path) -> bytes:
    content = file.read_bytes()
    require(bool(content), "path", "hold text", f"{file}, which is empty")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        came = f"{file}, where byte {error.start:,} is not"
        raise InvalidValue("path", "be text in UTF-8", came) from error
    return content


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


__all__ = ["Text", "TextSplits", "text", "text_from", "without_copies"]
