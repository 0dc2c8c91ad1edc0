"""Figures and their parts. Needs matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 4.6, height: float = 3.4
) -> "tuple[Figure, list[Axes]]":
    """A figure that needs no display, with its axes in a list.

    >>> picture, (left, right) = figure(1, 2)
    >>> picture.get_size_inches().tolist()
    [9.2, 3.4]
    """
    with extra("train"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    picture = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return picture, list(grid.flat)


def image_grid(
    axes: "Axes", images: Tensor, title: str, columns: int = 10, levels: int = 17
) -> None:
    """Integer images (n, 1 or 3, h, w) as one picture with thin gaps. One channel is ink on white,
    three are colors.

    >>> _, (axes,) = figure()
    >>> image_grid(axes, torch.zeros(12, 1, 8, 8), "zeros")
    >>> axes.get_images()[0].get_array().shape                # two rows of ten
    (19, 91)
    """
    n, channels, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.full(
        (rows * (h + 1) + 1, columns * (w + 1) + 1, channels), 0.5, dtype=torch.float32
    )
    for i, image in enumerate(images.float() / (levels - 1)):
        top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
        canvas[top : top + h, left : left + w] = image.movedim(0, -1)
    pixels = (canvas if channels == 3 else canvas[..., 0]).numpy()
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def band(axes: "Axes", x: Tensor, runs: Tensor, *, log: bool = False, **style: Any) -> None:
    """The mean over runs (runs, points) as a line, with a band of two standard errors if there are
    several runs. With `log`, both are of the logarithm, and the line is the geometric mean.

    >>> _, (axes,) = figure()
    >>> band(axes, torch.arange(3), torch.rand(5, 3), label="five seeds")
    >>> len(axes.lines), len(axes.collections)
    (1, 1)
    """
    values = runs.double().log() if log else runs.double()
    mean, correction = values.mean(0), min(1, len(runs) - 1)
    two = 2 * values.std(0, correction=correction) / len(runs) ** 0.5
    middle, low, high = ((v.exp() if log else v) for v in (mean, mean - two, mean + two))
    (line,) = axes.plot(x, middle, **style)
    if len(runs) > 1:
        axes.fill_between(x, low, high, alpha=0.25, color=line.get_color(), linewidth=0)


def animation(
    path: Path,
    picture: "Figure",
    draw: Callable[[int], object],
    frames: int,
    *,
    per_second: float = 2.0,
) -> None:
    """A GIF of a figure: `draw(i)` draws the i-th of the `frames`. The axes stay as in the first.

    >>> import tempfile
    >>> picture, (axes,) = figure()
    >>> title = lambda frame: axes.set_title(f"frame {frame}")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     animation(Path(folder) / "figure.gif", picture, title, 2)
    ...     (Path(folder) / "figure.gif").read_bytes()[:6]
    b'GIF89a'
    """
    with extra("train"):
        from matplotlib.animation import PillowWriter

    writer = PillowWriter(fps=per_second)  # type: ignore[arg-type]
    with writer.saving(picture, str(path), dpi=100):
        for frame in range(frames):
            draw(frame)
            if frame == 0:
                picture.draw_without_rendering()
                picture.set_layout_engine("none")
            writer.grab_frame()


__all__ = ["animation", "band", "figure", "image_grid"]
