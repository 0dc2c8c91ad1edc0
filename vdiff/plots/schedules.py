"""Figures of schedules: λ(t), the density of the draws, the variance of a loss under them. Each
takes axes as `ax`, or makes new ones, and returns them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff.diagnosis import Diagnosis
from vdiff.plots.figure import REFERENCE, animation, finish, line_style, panels
from vdiff.schedule import Schedule, Shifted
from vdiff.schedule.over_dims import OverDims

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOGSNR = "log-SNR λ   (noise ← → data)"
DENSITY: dict[str, Any] = {"xlabel": LOGSNR, "ylabel": "p(λ)"}
SCHEDULE: dict[str, Any] = {"xlabel": "t   (data → noise)", "ylabel": "log-SNR λ(t)"}
POINTS = 801


def schedule(
    schedules: Mapping[str, Schedule], *, ax: "Sequence[Axes] | None" = None
) -> "list[Axes]":
    """λ(t) and the density p(λ) of one or more schedules, on two axes. Equal ones are one line. Of
    a schedule over dimensions, a few dimensions are drawn, by their index; of one with a shift for
    each example, the least and the largest.

    >>> from vdiff.schedule import Cosine
    >>> schedule({"cosine": Cosine()})[0].get_title(loc="left")
    'half of the draws have λ from -1.8 to 1.8'
    """
    left, right = panels(ax, 2)
    with torch.no_grad():
        curves = _unequal({k: v for pair in schedules.items() for k, v in _lines(*pair).items()})
    for i, (name, curve) in enumerate(curves.items()):
        left.plot(curve.t, curve.levels, label=name, **line_style(i))
        right.plot(curve.logsnr, curve.density, label=name, **line_style(i))
    spans = {name: curve.quartiles for name, curve in curves.items()}
    name = min(spans, key=lambda name: spans[name][2] - spans[name][0])
    low, _, high = spans[name]
    of = f" of {name}" if len(spans) > 1 else ""
    finish(left, f"half of the draws{of} have λ from {low:.1f} to {high:.1f}", **SCHEDULE)
    title = range_of("median of the draws: λ =", {name: span[1] for name, span in spans.items()})
    finish(right, title, legend=False, **DENSITY, ylim=(0, None))
    return [left, right]


@dataclass(frozen=True)
class Curves:
    """λ(t) and p(λ) of a schedule, each on a grid."""

    t: Tensor
    levels: Tensor
    logsnr: Tensor
    density: Tensor

    @classmethod
    def of(cls, schedule: Schedule) -> "Curves":
        """Between the schedule's ends."""
        t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        ends = schedule.logsnr_min, schedule.logsnr_max
        logsnr = torch.linspace(*ends, POINTS, dtype=torch.float64)
        return cls(t, schedule(t), logsnr, schedule.density(logsnr))

    @property
    def quartiles(self) -> list[float]:
        """λ at t = ¾, ½ and ¼."""
        return [self.levels[i * (POINTS - 1) // 4].item() for i in (3, 2, 1)]


def _lines(name: str, schedule: Schedule) -> dict[str, Curves]:
    """The curves of a schedule, or of a few dimensions of one over dimensions."""
    if isinstance(schedule, Shifted) and isinstance(schedule.shift, Tensor):
        shifts = sorted({shift.item() for shift in schedule.shift.aminmax()})
        each = {f"{name} [{shift:+.3g}]": Shifted(schedule.schedule, shift) for shift in shifts}
        return {named: Curves.of(one) for named, one in each.items()}
    if not isinstance(schedule, OverDims):
        return {name: Curves.of(schedule)}
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    return {
        f"{name} [{index}]": Curves(t, logsnr, logsnr, torch.where(rate > 0, 1 / rate, torch.nan))
        for index, (logsnr, rate) in schedule.curves(t).items()
    }


def _unequal(curves: dict[str, Curves]) -> dict[str, Curves]:
    """Equal schedules as one, by both names."""
    kept: dict[str, Curves] = {}
    for name, curve in curves.items():
        same = [other for other in kept if torch.allclose(kept[other].levels, curve.levels)]
        kept = {f"{k} = {name}" if k in same else k: v for k, v in kept.items()}
        kept |= {} if same else {name: curve}
    return kept


def range_of(what: str, values: Mapping[str, float]) -> str:
    """The least and the largest of several values, with their names."""
    first, last = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if first == last:
        return f"{what} {values[first]:.1f}"
    return f"{what} {values[first]:.1f} ({first}) to {values[last]:.1f} ({last})"


def variance(
    diagnoses: Mapping[str, Diagnosis], *, ax: "Sequence[Axes] | None" = None
) -> "list[Axes]":
    """The second moment of the loss and the density p(λ) of each schedule by log-SNR, on two axes,
    beside the best density for the first.

    >>> from vdiff.diagnosis import diagnose
    >>> from vdiff.profile import Profile
    >>> from vdiff.schedule import Linear
    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    >>> profile.update(torch.linspace(-5, 5, 100), torch.rand(100))
    >>> len(variance({"linear": diagnose(profile, Linear(5.0, -5.0))}))
    2
    """
    left, right = panels(ax, 2)
    top = 0.0
    for i, (name, each) in enumerate(diagnoses.items()):
        square = each.square / (each.logsnr[1] - each.logsnr[0]).item()
        label = f"{name}: {each.variance / each.least:.3g} × the least variance"
        left.semilogy(each.logsnr, square, label=label, **line_style(i))
        right.plot(each.logsnr, each.density, label=name, **line_style(i))
        top = max(top, square.max().item())
    best = next(iter(diagnoses.values()))
    right.plot(best.logsnr, best.best, label="the best density", **REFERENCE)
    least = min(diagnoses, key=lambda name: diagnoses[name].variance)
    ratio = diagnoses[least].variance / diagnoses[least].least
    moment: dict[str, Any] = {"xlabel": LOGSNR, "ylabel": "¼ w² E‖ε − ε̂‖⁴ / p   (nats²)"}
    title = f"{least} has {ratio:.3g} × the least variance"
    finish(left, title, **moment, ylim=(1e-5 * top, 3 * top))
    peak = best.logsnr[best.best.argmax()].item()
    ylim = (0, 1.6 * best.best.max().item())
    finish(right, f"the best density is largest at λ = {peak:.1f}", **DENSITY, ylim=ylim)
    return [left, right]


def moving_schedule(
    path: Path,
    frames: Sequence[tuple[int, Schedule]],
    best: Schedule | None = None,
    *,
    ax: "Sequence[Axes] | None" = None,
) -> "list[Axes]":
    """A GIF of a schedule that learns: λ(t) and p(λ) at each of the given steps, on two axes. The
    best one is dashed. Needs Pillow.

    >>> import tempfile
    >>> from vdiff.schedule import Linear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, frames = Path(folder) / "figure.gif", [(0, Linear()), (1, Linear(9.0, -5.0))]
    ...     len(moving_schedule(path, frames))
    2
    """
    left, right = panels(ax, 2)
    every = [each for _, each in frames] + ([best] if best is not None else [])
    with torch.no_grad():
        curves = [Curves.of(each) for each in every]
    top = 1.1 * max(curve.density.max().item() for curve in curves)
    high, low = max(each.logsnr_max for each in every), min(each.logsnr_min for each in every)

    def draw(frame: int) -> None:
        shown = [(f"step {frames[frame][0]}", curves[frame], line_style(0))]
        shown += [("best", curves[-1], REFERENCE)] if best is not None else []
        for place in (left, right):
            place.clear()
        for name, curve, style in shown:
            left.plot(curve.t, curve.levels, label=name, **style)
            right.plot(curve.logsnr, curve.density, **style)
        a, _, b = curves[frame].quartiles
        finish(left, f"half of the draws have λ from {a:.1f} to {b:.1f}", **SCHEDULE)
        left.set_ylim(low, high)
        finish(right, f"step {frames[frame][0]}", **DENSITY, xlim=(low, high), ylim=(0, top))

    animation(path, left, draw, len(frames))
    return [left, right]
