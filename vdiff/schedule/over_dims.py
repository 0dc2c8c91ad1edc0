"""Schedules with a λ(t) of its own for each dimension of x."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn

from vdiff import _html
from vdiff._inputs import Steps
from vdiff._precision import at_least_float32, device_of, to_float64
from vdiff._validate import Count, require, validated
from vdiff.errors import InvalidValue
from vdiff.schedule._check import check_field
from vdiff.schedule._parts import Dim, fixed_schedules, place
from vdiff.schedule.base import Schedule

AnyOverDims = TypeVar("AnyOverDims", bound="OverDims")
LINES = 5  # of a field, in a figure


class OverDims(Schedule):
    """A schedule with a λ(t) of its own for each dimension of x.

    Times have as many dimensions as x: (batch, 1, …, 1), one for each example, or any field. λ is
    a field. `schedule.at(t, ndim=x.ndim)` takes times (batch,) too. A subclass writes in float64

        logsnr_at(t)           λ(t), which in no dimension rises, and always falls in one at least
        rate_at(t, logsnr)     −dλ/dt ≥ 0, where λ rests it is 0
        field_shape(ndim)      the shape of λ, but for the batch, for an x of `ndim` dimensions
        ends_of(ndim)          λ at t = 0 and at t = 1, fields that broadcast over x, or numbers

    and `least_ndim`, the fewest dimensions that x can have. The diffusion term along every such
    path from λ_max to λ_min is that of a bound; for the exact denoiser all of them are equal.
    """

    over_dims = True
    least_ndim: int

    @abstractmethod
    def field_shape(self, ndim: int) -> tuple[int, ...]:
        """The shape of λ, but for the batch, for an x of `ndim` dimensions: each size is 1 or
        x's. Raises ValueError if no x of so many dimensions fits."""

    @abstractmethod
    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """(λ_max, λ_min) of each dimension."""

    def check_shape(self, x: Tensor) -> None:
        sizes, given = self.field_shape(x.ndim), tuple(x.shape[1:])
        fits = all(own in (1, size) for own, size in zip(sizes, given, strict=True))
        have = f"have a λ for each dimension of x, whose examples have shape {given}"
        require(fits, "schedule", have, f"shape {sizes}", "a size is x's, or 1 for all alike")

    def spread(self, t: Tensor, ndim: int | None) -> Tensor:
        return self._times(super().spread(t, ndim))

    def _times(self, t: Tensor) -> Tensor:
        """Times in float64. Raises ValueError unless they broadcast with λ."""
        sizes, given = self.field_shape(t.ndim), tuple(t.shape[1:])
        fits = all(own == size or 1 in (own, size) for own, size in zip(sizes, given, strict=True))
        broadcast = f"broadcast with a λ of shape (batch, {str(sizes)[1:-1].rstrip(',')})"
        require(
            fits,
            "t",
            broadcast,
            f"shape {tuple(t.shape)}",
            "a time for each example is (batch, 1, …)",
        )
        return to_float64(t)

    @validated
    def forward(self, t: Tensor) -> Tensor:
        """λ(t) in the dtype of t (float32 where t is narrower), for t with the dimensions of x."""
        return self.logsnr_at(self._times(t)).to(at_least_float32(t.dtype))

    @validated
    def rate(self, t: Tensor) -> Tensor:
        """−dλ/dt at t, for t with the dimensions of x: 0 where λ rests."""
        t64 = self._times(t)
        return self.rate_at(t64, self.logsnr_at(t64)).to(at_least_float32(t.dtype))

    @validated
    def delta(self, t: Tensor, steps: Steps) -> Tensor:
        """λ_s − λ_t over the step that ends at t, for t with the dimensions of x."""
        return self._step_at(self._times(t), steps)[1]

    def _step_at(self, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        logsnr = self.logsnr_at(t)
        return logsnr, self.logsnr_at((t - 1 / steps).clamp(min=0.0)) - logsnr

    def time_at(self, logsnr: Tensor) -> Tensor:
        """Raises: each dimension has a time of its own."""
        raise self._no_inverse()

    def density_at(self, logsnr: Tensor) -> Tensor:
        """Raises: each dimension has a density of its own."""
        raise self._no_inverse()

    def _no_inverse(self) -> InvalidValue:
        hint = "a density over λ, and the t of a λ, are those of a schedule with one λ for all"
        return InvalidValue("schedule", "have one λ for all dimensions", repr(self), hint)

    @validated
    def check(self: AnyOverDims, points: Count = 10_001) -> AnyOverDims:
        """Verify on a grid of times that λ is a finite field of the shape that `field_shape`
        names, that it runs between `ends_of` without rising and always falls somewhere, and that
        `rate_at` is its derivative. Returns self; raises ValueError at the first t that fails."""
        check_field(self, points)
        return self

    def mean_logsnr(self, t: Tensor) -> Tensor:
        field = to_float64(t).view(-1, *[1] * (self.least_ndim - 1))
        logsnr = self.logsnr_at(field).flatten(1).mean(1)
        return logsnr.view(t.shape).to(at_least_float32(t.dtype))

    @torch.no_grad()
    def curves(self, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """λ and its rate at times (n,) in a few dimensions, by their index: for a figure."""
        shape = self.field_shape(self.least_ndim)
        field = t.to(device_of(self)).view(-1, *[1] * len(shape))
        logsnr = self.logsnr_at(field)
        rate = self.rate_at(field, logsnr).flatten(1).cpu()
        logsnr = logsnr.flatten(1).cpu()
        last = rate.shape[1] - 1
        shown = sorted({i * last // (LINES - 1) for i in range(LINES)})
        return {_index(i, shape): (logsnr[:, i], rate[:, i]) for i in shown}

    def _repr_html_(self) -> str:
        t = (torch.arange(_html.POINTS, dtype=torch.float64) + 0.5) / _html.POINTS
        lines = self.curves(t).items()
        rows = [(name, _html.curve(t, logsnr, "λ(t)")) for name, (logsnr, _) in lines]
        return _html.table([(repr(self), ""), *rows])


def _index(place: int, shape: tuple[int, ...]) -> str:
    """The index of a place in an example, without the dimensions whose size is 1."""
    index = torch.unravel_index(torch.tensor(place), shape)
    kept = [str(int(i)) for i, size in zip(index, shape, strict=True) if size > 1]
    return ", ".join(kept) or "all"


class PerDimension(OverDims):
    """A fixed schedule for each index along one dimension of x: channel, row, token or column.

    Args:
        schedules: as many as x has indices there.
        dim: the dimension of x that they are for. 0 is the batch. Negative ones count from the
            last.

    >>> from vdiff.schedule import Linear
    >>> schedule = PerDimension([Linear(10.0, -10.0), Linear(4.0, -10.0)])
    >>> schedule.at(torch.tensor([0.5]), ndim=2).logsnr
    tensor([[ 0., -3.]], dtype=torch.float64)
    """

    @validated
    def __init__(
        self, schedules: Annotated[Sequence[Schedule], fixed_schedules], dim: Dim = 1
    ) -> None:
        ends = [schedule.ends() for schedule in schedules]
        super().__init__(max(float(h) for h, _ in ends), min(float(low) for _, low in ends))
        self.schedules, self.dim = nn.ModuleList(schedules), dim
        self.least_ndim = 1 + (dim if dim > 0 else -dim)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for schedule in self._parts():
            schedule.reset_parameters()

    def field_shape(self, ndim: int) -> tuple[int, ...]:
        return place(self.dim, (len(self.schedules),), ndim)

    def ends(self, detach: bool = True) -> tuple[float, float]:
        ends = [schedule.ends() for schedule in self._parts()]
        return max(float(high) for high, _ in ends), min(float(low) for _, low in ends)

    def ends_of(self, ndim: int, detach: bool = True) -> tuple[Tensor | float, Tensor | float]:
        ends = [[float(end) for end in schedule.ends()] for schedule in self._parts()]
        if all(own == ends[0] for own in ends):
            return ends[0][0], ends[0][1]
        field = torch.tensor(ends, dtype=torch.float64, device=device_of(self))
        high, low = field.T.view(2, 1, *self.field_shape(ndim))
        return high, low

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._each(lambda schedule, t: schedule.logsnr_at(t), t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        def rate(schedule: Schedule, t: Tensor, logsnr: Tensor) -> Tensor:
            rate = schedule.rate_at(t, logsnr)
            return rate.clamp(min=schedule._least_rate) if schedule._least_rate else rate

        return self._each(rate, t, logsnr)

    def _step_at(self, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        def step(schedule: Schedule, t: Tensor) -> Tensor:
            return torch.stack(schedule._step_at(t, steps), -1)

        logsnr, delta = self._each(step, t).unbind(-1)
        return logsnr, delta

    def _each(self, function: Callable[..., Tensor], *fields: Tensor) -> Tensor:
        """The values of a function of each schedule and of its slices of the fields."""
        shape = (1, *self.field_shape(fields[0].ndim))
        dim = self.dim % len(shape)
        slices = [
            [v if v.shape[dim] == 1 else v.narrow(dim, i, 1).contiguous() for v in fields]
            for i in range(shape[dim])
        ]
        parts = [function(s, *own) for s, own in zip(self._parts(), slices, strict=True)]
        return torch.cat(parts, dim)

    def _parts(self) -> Sequence[Schedule]:
        return list(self.schedules)  # type: ignore[arg-type]

    def ends_to_save(self) -> tuple[float, float]:
        return self.ends()

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        loaded = [
            part.expected_ends(state, f"{prefix}schedules.{i}.")
            or (part.logsnr_max, part.logsnr_min)
            for i, part in enumerate(self._parts())
        ]
        return max(high for high, _ in loaded), min(low for _, low in loaded)

    @validated
    def check(self, points: Count = 10_001) -> "PerDimension":
        """`check` of each schedule. Returns self."""
        for schedule in self._parts():
            schedule.check(points)
        return self

    def extra_repr(self) -> str:
        names = ", ".join(map(repr, self._parts()[:3]))
        more = f", … {len(self.schedules)}" if len(self.schedules) > 3 else ""
        return f"[{names}{more}], dim={self.dim}"
