"""The contract of a schedule: λ falls from λ_max to λ_min, and its four methods agree."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._precision import device_of
from vdiff._validate import require
from vdiff.errors import InvalidValue

RESTS = 1e-9  # of the range: a rate at an end below this is 0
LEAST = 1e-6  # of the range: replaces a rate of 0, so that p(λ) · rate is 1, not 0 · ∞

Row = Sequence[float] | np.ndarray | Tensor
BETA_HINTS = {
    0: "β = 0 adds no noise: drop the level",
    1: "β = 1 leaves pure noise: it is the last",
    2: "rescaled to few steps, a β table leaves (0, 1)",
}


@torch.no_grad()
def check(schedule: Any, points: int, base: Any) -> float:
    """Verify a schedule on a grid of times. Returns the least rate for a loss: 0, or more where
    the rate is 0 at an end. Raises ValueError at the first t that fails."""
    moves = next(schedule.parameters(), None) is not None
    name = type(schedule).__name__
    require(
        schedule.learns_ends or schedule.learns_shape or not moves,
        "schedule",
        "say what its parameters are",
        f"{name} with parameters and learns_ends = False",
        "λ_max and λ_min would move: see Learned, which keeps ends and shape apart",
    )
    if device_of(schedule).type == "meta":
        return 0.0  # parameters without values, to be filled later
    t = schedule.times_to_check(points).to(device_of(schedule))
    logsnr = returned(schedule.logsnr_at(t), t, "schedule", f"have {name}.logsnr_at ")
    rate = returned(schedule.rate_at(t, logsnr), t, "schedule", f"have {name}.rate_at ")
    _check_fall(t, logsnr)
    span = (logsnr[0] - logsnr[-1]).item()
    least = _check_rate(t, rate, span)
    _check_ends(schedule, logsnr)
    _check_derivative(t, logsnr, rate)
    _check_inverse(schedule, base, t, span)
    return least


def _check_fall(t: Tensor, logsnr: Tensor) -> None:
    _refuse(~torch.isfinite(logsnr), "have finite logsnr_at(t)", t, logsnr, "λ = ")
    rises = logsnr[-1] > logsnr[0]
    hint = "γ = −λ rises: pass −γ" if rises else "the first of them that do not fall"
    falls = "be strictly decreasing in t (λ falls from data to noise)"
    _refuse(logsnr[:-1] <= logsnr[1:], falls, t, logsnr, "λ = ", hint)


def _check_rate(t: Tensor, rate: Tensor, span: float) -> float:
    resting = rate[[0, -1]].abs() <= RESTS * span
    stuck = ~(rate > 0)
    stuck[[0, -1]] &= ~resting
    hint = "dλ/dt itself is negative: return −dλ/dt" if (rate < 0).all() else ""
    _refuse(stuck, "have rate_at(t, logsnr) = −dλ/dt > 0", t, rate, "a rate of ", hint)
    return LEAST * span if resting.any() else 0.0


def _check_ends(schedule: Any, logsnr: Tensor) -> None:
    low = logsnr[-1].item() if schedule.reaches_noise else schedule.logsnr_min
    ends = torch.tensor([schedule.logsnr_max, low], dtype=torch.float64, device=logsnr.device)
    same = torch.allclose(logsnr[[0, -1]], ends, rtol=1e-6, atol=1e-6)
    runs = f"have logsnr_at(t) run from logsnr_max = {ends[0]:g} to logsnr_min = {ends[1]:g}"
    require(same, "schedule", runs, f"λ(0) = {logsnr[0]:g}, λ(1) = {logsnr[-1]:g}")


def _check_derivative(t: Tensor, logsnr: Tensor, rate: Tensor) -> None:
    drop = logsnr[:-1] - logsnr[1:]
    area = 0.5 * (rate[:-1] + rate[1:]) * t.diff()
    # the trapezoid rule is exact up to the change of the rate in a cell and its neighbors
    change = (rate[:-1] - rate[1:]).abs()
    width = t.diff() * torch.nn.functional.max_pool1d(change[None], 3, stride=1, padding=1)[0]
    off = (area - drop).abs() > width + 1e-6 * drop.abs() + 1e-9
    same = "have rate_at equal to the derivative of −logsnr_at"
    hint = "λ falls there by another amount than the integral of the rate"
    _refuse(off, same, t, rate, "a rate of ", hint)


def _check_inverse(schedule: Any, base: Any, t: Tensor, span: float) -> None:
    between = 0.5 * (t[:-1] + t[1:])  # a density may jump at the times themselves
    level = schedule.logsnr_at(between)
    if type(schedule).time_at is not base.time_at:
        off = (schedule.logsnr_at(schedule.time_at(level)) - level).abs()
        what, hint = "have time_at(logsnr) the inverse of logsnr_at", "λ(time_at(λ)) is not λ"
        _refuse(~(off <= 1e-6 * span), what, between, off, "off by ", hint)
    if type(schedule).density_at is not base.density_at:
        product = schedule.density_at(level) * schedule.rate_at(between, level)
        what = "have density_at(logsnr) one over rate_at"
        hint = "the product is not 1; p(λ) = −dt/dλ is normalised between the ends"
        _refuse(~((product - 1).abs() <= 1e-5), what, between, product, "p(λ) · rate = ", hint)


def returned(
    value: object, given: Tensor, argument: str, method: str = "", word: str = "t"
) -> Tensor:
    """The value that a function returned for `given`, a tensor like it (a weight may have another
    dtype); raises ValueError otherwise."""
    names = ("shape", "dtype", "device") if word == "t" else ("shape", "device")
    form = [getattr(given, name) for name in names]
    if not isinstance(value, Tensor):
        came, hint = type(value).__name__, f"torch.full_like({word}, value) for a constant"
    elif (own := [getattr(value, name) for name in names]) == form:
        return value
    else:
        came = _listed(own)
        hint = "it would broadcast in silence" if value.shape != given.shape else ""
    alike = f"return the {', '.join(names[:-1])} and device of {word}: {_listed(form)}"
    raise InvalidValue(argument, method + alike, came, hint)


def _listed(form: Sequence[Any]) -> str:
    return ", ".join(map(str, (tuple(form[0]), *form[1:])))


def refuse(
    bad: Tensor,
    argument: str,
    requirement: str,
    values: Tensor,
    place: Callable[[int], str],
    hint: str = "",
    what: str = "",
) -> None:
    """Raise for the first bad value, or for the first bad pair of neighbors, and say its place."""
    for i in bad.nonzero().flatten()[:1].tolist():
        came = f"{what}{values[i]:g} at {place(i)}"
        if len(bad) < len(values):
            came += f" and {values[i + 1]:g} at {place(i + 1)}"
        raise InvalidValue(argument, requirement, came, hint)


def _refuse(
    bad: Tensor, requirement: str, t: Tensor, values: Tensor, what: str, hint: str = ""
) -> None:
    refuse(bad, "schedule", requirement, values, lambda i: f"t = {t[i]:g}", hint, what)


def row_of(values: Row, argument: str, what: str) -> Tensor:
    """A table as a float64 tensor (n,); raises ValueError unless n ≥ 2."""
    row = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    hint = "one noise level is a decoder without a step" if row.numel() == 1 else ""
    requirement, came = f"be one row of at least two {what}", f"shape {tuple(row.shape)}"
    require(row.ndim == 1 and len(row) > 1, argument, requirement, came, hint)
    return row


def check_inside(row: Tensor, argument: str, noise: float, hints: dict[int, str]) -> None:
    """Raise unless a table lies in (0, 1); its last value may be `noise`. `hints` are for 0, for 1
    and, as 2, for more than 1."""
    bad = ~((row > 0) & (row < 1))
    bad[-1] &= row[-1] != noise
    first = torch.where(row > 1, 2.0, row)[bad][:1].tolist()
    hint = "".join(hints.get(value, "") for value in first)
    place = level_of(row, "step" if argument == "betas" else "level")
    refuse(bad, argument, "lie strictly between 0 and 1", row, place, hint)


def level_of(row: Tensor, unit: str = "level") -> Callable[[int], str]:
    """The place of an index in a table, in words."""
    return lambda i: f"{unit} {i + 1} of {len(row)}"
