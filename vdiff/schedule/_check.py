"""The contract of a schedule: λ falls from λ_max to λ_min, and its four methods agree."""

import math
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
ROUNDING = 1e-15  # of the largest |λ|: a fall below this cannot be seen in λ

LEAST_PAIRS, MOST_VALUES = 32, 1 << 18  # of a field: of times, and times · dimensions
NEAR = 1e-6  # between the times of a pair
SAME_DERIVATIVE = "have rate_at equal to the derivative of −logsnr_at"
OTHER_AMOUNT = "λ falls there by another amount than the integral of the rate"

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
    fixed = next(schedule.parameters(), None) is None
    says = schedule.learns_ends or schedule.learns_shape or fixed
    got = f"{type(schedule).__name__} with parameters and learns_ends = False"
    hint = "λ_max and λ_min would move: see Learned, which keeps ends and shape apart"
    require(says, "schedule", "say what its parameters are", got, hint)
    if device_of(schedule).type == "meta":
        return 0.0  # parameters without values, to be filled later
    t = schedule.times_to_check(points).to(device_of(schedule))
    logsnr, rate = _curve(schedule, t, t)
    _check_fall(t, logsnr, rate)
    span = (logsnr[0] - logsnr[-1]).item()
    least = _check_rate(t, rate, span)
    _check_ends(schedule, logsnr)
    _check_derivative(t, logsnr, rate)
    _check_inverse(schedule, base, t, span)
    return least


def _curve(schedule: Any, t: Tensor, form: Tensor, word: str = "t") -> tuple[Tensor, Tensor]:
    """λ(t) and its rate, tensors like `form`."""
    have = f"have {type(schedule).__name__}."
    logsnr = returned(schedule.logsnr_at(t), form, "schedule", f"{have}logsnr_at ", word)
    rate = returned(schedule.rate_at(t, logsnr), form, "schedule", f"{have}rate_at ", word)
    return logsnr, rate


def _check_fall(t: Tensor, logsnr: Tensor, rate: Tensor) -> None:
    _refuse(~torch.isfinite(logsnr), "have finite logsnr_at(t)", t, logsnr, "λ = ")
    rises = logsnr[-1] > logsnr[0]
    hint = "γ = −λ rises: pass −γ" if rises else "the first of them that do not fall"
    falls = "be strictly decreasing in t (λ falls from data to noise)"
    unseen, area = ROUNDING * logsnr.abs().max(), 0.5 * (rate[:-1] + rate[1:]) * t.diff()
    still = logsnr[:-1] <= logsnr[1:]
    # as t⁶ near 0: its fall is below rounding, its rate is not
    still &= ~((logsnr[1:] - logsnr[:-1] <= unseen) & (area > 0) & (area <= unseen))
    _refuse(still, falls, t, logsnr, "λ = ", hint)


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
    _refuse(off, SAME_DERIVATIVE, t, rate, "a rate of ", OTHER_AMOUNT)


def _check_inverse(schedule: Any, base: Any, t: Tensor, span: float) -> None:
    between = 0.5 * (t[:-1] + t[1:])  # a density may jump at the times themselves
    level = schedule.logsnr_at(between)
    if type(schedule).time_at is not base.time_at:
        off = (schedule.logsnr_at(schedule.time_at(level)) - level).abs()
        what, hint = "have time_at(logsnr) the inverse of logsnr_at", "λ(time_at(λ)) is not λ"
        _refuse(~(off <= 1e-6 * span), what, between, off, "off by ", hint)
    if type(schedule).density_at is not base.density_at:
        rate = schedule.rate_at(between, level)
        product = schedule.density_at(level) * rate
        what = "have density_at(logsnr) one over rate_at"
        hint = "the product is not 1; p(λ) = −dt/dλ is normalised between the ends"
        # near an end where the rate is 0, λ as rounded does not tell which rate it has
        slope = schedule.rate_at(t, schedule.logsnr_at(t)).diff().abs() / t.diff()
        told = 1e-5 * rate.square() > ROUNDING * level.abs().max() * slope
        off = told & ~((product - 1).abs() <= 1e-5)
        _refuse(off, what, between, product, "p(λ) · rate = ", hint)


@torch.no_grad()
def check_field(schedule: Any, points: int) -> None:
    """Verify a schedule over dimensions at pairs of times, as `check` does, in each dimension."""
    shape, device = schedule.field_shape(schedule.least_ndim), device_of(schedule)
    if device.type == "meta":
        return  # parameters without values, to be filled later
    pairs = max(LEAST_PAIRS, min(points, MOST_VALUES // math.prod(shape)) // 2)
    t = torch.linspace(0, 1 - NEAR, pairs, dtype=torch.float64, device=device)
    t = torch.stack([t, t + NEAR], 1).flatten()
    field = t.view(-1, *[1] * len(shape))
    form = torch.empty(2 * pairs, *shape, dtype=torch.float64, device=device)
    logsnr, rate = (v.flatten(1) for v in _curve(schedule, field, form, "λ over dimensions"))
    _check_field_falls(t, logsnr, rate)
    _refuse_in(~(rate >= 0), "have rate_at(t, logsnr) = −dλ/dt ≥ 0", t, rate, "a rate of ")
    _check_field_ends(schedule, logsnr[[0, -1]], shape)
    drop, area = logsnr[::2] - logsnr[1::2], 0.5 * NEAR * (rate[::2] + rate[1::2])
    change = NEAR * (rate[::2] - rate[1::2]).abs()  # a rate may jump, or bend at a knot: 1 %
    off = (area - drop).abs() > change + 0.01 * drop + 1e-10
    _refuse_in(off, SAME_DERIVATIVE, t[::2], rate[::2], "a rate of ", OTHER_AMOUNT)


def _check_field_falls(t: Tensor, logsnr: Tensor, rate: Tensor) -> None:
    _refuse_in(~torch.isfinite(logsnr), "have finite logsnr_at(t)", t, logsnr, "λ = ")
    span = logsnr[0] - logsnr[-1]
    hint = "γ = −λ rises: pass −γ" if (span < 0).all() else ""
    rises = logsnr[1:] - logsnr[:-1] > RESTS * span.abs()
    _refuse_in(rises, "never rise in t", t, logsnr, "λ = ", hint)
    # a fall may be below rounding, as that of t⁶ near 0; its rate is not
    rests = (rate[1:-2:2] == 0) & (rate[2::2] == 0)
    still = (rests & (logsnr[:-2:2] - logsnr[2::2] <= RESTS * span)).all(1)
    hint = "time in which no λ falls is lost"
    _refuse(still, "always fall in at least one dimension", t[::2], logsnr[::2, 0], "λ = ", hint)


def _check_field_ends(schedule: Any, logsnr: Tensor, shape: tuple[int, ...]) -> None:
    for i, end in enumerate(schedule.ends_of(schedule.least_ndim)):
        want = torch.as_tensor(end, dtype=torch.float64, device=logsnr.device)
        want = want.expand(1, *shape).flatten()
        off = (logsnr[i] - want).abs() > 1e-6 * (1 + want.abs())
        what = f"have λ({i}) equal to ends_of(ndim)[{i}] in each dimension"
        _refuse_in(off[None], what, torch.tensor([float(i)]), logsnr[i : i + 1], "λ = ")


def _refuse_in(
    bad: Tensor, requirement: str, t: Tensor, values: Tensor, what: str, hint: str = ""
) -> None:
    """`_refuse` in the first dimension with a bad value."""
    for dim in bad.any(0).nonzero().flatten()[:1].tolist():
        where = f"dimension {dim} of an example: {hint}" if hint else f"dimension {dim}"
        _refuse(bad[:, dim], requirement, t, values[:, dim], what, where)


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


def check_one_time(t: Tensor) -> None:
    """Raise for a field of times, from whose losses no schedule learns."""
    hint = "its losses tell nothing of a single λ: train with a fixed schedule"
    one = "be one time per example for a schedule that learns from losses"
    require(t.ndim == 1, "t", one, f"a field {tuple(t.shape)}", hint)


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
