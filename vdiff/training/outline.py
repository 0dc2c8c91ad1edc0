"""The outline of a network: its tensors by name, shape and dtype, without memory for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vdiff.errors import must

TENSORS = 1 << 14  # the deepest of the published networks has 700
NUMBERS = 1 << 36


def outline_of(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` returns, with weights on the meta device, where they have no values.

    Raises:
        ValueError: beyond 2^14 tensors, or 2^36 numbers in them.

    >>> outline_of(lambda: nn.Linear(2, 10**9)).weight.shape
    torch.Size([1000000000, 2])
    >>> outline_of(lambda: nn.Sequential(*(nn.PReLU() for _ in range(10**9))))
    Traceback (most recent call last):
        ...
    ValueError: outline_of: argument 'network' must have at most 16,384 tensors and ...
    """
    with _Outline():
        return make()


class _Outline(TorchFunctionMode):
    """New weights of this thread have no memory, and are counted.

    Under `torch.device("meta")` tables of numbers would have none either; for them torch loads
    sympy, which takes seconds.
    """

    WEIGHTS = (torch.empty, torch.zeros, torch.ones)

    def __init__(self) -> None:
        super().__init__()
        self.tensors, self.numbers = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.WEIGHTS:
            return func(*args, **kwargs)
        made = func(*args, **kwargs | {"device": kwargs.get("device") or "meta"})
        self.tensors, self.numbers = self.tensors + 1, self.numbers + made.numel()
        if self.tensors > TENSORS or self.numbers > NUMBERS:
            limit = f"have at most {TENSORS:,} tensors and {NUMBERS:,} numbers"
            raise ValueError(must("outline_of", "network", limit, "more"))
        return made


__all__ = ["outline_of"]
