"""A stack of bits from which symbols are popped under one distribution and onto which they are
pushed under another: asymmetric numeral systems, by `constriction`.

A push of a symbol of probability p adds −log₂ p bits, and a pop of it removes as many. What is
popped off random bits has the distribution that it is popped with.

A normal distribution on the integers is coded in a window around its mean. The coder gives every
symbol of an alphabet at least the probability 2⁻²⁴, so a wide alphabet would cost bits at every
symbol. What lies outside the window has a symbol for each side, and codes its distance after it.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdiff.extras import extra

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

REACH = 4.0  # standard deviations in half a window, or up to a fifth more
BETWEEN = 2.0 ** np.array([-0.875, -0.625, -0.375, -0.125])  # quarters of an octave
NARROWEST, WIDEST = 2.0**-4, 2.0**16  # standard deviations that are coded, in steps of the grid
LARGEST = 2.0**44  # a mean beyond it counts as it
FARTHEST = 48  # bits of the largest distance from a window, and one more
PIECE = 16  # bits of a distance that are coded at a time
TABLE = 1 << 22  # probabilities of one call
WORD = 32  # bits


class Underflow(RuntimeError):
    """The bits of a stack are used up: what was popped last is not random."""


class Stack:
    """Symbols in 32-bit words; the last word is the top.

    `lowest` is the least number of words that were left untouched since it was last set. Where
    fewer than two are left, a pop raises `Underflow`.

    >>> stack = Stack(np.arange(1, 100, dtype=np.uint32))
    >>> index = stack.pop_normal(np.full(8, 0.3), np.full(8, 20.0))
    >>> stack.push_normal(index, np.full(8, 0.3), np.full(8, 20.0))
    >>> bool((stack.words() == np.arange(1, 100)).all())
    True
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        with extra("codec"):
            import constriction
        self._new = constriction.stream.stack.AnsCoder
        self._model = constriction.stream.model
        self._coder = self._new(words) if len(words) else self._new()
        self.lowest = len(words)

    def __len__(self) -> int:
        return int(self._coder.num_words())

    @property
    def bits(self) -> int:
        """The bits on the stack."""
        return int(self._coder.num_valid_bits())

    def words(self) -> NDArray[np.uint32]:
        """All words, from the bottom to the top."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words

    def copy(self) -> "Stack":
        """Another stack with the same words."""
        other = Stack(self.words())
        other.lowest = self.lowest
        return other

    def put_below(self, words: NDArray[np.uint32]) -> None:
        """Add words at the bottom."""
        self._coder = self._new(np.concatenate([words, self.words()]))
        self.lowest += len(words)

    def take_below(self, keep: int) -> NDArray[np.uint32]:
        """Remove words from the bottom, so that `keep` remain."""
        words = self.words()
        below, rest = np.split(words, [max(0, len(words) - keep)])
        self._coder = self._new(rest)
        self.lowest = len(rest)
        return below

    def whiten(self, key: int, bits: float) -> None:
        """Flip a fixed random half of the topmost bits. A second call with the same arguments
        undoes it.

        Symbols that were pushed stand in the words of the stack as they are, and would be popped
        as such: where they do not have the distribution that they were pushed under, what is
        popped next would not be random.
        """
        count = math.ceil(bits / WORD)
        self.lowest = min(self.lowest, len(self) - count)
        if self.lowest < 2:
            raise Underflow
        words = self.words()
        noise = np.random.Philox(key=key).random_raw(count // 2 + 1).view(np.uint32)
        words[-2 - count : -2] ^= noise[:count]
        self._coder = self._new(words)
        # the last two words are a number whose digits are not uniform: flipped, they would cost
        # 0.003 bits each time. A uniform symbol costs nothing
        top = self._model.Uniform(1 << PIECE)
        symbol = self._coder.decode(top, 1) ^ np.int32(noise[count] >> PIECE)
        self._coder.encode_reverse(symbol, top)

    def push_normal(self, index: Integers, mean: Floats, std: Floats) -> None:
        """Push integers under N(mean, std²), rounded to the nearest integer."""
        center, mean, std, windows = _windows(mean, std)
        off = index - center
        outside = [(rows, half) for rows, half in windows if (np.abs(off[rows]) >= half).any()]
        for rows, half in reversed(outside):
            distance = np.abs(off[rows]) - half
            self._push_distance(distance[distance >= 0], half)
        for rows, half in reversed(windows):
            symbols = np.clip(off[rows], -half, half).astype(np.int32)
            self._push(symbols, self._model.QuantizedGaussian(-half, half), mean[rows], std[rows])

    def pop_normal(self, mean: Floats, std: Floats) -> Integers:
        """Pop integers under N(mean, std²), rounded to the nearest integer."""
        center, mean, std, windows = _windows(mean, std)
        off = np.empty(len(center), np.int64)
        for rows, half in windows:
            model = self._model.QuantizedGaussian(-half, half)
            off[rows] = self._pop(model, mean[rows], std[rows])
        for rows, half in windows:
            part = off[rows]
            outside = np.abs(part) == half
            if outside.any():
                part[outside] += np.sign(part[outside]) * self._pop_distance(
                    int(outside.sum()), half
                )
                off[rows] = part
        return center + off

    def push_levels(self, levels: Integers, probabilities: Floats) -> None:
        """Push levels under the rows of (n, levels) probabilities."""
        model, chunk = self._model.Categorical(perfect=False), _chunk(probabilities)
        for first in reversed(range(0, len(levels), chunk)):
            part = slice(first, first + chunk)
            self._push(levels[part].astype(np.int32), model, probabilities[part])

    def pop_levels(self, probabilities: Floats) -> Integers:
        """Pop a level under each row of (n, levels) probabilities."""
        model, chunk = self._model.Categorical(perfect=False), _chunk(probabilities)
        rows = range(0, len(probabilities), chunk)
        parts = [self._pop(model, probabilities[first : first + chunk]) for first in rows]
        return np.concatenate(parts)

    def _push_distance(self, distance: Integers, half: int) -> None:
        """Push distances beyond a window, at least 0: one by one as far as another half window,
        then the number of bits of the rest, and the bits."""
        rest = distance[distance >= half] - half
        size = np.frexp(rest.astype(np.float64))[1]  # exact below 2⁵³
        for shift in reversed(range(0, FARTHEST, PIECE)):
            rows, sizes = _piece(size - 1, shift)  # without the leading bit
            symbols = (rest[rows] >> shift) & (sizes - 1)
            self._push(symbols.astype(np.int32), self._model.Uniform(), sizes)
        self._push(size.astype(np.int32), self._model.Uniform(FARTHEST))
        near = np.minimum(distance, half).astype(np.int32)
        self._push(near, self._model.Categorical(_tail(half), perfect=False))

    def _pop_distance(self, count: int, half: int) -> Integers:
        distance = self._pop(self._model.Categorical(_tail(half), perfect=False), count)
        beyond = np.flatnonzero(distance == half)
        size = self._pop(self._model.Uniform(FARTHEST), len(beyond))
        rest = np.where(size > 0, np.left_shift(1, np.maximum(size - 1, 0)), 0)
        for shift in range(0, FARTHEST, PIECE):
            rows, sizes = _piece(size - 1, shift)
            rest[rows] += self._pop(self._model.Uniform(), sizes) << shift
        distance[beyond] += rest
        return distance

    def _push(self, symbols: NDArray[np.int32], model: Any, *parameters: Any) -> None:
        if len(symbols):
            self._coder.encode_reverse(symbols, model, *parameters)

    def _pop(self, model: Any, *parameters: Any) -> Integers:
        count = parameters[0] if isinstance(parameters[0], int) else len(parameters[0])
        if not count:
            return np.empty(0, np.int64)
        symbols = self._coder.decode(model, *parameters).astype(np.int64)
        self.lowest = min(self.lowest, len(self))
        if self.lowest < 2:
            raise Underflow
        return np.asarray(symbols)


def _windows(mean: Floats, std: Floats) -> tuple[Integers, Floats, Floats, list[tuple[Any, int]]]:
    """The nearest integers, the means relative to them, the standard deviations, and the rows that
    share a window with half its width. Widths go up by a quarter of an octave, and change between
    the powers of two: most grids have one in a standard deviation."""
    mean = np.clip(mean, -LARGEST, LARGEST)
    std = np.clip(std, NARROWEST, WIDEST)
    center = np.rint(mean)
    fraction, exponent = np.frexp(std)  # no logarithm, whose last bit may differ
    quarter = 4 * exponent - 4 + np.searchsorted(BETWEEN, fraction)
    kinds = np.unique(quarter)
    halves = [math.ceil(REACH * 2.0 ** ((kind + 0.5) / 4)) for kind in kinds.tolist()]
    rows = [slice(None)] if len(kinds) == 1 else [np.flatnonzero(quarter == k) for k in kinds]
    return center.astype(np.int64), mean - center, std, list(zip(rows, halves, strict=True))


@functools.lru_cache
def _tail(half: int) -> Floats:
    """How a normal distribution beyond a window falls, by distance as far as another half window;
    the last entry is all beyond that."""
    std = half * 2.0**-0.125 / REACH  # in the middle of those that share the window
    tail = [math.erfc((half - 0.5 + edge) / (std * math.sqrt(2))) for edge in range(half + 1)]
    return np.append(-np.diff(tail), tail[-1])


def _piece(bits: NDArray[Any], shift: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """The rows that have bits from `shift` on, and the number of values of the next ones."""
    here = np.clip(bits - shift, 0, PIECE)
    rows = np.flatnonzero(here)
    return rows, np.left_shift(1, here[rows]).astype(np.int32)


def _chunk(probabilities: Floats) -> int:
    return max(1, TABLE // int(probabilities.shape[1]))
