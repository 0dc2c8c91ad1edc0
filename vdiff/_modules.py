"""Modules that keep float64, restore their first values, and save the ends of their log-SNR."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vdiff._precision import float64_for, keep_dtype
from vdiff.errors import InvalidValue, has_values

ENDS = "fixed_ends"  # in a state dict: (λ_max, λ_min)


def copy_values(value: Any, memo: dict[Any, Any]) -> Any:
    """`copy.deepcopy`, but a tensor of a live graph is copied detached (torch refuses to copy it).

    >>> weight = torch.ones(1, requires_grad=True)
    >>> copy_values((2 * weight,), {})
    (tensor([2.]),)
    """
    if isinstance(value, Tensor) and not value.is_leaf:
        return memo.setdefault(id(value), value.detach().clone())
    if type(value) is tuple:
        return tuple(copy_values(item, memo) for item in value)
    return copy.deepcopy(value, memo)


class ValuesCopied:
    """An object of tensors whose deep copy has their values without their graph."""

    def __deepcopy__(self, memo: dict[Any, Any]) -> "ValuesCopied":
        copied = object.__new__(type(self))
        vars(copied).update({name: copy_values(value, memo) for name, value in vars(self).items()})
        return copied


class WithArguments:
    """An object that remembers the arguments of its construction, so that they can be written down
    as plain data."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        named = {name: _detached(value) for name, value in kwargs.items()}
        vars(made)["_arguments"] = tuple(map(_detached, args)), named
        return made


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class RestorableModule(WithArguments, nn.Module):
    """A module whose `reset_parameters` restores the values of construction, for instance after
    `to_empty`."""

    def __init__(self) -> None:
        super().__init__()
        self._constructed: dict[str, Tensor] = {}

    def register_constructed(
        self, name: str, tensor: Tensor | None, persistent: bool = True
    ) -> None:
        """Register a buffer and keep its first values for `reset_parameters`."""
        if tensor is not None and tensor.device.type != "meta":
            self._constructed[name] = tensor.detach().clone().cpu()
        self.register_buffer(name, tensor, persistent)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore all parameters and buffers to their values of construction, in place."""
        for name, value in self._constructed.items():
            getattr(self, name).copy_(value)
        for child in self.children():
            if isinstance(child, RestorableModule):
                child.reset_parameters()


class PreciseModule(RestorableModule):
    """A module that keeps its dtypes, has tensors of its own process, and saves the ends of its
    log-SNR.

    `register_local` registers a tensor that is moved and saved as a buffer is, but is none: in
    every forward, DDP copies the buffers of rank 0 to all ranks, which would overwrite what the
    other ranks have observed since their last update. The state dict also holds `fixed_ends`,
    (λ_max, λ_min). Loading raises for a state of other ends, and accepts a state without ends.
    """

    fixed_ends = torch.empty(0, device="cpu")  # torch looks for every name of a state dict

    def __init__(self) -> None:
        super().__init__()
        self._local: tuple[str, ...] = ()

    def register_local(self, name: str, tensor: Tensor) -> None:
        """Register a tensor of this process alone."""
        self._local = (*self._local, name)
        setattr(self, name, tensor)

    def ends_to_save(self) -> tuple[float, float] | None:
        """(λ_max, λ_min); None where other tensors of the state determine them, or there are
        none."""
        return None

    def saved_ends(self, state: dict[str, Any], prefix: str) -> Tensor | None:
        """(λ_max, λ_min) of a state; None where it has none."""
        return state.get(prefix + ENDS)

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        """The ends that a state must have; None where any will do."""
        return self.ends_to_save()

    @contextmanager
    def _local_as_buffers(self) -> Iterator[None]:
        for name in self._local:
            self._buffers[name] = vars(self).pop(name)
        try:
            yield
        finally:
            for name in self._local:
                vars(self)[name] = self._buffers.pop(name)

    def _first_tensor(self) -> Tensor | None:
        return next(iter((*self.parameters(), *self.buffers())), None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PreciseModule":
        with self._local_as_buffers():
            super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        with self._local_as_buffers():
            super()._save_to_state_dict(destination, prefix, keep_vars)
            first = self._first_tensor()
        ends = self.ends_to_save()
        if first is not None and ends is not None:
            dtype = float64_for(first.device)
            destination[prefix + ENDS] = torch.tensor(ends, dtype=dtype, device=first.device)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, unexpected, errors = args
        with self._local_as_buffers():
            super()._load_from_state_dict(state, prefix, *args)
            first = self._first_tensor()
        if first is None:
            return
        if prefix + ENDS in unexpected:
            unexpected.remove(prefix + ENDS)
        saved, own = self.saved_ends(state, prefix), self.expected_ends(state, prefix)
        if saved is None or own is None or not has_values(saved):
            return
        rounded = torch.tensor(own, dtype=torch.float64, device="cpu").to(saved.dtype)
        if not torch.allclose(saved.detach().cpu(), rounded, rtol=1e-6, atol=1e-6):
            hint = "make this module with the ends of the state"
            what = f"have the ends of this module, λ_max = {own[0]:g} and λ_min = {own[1]:g}"
            came = f"λ_max = {saved[0]:g} and λ_min = {saved[1]:g}"
            wrong = InvalidValue("state_dict", what, came, hint)
            wrong.function = f"{type(self).__name__}.load_state_dict"
            errors.append(str(wrong))
