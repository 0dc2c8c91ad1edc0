"""What `compress` has written, in bits and bytes."""

import math
from dataclasses import dataclass

from torch import Tensor

from vdiff._diffusion import GAUSSIAN, Unit
from vdiff._validate import require


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` has written, in bits and bytes.

    Attributes:
        bytes: of the whole file.
        images, dims: how many images or texts, and the dimensions or tokens of one.
        bits: what the images added to the stack.
        start: the bits that the stack had before them, in the file as well, once.
        log_ratio: of the path of each image, log q(z₀ … z₁ | x) − log p(x, z₀ … z₁), nats. Its
            expectation is the bound. Of tokens, −Σ log p of what was coded.
        cost: an upper estimate of what the latents' grids, or the whole numbers of the coder's
            probabilities, cost, bits per dimension.
        unit: bits/dim of images, or bits/token of texts.
        counted: bytes counted in the texts.

    >>> import torch
    >>> nats = torch.full((2,), 700.0)
    >>> written = Compressed(1000, 2, 784, bits=6272, start=320, log_ratio=nats, cost=0.001)
    >>> written.bits_per_dim, written.container
    (4.0, 176)
    """

    bytes: int
    images: int
    dims: int
    bits: int
    start: int
    log_ratio: Tensor
    cost: float
    unit: Unit = GAUSSIAN.unit
    counted: int | None = None

    @property
    def bits_per_dim(self) -> float:
        """Of what the images added."""
        return self.bits / (self.images * self.dims)

    @property
    def bits_per_token(self) -> float:
        """The same, of tokens."""
        return self.bits_per_dim

    @property
    def bits_per_byte(self) -> float:
        """What the texts added, over the bytes counted in them.

        Raises ValueError if the bytes were not given."""
        hint = "compress(…, bytes=[len(text.encode()) for text in documents])"
        require(self.counted is not None, "bytes", "be given to compress", None, hint)
        assert self.counted is not None
        return self.bits / self.counted

    @property
    def path_bits_per_dim(self) -> float:
        """The mean log-ratio of the paths."""
        return float(self.log_ratio.mean()) / (self.dims * math.log(2))

    @property
    def container(self) -> int:
        """The bytes that are neither the images' nor the start's."""
        return self.bytes - math.ceil((self.bits + self.start) / 8)

    def __str__(self) -> str:
        each = self.images * self.dims
        rows = (
            (f"{self.unit.example}s", self.bits / 8, self.bits_per_dim),
            ("start", self.start / 8, self.start / each),
            ("container", self.container, 8 * self.container / each),
            ("file", self.bytes, 8 * self.bytes / each),
        )
        head = f"{'':<12}{'bytes':>14}{self.unit.name:>12}"
        lines = [head, *(f"{n:<12}{b:>14,.0f}{v:>12.4f}" for n, b, v in rows)]
        if self.counted is not None:
            lines.append(f"bits/byte: {self.bits_per_byte:.4f}; {self.counted:,} bytes counted")
        return "\n".join(lines)
