"""Paths along which the dimensions of x fall at different times."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._validate import require, validated
from vdiff.errors import InvalidValue, has_values
from vdiff.schedule._parts import (
    Dim,
    fixed_schedule,
    place,
    same_dims,
    sizes_of,
    turns_fit,
    turns_of,
)
from vdiff.schedule.base import Schedule
from vdiff.schedule.over_dims import OverDims


class InTurn(OverDims):
    """Groups of dimensions fall one after another, each from λ_max to λ_min along `schedule`.

    With n groups, that of turn k falls while t is in [k/n, (k+1)/n] and rests before and after.
    Turn 0 falls first as t goes from data to noise, so that a sampler makes it last. With one
    dimension in a group this is the chain rule of an autoregressive model, with T/n steps in each
    factor.

    Args:
        schedule: the fixed schedule of each group.
        turns: the number of groups, n, along one dimension of x; or the turn of each index, whole
            numbers from 0 to n − 1. A tensor may lie along several dimensions of x: dimension
            `dim` and those that follow. An index that `turns` does not have follows the rest.
        dim: the dimension of x at which `turns` begins. 0 is the batch. Negative ones count from
            the last.

    >>> from vdiff.schedule import Linear
    >>> rows = InTurn(Linear(10.0, -10.0), 2, dim=2)  # row by row, for images of two rows
    >>> rows.at(torch.tensor([0.25]), ndim=4).logsnr.flatten()
    tensor([ 0., 10.], dtype=torch.float64)
    >>> pixels = InTurn(Linear(), torch.randperm(64).view(8, 8), dim=2)  # in random order
    """

    turns: Tensor

    @validated(rules=[turns_fit])
    def __init__(
        self,
        schedule: Annotated[Schedule, fixed_schedule],
        turns: Annotated[int | Sequence[int] | Tensor, turns_of],
        dim: Dim = 1,
    ) -> None:
        super().__init__(schedule.logsnr_max, schedule.logsnr_min)
        self.schedule, self.dim = schedule, dim
        assert isinstance(turns, Tensor)
        self.groups = int(turns.max()) + 1
        self.register_constructed("turns", turns)
        self.least_ndim = dim + turns.ndim if dim > 0 else 1 - dim

    def field_shape(self, ndim: int) -> tuple[int, ...]:
        return place(self.dim, self.turns.shape, ndim)

    def ends(self, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        return self.schedule.ends()

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        return self.schedule.ends()

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.schedule.logsnr_at(self._time_in_group(t)[0])

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        time, falls = self._time_in_group(t)
        rate = self.schedule.rate_at(time, logsnr).clamp(min=self.schedule._least_rate)
        return torch.where(falls, self.groups * rate, 0.0)

    def _time_in_group(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The time of the group's own schedule, in [0, 1], and whether the group falls at t."""
        turn = self.turns.to(t.device).view(1, *self.field_shape(t.ndim))
        time = (self.groups * t - turn).clamp(0.0, 1.0)
        falls = (self.groups * t).floor().clamp(max=self.groups - 1) == turn
        return time, falls

    def ends_to_save(self) -> tuple[float, float]:
        return self.logsnr_max, self.logsnr_min

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        loaded = self.schedule.expected_ends(state, prefix + "schedule.")
        return loaded or (self.logsnr_max, self.logsnr_min)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        saved: Any = state.get(prefix + "turns")
        own = self._constructed["turns"]
        same_shape = saved is not None and saved.shape == own.shape
        if same_shape and has_values(saved) and not torch.equal(saved.to(own), own):
            what, hint = "have the turns of this module", "make it with the turns of the state"
            wrong = InvalidValue("state_dict", what, "other turns", hint)
            wrong.function = "InTurn.load_state_dict"
            args[-1].append(str(wrong))
            state = {**state, prefix + "turns": own}
        super()._load_from_state_dict(state, prefix, *args)

    @validated
    def check(self, points: int = 10_001) -> "InTurn":
        """`check` of the schedule of a group. Returns self."""
        self.schedule.check(points)
        return self

    def extra_repr(self) -> str:
        return f"{self.schedule!r}, {self.groups} groups, dim={self.dim}"


class Path(OverDims):
    """A path from a function of t that returns a field, checked at construction.

    Without a formula for the `rate`, each call differentiates the function twice over, which costs
    several times more.

    Args:
        logsnr: λ(t) for t of shape (batch, 1, …, 1) in float64: a field (batch, *shape) that in no
            dimension rises with t and always falls in one at least.
        shape: of one example. A size of 1 means that all indices share a λ(t).
        rate: −dλ/dt as a function of t.

    >>> power = torch.tensor([1.0, 2.0])
    >>> path = Path(lambda t: 8 - 16 * t**power, shape=[2])
    >>> path.at(torch.tensor([0.5]), ndim=2).logsnr
    tensor([[0., 4.]], dtype=torch.float64)
    """

    @validated
    def __init__(
        self,
        logsnr: Callable[[Tensor], Tensor],
        shape: Annotated[Sequence[int], sizes_of],
        rate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu").view(2, *[1] * len(shape))
        first, last = _field(logsnr(t), (2, *shape))[:, None]
        finite = bool((first.isfinite() & last.isfinite()).all())
        hint = "stop short of λ = ±∞, for instance with logsnr(1e-3 + 0.998 * t)"
        require(finite, "logsnr", "be finite at t = 0 and t = 1", "infinite values", hint)
        super().__init__(first.max().item(), last.min().item())
        self._logsnr, self._rate, self._shape = logsnr, rate, tuple(shape)
        self._first_and_last = first.detach(), last.detach()
        self.least_ndim = 1 + len(shape)
        self.check_once()

    def field_shape(self, ndim: int) -> tuple[int, ...]:
        return same_dims(self._shape, ndim)

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor, Tensor]:
        self.field_shape(ndim)
        return self._first_and_last

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._logsnr(t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        if self._rate is not None:
            return self._rate(t)
        # J·1 of λ = f(t): the derivative of v ↦ Jᵀv; jvp would load deprecated torch.jit
        logsnr, pull_back, *_ = torch.func.vjp(self._logsnr, t)
        _, push, *_ = torch.func.vjp(lambda v: pull_back(v)[0], torch.zeros_like(logsnr))
        derivative: Tensor = push(torch.ones_like(t))[0]
        return -derivative

    def extra_repr(self) -> str:
        return f"shape={list(self._shape)}, {super().extra_repr()}"


def _field(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A field of this shape in float64."""
    hint = "a tensor in the function has the shape of one example: torch.arange(3).view(3, 1, 1)"
    given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    require(given == shape, "logsnr", f"return a tensor of shape {shape} for two t", given, hint)
    return value.double()
