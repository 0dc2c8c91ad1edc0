"""The figures of two_moons.py: samples and training of the two networks, and the variances of the
estimators by t."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vdiff import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tensors = dict[str, Tensor]
TRAINED_BY = {"RB": "Rao-Blackwell", "MC": "Monte Carlo"}
STYLES = {name: plots.line_style(i) for i, name in enumerate(("RB", "MC", "raw"))}
EDGE = 2.6  # of the panels with samples
LABELS = {"raw": "raw log-ratio q(z_t|z_s)/p(z_s|z_t)", "MC": "Monte Carlo", "RB": "Rao-Blackwell"}


def samples(out: Path, at: list[int], runs: dict[str, Tensors], held_out: Tensor) -> None:
    """Samples by training step `at`: a still of every other snapshot but the first, an animation
    of all."""
    shown = [*range(len(at) - 1, 0, -2)][::-1]
    picture, every = plots.figure(2, len(shown) + 1, width=1.6, height=1.8)
    lines = {"RB": every[: len(shown) + 1], "MC": every[len(shown) + 1 :]}
    for name, line in lines.items():
        for ax, i in zip(line, shown, strict=False):
            _scatter(ax, runs[name]["samples"][i], STYLES[name]["color"], f"step {at[i]:,}")
        _scatter(line[-1], held_out, "black", "held-out data")
        line[0].set_ylabel(f"trained by\n{TRAINED_BY[name]}", color=STYLES[name]["color"])
    plots.save(out / "samples.png", every)

    picture, line = plots.figure(1, 3, width=2.8, height=3.4)

    def draw(i: int) -> None:
        for ax, (name, run) in zip(line, runs.items(), strict=False):
            title = f"trained by {TRAINED_BY[name]}"
            _scatter(ax, run["samples"][i], STYLES[name]["color"], title)
        _scatter(line[-1], held_out, "black", "held-out data")
        picture.suptitle(f"training step {at[i]:,}")

    plots.animation(out / "samples.gif", line, draw, len(at))


def _scatter(ax: "Axes", points: Tensor, color: str, title: str) -> None:
    """Points beyond the edge are drawn on it, in their direction from the middle."""
    ax.clear()
    inside = points * (EDGE / points.abs().amax(1, keepdim=True)).clamp(max=1)
    ax.scatter(*inside.T, s=3, color=color, linewidths=0, clip_on=False)
    ax.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    outside = int((points.abs() > EDGE).any(1).sum())
    if outside > 0.1 * len(points):
        ax.set_xlabel(f"{outside} of {len(points)} beyond", fontsize=8)
    ax.set_title(title, fontsize=10)


def training(out: Path, at: list[int], runs: dict[str, Tensors]) -> None:
    """The bound, the batches' losses and MMD² by training step: means over seeds ± 2 standard
    errors; (seeds, …) each."""
    picture, (left, middle, right) = plots.figure(1, 3)
    window = min(at[-1], max(10, at[-1] // 60))
    for name, run in runs.items():
        style = STYLES[name] | {"label": TRAINED_BY[name], "linewidth": 1.2}
        marked = style | {"marker": "o" if name == "RB" else "s"}
        for ax, key in ((left, "bound"), (right, "mmd")):
            plots.band(ax, torch.tensor(at[1:]), run[key][:, 1:], **marked)
        smooth = run["losses"].unfold(1, window, window).mean(2)
        plots.band(middle, (torch.arange(smooth.shape[1]) + 0.5) * window, smooth, **style)
    top = 1.05 * runs["MC"]["bound"].max().item()
    end = {
        key: "{:.3g} by Rao-Blackwell, {:.3g} by Monte Carlo".format(
            *(runs[name][key][:, -1].mean().item() for name in TRAINED_BY)
        )
        for key in ("bound", "mmd")
    }
    nats = {"xlabel": "training step", "xscale": "log", "xlim": (0.9, 1.2 * at[-1])}
    nats |= {"ylabel": "nats", "ylim": (0, top)}
    of_samples = nats | {"ylabel": "MMD² to held-out data", "ylim": (-1e-3, 1)}
    plots.finish(left, f"held-out bound at the end: {end['bound']}", **nats)
    title = f"the loss that each is trained by, means of {window} batches"
    plots.finish(middle, title, legend=False, **nats)
    plots.finish(right, f"MMD² at the end: {end['mmd']}", legend=False, **of_samples)
    right.set_yscale("symlog", linthresh=1e-3)
    right.axhline(0, color="gray", linewidth=0.8)
    picture.suptitle(f"mean of {len(runs['RB']['bound'])} seeds ± 2 standard errors", fontsize=10)
    plots.save(out / "training.png", left)


def variances(out: Path, at: list[int], t: Tensor, spreads: Tensors) -> None:
    """The estimators' variances by t: (seeds, snapshots, times) each, at training steps `at`; a
    still of the first and the last, and an animation."""
    picture, every = plots.figure(2, 3, height=3.1)
    for row, quantity in enumerate(("value", "gradient")):
        line = every[3 * row : 3 * row + 3]
        for ax, i in zip(line, (0, len(at) - 1), strict=False):
            title = f"{quantity}, training step {at[i]:,}"
            _by_t(ax, t, spreads, quantity, i, title, legend=False)
        _ratio(line[-1], t, spreads, quantity, f"{quantity}: MC over RB, step {at[-1]:,}")
    handles = every[0].get_legend_handles_labels()
    picture.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    picture.suptitle(
        "variance of one draw of the bound: geometric mean of the seeds ± 2 standard errors",
        fontsize=10,
    )
    plots.save(out / "variances.png", every)

    picture, line = plots.figure(1, 2, width=4.4, height=3.9)

    def draw(i: int) -> None:
        for ax, quantity in zip(line, ("value", "gradient"), strict=True):
            ax.clear()
            _by_t(ax, t, spreads, quantity, i, f"of the {quantity}")
        picture.suptitle(f"variance of one draw of the bound, training step {at[i]:,}")

    plots.animation(out / "variances.gif", line, draw, len(at))


def _ratio(ax: "Axes", t: Tensor, spreads: Tensors, quantity: str, title: str) -> None:
    """Monte Carlo's variance over Rao-Blackwell's after training, measured and by theory."""
    ratio, theory = (
        spreads[f"{quantity} {name}"] / spreads[f"{quantity} RB"] for name in ("MC", "MC, theory")
    )
    points = STYLES["MC"] | {"marker": "o", "linestyle": "none"}
    plots.band(ax, t, ratio[:, -1], log=True, **points)
    ax.plot(t, theory[:, -1].log().mean(0).exp(), **plots.REFERENCE)
    plots.finish(ax, title, yscale="log", xlabel="t   (data → noise)")


def _by_t(
    ax: "Axes",
    t: Tensor,
    spreads: Tensors,
    quantity: str,
    i: int,
    title: str,
    *,
    legend: bool = True,
) -> None:
    """One snapshot; the scale is that of all of them."""
    drawn = {
        name: spreads[f"{quantity} {name}"] for name in STYLES if f"{quantity} {name}" in spreads
    }
    for name, values in drawn.items():
        plots.band(ax, t, values[:, i], log=True, label=LABELS[name], **STYLES[name])
    theory = spreads[f"{quantity} MC, theory"][:, i].log().mean(0).exp()
    ax.plot(t, theory, label="theory of Monte Carlo", **plots.REFERENCE)
    every = torch.cat([values.flatten() for values in drawn.values()])
    ylim = every.min().item() / 2, every.max().item() * 2
    ylabel = "nats²" if quantity == "value" else "trace of the covariance"
    labels = {"xlabel": "t   (data → noise)", "ylabel": ylabel}
    plots.finish(ax, title, legend=legend, yscale="log", ylim=ylim, **labels)
