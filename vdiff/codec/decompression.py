"""Restore images or tokens from a file."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._arguments import Condition, Model
from vdiff._validate import validated
from vdiff.codec._choice import code_in, has_code
from vdiff.codec._identity import (
    DataHash,
    LevelDecoder,
    identity,
    padding,
)
from vdiff.codec.code import Code, Rows
from vdiff.codec.compression import Progress
from vdiff.codec.container import Container, Facts, check_same
from vdiff.codec.stack import Stack, Underflow
from vdiff.errors import InvalidValue
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.conditions import select_rows
from vdiff.schedule import Schedule

AT_ONCE = 1 << 16  # words that are read at a time


@validated(rules=[has_code])
def decompress(
    model: Model,
    path: str | os.PathLike[str],
    *,
    schedule: Schedule | None = None,
    decoder: LevelDecoder | None = None,
    progress: Progress | None = None,
    condition: Condition = None,
) -> Tensor:
    """The images or tokens of a file of `compress`, byte for byte, in their dtype.

    The whole file is checked before anything is decoded: its checksum, its sizes, and that
    weights, chain, software and number of threads are those that it was written with. The images
    are checked by their hash before they are returned.

    Args:
        model, path, schedule, decoder, progress, condition: as in `compress`.

    Raises:
        ValueError: for a file that is damaged, or was written with another model, chain, software
            or condition, with the reason.
        OSError: if it cannot be read.

    >>> import tempfile
    >>> from vdiff.codec import compress
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> model, images = GaussianMixture([1.0], [[0.0]], [[0.2]]), torch.tensor([[1], [3], [2]])
    >>> chain = {"schedule": Linear(9.0, -7.0), "decoder": Categorical(levels=4)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/images.vdiff"
    ...     written = compress(model, images, file, steps=50, **chain)
    ...     decompress(model, file, **chain).tolist()
    [[1], [3], [2]]
    """
    parts = decompress_batches(
        model,
        path,
        schedule=schedule,
        decoder=decoder,
        progress=progress,
        condition=condition,
    )
    return torch.cat(list(parts))


@validated(rules=[has_code])
def decompress_batches(
    model: Model,
    path: str | os.PathLike[str],
    *,
    schedule: Schedule | None = None,
    decoder: LevelDecoder | None = None,
    progress: Progress | None = None,
    condition: Condition = None,
) -> Iterator[Tensor]:
    """As `decompress`, a batch at a time, in order: for more images than fit into memory.

    All checks but that of the images themselves come before the first batch. That one comes before
    the last: the images are right if the iterator ends, and wrong if it raises.

    >>> import tempfile
    >>> from vdiff.codec import compress
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> model, images = GaussianMixture([1.0], [[0.0]], [[0.2]]), torch.tensor([[1], [3], [2]])
    >>> chain = {"schedule": Linear(9.0, -7.0), "decoder": Categorical(levels=4)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/images.vdiff"
    ...     written = compress(model, images, file, steps=50, batch=2, **chain)
    ...     sum(len(part) for part in decompress_batches(model, file, **chain))
    3
    """
    container = Container.open(Path(path))
    facts = container.facts
    with evaluating(model, schedule):
        code = code_in(facts, model, schedule, decoder, math.prod(facts.shape[1:]))
        check_same(facts.of, identity(model, code, condition))
    return _Decoder(container, code, progress, condition).run(model, schedule)


class _Decoder:
    """Pops images off a stack, which is read from the end of the payload."""

    def __init__(
        self,
        container: Container,
        code: Code,
        progress: Progress | None,
        condition: Any,
    ) -> None:
        self.container, self.code, self.progress = container, code, progress
        self.condition, self.done = condition or {}, 0
        self.left = container.words  # of the payload, not on the stack yet
        self.stack = Stack(self._next(container.facts.depth + AT_ONCE))

    def run(self, model: Model, schedule: Schedule | None) -> Iterator[Tensor]:
        """All images in order."""
        facts = self.container.facts
        digest, dtype = DataHash(facts.shape, facts.dtype), getattr(torch, facts.dtype)
        sizes = (size for size, count in facts.batches for _ in range(count))
        first = 0
        for size in sizes:
            with evaluating(model, schedule):
                part = self._pop_batch(first, size, facts).to(dtype)
            digest.update(part)
            first += size
            if first == facts.shape[0]:  # before the last batch: nobody sees it if it is wrong
                self._check(str(digest), facts)
            yield part

    def _pop_batch(self, first: int, size: int, facts: Facts) -> Tensor:
        if len(self.stack) < facts.depth and self.left:
            self.stack.put_below(self._next(facts.depth + AT_ONCE - len(self.stack)))
        images = torch.arange(first, first + size)
        condition = select_rows(self.condition, images, facts.shape[0])
        rows = Rows((size, *facts.shape[1:]), condition, first)

        def tick() -> None:
            self.done += size
            if self.progress is not None:
                self.progress(self.done, facts.shape[0] * facts.steps)

        try:
            return self.code.pop(self.stack, rows, tick)
        except Underflow:
            raise _differs("the payload ends before the images do") from None

    def _next(self, count: int) -> np.ndarray:
        count = min(count, self.left)
        words = self.container.read(self.left, count)
        self.left -= count
        return words

    def _check(self, digest: str, facts: Facts) -> None:
        """Raise unless the images and what is left of the stack are those of the file."""
        same = digest == facts.data
        rest = self.left == 0 and np.array_equal(self.stack.words(), padding(0, facts.start))
        if not (same and rest):
            raise _differs(f"the images have the hash {digest}" if not same else "words are left")


def _differs(why: str) -> InvalidValue:
    hint = "the network did not compute the same last bits here: decode where it was encoded"
    return InvalidValue("path", "be decoded to the images that were encoded", why, hint)
