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
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.cli import sample_tokens
from vdiff.cli.load import load_object, parse_device
from vdiff.cli.parser import positive
from vdiff.cli.pictures import cells_of, picture
from vdiff.cli.sampler import Sampler
from vdiff.cli.source import add_source, open_source
from vdiff.decoder import Levels
from vdiff.disk import atomic_write, check_output
from vdiff.errors import InvalidValue, did_you_mean, printable
from vdiff.extras import extra
from vdiff.likelihood.digest import data_hash, weights_digest
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.sampling import (
    STEPS,
    TOKEN_STEPS,
    Clipped,
    Counted,
    Guided,
    leading,
    logistic,
    trailing,
    trajectory,
    uniform,
)
from vdiff.sampling._rules import OPTIONS
from vdiff.sampling.grid import rising
from vdiff.schedule import Cosine, Karras, Linear, OptimalTransport, Schedule
from vdiff.terminal import say
from vdiff.variance import FixedLarge, FixedSmall

SETTINGS = ("seed", "step", "guidance", "null_label", "interval", "clip", "draw")  # of a PNG
GRIDS: dict[str, Callable[[float, float], Schedule]] = {
    "cosine": Cosine,
    "logistic": logistic,
    "karras": lambda high, low: Karras(math.exp(-high / 2), math.exp(-low / 2)),
    "linear": Linear,
    "rectified": OptimalTransport,
}
SPACINGS = {"uniform": uniform, "trailing": trailing, "leading": leading}
TARGETS = {"x": X(), "eps": Eps(), "v": V(), "flow": Flow()}
VARIANCES = {"posterior": FixedSmall(), "forward": FixedLarge()}
NAMED: dict[str, dict[str, Any]] = {"target": TARGETS, "variance": VARIANCES}


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

    levels = parser.add_argument_group("from noise to data").add_argument
    text = f"method from one noise level to the next: {', '.join(STEPS)}; over tokens "
    text += f"{', '.join(TOKEN_STEPS)} (default: %(default)s)"
    levels("--step", type=_named("step", STEPS | TOKEN_STEPS), default="ancestral", help=text)
    text = (
        "number of steps; a step is one evaluation of the network, or two with heun; --spacing "
        "uniform has one more level, and so one more evaluation (default: 100; 1 for ode, which "
        "chooses its own steps)"
    )
    levels("--steps", help=text, **number)
    text = (
        f"noise levels: {', '.join(GRIDS)}, between the ends of the run's schedule; run, that "
        "schedule itself; or FILE.py:NAME, your own schedule or list of log-SNRs; FILE.py "
        "is run as a Python program: name only a file that you trust (default: %(default)s)"
    )
    levels("--grid", type=_grid, default="cosine", help=text)
    text = f"which times of the grid: {', '.join(SPACINGS)} (default: %(default)s, with both ends)"
    levels("--spacing", type=_named("spacing", SPACINGS), default="uniform", help=text)

    one = parser.add_argument_group("options of one step").add_argument
    text = f"of ancestral: {', '.join(VARIANCES)} (default: the model's own)"
    one("--variance", type=_named("variance", VARIANCES), help=text)
    text = "of ddim: how much noise, from 0 (the default) to 1, which is ancestral"
    one("--eta", type=float, help=text)
    one("--order", type=int, choices=(1, 2, 3), help="of adams_bashforth (default: 3)")
    text = f"of adams_bashforth: {', '.join(TARGETS)} (default: flow)"
    one("--target", type=_named("target", TARGETS), help=text)
    one("--method", help="of ode: a solver of torchdiffeq (default: dopri5)")
    one("--rtol", type=float, help="of ode: relative tolerance (default: 1e-5)")
    one("--atol", type=float, help="of ode: absolute tolerance (default: 1e-5)")

    change = parser.add_argument_group("changes to the model").add_argument
    text = "classifier-free guidance: 1 is no guidance, 2 goes twice as far from the null class"
    change("--guidance", type=float, metavar="SCALE", help=f"{text}; needs --null-label")
    change("--null-label", type=int, metavar="K", help="the label that stands for no class")
    text = "use guidance only between these log-SNRs"
    change("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    change("--clip", action="store_true", help="clip x̂ to [-1, 1] at every level")

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
        drawing = _model(options, objective.model), _step(options)
        folder = _folder(Path(options.out) if options.out else source.folder / "samples")
        return sample_tokens.write(options, objective, drawing, shape, classes, folder)
    if not isinstance(decoder, Levels):
        hint = "pictures are made of levels"
        raise InvalidValue("run", "have a decoder with levels", repr(decoder), hint)
    channels = shape[0] if len(shape) == 3 else 0
    require(channels in (1, 3), "run", "have images of 1 or 3 channels, to be pictures", shape)
    classes = _classes(options, source.config.network.get("labels"), _dropped(source.config))
    counted = Counted(objective.model)
    model, step = _model(options, counted), _step(options)
    levels = _levels(options, objective.schedule)
    path = partial(trajectory, model, levels=levels, step=step)
    sampler = Sampler(options, path, decoder, shape, classes, device, len(levels))
    if options.png is not None:
        given = {name: vars(options).get(name) for name in (*SETTINGS, *OPTIONS)}
        weights = loaded.record.get("weights file") or weights_digest(objective)
        given |= {"levels": data_hash(levels), "weights file": weights}
        given |= {"labels": None if classes is None else classes.tolist()}
        given |= {} if builder is None else {"network": str(builder)}
        with distributed():
            return sampler.write_pngs(Path(options.png), given)
    folder = _folder(Path(options.out) if options.out else source.folder / "samples")
    data, x, frames = sampler.all()
    per_sample = counted.evaluations / -(-options.count // options.batch)
    about = {"levels": len(levels), "device": str(device), "evaluations": per_sample}
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


def _step(options: argparse.Namespace) -> Any:
    """The step with its options. Raises for those of another step."""
    values = {name: getattr(options, name, None) for name in OPTIONS}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        what, came = f"come with --step {OPTIONS[name]}", f"--step {options.step}"
        require(OPTIONS[name] == options.step, name, what, came, "no other step has it")
        given[name] = NAMED.get(name, {}).get(value, value)
    step = (STEPS | TOKEN_STEPS)[options.step]
    return partial(step, **given) if given else step


def _levels(options: argparse.Namespace, trained: Schedule) -> Tensor:
    """The noise levels to visit."""
    steps = options.steps or (1 if options.step == "ode" else 100)
    schedule: Any = trained
    if options.grid in GRIDS:
        schedule = GRIDS[options.grid](trained.logsnr_max, trained.logsnr_min)
    elif options.grid != "run":
        schedule = load_object(options.grid)
        if not isinstance(schedule, Schedule | type):
            what = "come without --steps and --spacing where it is a row of levels"
            alone = options.steps is None and options.spacing == "uniform"
            require(alone, "grid", what, options.grid)
            return rising(schedule, "grid", {}).cpu()
    return SPACINGS[options.spacing](schedule, steps).cpu()


def _model(options: argparse.Namespace, model: Any) -> Any:
    guided, hint = options.guidance is not None, "--guidance 2 --null-label 10"
    what = "come with guidance, and guidance with it"
    require(guided == (options.null_label is not None), "null-label", what, "one of them", hint)
    fits = guided or options.interval is None
    require(fits, "interval", "come with guidance", "none", hint)
    if guided:
        interval = None if options.interval is None else tuple(options.interval)
        model = Guided(model, options.guidance, {"label": options.null_label}, interval)
    return Clipped(model) if options.clip else model


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


def _named(what: str, names: dict[str, Any]) -> Callable[[str], str]:
    """A parser of names. An unknown name raises with the nearest as a hint."""

    def parse(text: str) -> str:
        if text not in names:
            hint = did_you_mean(text, names) or f"there are {', '.join(names)}"
            raise argparse.ArgumentTypeError(f"'{text}' is no {what}; {hint}")
        return text

    return parse


def _grid(text: str) -> str:
    return text if ":" in text else _named("grid", {**GRIDS, "run": None})(text)
