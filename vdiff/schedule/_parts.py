"""What schedules over dimensions are made of: fixed schedules, shifts, places of dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._inputs import is_integer
from vdiff._precision import to_float64
from vdiff._validate import Given, Number, Whole, of_type, require
from vdiff.errors import InvalidType, has_values, shown
from vdiff.schedule.base import Schedule

MOST_DIMS = 64  # of a tensor of torch
_TURNS = "InTurn(schedule, 8) has 8 groups, InTurn(schedule, [0, 0, 1]) two for three indices"


@dataclass(frozen=True)
class OneOrEach:
    """A number, or a float64 tensor of one for each example, (batch,)."""

    number: Number

    def __call__(self, value: Any, argument: str, given: Given) -> float | Tensor:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return self.number(value, argument, given)
        each: Tensor = to_float64(value.detach())
        hint = "a schedule for each index of a dimension is PerDimension"
        require(each.ndim == 1 and len(each) > 0, argument, "have shape (batch,)", value, hint)
        if has_values(each):
            for extreme in each.min(), each.max():
                self.number(extreme, argument, given)
        return each


ShiftOf = Annotated[float | Tensor, OneOrEach(Number())]
SizeOf = Annotated[float | Tensor, OneOrEach(Number(above=0.0))]


def fixed_schedule(value: Any, argument: str, given: Given) -> Schedule:
    """A schedule with one λ for all dimensions that nothing trains."""
    schedule: Schedule = of_type(Schedule, value, argument, given)
    fixed = not (schedule.learns_ends or schedule.learns_shape)
    hint = "MultivariateSpline learns an own λ(t) for each dimension"
    require(fixed, argument, "have fixed ends and shape", repr(schedule), hint)
    require(schedule.shared, argument, "have one λ for all dimensions", repr(schedule))
    require(not schedule.reaches_noise, argument, "have a finite λ_min", "λ = −∞")
    return schedule


def fixed_schedules(value: Any, argument: str, given: Given) -> list[Schedule]:
    """A schedule for each index along a dimension."""
    listed = isinstance(value, Sequence) and len(value) > 0
    hint = "one for each channel, row, token or column: [Cosine(), Linear(), …]"
    require(listed, argument, "be a list of schedules", value, hint)
    return [fixed_schedule(one, f"{argument}[{i}]", given) for i, one in enumerate(value)]


def _dim(value: Any, argument: str, given: Given) -> int:
    """A dimension of an example; negative ones count from the last."""
    dim: int = Whole(at_least=-MOST_DIMS)(value, argument, given)
    hint = "0 is the batch; 1 follows it"
    require(dim != 0, argument, "be a dimension of an example", dim, hint)
    return dim


Dim = Annotated[int, _dim]


def turns_fit(turns: Tensor, dim: int) -> None:
    """Rule: the dimensions of the turns lie among those of an example."""
    hint = f"turns lie along {turns.ndim} dimensions, from dim on"
    require(dim > 0 or -dim >= turns.ndim, "dim", f"be at most −{turns.ndim}", dim, hint)


def turns_of(value: Any, argument: str, given: Given) -> Tensor:
    """The turn of each index along one dimension or more, as int64: 0 … n − 1, each at least
    once. A number n is the turns 0 … n − 1."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = range(Whole()(value, argument, given))
    try:
        turns = torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(argument, "be whole numbers", shown(value), _TURNS) from None
    require(is_integer(turns), argument, "be whole numbers", turns.dtype, _TURNS)
    some = turns.ndim > 0 and turns.numel() > 0
    require(some, argument, "be one for each index", f"shape {tuple(turns.shape)}", _TURNS)
    found = sorted(set(turns.flatten().tolist()))
    came = f"turns {found[:6]}{' …' if len(found) > 6 else ''}"
    hint = "a turn that no index has would be time in which nothing falls"
    require(found == list(range(len(found))), argument, "count from 0 without a gap", came, hint)
    return turns.long()


def sizes_of(value: Any, argument: str, given: Given) -> tuple[int, ...]:
    """The shape of one example, in which a size of 1 means that all indices share a λ(t)."""
    hint = "of an example: (3, 32, 32) has one λ(t) for each, (1, 32, 32) one for each pixel"
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    positive = listed and all(type(size) is int and size > 0 for size in value)
    require(positive, argument, "be the sizes of an example's dimensions", value, hint)
    return tuple(value)


def place(dim: int, sizes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The shape, but for the batch, of a field that has `sizes` from dimension `dim` of x on."""
    first = dim if dim > 0 else ndim + dim
    inside = 1 <= first <= ndim - len(sizes)
    along = f"lie along dimensions of x from dim = {dim} on, {len(sizes)} of them"
    require(inside, "schedule", along, f"x with {ndim} dimensions", "the first is the batch")
    return (*[1] * (first - 1), *sizes, *[1] * (ndim - first - len(sizes)))


def same_dims(sizes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The sizes of an example, if x has as many dimensions and the batch."""
    fits = f"have as many sizes as an example has dimensions, {ndim - 1}"
    require(len(sizes) == ndim - 1, "schedule", fits, f"shape {tuple(sizes)}")
    return tuple(sizes)
