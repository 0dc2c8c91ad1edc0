"""Sample from a run: a picture, the numbers, and on demand the way there.

Writes into RUN/samples (or --out) samples.png, a grid with one row for each class where the run has classes; samples.npz with
`data` (the levels), `x` (x̂), `label` and the settings; and with --gif trajectory.gif, x̂ on the way from noise to data. A
sample is a function of the seed and its number alone, whatever the batch.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.cli.load import device_of
from vdiff.decoder import Levels
from vdiff.errors import did_you_mean, must
from vdiff.sampling import STEPS, Clipped, Counted, Guided, ddim, few_steps, start, streams, to_levels, trajectory
from vdiff.schedule import Cosine, Karras, Linear, OptimalTransport, Schedule
from vdiff.training import Run

FRAMES = 60  # of a GIF, at most
GRIDS: dict[str, Callable[[float, float], Schedule]] = {
    "cosine": Cosine,
    "few": few_steps,
    "karras": lambda high, low: Karras(math.exp(-high / 2), math.exp(-low / 2)),
    "linear": Linear,
    "rectified": OptimalTransport,
}


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff sample`.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> parser.parse_args(["runs/digits", "--step", "heun"]).step.__name__
    'heun'
    """
    parser.add_argument("run", metavar="RUN", help="run folder, as a training writes it")
    parser.add_argument("--count", type=_positive, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--steps", type=_positive, default=100, help="noise levels visited (default: %(default)s)")
    parser.add_argument("--step", type=_named("step", STEPS), default="ancestral", help=f"{', '.join(STEPS)} (default: %(default)s)")
    parser.add_argument("--eta", type=float, help="noise of ddim, from 0 to 1")
    parser.add_argument("--grid", type=_named("grid", GRIDS), default="cosine", help=f"{', '.join(GRIDS)} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--batch", type=_positive, default=64, help="samples at a time (default: %(default)s)")
    parser.add_argument("--label", type=int, nargs="+", help="classes to sample, in turn (default: all that the run has)")
    parser.add_argument("--guidance", type=float, help="scale of classifier-free guidance; needs --null-label")
    parser.add_argument("--null-label", type=int, help="the label that stands for no class")
    parser.add_argument("--clip", action="store_true", help="clip x̂ to [-1, 1] at every level")
    parser.add_argument("--draw", action="store_true", help="draw levels from the decoder instead of taking those nearest to x̂")
    parser.add_argument("--gif", action="store_true", help="write the trajectory too")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--out", help="folder to write to (default: RUN/samples)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Make the samples and write them; 0.

    Raises ValueError for what the run cannot do, and OSError where a file is missing.

    >>> import tempfile
    >>> from vdiff.training import Config
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Run.create(folder, config).save(config.objective())
    ...     parser = argparse.ArgumentParser()
    ...     add(parser)
    ...     run(parser.parse_args([folder, "--count", "4", "--steps", "3", "--quiet"]))         # doctest: +ELLIPSIS
    4 samples, 3 evaluations each, in .../samples
    0
    """
    from tqdm import tqdm

    source, device = Run(options.run), device_of(options.device)
    objective = source.load().to(device)
    decoder, trained = objective.decoder, objective.schedule
    if not isinstance(decoder, Levels):
        raise ValueError(must("sample", "run", "have a decoder with levels", repr(decoder), "pictures are made of levels"))
    labels = _labels(options, source.config.network.get("labels"))
    counted = Counted(objective.model)
    model = _model(options, counted)
    step = options.step
    if options.eta is not None:
        if step is not ddim:
            raise ValueError(must("sample", "eta", "come with --step ddim", f"--step {step.__name__}", "no other step has it"))
        step = partial(ddim, eta=options.eta)
    schedule = options.grid(trained.logsnr_max, trained.logsnr_min)
    kept, frames = [], []
    with tqdm(total=options.count * options.steps, unit="level", disable=options.quiet, dynamic_ncols=True) as bar:
        for first in range(0, options.count, options.batch):
            numbers = range(first, min(first + options.batch, options.count))
            generators = streams(options.seed, numbers)
            condition = {} if labels is None else {"label": labels[list(numbers)].to(device)}
            z = start(source.config.shape, generators).to(device)
            path = trajectory(model, z, schedule=schedule, steps=options.steps, step=step, generator=generators, **condition)
            on_the_way = []
            for i, (_, prediction) in enumerate(path):
                bar.update(len(z))
                if options.gif and _shown(i, options.steps):
                    on_the_way.append(decoder.decode(prediction.x).cpu())
            kept.append((to_levels(decoder, prediction, draw=options.draw, generator=generators).cpu(), prediction.x.cpu()))
            frames.append(on_the_way)
    data, x = (torch.cat(parts) for parts in zip(*kept, strict=True))
    folder = Path(options.out) if options.out else source.folder / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if isinstance(value, int | float | str)}
    settings |= {"step": repr(step), "grid": repr(schedule), "evaluations": counted.evaluations}
    arrays: dict[str, Any] = {"data": data.numpy(), "x": x.numpy(), "settings": json.dumps(settings)}
    np.savez(folder / "samples.npz", **arrays | ({} if labels is None else {"label": labels.numpy()}))
    cells, columns = _cells(options.count, labels)
    _picture(data, decoder.levels, cells, columns).save(folder / "samples.png")
    if options.gif:
        shown = [_picture(torch.cat(parts), decoder.levels, cells, columns) for parts in zip(*frames, strict=True)]
        pause = [50] * (len(shown) - 1) + [2000]
        shown[0].save(folder / "trajectory.gif", save_all=True, append_images=shown[1:], duration=pause, loop=0)
    per_sample = counted.evaluations / -(-options.count // options.batch)
    print(f"{options.count} samples, {per_sample:g} evaluations each, in {folder}")
    return 0


def _model(options: argparse.Namespace, model: Any) -> Any:
    if (options.guidance is None) != (options.null_label is None):
        raise ValueError(
            must("sample", "null-label", "come with guidance, and guidance with it", "one of them", "--guidance 2 --null-label 10")
        )
    if options.guidance is not None:
        model = Guided(model, options.guidance, {"label": options.null_label})
    return Clipped(model) if options.clip else model


def _labels(options: argparse.Namespace, classes: int | None) -> Tensor | None:
    """The class of each sample, in turn: all classes but the null one, or those asked for."""
    if classes is None:
        for name, value in (("label", options.label), ("guidance", options.guidance)):
            if value is not None:
                raise ValueError(must("sample", name, "be left out", value, "this run's network takes no label"))
        return None
    asked = options.label or [k for k in range(classes) if k != options.null_label]
    return torch.tensor([asked[i % len(asked)] for i in range(options.count)])


def _shown(i: int, steps: int) -> bool:
    """Whether the level of number i is a frame: so many of them, evenly, and the last."""
    every = -(-steps // FRAMES)
    return (steps - 1 - i) % every == 0


def _cells(count: int, labels: Tensor | None) -> tuple[Tensor, int]:
    """Where each image stands in the grid, and its columns: near a square, or one row for each class."""
    if labels is None or len(set(labels.tolist())) == 1:
        return torch.arange(count), math.ceil(math.sqrt(count))
    columns, cells = int(labels.bincount().max()), torch.zeros_like(labels)
    for row, label in enumerate(sorted(set(labels.tolist()))):
        members = (labels == label).nonzero().flatten()
        cells[members] = row * columns + torch.arange(len(members))
    return cells, columns


def _picture(data: Tensor, levels: int, cells: Tensor, columns: int, smallest: int = 320) -> Any:
    """Integer images (n, channels, h, w) as one picture with thin gaps, enlarged to a width that can be seen."""
    from PIL import Image

    _, channels, h, w = data.shape
    if channels not in (1, 3):
        raise ValueError(must("sample", "shape", "have 1 or 3 channels to be a picture", channels))
    rows = int(cells.max()) // columns + 1
    canvas = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, channels), 128, dtype=np.uint8)
    images = (data * (255 / (levels - 1))).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for cell, image in zip(cells.tolist(), images, strict=True):
        top, left = (cell // columns) * (h + 1) + 1, (cell % columns) * (w + 1) + 1
        canvas[top : top + h, left : left + w] = image
    factor = max(1, -(-smallest // canvas.shape[1]))
    canvas = canvas.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def _named(what: str, known: dict[str, Any]) -> Callable[[str], Any]:
    """A reader of names, which answers an unknown one with the nearest."""

    def read(text: str) -> Any:
        if text not in known:
            hint = did_you_mean(text, known) or f"there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"'{text}' is no {what}; {hint}")
        return known[text]

    return read


__all__ = ["add", "run"]
