"""Yardsticks for bits per byte: n-grams with back-off, and general compressors."""

import gzip
import lzma
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]
Symbols = bytes | NDArray[np.integer]  # or tokens
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, 9),
    "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


class NGram:
    """The next symbol given those before it: interpolated Kneser–Ney with three discounts.

    Symbols are `values` numbers: bytes, or tokens. Each order takes a discount from every count
    and gives what it took to the next lower order, which counts different predecessors instead of
    occurrences. The lowest is uniform. Order 1 is the unigram.

    Chen & Goodman, Computer Speech & Language 13 (1999) 359–394, section 4.1.6.
    """

    def __init__(self, symbols: Symbols, order: int, values: int = 256) -> None:
        assert 1 <= order <= longest(values)
        self.order, self.values = order, values
        self.width = np.uint64((values - 1).bit_length())
        x = _keys(symbols)
        self.levels = []
        for n in range(1, order + 1):
            if n == order:
                grams, counts = np.unique(self._grams(x, n), return_counts=True)
            else:  # how many different symbols precede it
                longer = np.unique(self._grams(x, n + 1))
                last = (np.uint64(1) << self.width * np.uint64(n)) - np.uint64(1)
                grams, counts = np.unique(longer & last, return_counts=True)
            self.levels.append(_level(grams, counts, self.width))

    def probabilities(self, symbols: Symbols, seen: NDArray[np.int64]) -> Floats:
        """p of each symbol given the `seen` symbols before it, of which the order uses the
        last."""
        x = _keys(symbols)
        p = np.full(len(x), 1 / self.values)
        for n, (grams, kept, contexts, totals, back) in enumerate(self.levels, start=1):
            keys = np.zeros(len(x), np.uint64)
            for back_by in range(n - 1, -1, -1):
                shifted = np.concatenate([np.zeros(back_by, np.uint64), x])[: len(x)]
                keys = keys << self.width | shifted
            gram, is_gram = _find(grams, keys)
            context, is_context = _find(contexts, keys >> self.width)
            count = np.where(is_gram, kept[gram], 0.0)
            known = is_context & (seen >= n - 1)
            p = np.where(known, count / totals[context] + back[context] * p, p)
        return p

    def _grams(self, x: Keys, n: int) -> Keys:
        """All n symbols in a row as one number."""
        keys = np.zeros(len(x) - n + 1, np.uint64)
        for i in range(n):
            keys = keys << self.width | x[i : len(x) - n + 1 + i]
        return keys


def longest(values: int) -> int:
    """The largest order whose symbols fit into a key."""
    return 64 // (values - 1).bit_length()


def bits_by_window(model: NGram, windows: Sequence[Symbols]) -> Floats:
    """Bits of each window, of which the model sees nothing else."""
    sizes = [len(window) for window in windows]
    seen = np.concatenate([np.arange(size) for size in sizes])
    symbols = np.concatenate([_keys(window) for window in windows])
    bits = -np.log2(model.probabilities(symbols, seen))
    return np.add.reduceat(bits, np.cumsum([0, *sizes[:-1]]))


def best_ngram(train: Symbols, selection: Sequence[Symbols], values: int = 256) -> NGram:
    """The n-gram of the order that has the fewest bits on the selection."""

    def bits(order: int) -> float:
        found: float = bits_by_window(NGram(train, order, values), selection).sum()
        return found

    return NGram(train, min(range(1, longest(values) + 1), key=bits), values)


def compressed(name: str, test: bytes, train: bytes = b"") -> int:
    """The bits of a text under a compressor: of the file of the test alone, or what it adds to
    that of the training text before it."""
    compress = COMPRESSORS[name]
    alone = len(compress(train)) if train else 0
    return 8 * (len(compress(train + test)) - alone)


def _keys(symbols: Symbols) -> Keys:
    return np.array(bytearray(symbols) if isinstance(symbols, bytes) else symbols, np.uint64)


def _level(
    grams: Keys, counts: NDArray[np.int64], width: np.uint64
) -> tuple[NDArray[np.generic], ...]:
    """n-grams with their discounted counts; their contexts with totals and what is left."""
    of = np.bincount(np.minimum(counts, 5), minlength=5).clip(min=1)
    y = of[1] / (of[1] + 2 * of[2])
    discounts = np.array(
        [0.0] + [max(0.05, i - (i + 1) * y * of[i + 1] / of[i]) for i in (1, 2, 3)]
    )
    taken = discounts[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> width, return_index=True)
    totals = np.add.reduceat(counts, first)
    return grams, counts - taken, contexts, totals, np.add.reduceat(taken, first) / totals


def _find(keys: Keys, wanted: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where sorted keys hold the wanted ones, and whether they do."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted
