"""Averages of a module's weights over its training, for any loop."""

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from vdiff._validate import Given, Instance, Number, require, validated

M = TypeVar("M", bound=nn.Module)
Lists = tuple[list[Tensor], list[Tensor]]
Buffers = dict[str, Any]
_Decay = Number(at_least=0.0, below=1.0, hint="0.999, or 0.9999 for a long training")


def _decays(value: Any, argument: str, given: Given) -> list[float]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    require(len(several) > 0, argument, "be a decay, or several", value)
    return [_Decay(decay, argument, given) for decay in several]


class Averages(abc.ABC, Generic[M]):
    """Copies of a module whose weights are averages, one for each number of `keys`.

    An average is at least in float32. Buffers and integer weights are copied. An update reads
    nothing from the device.
    """

    def __init__(self, module: M, keys: Sequence[float]) -> None:
        self.copies = {key: copy.deepcopy(module).eval().requires_grad_(False) for key in keys}
        self._means: dict[float, list[Lists]] = {}
        self._copied: dict[float, Lists] = {}
        self._buffers: dict[float, list[tuple[Buffers, Buffers, str]]] = {}
        for key, averaged in self.copies.items():
            groups: dict[str, Lists] = {}  # tensors of one dtype take one operation
            copied: Lists = ([], [])
            self._copied[key] = copied
            for mean, now in zip(averaged.parameters(), module.parameters(), strict=True):
                if has_mean(mean) and torch.finfo(mean.dtype).bits < 32:
                    mean.data = mean.data.to(torch.promote_types(mean.dtype, torch.float32))
                dtypes = f"{mean.dtype} {now.dtype}"
                lists = groups.setdefault(dtypes, ([], [])) if has_mean(mean) else copied
                lists[0].append(mean)
                lists[1].append(now)
            # where the buffers are: `module.to` replaces them
            pairs = zip(averaged.modules(), module.modules(), strict=True)
            both = [(one._buffers, other._buffers) for one, other in pairs]
            self._buffers[key] = [
                (a, b, name) for a, b in both for name in a if a[name] is not None
            ]
            self._means[key] = [groups[dtypes] for dtypes in sorted(groups)]

    @abc.abstractmethod
    def kept(self, key: float, n: int) -> float:
        """The share of the average that update n = 0, 1, … keeps."""

    @property
    def averaged(self) -> M:
        """The first average, in evaluation mode."""
        return next(iter(self.copies.values()))

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Update the averages after step n = 0, 1, …"""
        for key in self.copies:
            for means, now in self._means[key]:
                dtype = means[0].dtype
                values = now if now[0].dtype == dtype else [v.to(dtype) for v in now]
                torch._foreach_lerp_(means, values, 1 - self.kept(key, n))
            copied, current = (list(tensors) for tensors in self._copied[key])
            for ours, theirs, name in self._buffers[key]:
                copied.append(ours[name])
                current.append(theirs[name])
            if copied:
                torch._foreach_copy_(copied, current)

    def state_dict(self) -> dict[str, Any]:
        """The averages: the state dict of each copy (no clone), by its number."""
        return {str(key): averaged.state_dict() for key, averaged in self.copies.items()}

    @validated
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averages. Raises ValueError for a state of other averages, and RuntimeError
        for one of another module."""
        own = ", ".join(map(str, self.copies))
        same = set(state) == set(map(str, self.copies))
        require(same, "state", f"hold the averages {own}", ", ".join(map(str, state)))
        for key, averaged in self.copies.items():
            averaged.load_state_dict(state[str(key)])


class EMA(Averages[M]):
    """Exponential moving averages of a module's weights, one copy for each decay.

        θ̄ ← d θ̄ + (1 − d) θ,   d = min(decay, (1 + n)/(10 + n)) at update n

    Without the warm-up of d, 1/e of the initial weights would be left after 1/(1 − decay) updates.
    Averages are at least in float32: in bfloat16 a decay of 0.9999 never moves. Buffers and
    integer weights are copied. Unlike `torch.optim.swa_utils`, an update reads nothing from the
    device.

    Make it when the module is on its device, with the module itself rather than its DDP wrapper.
    `averaged` is the first average, and `copies` has all by their decay.

    >>> module = nn.Linear(1, 1)
    >>> ema = EMA(module, 0.999)
    >>> for step in range(3):
    ...     with torch.no_grad():
    ...         _ = module.weight.fill_(step)  # in place of an optimizer's step
    ...     ema.update(step)
    >>> ema.averaged.weight.item() < 2.0, list(ema.state_dict())
    (True, ['0.999'])
    """

    @validated
    def __init__(
        self,
        module: Annotated[M, Instance((nn.Module,))],
        decay: Annotated[float | Sequence[float], _decays] = 0.999,
    ) -> None:
        assert not isinstance(decay, float)  # `_decays` makes a list
        super().__init__(module, decay)

    def kept(self, key: float, n: int) -> float:
        return min(key, (1 + n) / (10 + n))


def has_mean(p: Tensor) -> bool:
    """Whether weights can be averaged. The integers of a quantized layer cannot.

    >>> has_mean(torch.zeros(1)), has_mean(torch.zeros(1, dtype=torch.int8))
    (True, False)
    """
    return p.is_floating_point() or p.is_complex()
