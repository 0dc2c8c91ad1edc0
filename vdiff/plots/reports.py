"""Figures: samples beside data, weightings, objectives, the error by log-SNR, training curves.

Each function draws on the axes that it is given as `ax`, or on those of a new figure, and returns
them: `save(path, curves(history))` writes the file. A title says what the figure shows,
computed from what is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff.plots.figure import REFERENCE, finish, image_grid, line_style, panels
from vdiff.plots.schedules import DENSITY, LOGSNR, POINTS, range_of
from vdiff.profile import Profile
from vdiff.weighting import Weighting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vdiff.describe import Description

WEIGHT: dict[str, Any] = {"xlabel": LOGSNR, "ylabel": "w(λ) / w(0)", "ylim": (1e-3, 1e3)}


def samples(
    generated: Tensor, real: Tensor, *, levels: int = 17, ax: "Sequence[Axes] | None" = None
) -> "list[Axes]":
    """Samples of a model beside real data, on two axes.

    >>> images = torch.randint(0, 17, (20, 1, 8, 8))
    >>> len(samples(images, images))
    2
    """
    left, right = panels(ax, 2, height=2.9)
    image_grid(left, generated, f"{len(generated)} samples of the model", levels=levels)
    image_grid(right, real, f"{len(real)} held-out images", levels=levels)
    return [left, right]


def weighting(
    weightings: Mapping[str, Weighting],
    *,
    logsnr_max: float = 10.0,
    logsnr_min: float = -10.0,
    ax: "Axes | None" = None,
) -> "Axes":
    """w(λ) of one or more weightings, each over its value at λ = 0: no range that is drawn moves a
    curve. A weighting that is zero there has the positive λ nearest to 0 in its place.

    >>> from vdiff.weighting import Sigmoid
    >>> weighting({"sigmoid": Sigmoid(2.0)}).get_title(loc="left")
    'w never rises with λ: an ELBO of noisier data'
    """
    (ax,) = panels(ax)
    logsnr = torch.linspace(logsnr_min, logsnr_max, POINTS, dtype=torch.float64)
    curves = {name: (logsnr, each(logsnr)) for name, each in weightings.items()}
    falling = sum(each.monotone for each in weightings.values())
    return finish(ax, _weights(ax, curves, falling), **WEIGHT)


def _weights(ax: "Axes", curves: Mapping[str, tuple[Tensor, Tensor]], falling: int) -> str:
    """Draw w(λ)/w(0), of which so many are monotone. Returns the title."""
    for i, (name, (logsnr, w)) in enumerate(curves.items()):
        distance = torch.where(w > 0, logsnr.abs(), torch.inf)
        w = w / w[distance.argmin()]
        ax.semilogy(logsnr, torch.where(w > 0, w, torch.nan), label=name, **line_style(i))
    if falling == 0:
        return "w rises with λ: no ELBO, not even of noisier data"
    if falling == len(curves):
        return "w never rises with λ: an ELBO of noisier data"
    return f"{falling} of {len(curves)} never rise with λ: ELBOs of noisier data"


def objectives(
    described: "Mapping[str, Description]", *, ax: "Sequence[Axes] | None" = None
) -> "list[Axes]":
    """Weights, densities of the draws and signals of objectives by log-SNR, on three axes, which
    share the legend.

    >>> from vdiff.describe import describe
    >>> len(objectives({"edm": describe("edm")}))
    3
    """
    counts, draws, signal = panels(ax, 3, height=3.9)
    weights = {name: (each.logsnr, each.weight) for name, each in described.items()}
    titles = [_weights(counts, weights, sum(each.monotone for each in described.values()))]
    for i, (name, each) in enumerate(described.items()):
        draws.plot(each.logsnr, each.draws, label=name, **line_style(i))
        signal.plot(each.logsnr, each.signal, label=name, **line_style(i))
    for what in ("draws", "signal"):
        half = {name: each.quantile(getattr(each, what), 0.5) for name, each in described.items()}
        titles.append(range_of(f"median of the {what}: λ =", half))
    share = max(4, -(-len(described) // 3))  # lines in the legend of each
    of = f"share of the loss, error of {next(iter(described.values())).error_of}"
    properties = WEIGHT, DENSITY | {"ylim": (0, None)}, {"ylabel": of, "ylim": (0, None)}
    for k, place in enumerate((counts, draws, signal)):
        for i, line in enumerate(place.lines):
            line.set_label(line.get_label() if i // share == k else "_")
        finish(place, titles[k], **properties[k] | {"xlabel": LOGSNR})
    return [counts, draws, signal]


def error_by_logsnr(
    profiles: Mapping[str, Profile], dims: int, *, ax: "Axes | None" = None
) -> "Axes":
    """E‖ε − ε̂‖² per dimension by log-SNR, with a band of two standard errors. Its area is twice
    the ELBO's diffusion term.

    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    >>> profile.update(torch.linspace(-5, 5, 100), torch.ones(100))
    >>> error_by_logsnr({"random": profile}, dims=1).get_title(loc="left")
    'half of the diffusion term, 5 nats/dim, is at λ > 0.0'
    """
    (ax,) = panels(ax)
    areas = {}
    for i, (name, profile) in enumerate(profiles.items()):
        x, y = profile.centers.cpu(), profile.mean.cpu() / dims
        two = 2 * profile.standard_error.cpu() / dims
        ax.plot(x, y, label=f"{name} (± 2 SE)", **line_style(i))
        ax.fill_between(x, y - two, y + two, alpha=0.3, color=line_style(i)["color"], linewidth=0)
        width = (profile.logsnr_max - profile.logsnr_min) / profile.bins
        below = 0.5 * width * y.nan_to_num().cumsum(0)
        middle = profile.logsnr_min + width * (1 + int((below < 0.5 * below[-1] - 1e-9).sum()))
        areas[name] = below[-1].item(), middle
    least = min(areas, key=lambda name: areas[name][0])
    of = f" of {least}, the least," if len(areas) > 1 else ","
    area, middle = areas[least]
    title = f"half of the diffusion term{of} {area:.3g} nats/dim, is at λ > {middle:.1f}"
    return finish(ax, title, xlabel=LOGSNR, ylabel="E‖ε − ε̂‖² / d", ylim=(0, None))


def curves(
    history: list[dict[str, Any]],
    best_baseline: tuple[str, float] | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Bits/dim by training step, on training batches and on the selection set; the loss where no
    decoder makes it bits/dim. Bars are two Monte Carlo standard errors, and the band two over
    images, where the log has them.

    >>> history = [{"step": 1, "train_bits_per_dim": 4.0}, {"step": 2, "train_bits_per_dim": 3.0}]
    >>> curves(history, ("histogram", 2.43)).get_title(loc="left")
    'training batches: 3.000 at step 2'
    """
    (ax,) = panels(ax)
    in_bits = any(f"{part}_bits_per_dim" in e for e in history for part in ("train", "selection"))
    unit = "bits_per_dim" if in_bits else "loss"
    title = "nothing is logged yet"
    for i, (key, name) in enumerate(
        {"train": "training batches", "selection": "selection set, averaged weights"}.items()
    ):
        entries = [entry for entry in history if entry.get(f"{key}_{unit}") is not None]
        if entries:
            _curve(ax, i, name, key, f"{key}_{unit}", entries)
            best = min(entries[-1:] if i == 0 else entries, key=lambda e: e[f"{key}_{unit}"])
            title = f"{name}: {best[f'{key}_{unit}']:.3f} at step {best['step']}"
            title = title if i == 0 else f"lowest on the {title}"
    if best_baseline is not None:
        name, value = best_baseline
        ax.axhline(value, label=f"{name}, {value:.2f}", **REFERENCE)
    ylabel = "bits/dim" if in_bits else "loss, nats over d ln 2"
    return finish(ax, title, xlabel="training step", ylabel=ylabel)


def _curve(
    ax: "Axes", i: int, name: str, part: str, key: str, entries: list[dict[str, Any]]
) -> None:
    """One curve of a log, with the errors that its entries have."""
    step = [entry["step"] for entry in entries]
    value, bars, two = (
        torch.tensor([entry.get(word) or 0.0 for entry in entries], dtype=torch.float64) * times
        for word, times in ((key, 1), (f"{part}_error", 2), (f"{part}_error_over_images", 2))
    )
    style = line_style(i) | {"marker": "os"[i]}
    if bars.any():
        style |= {"yerr": bars, "capsize": 2}
        name += " (± 2 SE, Monte Carlo)"
    if two.any():
        edges = {"alpha": 0.2, "color": style["color"], "linewidth": 0}
        ax.fill_between(step, value - two, value + two, **edges)
        name += ", band: ± 2 SE over images"
    ax.errorbar(step, value, label=name, **style)
