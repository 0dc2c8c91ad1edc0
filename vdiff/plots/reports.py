"""Figures: samples beside data, schedules and densities, weightings, the error by log-SNR."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff.diagnosis import Diagnosis
from vdiff.plots.figure import animation, figure, image_grid
from vdiff.profile import Profile
from vdiff.schedule import Schedule
from vdiff.weighting import Weighting

if TYPE_CHECKING:
    from vdiff.describe import Description

LOGSNR = "log-SNR λ   (noise ← → data)"
DENSITY = {"xlabel": LOGSNR, "ylabel": "p(λ)", "title": "density of the draws"}
SCHEDULE = {"xlabel": "t   (data → noise)", "ylabel": "log-SNR λ(t)", "title": "schedule"}
WEIGHT: dict[str, Any] = {"xlabel": LOGSNR, "ylabel": "w(λ) / max", "title": "what counts"}


def samples(path: Path, generated: Tensor, real: Tensor, *, levels: int = 17) -> None:
    """Samples of a model beside real data.

    >>> import tempfile
    >>> images = torch.randint(0, 17, (20, 1, 8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     samples(Path(folder) / "figure.png", images, images)
    """
    picture, (left, right) = figure(1, 2, height=2.9)
    image_grid(left, generated, "samples", levels=levels)
    image_grid(right, real, "held-out data", levels=levels)
    picture.savefig(path, dpi=130)


def schedule(path: Path, schedules: Mapping[str, Schedule]) -> None:
    """λ(t) and the density p(λ) of one or more schedules.

    >>> import tempfile
    >>> from vdiff.schedule import Cosine
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     schedule(Path(folder) / "figure.png", {"cosine": Cosine()})
    """
    picture, (left, right) = figure(1, 2)
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    for name, each in schedules.items():
        with torch.no_grad():
            left.plot(t, each(t), label=name)
            right.plot(*_density(each, 501), label=name)
    left.set(**SCHEDULE)
    right.set(**DENSITY)
    right.set_ylim(bottom=0)
    left.legend(frameon=False)
    picture.savefig(path, dpi=130)


def _density(schedule: Schedule, points: int) -> tuple[Tensor, Tensor]:
    """λ between the ends of a schedule, and p(λ)."""
    ends = schedule.logsnr_min, schedule.logsnr_max
    logsnr = torch.linspace(*ends, points, dtype=torch.float64)
    return logsnr, schedule.density(logsnr)


def weighting(
    path: Path,
    weightings: Mapping[str, Weighting],
    *,
    logsnr_max: float = 10.0,
    logsnr_min: float = -10.0,
) -> None:
    """w(λ) of one or more weightings, each divided by its largest value in the range.

    >>> import tempfile
    >>> from vdiff.weighting import Sigmoid
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weighting(Path(folder) / "figure.png", {"sigmoid": Sigmoid(2.0)})
    """
    picture, (axes,) = figure()
    logsnr = torch.linspace(logsnr_min, logsnr_max, 801, dtype=torch.float64)
    for name, each in weightings.items():
        w = each(logsnr)
        axes.semilogy(logsnr, (w / w.max()).clamp(min=1e-6), label=name)
    axes.set(**WEIGHT, ylim=(1e-4, 2))
    axes.legend(frameon=False)
    picture.savefig(path, dpi=130)


def objectives(path: Path, described: "Mapping[str, Description]") -> None:
    """Weights, densities of the draws and signals of objectives, by log-SNR.

    >>> import tempfile
    >>> from vdiff.describe import describe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     objectives(Path(folder) / "figure.png", {"edm": describe("edm")})
    """
    picture, (counts, draws, signal) = figure(1, 3)
    for i, (name, each) in enumerate(described.items()):
        style: dict[str, Any] = {"label": name, "linestyle": ("-", "--", ":")[i // 10 % 3]}
        counts.semilogy(each.logsnr, (each.weight / each.weight.max()).clamp(min=1e-6), **style)
        draws.plot(each.logsnr, each.draws, **style)
        signal.plot(each.logsnr, each.signal, **style)
    counts.set(**WEIGHT, ylim=(1e-4, 2))
    draws.set(**DENSITY)
    where = f"where the signal lies, error of {next(iter(described.values())).error_of}"
    signal.set(xlabel=LOGSNR, ylabel="share of the loss", title=where)
    for axes in (draws, signal):
        axes.set_ylim(bottom=0)
    signal.legend(frameon=False, fontsize=7)
    picture.savefig(path, dpi=130)


def error_by_logsnr(path: Path, profiles: Mapping[str, Profile], dims: int) -> None:
    """E‖ε − ε̂‖² per dimension by log-SNR, with a band of two standard errors. Its area is twice
    the ELBO's diffusion term.

    >>> import tempfile
    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    >>> profile.update(torch.linspace(-5, 5, 100), torch.rand(100))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     error_by_logsnr(Path(folder) / "figure.png", {"random": profile}, dims=1)
    """
    picture, (axes,) = figure(width=5.6)
    for name, profile in profiles.items():
        x, y = profile.centers.cpu(), profile.mean.cpu() / dims
        two = 2 * profile.standard_error.cpu() / dims
        (line,) = axes.plot(x, y, label=name)
        axes.fill_between(x, y - two, y + two, alpha=0.3, color=line.get_color(), linewidth=0)
    axes.set(xlabel=LOGSNR, ylabel="E‖ε − ε̂‖² / d", title="the loss by log-SNR (± 2 SE)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    picture.savefig(path, dpi=130)


def curves(
    path: Path, history: list[dict[str, float]], best_baseline: tuple[str, float] | None = None
) -> None:
    """Bits/dim by training step, on training batches and on the selection set.

    >>> import tempfile
    >>> history = [{"step": 1, "train_bits_per_dim": 4.0}, {"step": 2, "train_bits_per_dim": 3.0}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     curves(Path(folder) / "figure.png", history, ("histogram", 2.43))
    """
    picture, (axes,) = figure(width=5.6)
    names = {
        "train_bits_per_dim": "training batches",
        "selection_bits_per_dim": "selection set, averaged weights",
    }
    for key, name in names.items():
        points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    if best_baseline is not None:
        axes.axhline(best_baseline[1], color="gray", linestyle="--", label=best_baseline[0])
    axes.set(xlabel="step", ylabel="bits/dim", title="training")
    axes.legend(frameon=False)
    picture.savefig(path, dpi=130)


def variance(path: Path, diagnoses: Mapping[str, Diagnosis]) -> None:
    """The second moment of the loss and the density p(λ) of each schedule by log-SNR, beside the
    best density for the first.

    >>> import tempfile
    >>> from vdiff.diagnosis import diagnose
    >>> from vdiff.schedule import Linear
    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    >>> profile.update(torch.linspace(-5, 5, 100), torch.rand(100))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     variance(Path(folder) / "figure.png", {"linear": diagnose(profile, Linear(5.0, -5.0))})
    """
    picture, (left, right) = figure(1, 2, width=5.2)
    top = 0.0
    for name, each in diagnoses.items():
        square = each.square / (each.logsnr[1] - each.logsnr[0]).item()
        label = f"{name}: {each.variance / each.least:.3g} × the least variance"
        left.semilogy(each.logsnr, square, label=label)
        right.plot(each.logsnr, each.density, label=name)
        top = max(top, square.max().item())
    best = next(iter(diagnoses.values()))
    right.plot(best.logsnr, best.best, color="black", linestyle="--", label="best")
    moment = "¼ w² E‖ε − ε̂‖⁴ / p   (nats²)"
    left.set(xlabel=LOGSNR, ylabel=moment, title="where the variance comes from")
    left.set_ylim(1e-5 * top, 3 * top)
    right.set(**DENSITY, ylim=(0, 1.6 * best.best.max().item()))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=130)


def moving_schedule(
    path: Path, frames: Sequence[tuple[int, Schedule]], best: Schedule | None = None
) -> None:
    """A GIF of a schedule that learns: λ(t) and p(λ) at each of the given steps. The best one is
    dashed. Needs Pillow.

    >>> import tempfile
    >>> from vdiff.schedule import Linear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     moving_schedule(Path(folder) / "figure.gif", [(0, Linear()), (1, Linear(9.0, -5.0))])
    """
    picture, (left, right) = figure(1, 2)
    t = torch.linspace(0, 1, 301, dtype=torch.float64)
    every = [each for _, each in frames] + ([best] if best is not None else [])
    with torch.no_grad():
        curves = [(each(t), *_density(each, 301)) for each in every]
    top = 1.1 * max(density.max().item() for *_, density in curves)
    high, low = max(each.logsnr_max for each in every), min(each.logsnr_min for each in every)

    def draw(frame: int) -> None:
        levels, logsnr, density = curves[frame]
        for axes in (left, right):
            axes.clear()
        if best is not None:
            left.plot(t, curves[-1][0], color="black", linestyle="--", label="best")
            right.plot(curves[-1][1], curves[-1][2], color="black", linestyle="--")
        left.plot(t, levels, label=f"step {frames[frame][0]}")
        right.plot(logsnr, density)
        left.set(**SCHEDULE, ylim=(low, high))
        right.set(**DENSITY, xlim=(low, high), ylim=(0, top))
        left.legend(frameon=False, loc="upper right")

    animation(path, picture, draw, len(frames), per_second=8)


__all__ = [
    "curves",
    "error_by_logsnr",
    "moving_schedule",
    "objectives",
    "samples",
    "schedule",
    "variance",
    "weighting",
]
