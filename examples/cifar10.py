"""Train a published recipe on CIFAR-10, or on what stands in for it, and report its bound in bits
per dimension.

    # one GPU; DIR holds the official archive
    python examples/cifar10.py --recipe vdm --data DIR
    torchrun --nproc-per-node 8 examples/cifar10.py --recipe vdmpp-sigmoid --data DIR --resume auto
    # two CPU cores, minutes, nothing to download
    python examples/cifar10.py --recipe small --data patches

Each recipe (examples/recipes) says what it reproduces, on what, in how long, and the number to
expect. Any setting is changed by --set, for instance --set lr=1e-4 schedule.name=Adaptive
'weighting={"name": "Sigmoid", "bias": 1}'; --dry-run prints them all. The run folder holds them,
checkpoints, the averaged weights, the log, the table and the figures; with --resume auto the same
command continues where it was stopped. Then: vdiff evaluate RUN, vdiff sample RUN.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import recipes
import torch
from baselines import BASELINES, OF_PHOTOGRAPHS
from torch import Tensor

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser, positive
from vdiff.cli.resume import Resumable
from vdiff.data import Images, Splits, splits
from vdiff.data.registry import DATASETS
from vdiff.disk import absolute, atomic_write, write_text
from vdiff.errors import did_you_mean, out_of_memory
from vdiff.likelihood import Report, evaluate
from vdiff.objective import Objective
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of
from vdiff.training import Config, Run, Validation, distributed, rank, train
from vdiff.training.ranks import share_of_rank

FEW = 64  # images of a point of the validation curve on a CPU; of the table, four times as many


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    gpu = torch.cuda.is_available()
    try:
        config = config_of(options, gpu)
        if options.dry_run:
            say(described(options.recipe, config))
            return 0
        images = data_of(config)
        with distributed() as device, Run.open(options.out, config, resume=options.resume) as run:
            if rank().is_zero:
                say(described(options.recipe, config, len(images.train)))
            averaged = learn(run, images, device, options.every)
            few = len(images.test) if gpu else 4 * FEW
            report(run, averaged, images, device, options.images or few)
    except (TypeError, ValueError, OSError, ImportError) as error:
        say(f"cifar10: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        advice = "; ".join(getattr(error, "__notes__", ())) or "lower the batch: --set batch=…"
        say(f"cifar10: out of memory; {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("cifar10: interrupted; the same command with --resume auto continues", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.settings = setting_of
    parser.add_argument("--recipe", required=True, metavar="NAME", help=", ".join(recipes.NAMES))
    text = f"{', '.join(DATASETS)}, or a folder with CIFAR-10 (default: the recipe's)"
    parser.add_argument("--data", help=text)
    parser.add_argument("--out", help="run folder (default: runs/NAME)")
    text = "go on with a run that is there (default: %(default)s)"
    parser.add_argument("--resume", default="never", choices=("auto", "never"), help=text)
    several = {"nargs": "+", "default": [], "action": "extend", "metavar": "NAME=VALUE"}
    parser.add_argument("--set", **several, help="settings, see --dry-run")
    text = "between points of the curve and checkpoints (default: a hundredth of all, at most"
    parser.add_argument("--every", type=positive, help=f"steps {text} 5,000; on a CPU a fifth)")
    text = f"test images in the table (default: all; on a CPU {4 * FEW})"
    parser.add_argument("--images", type=positive, help=text)
    text = "print all settings and the network's size, and stop"
    parser.add_argument("--dry-run", action="store_true", help=text)
    options = parser.parse_args(arguments)
    options.out = options.out or f"runs/{options.recipe}"
    return options


def setting_of(option: str) -> str:
    """The hint for an unknown option that is the name of a setting."""
    word = option.lstrip("-")
    settings = {one.name for one in fields(Config)}
    return f"; a setting is --set {word}=…" if word.split(".")[0] in settings else ""


def config_of(options: argparse.Namespace, gpu: bool) -> Config:
    """The recipe, on the data and the machine there are, with what was set."""
    config = recipes.load(options.recipe)
    if options.data is not None:
        name = options.data if options.data in DATASETS else "cifar10"
        if name != options.data and not Path(options.data).is_dir():
            hint = "it is a file" if Path(options.data).is_file() else "there is no such folder"
            hint = did_you_mean(options.data, DATASETS) or hint
            raise ValueError(f"'{options.data}' is no data set and no folder; {hint}")
        config = replace(
            config, data=name, folder=config.folder if name == options.data else options.data
        )
    if config.data == "digits":  # 8×8 pixels, one channel, 17 levels
        decoder = None if config.decoder is None else config.decoder | {"levels": 17}
        config = replace(
            config, shape=[1, 8, 8], network=config.network | {"channels": 1}, decoder=decoder
        )
    if not gpu:
        config = replace(config, autocast=False, compile=False, channels_last=False)
    config = config.override(options.set)
    folder = absolute("data", config.folder)  # for commands that start elsewhere
    return replace(config, folder=str(folder))


def data_of(config: Config) -> Splits:
    try:
        return splits(config.data, config.folder)
    except ValueError as error:
        if config.data != "cifar10":
            raise
        raise ValueError(
            f"{error}\n--data patches runs the same script on photographs that scikit-learn ships"
        ) from None


def described(recipe: str, config: Config, images: int | None = None) -> str:
    """What the recipe reproduces; all settings, or how long they take on so many images."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.objective().parameters())
    if images is None:
        settings = "\n".join(
            f"{name:<17} {json.dumps(value)}" for name, value in config.asdict().items()
        )
        return f"{recipes.about(recipe)}\n\n{settings}\n\n{parameters:,} parameters"
    passes = config.steps * config.batch / images
    return (
        f"{recipe}: {parameters:,} parameters, {config.steps:,} steps of {config.batch}, "
        f"{passes:,.1f} times {images:,} images of {config.data}"
    )


def learn(run: Run, images: Splits, device: torch.device, every: int | None) -> Objective:
    """Train from the start or from where the run stands; the averaged weights, which are in the
    folder too.
    """
    config = run.config
    torch.manual_seed(config.seed)
    objective = config.objective().to(device)
    validate = None
    if objective.decoder is not None:
        held_out = images.selection if device.type == "cuda" else images.selection[:FEW]
        given = condition(config, held_out, device)
        validate = Validation(held_out.pixels.to(device), batch=BATCH, condition=given)
    every = every or max(1, min(5000, config.steps // (100 if device.type == "cuda" else 5)))
    data, kept = images.train, {"run": run, "validate": validate, "every": every}
    return train(objective, data.pixels, config, labels=data.labels, **kept)


BATCH = 256  # network evaluations at a time


def condition(config: Config, images: Images, device: torch.device) -> dict[str, Tensor]:
    return {"label": images.labels.to(device)} if config.conditional else {}


def report(
    run: Run, objective: Objective, images: Splits, device: torch.device, count: int
) -> None:
    """The bound of test images with its errors beside simple densities, as a table, as JSON and in
    figures."""
    config, schedule = run.config, objective.schedule
    if objective.decoder is None:
        return
    test = images.test[:count]
    ends = {"logsnr_max": schedule.logsnr_max, "logsnr_min": schedule.logsnr_min}
    profile = vdiff.profile.Profile(**ends, bins=40)
    # a report that is interrupted continues where it was
    states = Resumable(run.folder / "results.json")
    found = states.call(
        "bound", evaluate, objective.model, test.pixels.to(device),
        schedule=schedule, decoder=objective.decoder, steps=config.chain, batch=BATCH,
        replicates=2, profile=profile, share=share_of_rank(),
        record={"run": str(run.folder), "ema": config.ema[0]},
        condition=condition(config, test, device),
    )  # fmt: skip
    if not rank().is_zero:
        return
    baselines = densities(images.train, test)
    table = rendered(found, baselines, len(test), len(images.test), config.data)
    write(run, found, baselines, table)
    best = min(baselines.items(), key=lambda item: item[1])
    draw(run, objective, images.test, profile, best, device)
    states.clear()
    say(f"weights, log, table and figures in {run.folder}")


def densities(train: Images, test: Images) -> dict[str, float]:
    """Simple densities of the test images, bits/dim."""
    small = test.levels < 256
    fits = BASELINES if small else OF_PHOTOGRAPHS
    pixels = train.pixels.long() if small else train.pixels
    return {name: fit(pixels, test.pixels.long(), test.levels) for name, fit in fits.items()}


def write(run: Run, found: Report, baselines: dict[str, float], table: str) -> None:
    """The table, printed too, and the numbers as JSON."""
    write_text(run.folder / "table.txt", table + "\n")
    parts = ("prior", "diffusion", "reconstruction", "total")
    results = {
        "unit": "bits/dim",
        "bound": {part: vars(getattr(found, part)) for part in parts},
        "baselines": baselines,
        "protocol": found.protocol,
    }
    write_text(run.folder / "results.json", json.dumps(results, indent=2) + "\n")
    say(f"\n{table}\n")


def rendered(found: Report, baselines: dict[str, float], count: int, whole: int, data: str) -> str:
    rows = [
        f"{count:,} of {whole:,} test images of {data}",
        str(found),
        "",
        "simple densities of the same images, bits/dim",
    ]
    rows += [f"{name:<25}{bits:>8.4f}" for name, bits in baselines.items()]
    if data != "cifar10":
        rows += ["", f"Numbers of {data} compare with nothing but each other."]
    return "\n".join(rows)


@torch.no_grad()
def draw(
    run: Run,
    objective: Objective,
    real: Images,
    profile: vdiff.profile.Profile,
    baseline: tuple[str, float],
    device: torch.device,
) -> None:
    """Samples from fixed noise, the loss by log-SNR, the schedule, the training curve."""
    config, schedule = run.config, objective.schedule
    noise = torch.randn(40, *config.shape, generator=generator_of(0, 0, "samples")).to(device)
    labels: dict[str, Any] = (
        {"label": torch.arange(40, device=noise.device) % config.network["labels"]}
        if config.conditional
        else {}
    )
    grid = vdiff.sampling.logistic(schedule.logsnr_max, schedule.logsnr_min)
    made = vdiff.sample(
        objective.model,
        noise,
        schedule=grid,
        steps=19,
        step=vdiff.sampling.adams_bashforth,
        condition=labels,
    )
    with atomic_write(run.figures / "samples.png") as path:
        decoded = objective.decoder.decode(made).cpu()
        plots.save(path, plots.samples(decoded, real.pixels[:40], levels=real.levels))
    with atomic_write(run.figures / "error_by_logsnr.png") as path:
        dims = real.pixels[0].numel()
        plots.save(path, plots.error_by_logsnr({"test images": profile}, dims))
    start = config.objective().schedule
    with atomic_write(run.figures / "schedule.png") as path:
        both = {"at the start": start, "after training": schedule.cpu()}
        plots.save(path, plots.schedule(both))
    with atomic_write(run.figures / "training.png") as path:
        plots.save(path, plots.curves(run.history(), baseline))


if __name__ == "__main__":
    replace_unencodable()
    raise SystemExit(main())
