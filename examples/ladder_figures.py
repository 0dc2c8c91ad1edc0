"""The figures of `ladder.py`: curves and samples of every row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ladder_chain
import torch
from torch import Tensor

from vdiff import Denoiser
from vdiff.gaussian import diffuse
from vdiff.plots import band, figure, finish, image_grid, save
from vdiff.sampling import trajectory
from vdiff.times import generator_of

if TYPE_CHECKING:
    from ladder import Ladder
    from ladder_findings import Results, Row
    from matplotlib.axes import Axes


def draw(place: Path, ladder: Ladder, results: Results) -> None:
    """Every figure, from what is stored."""
    place.mkdir(parents=True, exist_ok=True)
    draw_curves(place / "curves.png", ladder, results)
    draw_samples(place / "samples.png", ladder, results)
    draw_strips(place / "strips.png", ladder, results)
    ladder_chain.draw_gradients(place / "variance_gradient.png")
    ladder_chain.draw_chain(place / "chain.png", ladder.table)
    ladder_chain.draw_decoder(place / "decoder.png")


def draw_curves(path: Path, ladder: Ladder, results: Results) -> None:
    """By epoch, up to where the first seed diverges: training loss, gradient norm, and mean MSE
    and bound on held-out images.

    Losses are per dimension, each in the unit of its row, and those of two losses do not compare.
    """
    families = list(dict.fromkeys(row.mean for row in results))
    _, axes = figure(4, len(families), height=2.3)
    epochs = ladder.setting.batch / len(ladder.images.train)  # in a step
    best: dict[str, tuple[float, Row]] = {}
    for row, runs in results.items():
        loss, norm, error, bound = axes[families.index(row.mean) :: len(families)]
        names = ("loss", "norm", "curve")
        traces = [[tensors[name].double() for _, tensors in runs] for name in names]
        at, losses = _blocks(traces[0])
        band(loss, at * epochs, losses.mean(2), log=True)
        at, norms = _blocks(traces[1])
        norm.plot(at * epochs, norms.amax((0, 2)))
        n = min(map(len, traces[2]))
        step, bits, mean_mse = torch.stack([curve[:n] for curve in traces[2]]).unbind(2)
        band(error, step[0] * epochs, mean_mse, log=True)
        band(bound, step[0] * epochs, bits, log=True, label=str(row))
        end = bits.mean(0)[-1].item()
        best[row.mean] = min(best.get(row.mean, (end, row)), (end, row), key=lambda pair: pair[0])
    longer = max(row.times for row in results) > 1
    for i, family in enumerate(families):
        loss, _, _, bound = column = axes[i :: len(families)]
        for place in column:
            _axes_of(place, longer)
        (bits, row), name = best[family], "the posterior mean" if family == "mean" else family
        finish(loss, f"{name}: {bits:.4g} bits/dim by {row}", legend=False)
        bound.set_ylim(bottom=0.9 * min(line.get_ydata().min() for line in bound.lines))
        finish(bound, "", xlabel="epoch")
    labels = "training loss", "largest gradient norm", "mean MSE (± 2 SE)", "bits/dim (± 2 SE)"
    for place, label in zip(axes[:: len(families)], labels, strict=True):
        place.set_ylabel(label)
    save(path, axes)


def _axes_of(place: Axes, longer: bool) -> None:
    """Logarithmic where the curves span a decade: within one it would have no round numbers."""
    values = torch.cat([torch.as_tensor(line.get_ydata()).double() for line in place.lines])
    place.set_yscale("log" if values.max() > 10 * values.min() else "linear")
    place.set_xscale("log" if longer else "linear")
    place.tick_params(axis="x", which="minor", labelbottom=False)


def _blocks(traces: list[Tensor], count: int = 40) -> tuple[Tensor, Tensor]:
    """The last step of each of about `count` blocks, and (seeds, blocks, steps of a block) of what
    was recorded at every step."""
    n = min(map(len, traces))
    width = max(1, n // count)
    blocks = torch.stack([trace[: n // width * width].view(-1, width) for trace in traces])
    return (torch.arange(blocks.shape[1]) + 1) * width, blocks


def draw_samples(path: Path, ladder: Ladder, results: Results, count: int = 24) -> None:
    """Ancestral samples of each row's first seed with its bits/dim, in the order of the ladder,
    and held-out images."""
    _, axes = figure(-(-(len(results) + 1) // 3), 3, height=1.0)
    style = {"columns": 12, "levels": ladder.problem.grey_levels}
    for place, (row, runs) in zip(axes, results.items(), strict=False):
        record, tensors = runs[0]
        if "samples" in tensors:
            title = f"{row}: {record['bits']:.4g}"
            image_grid(place, tensors["samples"][:count], title, **style)
        else:
            place.set_title(f"{row}: diverged")
            place.set_axis_off()
    image_grid(axes[len(results)], ladder.images.test[:count], "held-out images", **style)
    for place in axes[len(results) + 1 :]:
        place.set_axis_off()
    save(path, axes)


@torch.no_grad()
def draw_strips(
    path: Path, ladder: Ladder, results: Results, columns: int = 12, rows: int = 3
) -> None:
    """Images on their way to noise, and noise on its way to images by the row with the best
    samples, with x̂ along it."""
    first = {row: runs[0] for row, runs in results.items() if row.mean != "mean"}
    known = {row: run for row, run in first.items() if run[0]["mmd"] is not None}
    if not known:
        return
    best = min(known, key=lambda row: known[row][0]["mmd"])
    model = _model(ladder, best, known[best][1])
    x = ladder.decoder.encode(ladder.images.test[:rows])
    stops = [round(i * ladder.chain / (columns - 1)) for i in range(columns)]
    eps = torch.randn(x.shape, generator=generator_of(0, 0, "strips"))
    times = [torch.full((rows,), i / ladder.chain).double() for i in stops]
    chain = {"schedule": ladder.table, "steps": ladder.chain}
    back = list(trajectory(model, eps, **chain, generator=generator_of(0, 1, "strips")))
    levels, last = ladder.problem.grey_levels, ladder.chain - 1  # no step trains the level after
    strips = {
        "forward: z from data (left) to noise": [diffuse(x, eps, ladder.table(t)) for t in times],
        f"reverse: z from noise (left) to data, {best}": [back[i][0] for i in stops],
        "reverse: x̂ at the same steps, and before the last one": [
            back[min(i, last)][1].x for i in stops
        ],
    }
    _, axes = figure(3, 1, width=7.2, height=2.15)
    for place, (title, strip) in zip(axes, strips.items(), strict=True):
        images = (torch.stack(strip, 1).flatten(0, 1) + 1) / 2 * (levels - 1)
        image_grid(place, images, title, columns=columns, levels=levels)
    save(path, axes)


def _model(ladder: Ladder, row: Row, tensors: dict[str, Tensor]) -> Denoiser:
    model = ladder.model(row)
    weights = {name: v for name, v in tensors.items() if name.startswith("model.")}
    model.load_state_dict({name.removeprefix("model."): v for name, v in weights.items()})
    return model.eval()
