"""Sample from a run, or any network: a picture, the arrays, and with --gif the trajectory.

Writes into RUN/samples (or --out) samples.png, a grid with one row for each class if the run has
classes; samples.npz with `data` (integers), `x` (x̂), `label`, `logsnr` (the noise levels visited)
and the settings; and with --gif trajectory.gif, x̂ from noise to data. A sample depends on the
seed and its number, and not on the batch, up to rounding (with --step ode, up to the solver's
error). A run over tokens writes samples.npy instead, and samples.txt where they are bytes.

    vdiff sample RUN                         100 steps, with fresh noise at each
    vdiff sample RUN --step adams_bashforth --grid logistic --steps 12
    vdiff sample RUN --grid run --steps 999  the chain of 1,000 levels of a run
    vdiff sample RUN --label 3 --guidance 2 --null-label 10
    vdiff sample RUN --n 50000 --png FOLDER  for torch-fidelity or clean-fid
    torchrun --nproc-per-node 8 --no-python vdiff sample RUN --png FOLDER
    vdiff sample mine.py:build --shape 3 32 32
    vdiff sample RUN --step confidence --steps 32       over tokens

docs/samplers.md says which step to use for which budget.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.cli import sample_tokens
from vdiff.cli.load import parse_device
from vdiff.cli.method import add_method, levels_of, model_of, step_of
from vdiff.cli.parser import positive
from vdiff.cli.pictures import cells_of, picture
from vdiff.cli.sampler import Sampler
from vdiff.cli.source import add_source, open_source
from vdiff.decoder import Levels
from vdiff.disk import atomic_write, check_output
from vdiff.errors import InvalidValue, printable
from vdiff.extras import extra
from vdiff.likelihood.digest import data_hash, weights_digest
from vdiff.sampling import Counted, trajectory
from vdiff.sampling._rules import OPTIONS
from vdiff.terminal import say

if TYPE_CHECKING:
    from vdiff.training.loading import Loaded

SETTINGS = ("seed", "step", "guidance", "null_label", "interval", "clip", "draw")  # of a PNG


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff sample`."""
    number: dict[str, Any] = {"type": positive, "metavar": "N"}
    add_source(parser)
    text = "without a run: shape of a sample, such as 3 32 32"
    parser.add_argument("--shape", type=positive, nargs="+", metavar="N", help=text)

    what = parser.add_argument_group("which samples").add_argument
    what("--count", "--n", default=64, help="how many (default: %(default)s)", **number)
    text = "classes to sample, in turn (default: all classes of the run)"
    what("--label", type=int, nargs="+", metavar="K", help=text)
    text = "sample number i of a seed is always the same (default: %(default)s)"
    what("--seed", type=int, default=0, help=text)

    add_method(parser)

    output = parser.add_argument_group("output").add_argument
    output("--out", metavar="FOLDER", help="where to write (default: RUN/samples)")
    text = "write only numbered PNGs there, one per sample; skips those that exist"
    output("--png", metavar="FOLDER", help=text)
    text = "draw integer levels from the decoder instead of those nearest to x̂"
    output("--draw", action="store_true", help=text)
    output("--gif", action="store_true", help="write the trajectory too")
    output("--quiet", action="store_true", help="no progress bar")

    machine = parser.add_argument_group("machine").add_argument
    machine("--batch", default=64, help="samples at a time (default: %(default)s)", **number)
    machine("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Draw the samples and write them; returns 0. Raises ValueError for what the run cannot do."""
    from vdiff.training import distributed

    with extra("train"):  # before anything is sampled
        import PIL.Image  # noqa: F401
    _check(options)
    device = parse_device(options.device)
    opened = open_source(options.run, options.model, options.classes, shape=options.shape)
    source, loaded, builder, _ = opened
    objective = loaded.objective.to(device)
    decoder, shape = objective.decoder, source.config.shape
    if not diffusion_of(objective.model).continuous:
        sample_tokens.check(options)
        classes = _classes(options, source.config.network.get("labels"), _dropped(source.config))
        drawing = model_of(options, objective.model), step_of(options)
        folder = _folder(Path(options.out) if options.out else source.folder / "samples")
        return sample_tokens.write(options, objective, drawing, shape, classes, folder)
    if not isinstance(decoder, Levels):
        hint = "pictures are made of levels"
        raise InvalidValue("run", "have a decoder with levels", repr(decoder), hint)
    channels = shape[0] if len(shape) == 3 else 0
    require(channels in (1, 3), "run", "have images of 1 or 3 channels, to be pictures", shape)
    classes = _classes(options, source.config.network.get("labels"), _dropped(source.config))
    counted = Counted(objective.model)
    model, step = model_of(options, counted), step_of(options)
    levels = levels_of(options, objective.schedule)
    path = partial(trajectory, model, levels=levels, step=step)
    sampler = Sampler(options, path, decoder, shape, classes, device, len(levels))
    if options.png is not None:
        given = _settings(options, loaded, levels, classes)
        given |= {} if builder is None else {"network": str(builder)}
        with distributed():
            return sampler.write_pngs(Path(options.png), given)
    folder = _folder(Path(options.out) if options.out else source.folder / "samples")
    return _write(folder, sampler, counted, levels)


def _settings(
    options: argparse.Namespace, loaded: "Loaded", levels: Tensor, classes: Tensor | None
) -> dict[str, Any]:
    """What a numbered PNG depends on."""
    given = {name: vars(options).get(name) for name in (*SETTINGS, *OPTIONS)}
    weights = loaded.record.get("weights file") or weights_digest(loaded.objective)
    given |= {"levels": data_hash(levels), "weights file": weights}
    return given | {"labels": None if classes is None else classes.tolist()}


def _write(folder: Path, sampler: Sampler, counted: Counted, levels: Tensor) -> int:
    """Draw all samples, and write their numbers, a picture and with --gif the trajectory."""
    options, decoder = sampler.options, sampler.decoder
    data, x, frames = sampler.all()
    per_sample = counted.evaluations / -(-options.count // options.batch)
    about = {"levels": len(levels), "device": str(sampler.device), "evaluations": per_sample}
    labels = sampler.labels(range(options.count))
    arrays = {"data": data, "x": x, "logsnr": levels, "label": labels}
    _write_numbers(folder / "samples.npz", options, about, arrays)
    cells, columns = cells_of(options.count, labels)
    with atomic_write(folder / "samples.png") as aside:
        picture(data, decoder.levels, cells, columns).save(aside)
    if options.gif:
        whole = (torch.cat(parts) for parts in zip(*frames, strict=True))
        first, *rest = [picture(images, decoder.levels, cells, columns) for images in whole]
        pause = [50] * len(rest) + [2000]
        with atomic_write(folder / "trajectory.gif") as aside:
            first.save(aside, save_all=True, append_images=rest, duration=pause, loop=0)
    say(f"{options.count} samples, {per_sample:g} evaluations each, in {printable(str(folder))}")
    return 0


def _dropped(config: Any) -> bool:
    """Whether the last label is no class."""
    dropout: float = config.label_dropout
    return dropout > 0


def _check(options: argparse.Namespace) -> None:
    """Raise for an option that --png would ignore, and for processes that only --png shares."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    what, hint = "be given to several processes", "they share numbered PNGs"
    require(processes == 1 or options.png is not None, "png", what, None, hint)
    for name in ("out", "gif") if options.png is not None else ():
        value = getattr(options, name)
        what = "come without --png"
        require(not value, name, what, value, "that folder holds numbered PNGs and nothing else")


def _write_numbers(
    path: Path, options: argparse.Namespace, about: dict[str, Any], arrays: dict[str, Any]
) -> None:
    given = {n: v for n, v in vars(options).items() if isinstance(v, int | float | str | list)}
    present = {name: value.numpy() for name, value in arrays.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        np.savez(aside, settings=json.dumps(given | about), **present)


def _folder(folder: Path) -> Path:
    """The folder of samples. Raises before sampling if they cannot be written. A missing folder is
    created with the samples, so that an invalid option leaves none."""
    is_other = os.path.lexists(folder) and not folder.is_dir()
    require(not is_other, "out", "be a folder", str(folder), "--out FOLDER")
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    if missing:
        check_output("out", missing[-1])
        return folder
    for name in ("samples.npz", "samples.png", "trajectory.gif"):
        if not (folder / name).is_symlink():  # a link is replaced
            check_output("out", folder / name)
    return folder


def _classes(
    options: argparse.Namespace, classes: int | None, dropped: bool = False
) -> Tensor | None:
    """The classes to sample in turn: all but the null one, or those of --label. With label dropout
    the null class is the last."""
    if classes is None:
        for name, value in (("label", options.label), ("guidance", options.guidance)):
            hint = "this run's network takes no label"
            require(value is None, name, "be left out", value, hint)
        return None
    null = [classes - 1] if dropped else []
    null = null if options.null_label is None else [options.null_label]
    what = f"lie in 0 … {classes - 1}, the labels of this run's network"
    for name, given in (("label", options.label or []), ("null-label", null)):
        for label in given:
            require(0 <= label < classes, name, what, label)
    return torch.tensor(options.label or [k for k in range(classes) if k not in null])
