"""Tokens of several bytes: the most frequent pair of neighbours becomes a token, again and again.

Sennrich, Haddow & Birch, arXiv:1508.07909 (byte pair encoding).
"""

from collections.abc import Iterable

import numpy as np

Tokens = np.ndarray[tuple[int], np.dtype[np.int64]]
END = -1  # between documents


class BytePairs:
    """256 bytes, and a token for each merged pair. With no merges, tokens are bytes.

    >>> pairs = BytePairs.learned([b"banana", b"bandana"], 2)
    >>> pairs.encode(b"banana"), pairs.decode(pairs.encode(b"banana"))
    (array([257, 256,  97]), b'banana')
    """

    def __init__(self, merges: list[tuple[int, int]]) -> None:
        self.merges = merges
        self.content = [bytes([value]) for value in range(256)]
        for first, second in merges:
            self.content.append(self.content[first] + self.content[second])
        self.vocabulary = len(self.content)

    @classmethod
    def learned(cls, documents: Iterable[bytes], merges: int) -> "BytePairs":
        """The pairs that are most frequent within these documents, of which no pair crosses the
        end. Of equally frequent pairs the first in order."""
        parts = [np.append(_bytes(document), END) for document in documents]
        tokens, found = np.concatenate(parts), list[tuple[int, int]]()
        for new in range(256, 256 + merges):
            first, second = tokens[:-1], tokens[1:]
            inside = (first != END) & (second != END)
            counts = np.bincount((first * new + second)[inside], minlength=new * new)
            found.append(divmod(int(counts.argmax()), new))
            tokens = _merged(tokens, *found[-1], new)
        return cls(found)

    def encode(self, document: bytes) -> Tokens:
        """The tokens of a document: the merges in their order, each from left to right."""
        tokens = _bytes(document)
        for new, (first, second) in enumerate(self.merges, start=256):
            tokens = _merged(tokens, first, second, new)
        return tokens

    def decode(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.content[token] for token in tokens)


def _bytes(document: bytes) -> Tokens:
    return np.frombuffer(document, np.uint8).astype(np.int64)


def _merged(tokens: Tokens, first: int, second: int, new: int) -> Tokens:
    """The tokens with `new` for each pair, from left to right: of "aaa" the first two."""
    places = np.flatnonzero((tokens[:-1] == first) & (tokens[1:] == second))
    if first == second and len(places):
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # of runs
        within = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
        places = places[within % 2 == 0]
    tokens = tokens.copy()
    tokens[places] = new
    return np.delete(tokens, places + 1)
