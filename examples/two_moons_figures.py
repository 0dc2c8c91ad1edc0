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
COLORS = {"raw": "#7f8c8d", "MC": "#3498db", "RB": "#e74c3c"}
LABELS = {"raw": "raw log-ratio q(z_t|z_s)/p(z_s|z_t)", "MC": "Monte Carlo", "RB": "Rao-Blackwell"}


def samples(out: Path, at: list[int], runs: dict[str, Tensors], held_out: Tensor) -> None:
    """Samples by training step `at`: a still of every other snapshot but the first, an animation
    of all."""
    shown = [*range(len(at) - 1, 0, -2)][::-1]
    picture, every = plots.figure(2, len(shown) + 1, width=1.6, height=1.7)
    lines = {"RB": every[: len(shown) + 1], "MC": every[len(shown) + 1 :]}
    for name, line in lines.items():
        for axes, i in zip(line, shown, strict=False):
            _scatter(axes, runs[name]["samples"][i], COLORS[name], f"step {at[i]:,}")
        _scatter(line[-1], held_out, "black", "held-out data")
        line[0].set_ylabel(f"trained by\n{TRAINED_BY[name]}", color=COLORS[name])
    picture.savefig(out / "samples.png", dpi=130)

    picture, line = plots.figure(1, 3, width=2.8, height=3.4)

    def draw(i: int) -> None:
        for axes, (name, run) in zip(line, runs.items(), strict=False):
            _scatter(axes, run["samples"][i], COLORS[name], f"trained by {TRAINED_BY[name]}")
        _scatter(line[-1], held_out, "black", "held-out data")
        picture.suptitle(f"training step {at[i]:,}")

    plots.animation(out / "samples.gif", picture, draw, len(at))


def _scatter(axes: "Axes", points: Tensor, color: str, title: str) -> None:
    axes.clear()
    axes.scatter(*points.T, s=2, color=color, linewidths=0)
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    outside = int((points.abs() > 2.6).any(1).sum())
    if outside > 0.1 * len(points):
        axes.text(
            0.5,
            0.02,
            f"{outside} of {len(points)} outside",
            transform=axes.transAxes,
            ha="center",
            fontsize=7,
        )
    axes.set_title(title, fontsize=10)


def training(out: Path, at: list[int], runs: dict[str, Tensors]) -> None:
    """The bound, the batches' losses and MMD² by training step: means over seeds ± 2 standard
    errors; (seeds, …) each."""
    picture, (left, middle, right) = plots.figure(1, 3, width=4.2)
    window = max(1, at[-1] // 60)
    for name, run in runs.items():
        style = {
            "color": COLORS[name],
            "label": f"trained by {TRAINED_BY[name]}",
            "linewidth": 1.2,
        }
        for axes, key in ((left, "bound"), (right, "mmd")):
            plots.band(
                axes, torch.tensor(at[1:]), run[key][:, 1:], marker="o", markersize=3, **style
            )
        smooth = run["losses"].unfold(1, window, window).mean(2)
        plots.band(middle, (torch.arange(smooth.shape[1]) + 0.5) * window, smooth, **style)
    top = 1.05 * runs["MC"]["bound"].max().item()
    left.set(
        title="held-out bound, by Rao-Blackwell for both",
        ylabel="negative ELBO, nats",
        ylim=(0, top),
    )
    middle.set(
        title=f"the loss each is trained by, means of {window} batches",
        ylabel="negative ELBO, nats",
        ylim=(0, top),
    )
    right.set(title="samples against held-out data", ylabel="MMD²", ylim=(-1e-3, 1))
    right.set_yscale("symlog", linthresh=1e-3)
    right.axhline(0, color="gray", linewidth=0.8)
    for axes in (left, middle, right):
        axes.set(xlabel="training step", xscale="log")
        axes.title.set_fontsize(10)
    left.legend(frameon=False)
    picture.suptitle(f"mean of {len(runs['RB']['bound'])} seeds ± 2 standard errors", fontsize=10)
    picture.savefig(out / "training.png", dpi=130)


def variances(out: Path, at: list[int], t: Tensor, spreads: Tensors) -> None:
    """The estimators' variances by t: (seeds, snapshots, times) each, at training steps `at`; a
    still and an animation."""
    shown = sorted({round(i * (len(at) - 1) / 2) for i in range(3)})
    picture, every = plots.figure(2, len(shown) + 1, width=3.5, height=2.9)
    for row, quantity in enumerate(("value", "gradient")):
        line = every[row * (len(shown) + 1) : (row + 1) * (len(shown) + 1)]
        for axes, i in zip(line, shown, strict=False):
            _by_t(axes, t, spreads, quantity, i, f"{quantity}, training step {at[i]:,}")
        ratio, theory = (
            spreads[f"{quantity} {name}"] / spreads[f"{quantity} RB"]
            for name in ("MC", "MC, theory")
        )
        plots.band(
            line[-1],
            t,
            ratio[:, -1],
            log=True,
            color=COLORS["MC"],
            marker="o",
            markersize=3,
            linestyle="none",
            label="measured",
        )
        line[-1].plot(
            t,
            theory[:, -1].log().mean(0).exp(),
            color="black",
            linestyle="--",
            linewidth=1,
            label="theory",
        )
        line[-1].set(
            yscale="log", xlabel="t   (data → noise)", ylabel="Monte Carlo / Rao-Blackwell"
        )
        line[-1].set_title(f"{quantity}, ratio, step {at[-1]:,}", fontsize=10)
    every[0].legend(frameon=False, fontsize=8)
    every[len(shown)].legend(frameon=False, fontsize=8)
    picture.suptitle(
        "variance of one draw of the bound by t: geometric mean of the seeds ± 2 standard errors",
        fontsize=11,
    )
    picture.savefig(out / "variances.png", dpi=130)

    picture, line = plots.figure(1, 2, width=4.4, height=3.6)

    def draw(i: int) -> None:
        for axes, quantity in zip(line, ("value", "gradient"), strict=True):
            axes.clear()
            _by_t(axes, t, spreads, quantity, i, f"of the {quantity}")
        line[0].legend(frameon=False, fontsize=7, loc="lower left")
        picture.suptitle(f"variance of one draw of the bound, training step {at[i]:,}")

    plots.animation(out / "variances.gif", picture, draw, len(at))


def _by_t(axes: "Axes", t: Tensor, spreads: Tensors, quantity: str, i: int, title: str) -> None:
    """One snapshot; the scale is that of all of them."""
    drawn = {
        name: spreads[f"{quantity} {name}"] for name in COLORS if f"{quantity} {name}" in spreads
    }
    for name, values in drawn.items():
        plots.band(axes, t, values[:, i], log=True, label=LABELS[name], color=COLORS[name])
    theory = spreads[f"{quantity} MC, theory"][:, i].log().mean(0).exp()
    axes.plot(t, theory, color="black", linestyle="--", linewidth=1, label="theory of Monte Carlo")
    every = torch.cat([values.flatten() for values in drawn.values()])
    axes.set(
        yscale="log",
        ylim=(every.min().item() / 2, every.max().item() * 2),
        xlabel="t   (data → noise)",
    )
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("nats²" if quantity == "value" else "trace of the covariance")
