"""Which noise levels a sampler visits: rows of log-SNR that rise from noise to data, in float64.

Any schedule is a grid, whatever a model was trained with: `Linear` is uniform in λ, `Cosine` in
the angle arctan σ/α, `OptimalTransport` in rectified flow's t, `Karras` in σ^{1/ρ}, a `Tabulated`
in its own steps. `steps` counts the levels visited before data; from the last one, x̂ is the step
to data.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import device_of, to_float64
from vdiff._validate import Count, Given, require, validated
from vdiff.errors import InvalidType, InvalidValue
from vdiff.schedule import Schedule, Shifted, Tabulated, Truncated
from vdiff.schedule.law import Logistic


def rising(levels: object, argument: str, given: Given) -> Tensor:
    """Levels (a tensor, an array or a list) in float64: one row that rises, noise falling from
    each to the next."""
    what = "be one row of log-SNR, floating, with at least one level"
    hint = "for instance [-10.0, 0.0, 10.0]"
    try:
        if not isinstance(levels, Tensor | np.ndarray | Sequence) or isinstance(levels, str):
            raise TypeError
        row = levels.detach() if isinstance(levels, Tensor) else torch.tensor(np.asarray(levels))
    except (TypeError, ValueError):
        raise InvalidType(argument, what, repr(levels), hint) from None
    if row.ndim == 1 and len(row) and not row.is_floating_point():
        hint = "integer steps of a table are its levels table.table[steps]"
    fits = row.ndim == 1 and len(row) > 0 and row.is_floating_point()
    require(fits, argument, what, f"shape {tuple(row.shape)}, {row.dtype}", hint)
    grid = to_float64(row).clone()
    hint = "the step to data, λ = +∞, is x̂ at the last level and no level of its own"
    require(
        bool((grid < torch.inf).all()), argument, "be below +∞, and no NaN", grid.tolist(), hint
    )
    hint = "noise must fall at each step"
    if (grid.diff() < 0).all():
        hint = "σ, γ = −λ and levels from data to noise fall: levels.flip(0), or λ = −2 log σ"
    # a difference of two −∞ is NaN
    for i in (~(grid[1:] > grid[:-1])).nonzero().flatten()[:1].tolist():
        came = f"{grid[i]:g} and then {grid[i + 1]:g}"
        raise InvalidValue(argument, "rise strictly, from noise to data", came, hint)
    return grid


Grid = Annotated[Tensor | np.ndarray | Sequence[float], rising]


@validated
def uniform(schedule: Schedule, steps: Count) -> Float[Tensor, " steps"]:
    """The schedule at `steps` equidistant times from t = 1 to t = 0, both included; one step is t
    = 1 alone.

    >>> from vdiff.schedule import Linear
    >>> uniform(Linear(10.0, -10.0), 3)
    tensor([-10.,   0.,  10.], dtype=torch.float64)
    """
    times = torch.arange(steps, dtype=torch.float64, device="cpu") / max(steps - 1, 1)
    return _at(schedule, times)


@validated
def trailing(schedule: Schedule, steps: Count) -> Float[Tensor, " steps"]:
    """t = 1, 1 − 1/N, …, 1/N: from λ_min, and from 1/N to data at once. For few steps on a long
    chain's schedule (Lin et al., arXiv:2305.08891, section 3.3).

    On a table of n levels these are levels of its own: those of the steps round(n − i n/N) − 1, i
    = 0 … N − 1.

    >>> from vdiff.schedule import Linear, Tabulated
    >>> trailing(Linear(10.0, -10.0), 4)
    tensor([-10.,  -5.,   0.,   5.], dtype=torch.float64)
    >>> table = Tabulated.linear_betas()
    >>> torch.equal(trailing(table, 4), table.table[[999, 749, 499, 249]])
    True
    """
    table = _table(schedule, steps)
    if table is None:
        return _at(schedule, torch.arange(steps, dtype=torch.float64, device="cpu") / steps)
    # in NumPy, as diffusers does it: halves are rounded as there
    ends = np.round(np.arange(len(table), 0, -len(table) / steps)[:steps])
    return table[torch.from_numpy(ends.astype(np.int64) - 1)]


@validated
def leading(schedule: Schedule, steps: Count) -> Float[Tensor, " steps"]:
    """t = 1 − 1/N, …, 1/N, 0: DDPM's and DDIM's own spacing. It starts above λ_min, where z is not
    yet N(0, I): published numbers use it, `trailing` is the better one (arXiv:2305.08891, section
    3.3).

    On a table of n levels these are levels of its own: those of the steps (N − 1) r, …, 2 r, r, 0
    with r = ⌊n/N⌋.

    >>> from vdiff.schedule import Linear, Tabulated
    >>> leading(Linear(10.0, -10.0), 4)
    tensor([-5.,  0.,  5., 10.], dtype=torch.float64)
    >>> table = Tabulated.linear_betas()
    >>> torch.equal(leading(table, 4), table.table[[750, 500, 250, 0]])
    True
    """
    table = _table(schedule, steps)
    if table is None:
        ends = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu")
        return _at(schedule, ends / steps)
    return table[torch.arange(steps - 1, -1, -1) * (len(table) // steps)]


def few_steps(logsnr_max: float = 12.4, logsnr_min: float = -8.8) -> Schedule:
    """The schedule to sample with when evaluations are few: a logistic law in λ, of mean ½ and
    scale 2.4.

    Rectified flow's own grid is the law of mean 0 and scale 2. Mean and scale were chosen on
    Gaussian mixtures of 2 and 16 dimensions, with `adams_bashforth`, for the fewest evaluations to
    a given error (`benchmarks/step_order.py`); data of unit scale. The ends are those of
    `Karras()`, σ from 80 down to 0.002.

    >>> few_steps()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([12.4000,  0.5641, -8.8000])
    """
    return Truncated(Logistic(0.5, 2.4), logsnr_max, logsnr_min)


def _table(schedule: Schedule, steps: int) -> Tensor | None:
    """The levels of a table, shifted or not; None for other schedules, and for more steps than
    levels.
    """
    shift = 0.0
    while isinstance(schedule, Shifted):
        shift += schedule.shift
        schedule = schedule.schedule
    if not isinstance(schedule, Tabulated) or steps > schedule.steps + 1:
        return None
    return schedule.table + shift


@torch.no_grad()
def _at(schedule: Schedule, before: Tensor) -> Tensor:
    """λ at the times 1 − `before`."""
    levels: Tensor = schedule(to_float64((1 - before).to(device_of(schedule))))
    return levels


__all__ = ["few_steps", "leading", "trailing", "uniform"]
