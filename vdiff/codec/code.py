"""What an encoder and a decoder ask of the code of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff._diffusion import Unit
from vdiff.codec.stack import Floats, Stack

Tick = Callable[[], None]


class Rows(NamedTuple):
    """A batch: its shape, its conditions, and the number of its first example."""

    shape: tuple[int, ...]
    condition: Mapping[str, Any]
    first: int = 0


class Code(ABC):
    """A batch of examples as symbols on a stack.

    Attributes:
        kind: the name of the code, as a file has it.
        steps: evaluations of the model for each example.
        spacing, seed: what a decoder must have too.
        cost: an upper estimate of what rounding costs, nats per dimension.
        unit: of a length, and what an example is.
        device: where the model computes.
    """

    kind: str
    steps: int
    spacing: float = 1.0
    seed: int = 0
    cost: float
    unit: Unit
    device: torch.device

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Hashes of what the symbols depend on beside the model."""

    @abstractmethod
    def needed(self, images: int, dims: int) -> float:
        """The bits that a batch begins with."""

    @abstractmethod
    def more(self, dims: int) -> float:
        """By how many bits a start that was too short is lengthened."""

    @abstractmethod
    def push(self, stack: Stack, data: Tensor, rows: Rows, tick: Tick) -> Floats:
        """Push a batch; returns for each example the log-ratio whose mean is the bound, nats."""

    @abstractmethod
    def pop(self, stack: Stack, rows: Rows, tick: Tick) -> Tensor:
        """Pop a batch, in int64."""
