"""Train a network of your own, or a recipe, into a run folder that evaluate and sample read.

WHAT is one of

    FILE.py:NAME  a builder: a function without arguments that returns
                    your network, called as network(z, λ): it predicts v;
                    or a Denoiser, with its own prediction and time;
                    or an Objective, with its own schedule and loss
    FILE.py:NAME  a vdiff.training.Config, as in examples/recipes
    FILE.json     a config, as a run folder holds it

FILE.py is run as a Python program: name only a file that you trust. The run folder stores the
builder's name and the hash of its file, never code: evaluate and sample need --model again.

    vdiff train mine.py:build --data photos/ --size 64 --out runs/mine
    vdiff train examples/recipes/vdm.py:CONFIG --set lr=1e-4 --out runs/vdm
    torchrun --nproc-per-node 8 --no-python vdiff train mine.py:build …

The same command resumes. --dry-run prints every setting that --set can change.
"""

import argparse
import copy
import json
import sys
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.cli.load import DATA, load_object, load_splits, parse_device, reading_options
from vdiff.cli.own import RUNS, Builder, builder_of, check_resumes
from vdiff.cli.parser import Parser, positive
from vdiff.data import Images, Splits
from vdiff.data.images import like_pixels
from vdiff.disk import absolute
from vdiff.errors import printable
from vdiff.objective import Objective
from vdiff.terminal import duration, say, wrapped

if TYPE_CHECKING:
    from vdiff.training import Config, Run

SAMPLED = 32  # floating examples whose range is looked at
SELECTION = 256  # held-out images of a point of the validation curve
# for the user's own network: the bound, between the ends of VDM
DEFAULTS: dict[str, Any] = {
    "parameterization": {"name": "V"},
    "schedule": {"name": "Linear", "logsnr_max": 13.3, "logsnr_min": -5.0},
    "level_head": False,
    "lr": 2e-4,
    "ema": [0.9999],
    "steps": 100_000,
}


def add(parser: Parser) -> None:
    """The options of `vdiff train`."""
    option, default = parser.add_argument, "(default: %(default)s)"
    option("what", metavar="WHAT", help=f"FILE.py:NAME or FILE.json. {RUNS}")
    text = f"{', '.join(DATA)}, a folder of images, a .npy or a .npz file (default: the config's)"
    option("--data", help=text)
    text = "pixels of the shorter side after resizing; the centre is cropped"
    option("--size", type=positive, metavar="N", help=text)
    option("--out", required=True, metavar="RUN", help="run folder to write")
    text = "settings of the config, such as lr=1e-4 schedule.name=Cosine data_options.alpha=drop"
    option("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=text)
    text = "with a config: train the network of this builder in its place"
    option("--model", metavar="FILE.py:NAME", help=f"{text}. {RUNS}")
    text = f"auto: resume the run in the folder; never: refuse a folder with a run {default}"
    option("--resume", choices=("auto", "never"), default="auto", help=text)
    text = "steps between checkpoints and validations (default: a hundredth, 100 to 5000)"
    option("--every", type=positive, metavar="N", help=text)
    option("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    option("--dry-run", action="store_true", help="print the config as JSON, and stop")
    option("--quiet", action="store_true", help="no progress bar")
    parser.settings = setting_hint


def setting_hint(option: str) -> str:
    """The hint for an option that is a setting."""
    from vdiff.training import Config

    word = option.lstrip("-")
    names = [field.name for field in fields(Config)]
    return f"; it is a setting: --set {word}=…" if word.split(".")[0] in names else ""


def run(options: argparse.Namespace) -> int:
    """Train; returns 0."""
    from vdiff.training import Run, Validation, distributed, rank, train

    config, builder = config_of(options)
    device = parse_device(options.device)
    config, parts = with_data(config, options, device)
    if options.dry_run:
        say(json.dumps(config.asdict(), indent=2))
        return 0
    torch.manual_seed(config.seed)
    objective = (config.objective() if builder is None else builder.objective(config)).to(device)
    if builder is not None and (Path(options.out) / "config.json").is_file():
        check_resumes(Run(options.out), builder, objective)
    with distributed(), Run.open(options.out, config, resume=options.resume) as folder:
        quiet, done = options.quiet or not rank().is_zero, steps_done(folder)
        if not quiet and done < config.steps:
            for line in forecast(objective, config, parts.train, done):
                say(wrapped(line), file=sys.stderr)
        validate = None
        bounded = objective.decoder is not None or config.process is not None
        if bounded and len(parts.selection) > 0:
            held = parts.selection[:SELECTION]
            validate = Validation(
                held.pixels.to(device), condition=condition(config, held, device)
            )
        every = options.every or min(5000, max(100, config.steps // 100))
        kept: dict[str, Any] = {"run": folder, "validate": validate, "quiet": quiet}
        train(objective, parts.train, config, every=every, **kept)
        if rank().is_zero:
            require_weights(folder)
    model = "" if builder is None else f" --model {options.model or options.what}"
    if not quiet:
        what = "trained" if done < config.steps else f"finished at step {done:,} already"
        say(f"{what}: {printable(str(folder.folder))}; next, vdiff evaluate {options.out}{model}")
        if done >= config.steps:
            say(wrapped(how_to_go_on(config)))
    return 0


def steps_done(run: "Run") -> int:
    """The step of the newest checkpoint, or 0."""
    from vdiff.training.checkpoint import checkpoints, step_of

    return max(map(step_of, checkpoints(run.checkpoints)), default=0)


def require_weights(run: "Run") -> None:
    """Raise OSError if the weights at the end of a training could not be written."""
    stored, last = steps_done(run), run.config.steps
    if stored < last and not (run.folder / "ema.safetensors").is_file():
        what = f"the weights of step {last:,} could not be written, as the warnings above say"
        hint = f"with room on the disk the same command continues from step {stored:,}"
        raise OSError(f"{what}; {hint}")


def how_to_go_on(config: "Config") -> str:
    """How a finished run is trained further."""
    if config.decay == "constant":
        return "to go on: the same command with more steps, --set steps=…"
    end = f"its learning rate falls to 0 at step {config.steps:,}"
    return (
        f"to train longer: {end}, so that more steps are another run: --set steps=… --out …; "
        + ("a run with decay=constant can go on")
    )


def config_of(options: argparse.Namespace) -> tuple["Config", Builder | None]:
    """The config that WHAT names, and the builder of the user's own network."""
    from vdiff.training import Config
    from vdiff.training.safe_json import read_json

    builder = None if options.model is None else builder_of(options.model)
    path = Path(options.what)
    if path.suffix == ".json":
        require(path.is_file(), "what", "name a file that exists", options.what)
        config = Config.from_dict(read_json(path))
        hint = f"--model {config.network['name']}"
        known = builder is not None or not config.own_network
        require(known, "model", "be given for a config with a network of its own", None, hint)
    else:
        thing = load_object(options.what)
        if isinstance(thing, Config):
            config = thing
        else:
            what, came = "come with a config", f"a builder, {options.what}"
            require(builder is None, "model", what, came, "WHAT names the network already")
            require(options.data is not None, "data", "be given for a network of your own", None)
            builder = builder_of(options.what, thing)
            config = Config({"name": builder.name}, **DEFAULTS)
    if builder is not None:
        config = replace(config, network={"name": builder.name}, network_source=builder.source)
    return config, builder


def with_data(
    config: "Config", options: argparse.Namespace, device: torch.device
) -> tuple["Config", Splits]:
    """The config with what was set and the form of the data, and the data."""
    settings = [*options.set]
    if options.size is not None:
        settings.append(f"data_options.size={options.size}")
    if options.data is not None:
        path = str(options.data) if options.data in DATA else str(absolute("data", options.data))
        config = replace(config, data=path, data_options={})
    of_data = [text for text in settings if text.split("=")[0].split(".")[0] in OF_DATA]
    reading = config.override(of_data)
    named, given = reading.data in DATA, reading.data_options
    what = f"be left out for {reading.data}, which has a form of its own"
    require(not (named and given), "size", what, given)
    parts = load_splits(reading.data, reading.folder, reading_options(reading))
    config = in_form(reading, parts.train, settings)
    if device.type == "cpu":
        config = replace(config, autocast=False, compile=False, channels_last=False)
    config = config.override([text for text in settings if text not in of_data])
    return replace(config, folder=str(absolute("folder", config.folder))), parts


OF_DATA = ("data", "folder", "data_options")


def in_form(config: "Config", images: Images, settings: list[str]) -> "Config":
    """The config with the shape, the levels and the classes of images."""
    network, decoder = dict(config.network), config.decoder
    shape = list(images.shape)
    if config.process is not None:
        return replace(config, shape=shape)
    if network.get("channels", config.shape[0]) != shape[0] and not config.own_network:
        network["channels"] = shape[0]
    if images.levels is None:
        decoder = {"name": "Gaussian"} if config.own_network else decoder
        if not any(text.startswith("decoder") for text in settings):
            warn_of_density(images, config)
    elif decoder is not None and "levels" in decoder:
        decoder = decoder | {"levels": images.levels}
    given = dict(text.replace(" ", "").split("=", 1) for text in settings if "=" in text)
    if given.get("conditional", "").lower() == "true" and "labels" not in network:
        null = float(given.get("label_dropout", 0)) > 0  # the class that stands for none
        network["labels"] = max(1, len(images.names), int(images.labels.max()) + 1) + null
    return replace(config, shape=shape, network=network, decoder=decoder)


def warn_of_density(images: Images, config: "Config") -> None:
    """Warn where floating data, for which a Gaussian decoder was taken, look like pixels."""
    from vdiff.training.mistakes import of_density

    scaled = like_pixels(images[:SAMPLED].pixels) if config.own_network else ""
    if scaled:
        text = f"{config.data} holds {of_density(scaled)}"
        warnings.warn(f"{text}: --set decoder.name=Gaussian", stacklevel=2)


def forecast(objective: Objective, config: "Config", images: Images, done: int = 0) -> list[str]:
    """How large the training is, and how long the steps that are not done take by the first."""
    parameters = list(objective.parameters())
    count, size = (sum(f(p) for p in parameters) for f in (Tensor.numel, lambda p: p.nbytes))
    passes = config.steps * config.batch / max(1, len(images))
    checkpoint = size * (3 + len(config.ema)) / 1e6  # weights, two moments, averages
    lines = [
        f"{count:,} parameters; {images.record or config.data}",
        f"{config.steps:,} steps of {config.batch} images, {passes:,.1f} passes; "
        f"a checkpoint takes {checkpoint:,.1f} MB, and 3 are kept",
    ]
    seconds = _seconds(objective, config, images)
    total = f"{duration(seconds * (config.steps - done))} {'to go' if done else 'in all'}"
    return [*lines, f"about {duration(seconds)} a step and {total}, if nothing is compiled"]


def _seconds(objective: Objective, config: "Config", images: Images) -> float:
    """Seconds that the gradient of a micro-batch takes on a copy, times their number."""
    from vdiff.training import rank
    from vdiff.training.failures import autocast, memory_hint

    trial, device = copy.deepcopy(objective), next(objective.parameters()).device
    rows = torch.arange(config.batch // config.accumulate // rank().world_size) % len(images)
    data, given = images.take(rows).to(device), condition(config, images[rows], device)
    taken = []
    for _ in range(2):
        began = time.monotonic()
        try:
            with memory_hint(config, rank()), autocast(config, device):
                trial(data, condition=given).mean().backward()
        except RuntimeError as error:
            error.add_note(f"in the first step, on images {tuple(data.shape)}")
            raise
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.monotonic() - began)
    return min(taken) * config.accumulate


def condition(config: "Config", images: Images, device: torch.device) -> dict[str, Tensor]:
    """The classes of images, for a network that takes them."""
    return {"label": images.labels.to(device)} if config.conditional else {}
