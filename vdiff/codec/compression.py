"""Compress images with a chain, and tokens with their masks."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from vdiff._arguments import Condition, Model
from vdiff._diffusion import diffusion_of
from vdiff._validate import Count, Number, Whole, validated
from vdiff.codec._choice import code_of, counted_of_texts, has_code, has_steps
from vdiff.codec._compressed import Compressed
from vdiff.codec._identity import (
    DataHash,
    Images,
    LevelDecoder,
    dtype_of,
    identity,
    in_chunks,
    padding,
    rows_of,
)
from vdiff.codec.code import Code, Rows
from vdiff.codec.container import MOST_STEPS, Facts, Identity, Writer
from vdiff.codec.latents import TOLERANCE
from vdiff.codec.stack import WORD, Stack, Underflow
from vdiff.disk import atomic_write
from vdiff.likelihood._bytes import Bytes, count_of
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.conditions import select_rows
from vdiff.schedule import Schedule

Progress = Callable[[int, int], None]
Tolerance = Annotated[float, Number(above=0.0, hint="bits per dimension")]
_FINE = "of a longer chain the grids would be too fine for the coder"
Steps = Annotated[int, Whole(at_most=MOST_STEPS, hint=_FINE)]
Seed = Annotated[int, Whole(at_least=0, at_most=2**53)]
GIVEN = "every token is coded: a text that is padded has as many tokens as its row"
SPARE = 4  # a stack keeps so many times the words that the largest batch begins with


@validated(
    rules=[has_code, has_steps, counted_of_texts], elsewhere={"mask": GIVEN, "absent": GIVEN}
)
def compress(
    model: Model,
    data: Images,
    path: str | os.PathLike[str],
    *,
    schedule: Schedule | None = None,
    decoder: LevelDecoder | None = None,
    steps: Steps | None = None,
    tolerance: Tolerance = TOLERANCE,
    batch: Count = 64,
    seed: Seed = 0,
    bytes: Bytes | None = None,
    progress: Progress | None = None,
    record: Mapping[str, Any] | None = None,
    condition: Condition = None,
) -> Compressed:
    """Write images or tokens into a file from which `decompress` restores them byte for byte. Its
    expected length is the bound of the chain.

    Bits-back coding: each image takes bits off a stack to choose its latents, pushes itself and
    them, and the bits come back when it is decoded. Batches begin with one image and grow with the
    stack, so that only the first image needs bits that are not there.

    Tokens of a process with masks need no bits-back, and no decoder: noise that both sides know
    masks them, and each step codes those that lose their masks (`vdiff.codec.tokens`). Without
    `steps`, each codes one token, and the bound is that in continuous time.

    Each image costs T evaluations of the model, and as many to decode. It runs in evaluation mode,
    in full precision. The decoder must compute the same last bits: the same weights, software,
    dtype, device and number of threads. The file names them, and `decompress` refuses others.

    Args:
        model, schedule, decoder, steps, condition: as in `elbo`; the schedule is the same for all
            dimensions, and the decoder one of levels. Tokens need none of them; with a network
            that gets a time they need `steps`, and the chain's schedule is `LogLinear()` if it is
            not given.
        data: (n, …) whole numbers, a tensor or an array. Of a mapped array (`np.load(file,
            mmap_mode="r")`) only one batch is in memory.
        path: the file, which is written whole or not at all.
        tolerance: by how much the grids of the latents may lengthen the code, bits per dimension.
            Finer grids need more bits to begin with.
        batch: at most so many images at a time.
        seed: of the noise that masks tokens. The file has it.
        bytes: as in `evaluate`, those counted in texts, for `bits_per_byte`. The file lacks them.
        progress: called as progress(done, total) with numbers of network evaluations.
        record: plain data that the file holds too (`Container.open(path).facts.record`).

    Raises:
        TypeError, ValueError: for data that are no levels of the decoder, a decoder of densities,
            a schedule over dimensions, tokens that are not masked but replaced; where a prediction
            is not finite.
        OSError: if the file cannot be written. Nothing is left of it then.
        ImportError: without the extra `codec`.

    Townsend et al., Practical lossless compression with latent variables using bits back coding,
    arXiv:1901.04866; Kingma et al., Bit-Swap, arXiv:1905.06845; Kingma et al., Variational
    Diffusion Models, arXiv:2107.00630, section 6.

    >>> import tempfile
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> model, images = GaussianMixture([1.0], [[0.0]], [[0.2]]), torch.tensor([[1], [3], [2]])
    >>> chain = {"schedule": Linear(9.0, -7.0), "decoder": Categorical(levels=4)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compress(model, images, f"{folder}/images.vdiff", steps=50, **chain).images
    3
    """
    shape, kind = list(data.shape), dtype_of(data)
    digest, process = DataHash(shape, kind), diffusion_of(model)
    for part in in_chunks(data):
        process.encode(part, decoder)  # raises for data that the process refuses
        digest.update(part)
    with evaluating(model, schedule), atomic_write(Path(path)) as aside:
        chain, dims = (model, schedule, decoder, steps), math.prod(shape[1:])
        code = code_of(*chain, dims, seed=seed, tolerance=tolerance)
        with aside.open("wb") as stream:
            encoder = _Encoder(code, data, batch, Writer(stream), progress, condition)
            encoder.run()
            of = identity(model, code, condition)
            encoder.close(shape, kind, str(digest), of, dict(record or {}))
    return encoder.result(None if bytes is None else count_of(bytes))


class _Encoder:
    """Pushes images onto a stack, the last first, and writes what lies deep."""

    def __init__(
        self,
        code: Code,
        data: Tensor | np.ndarray,
        batch: int,
        writer: Writer,
        progress: Progress | None,
        condition: Any,
    ) -> None:
        self.code, self.data, self.batch, self.writer = code, data, batch, writer
        self.condition = condition or {}
        self.dims = int(np.prod(data.shape[1:]))
        self.stack, self.start, self.written, self.depth = Stack(padding(0, 0)), 0, 0, 1
        self.sizes: list[int] = []
        self.ratios: list[np.ndarray] = []
        self.done, self.progress = 0, progress
        self.keep = SPARE * math.ceil(self._needed(batch) / WORD)

    def run(self) -> None:
        """Push all images."""
        last = len(self.data)
        self._tick(0)
        while last:
            size = self._size(last)
            self._push_batch(last - size, last)
            last -= size
            if len(self.stack) > 2 * self.keep:
                below = self.stack.take_below(self.keep)
                self.writer.words(below)
                self.written += len(below)

    def close(
        self, shape: list[int], dtype: str, digest: str, of: Identity, record: dict[str, Any]
    ) -> None:
        """Write the rest of the stack, and the facts."""
        self.bits = WORD * (self.written - self.start) + self.stack.bits
        self.writer.words(self.stack.words())
        runs: list[list[int]] = []
        for size in reversed(self.sizes):
            if runs and runs[-1][0] == size:
                runs[-1][1] += 1
            else:
                runs.append([size, 1])
        depth = min(self.depth, self.written + len(self.stack))
        code = self.code
        chain, of_code = (code.spacing, code.steps), (code.kind, code.seed)
        facts = Facts(shape, dtype, digest, runs, self.start, depth, *chain, of, record, *of_code)
        self.writer.close(facts)

    def result(self, counted: int | None) -> Compressed:
        """What has been written."""
        return Compressed(
            bytes=self.writer.size,
            images=len(self.data),
            dims=self.dims,
            bits=self.bits,
            start=WORD * self.start,
            log_ratio=torch.from_numpy(np.concatenate(self.ratios[::-1])),
            cost=self.code.cost / math.log(2),
            unit=self.code.unit,
            counted=counted,
        )

    def _needed(self, images: int) -> float:
        """The bits that a batch begins with."""
        return self.code.needed(images, self.dims)

    def _size(self, left: int) -> int:
        """The largest batch of the images that are left for which there are bits; at least one
        image."""
        size, bits = min(self.batch, left), max(self.stack.bits, self._needed(1))
        while size > 1 and self._needed(size) > bits:
            size -= 1
        return size

    def _push_batch(self, first: int, last: int) -> None:
        """Push images first … last − 1, with more words below the stack if it needs them."""
        if self._needed(last - first) > self.stack.bits and not self.written:
            self._begin(math.ceil((self._needed(last - first) - self.stack.bits) / WORD))
        images = torch.arange(first, last)
        rows = Rows(
            (last - first, *self.data.shape[1:]),
            select_rows(self.condition, images, len(self.data)),
            first,
        )
        data, before, done = rows_of(self.data, first, last), self.stack.copy(), self.done
        while True:
            self.stack.lowest = len(self.stack)
            try:
                tick = lambda: self._tick(last - first)  # noqa: E731
                ratio = self.code.push(self.stack, data, rows, tick)
                break
            except Underflow:
                if self.written:  # the words below are in the file
                    raise
                self.stack, self.done = before.copy(), done
                self._begin(math.ceil(self.code.more(self.dims) / WORD))
                before = self.stack.copy()
        self.depth = max(self.depth, len(self.stack) - self.stack.lowest + 2)
        self.sizes.append(last - first)
        self.ratios.append(ratio)

    def _begin(self, words: int) -> None:
        self.stack.put_below(padding(self.start, words))
        self.start += words

    def _tick(self, images: int) -> None:
        self.done += images
        if self.progress is not None:
            self.progress(self.done, len(self.data) * self.code.steps)
