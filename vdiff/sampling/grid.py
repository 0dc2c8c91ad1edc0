"""The noise levels that a sampler visits: rows of log-SNR in float64 that rise from noise to data.

Any schedule is a grid, whatever a model was trained with: `Linear` is uniform in λ, `Cosine` in
the angle arctan σ/α, `OptimalTransport` in rectified flow's t, `Karras` in σ^{1/ρ}, a `Tabulated`
in its own steps. A grid divides the time from 1 to 0 into `steps` equal steps. From its last
level, x̂ is the step to data.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import device_of, to_float64
from vdiff._validate import Count, Given, require, validated
from vdiff.errors import InvalidType, shown
from vdiff.schedule import Schedule, Shifted, Tabulated, Truncated
from vdiff.schedule.law import Logistic

_FALLS = "noise falls at each step; levels.flip(0) reverses σ and γ = −λ; x̂ is the step to λ = +∞"


def rising(levels: object, argument: str, given: Given) -> Tensor:
    """Levels (a tensor, an array or a list) as one row in float64 that rises: noise falls from
    each to the next."""
    try:
        row = levels.detach() if isinstance(levels, Tensor) else torch.tensor(np.asarray(levels))
    except (TypeError, ValueError):
        row = torch.empty(0)
    if row.ndim != 1 or not len(row) or not row.is_floating_point():
        hint = "[-10.0, 0.0, 10.0]; integer steps of a table are its levels table.table[steps]"
        raise InvalidType(argument, "be one row of log-SNR, floating", shown(levels), hint)
    grid = to_float64(row).clone()
    falls = [(a, b) for a, b in itertools.pairwise([*grid.tolist(), torch.inf]) if not a < b]
    came = "".join(f"{a:g} and then {b:g}" for a, b in falls[:1])
    require(not falls, argument, "rise strictly, from noise to data, below +∞", came, _FALLS)
    return grid


Grid = Annotated[Tensor | np.ndarray | Sequence[float], rising]


@validated
def uniform(schedule: Schedule, steps: Count) -> Float[Tensor, " levels"]:
    """t = 1, 1 − 1/T, …, 1/T, 0: the T + 1 levels of a chain of T = `steps` steps.

    >>> from vdiff.schedule import Linear
    >>> uniform(Linear(10.0, -10.0), 2)
    tensor([-10.,   0.,  10.], dtype=torch.float64)
    """
    return _at(schedule, torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps)


@validated
def trailing(schedule: Schedule, steps: Count) -> Float[Tensor, " steps"]:
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
    table = _table(schedule, steps)
    if table is None:
        return _at(schedule, torch.arange(steps, dtype=torch.float64, device="cpu") / steps)
    # in NumPy, as diffusers does it: halves are rounded as there
    ends = np.round(np.arange(len(table), 0, -len(table) / steps)[:steps])
    return table[torch.from_numpy(ends.astype(np.int64) - 1)]


@validated
def leading(schedule: Schedule, steps: Count) -> Float[Tensor, " steps"]:
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
    table = _table(schedule, steps)
    if table is None:
        ends = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu")
        return _at(schedule, ends / steps)
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


def _table(schedule: Schedule, steps: int) -> Tensor | None:
    """The levels of a table, shifted or not; None for other schedules and for more steps than
    levels."""
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
