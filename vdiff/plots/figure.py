"""Figures and their parts, in one style. Needs matplotlib."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.disk import atomic_write
from vdiff.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's blue, vermillion, bluish green, sky blue and black (jfly.uni-koeln.de/color, 2008).
# Any two are ΔE2000 ≥ 18 apart under protanopia and deuteranopia; orange, yellow and purple would
# come within 13 of another one, or of white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5)), (0, (8, 2, 4, 2)))
MARKERS = ("None", "o", "s", "^", "v")
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": (0, (2, 2)), "linewidth": 1}
LEAST_SECONDS, HOLD, FASTEST = 5.0, 2.0, 8.0  # an animation, its last frame; frames a second


def line_style(i: int) -> dict[str, Any]:
    """The style of the i-th line of a figure. Any two of 25 differ in their dashes or markers, so
    that color is never the only difference.

    >>> line_style(0)
    {'color': '#0072B2', 'linestyle': '-', 'marker': 'None', 'markevery': None, 'markersize': 3}
    """
    block, place = divmod(i, len(COLORS))
    dash, marker = DASHES[(place + block) % len(DASHES)], MARKERS[block % len(MARKERS)]
    every = 0.1 if block else None  # None marks each point of a line that gets a marker of its own
    shape = {"linestyle": dash, "marker": marker, "markevery": every, "markersize": 3}
    return {"color": COLORS[place], **shape}


def figure(
    rows: int = 1, columns: int = 1, *, width: float | None = None, height: float = 3.4
) -> "tuple[Figure, list[Axes]]":
    """A figure that needs no display, with its axes in a list. `width` and `height` are those of
    one of them, in inches; by default the figure is at most 9.6 inches wide. Its lines have the
    styles of `line_style`.

    >>> picture, (left, right) = figure(1, 2)
    >>> picture.get_size_inches().tolist()
    [9.2, 3.4]
    """
    with extra("train"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    width = min(4.6, 9.6 / columns) if width is None else width
    picture = Figure(figsize=(width * columns, height * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.subplots(rows, columns, squeeze=False)
    styles = [line_style(i) for i in range(len(COLORS) * len(MARKERS))]
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_prop_cycle(**{name: [style[name] for style in styles] for name in styles[0]})
    return picture, list(grid.flat)


def panels(ax: Any, count: int = 1, height: float = 3.4) -> "list[Axes]":
    """The axes that a caller gave, one or a sequence; those of a new figure for None.

    >>> len(panels(None, 2))
    2
    """
    if ax is None:
        return figure(1, count, height=height)[1]
    given = np.ravel(np.asarray(ax, dtype=object)).tolist()
    what = "be one axes of matplotlib" if count == 1 else f"be {count} axes of matplotlib"
    fits = len(given) == count and all(hasattr(one, "plot") for one in given)
    require(fits, "ax", what, ax, f"picture, ax = vdiff.plots.figure(1, {count})")
    return given


def save(path: Path, ax: "Axes | Sequence[Axes]") -> None:
    """Write the figure of axes to a file (a PNG if its name does not say what), whole or not at
    all. Raises OSError; an older file then stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "figure.png", figure()[1])
    """
    path = Path(path)
    with atomic_write(path if path.suffix else path.with_suffix(".png")) as aside:
        _figure(ax[0] if isinstance(ax, Sequence) else ax).savefig(aside)


def _figure(ax: "Axes") -> "Figure":
    picture = ax.get_figure(root=True)
    assert picture is not None
    return picture


def finish(ax: "Axes", title: str, *, legend: bool = True, **properties: Any) -> "Axes":
    """Title, properties such as `xlabel`, and a legend. The title has as many lines as it needs,
    the legend as many columns as it has room for; it is below the axes, where it hides no line.

    >>> _, (ax,) = figure()
    >>> _ = ax.plot([1, 2], label="a line")
    >>> finish(ax, "it rises", xlabel="t").get_xlabel()
    't'
    """
    with extra("train"):
        from matplotlib.transforms import ScaledTranslation

    place, width = ax.get_subplotspec(), _figure(ax).get_size_inches()[0]
    inches = width / (1 if place is None else place.get_gridspec().ncols) - 0.75
    text = textwrap.fill(title, max(20, int(14 * inches)), break_long_words=False)
    ax.set_title(text, fontsize=10, loc="left")
    ax.set(**properties)
    lines, names = ax.get_legend_handles_labels()
    if legend and names:
        names = [textwrap.fill(name, int((inches - 0.5) / 0.055)) for name in names]
        widest = max(len(line) for name in names for line in name.split("\n"))
        below = ScaledTranslation(0, -0.5, ax.figure.dpi_scale_trans)  # inches: ticks and a label
        ax.legend(
            lines,
            names,
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=ax.transAxes + below,
            borderaxespad=0,
            ncols=max(1, int(inches / (0.055 * widest + 0.55))),
            frameon=False,
            fontsize=8,
        )
    return ax


def image_grid(
    ax: "Axes", images: Tensor, title: str, columns: int = 10, levels: int = 17
) -> "Axes":
    """Integer images (n, 1 or 3, h, w) as one picture with thin gaps. Level 0 is black, as in an
    image file; three channels are colors.

    >>> _, (ax,) = figure()
    >>> ax = image_grid(ax, torch.zeros(12, 1, 8, 8), "zeros")
    >>> ax.get_images()[0].get_array().shape                  # two rows of ten
    (19, 91)
    """
    n, channels, h, w = images.shape
    rows = -(-n // columns)
    size = rows * (h + 1) + 1, columns * (w + 1) + 1, channels
    canvas = torch.full(size, 0.5, dtype=torch.float32)
    for i, image in enumerate(images.float() / (levels - 1)):
        top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
        canvas[top : top + h, left : left + w] = image.movedim(0, -1)
    pixels = (canvas if channels == 3 else canvas[..., 0]).numpy()
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return finish(ax, title, legend=False)


def band(ax: "Axes", x: Tensor, runs: Tensor, *, log: bool = False, **style: Any) -> "Axes":
    """The mean over runs (runs, points) as a line, with a band of two standard errors if there are
    several runs. With `log`, both are of the logarithm, and the line is the geometric mean.

    >>> _, (ax,) = figure()
    >>> ax = band(ax, torch.arange(3), torch.rand(5, 3), label="five seeds")
    >>> len(ax.lines), len(ax.collections)
    (1, 1)
    """
    values = runs.double().log() if log else runs.double()
    mean, correction = values.mean(0), min(1, len(runs) - 1)
    two = 2 * values.std(0, correction=correction) / len(runs) ** 0.5
    middle, low, high = ((v.exp() if log else v) for v in (mean, mean - two, mean + two))
    (line,) = ax.plot(x, middle, **style)
    if len(runs) > 1:
        ax.fill_between(x, low, high, alpha=0.25, color=line.get_color(), linewidth=0)
    return ax


def animation(
    path: Path, ax: "Axes | Sequence[Axes]", draw: Callable[[int], object], frames: int
) -> "Axes | Sequence[Axes]":
    """A GIF of the figure of axes: `draw(i)` draws the i-th of the `frames`. The axes stay where
    they are in the first. It takes five seconds at least, and two more for the last frame.

    >>> import tempfile
    >>> _, (ax,) = figure()
    >>> title = lambda frame: ax.set_title(f"frame {frame}")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = animation(Path(folder) / "figure.gif", ax, title, 2)
    ...     (Path(folder) / "figure.gif").read_bytes()[:6]
    b'GIF89a'
    """
    with extra("train"):
        from matplotlib.animation import PillowWriter

    picture = _figure(ax[0] if isinstance(ax, Sequence) else ax)
    per_second = min(FASTEST, frames / LEAST_SECONDS)
    writer = PillowWriter(fps=per_second)  # type: ignore[arg-type]
    with atomic_write(Path(path)) as aside, writer.saving(picture, str(aside), dpi=100):
        for frame in range(frames):
            draw(frame)
            if frame == 0:
                picture.draw_without_rendering()
                picture.set_layout_engine("none")
            writer.grab_frame()
        for _ in range(math.ceil(HOLD * per_second)):
            writer.grab_frame()
    return ax
