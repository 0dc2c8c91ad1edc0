"""The noise levels that a sampler visits: rows of log-SNR in float64 that rise from noise to data.
Where each dimension has its own, a level is a field, and a row of them is (levels, 1, …).

Any schedule is a grid, whatever a model was trained with: `Linear` is uniform in λ, `Cosine` in
the angle arctan σ/α, `OptimalTransport` in rectified flow's t, `Karras` in σ^{1/ρ}, a `Tabulated`
in its own steps. A grid divides the time from 1 to 0 into `steps` equal steps. From its last
level, x̂ is the step to data.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Steps, broadcasts, finite_values
from vdiff._precision import device_of, to_float64
from vdiff._validate import Given, require, validated
from vdiff.errors import InvalidType, shown
from vdiff.schedule import PerDimension, Schedule, Shifted, Tabulated, Truncated
from vdiff.schedule.law import Logistic

_FALLS = "noise falls at each step; levels.flip(0) reverses σ and γ = −λ; x̂ is the step to λ = +∞"


def rising(levels: object, argument: str, given: Given) -> Tensor:
    """Levels (a tensor, an array or a list) as one row in float64 that rises: noise falls from
    each to the next. A row of fields, (levels, 1 or batch, …), has the dimensions of `z` behind
    the first."""
    try:
        row = levels.detach() if isinstance(levels, Tensor) else torch.tensor(np.asarray(levels))
    except (TypeError, ValueError):
        row = torch.empty(0)
    if row.ndim > 1 and row.ndim == getattr(given.get("z"), "ndim", -1) + 1:
        return _rising_fields(row, argument, given["z"])
    if row.ndim != 1 or not len(row) or not row.is_floating_point():
        hint = "[-10.0, 0.0, 10.0]; integer steps of a table are its levels table.table[steps]"
        raise InvalidType(argument, "be one row of log-SNR, floating", shown(levels), hint)
    grid = to_float64(row).clone()
    falls = [(a, b) for a, b in itertools.pairwise([*grid.tolist(), torch.inf]) if not a < b]
    came = "".join(f"{a:g} and then {b:g}" for a, b in falls[:1])
    require(not falls, argument, "rise strictly, from noise to data, below +∞", came, _FALLS)
    return grid


def _rising_fields(row: Tensor, argument: str, z: Tensor) -> Tensor:
    grid = finite_values(to_float64(row).clone(), argument, {})
    shape = f"be fields that broadcast over z, {tuple(z.shape)}, behind the first dimension"
    require(len(grid) > 0 and broadcasts(grid[0], z), argument, shape, tuple(row.shape))
    gain = grid.diff(dim=0).flatten(1)
    for i, (least, most) in enumerate(zip(*gain.aminmax(dim=1), strict=True)):
        came = f"a change from {least:g} to {most:g} in step {i + 1}"
        what = "fall in no dimension, and rise in one at least at each step"
        require(bool(least >= 0 and most > 0), argument, what, came, _FALLS)
    return grid


Grid = Annotated[Tensor | np.ndarray | Sequence[float], rising]


@validated
def uniform(
    schedule: Schedule, steps: Steps, *, ndim: int | None = None
) -> Float[Tensor, "levels *field"]:
    """t = 1, 1 − 1/T, …, 1/T, 0: the T + 1 levels of a chain of T = `steps` steps. A schedule over
    dimensions needs `ndim`, the number of dimensions of z; its levels are fields.

    >>> from vdiff.schedule import Linear
    >>> uniform(Linear(10.0, -10.0), 2)
    tensor([-10.,   0.,  10.], dtype=torch.float64)
    """
    return _at(schedule, torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps, ndim)


@validated
def trailing(
    schedule: Schedule, steps: Steps, *, ndim: int | None = None
) -> Float[Tensor, "steps *field"]:
    """t = 1, 1 − 1/N, …, 1/N: N = `steps` levels from λ_min; the last step leads from t = 1/N to
    data. For few steps on the schedule of a long chain (Lin et al., arXiv:2305.08891, section
    3.3).

    On a table of n levels they are its own: those of the steps round(n − i n/N) − 1, i = 0 … N −
    1.

    >>> from vdiff.schedule import Linear, Tabulated
    >>> trailing(Linear(10.0, -10.0), 4)
    tensor([-10.,  -5.,   0.,   5.], dtype=torch.float64)
    >>> table = Tabulated.linear_betas()
    >>> torch.equal(trailing(table, 4), table.table[[999, 749, 499, 249]])
    True
    """
    table = _table(schedule, steps, ndim)
    if table is None:
        return _at(schedule, torch.arange(steps, dtype=torch.float64, device="cpu") / steps, ndim)
    # in NumPy, as diffusers does it: halves are rounded as there
    ends = np.round(np.arange(len(table), 0, -len(table) / steps)[:steps])
    return table[torch.from_numpy(ends.astype(np.int64) - 1)]


@validated
def leading(
    schedule: Schedule, steps: Steps, *, ndim: int | None = None
) -> Float[Tensor, "steps *field"]:
    """t = 1 − 1/N, …, 1/N, 0: the N = `steps` levels of DDPM's and DDIM's own spacing. It starts
    above λ_min, where z is not yet N(0, I). Published numbers use it; `trailing` is better
    (arXiv:2305.08891, section 3.3).

    On a table of n levels they are its own: those of the steps (N − 1) r, …, 2 r, r, 0 with
    r = ⌊n/N⌋.

    >>> from vdiff.schedule import Linear, Tabulated
    >>> leading(Linear(10.0, -10.0), 4)
    tensor([-5.,  0.,  5., 10.], dtype=torch.float64)
    >>> table = Tabulated.linear_betas()
    >>> torch.equal(leading(table, 4), table.table[[750, 500, 250, 0]])
    True
    """
    table = _table(schedule, steps, ndim)
    if table is None:
        ends = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu")
        return _at(schedule, ends / steps, ndim)
    return table[torch.arange(steps - 1, -1, -1) * (len(table) // steps)]


def logistic(logsnr_max: float = 12.4, logsnr_min: float = -8.8) -> Schedule:
    """The schedule to sample with when evaluations are few: λ has a logistic law of mean ½ and
    scale 2.4.

    Rectified flow's own grid is the law of mean 0 and scale 2. Mean and scale were chosen on
    Gaussian mixtures of 2 and 16 dimensions and unit scale, with `adams_bashforth`, for the fewest
    evaluations to a given error (`benchmarks/step_order.py`). The ends are those of `Karras()`, σ
    from 80 down to 0.002.

    >>> logistic()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([12.4000,  0.5641, -8.8000])
    """
    return Truncated(Logistic(0.5, 2.4), logsnr_max, logsnr_min)


def _table(schedule: Schedule, steps: int, ndim: int | None) -> Tensor | None:
    """The levels of a table, shifted or not, or of one for each index of a dimension; None for
    other schedules and for more steps than levels."""
    shift = 0.0
    while isinstance(schedule, Shifted) and not isinstance(schedule.shift, Tensor):
        shift += schedule.shift
        schedule = schedule.schedule
    if isinstance(schedule, PerDimension) and (ndim or 0) >= schedule.least_ndim:
        each = [_table(one, steps, None) for one in schedule._parts()]
        tables = [table for table in each if table is not None]
        if len(tables) < len(each) or len({len(table) for table in tables}) > 1:
            return None
        return torch.stack(tables, 1).view(-1, 1, *schedule.field_shape(ndim or 0)) + shift
    if not isinstance(schedule, Tabulated) or steps > schedule.steps + 1:
        return None
    return schedule.table + shift


@torch.no_grad()
def _at(schedule: Schedule, before: Tensor, ndim: int | None = None) -> Tensor:
    """λ at the times 1 − `before`."""
    t = to_float64((1 - before).to(device_of(schedule)))
    levels: Tensor = schedule(schedule.spread(t, ndim))
    return levels[:, None] if schedule.over_dims else levels


@dataclass(frozen=True)
class Levels:
    """The levels of a batch: `count` of them, each (batch,) or a field, from `at(i)`. `ends` are
    λ_max and λ_min of each dimension."""

    count: int
    at: Callable[[int], Tensor]
    ends: tuple[Any, Any]

    @classmethod
    def of_row(cls, row: Tensor, z: Tensor, ends: tuple[Any, Any] | None = None) -> "Levels":
        """The levels of a row, the same for all samples where they are numbers."""
        row, numbers = row.to(z.device), row.tolist() if row.ndim == 1 else []

        def at(i: int) -> Tensor:
            if row.ndim == 1:
                return row.new_full((len(z),), numbers[i])
            return row[i].expand(len(z), *row.shape[2:]).contiguous()

        return cls(len(row), at, ends or (row[-1], row[0]))

    @classmethod
    def of_chain(cls, schedule: Schedule, steps: int, z: Tensor, generator: Any) -> "Levels":
        """The levels `uniform(schedule, steps)`, or for a schedule of one batch its own for each
        sample. A schedule that depends on the data draws its latents."""
        if schedule.depends_on_data:
            draws: Any = schedule
            schedule = draws.for_samples(len(z), generator)
        ends = schedule.ends_of(z.ndim)
        if not of_a_batch(schedule):
            return cls.of_row(uniform(schedule, steps, ndim=z.ndim), z, ends)

        @torch.no_grad()
        def at(i: int) -> Tensor:
            t = z.new_full((len(z),), 1 - i / steps, dtype=torch.float64)
            return schedule.at(t, ndim=z.ndim).logsnr

        return cls(steps + 1, at, ends)

    @property
    def some(self) -> Tensor:
        """Each level's number, or the first field and the last, which enclose all others."""
        if self.at(0).ndim == 1:
            return torch.stack([self.at(i)[0] for i in range(self.count)])
        return torch.stack([self.at(0), self.at(self.count - 1)])


def of_a_batch(schedule: Schedule) -> bool:
    """Whether a schedule has a λ(t) for each example of one batch."""
    return schedule.latents_drawn or not (schedule.shared or schedule.over_dims)


def in_words(logsnr: Tensor) -> str:
    """A level as a number, or as the range of a field.

    >>> in_words(torch.tensor([[1.0, 2.0]])), in_words(torch.ones(3))
    ('1 to 2', '1')
    """
    low, high = (f"{v:g}" for v in (logsnr.min().item(), logsnr.max().item()))
    return low if low == high else f"{low} to {high}"
