"""The outline of a network: its size, before it takes memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vdiff._validate import require

TENSORS = 1 << 14  # of a network; the deepest published ones have 700
NUMBERS = 1 << 36  # in all of them


def outline_of(make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make` with new weights on the meta device, where they take no memory.

    Raises ValueError beyond 2^14 tensors, or 2^36 numbers in them.

    >>> outline_of(lambda: nn.Linear(2, 10**9)).weight.shape
    torch.Size([1000000000, 2])
    """
    with _Outline():
        return make()


class _Outline(TorchFunctionMode):
    """Create new weights of this thread on the meta device, and count them.

    `torch.device("meta")` would also take the memory of constant tables, and torch would import
    sympy for them, which takes seconds.
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
        within = self.tensors <= TENSORS and self.numbers <= NUMBERS
        limit = f"have at most {TENSORS:,} tensors and {NUMBERS:,} numbers"
        require(within, "network", limit, "more")
        return made
