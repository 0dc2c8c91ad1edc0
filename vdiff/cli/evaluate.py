"""Evaluate a run: its bound in bits per dimension with errors, or the difference from another
run's.

With --against, the bound of each run is the whole one, between its own ends.

Takes the averaged weights and whole splits. With --ode the likelihood of the probability-flow ODE
stands beside the bound, under each dequantisation: another model's, so that the gap between the
two may have either sign. Writes RUN/evaluation.json (or --out), from whose protocol the numbers
can be computed again. When Ctrl-C or SIGTERM ends it, what was evaluated is kept beside that file,
and the same command continues from there. Several processes share the images: `torchrun
--nproc-per-node 2 --no-python vdiff evaluate RUN`.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vdiff.cli.keeper import Keeper, share_of_rank
from vdiff.cli.load import DATA, check_known, data_for, images_of, output_file, parse_device
from vdiff.data import Images, Splits
from vdiff.decoder import Levels
from vdiff.disk import write_text
from vdiff.errors import InvalidValue, printable
from vdiff.extras import extra
from vdiff.likelihood import (
    Comparison,
    Report,
    TruncatedNormal,
    Uniform,
    compare,
    dequantized_ode,
)
from vdiff.likelihood import evaluate as evaluate_bound
from vdiff.objective import Objective
from vdiff.oracle import Gaussian
from vdiff.terminal import Bar, say

if TYPE_CHECKING:
    from vdiff.training import Run

SPLITS = ("test", "selection", "train")
REPLICATES = 2  # of a likelihood by the ODE
FULL = 4096  # dimensions up to which the prior's covariance is a full one


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff evaluate`.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> parser.parse_args(["runs/digits", "--tolerance", "0.005"]).tolerance
    0.005
    """
    parser.add_argument("run", metavar="RUN", help="run folder, as a training writes it")
    parser.add_argument(
        "--data", help=f"{', '.join(DATA)}, or a folder with CIFAR-10 (default: the run's own)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, help="Monte Carlo standard error to reach, bits/dim"
    )
    parser.add_argument("--budget", type=int, help="most network evaluations that may take")
    parser.add_argument(
        "--draws",
        type=int,
        help="times per image and replicate (default: 32, or what the tolerance needs)",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        default=4,
        help="grids per image, or of the first stage (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="the bound of a chain of so many steps (default: that of the run, or continuous time)",
    )
    parser.add_argument(
        "--ode", action="store_true", help="the probability-flow ODE's likelihood beside the bound"
    )
    parser.add_argument(
        "--ode-tolerance",
        type=float,
        default=1e-4,
        help="of its solver, audited by half of it (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        metavar="RUN",
        help="report by how much the bound lies above that of another run",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--batch",
        type=int,
        default=1024,
        help="network evaluations at a time (default: %(default)s)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--out", help="file to write to (default: RUN/evaluation.json)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Evaluate, print and write.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> run(parser.parse_args(["no-such-folder"]))
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidValue: Run: argument 'folder' must hold a config.json; got ...
    """
    from vdiff.training import Run, here, processes
    from vdiff.training.signals import interruptible

    if options.ode:
        with extra("ode"):  # before the bound is computed
            import torchdiffeq  # noqa: F401
    source = Run(options.run)
    config, device = source.config, parse_device(options.device)
    loaded = source.loaded()
    objective = loaded.objective.to(device)
    if objective.decoder is None:
        raise _invalid("run", "have a decoder", None, "without one there is no bound")
    if options.ode and options.against is not None:
        hint = "evaluate each of the two with --ode"
        raise _invalid("ode", "come without against", options.against, hint)
    if options.ode and not isinstance(objective.decoder, Levels):
        levels, hint = "come with a decoder of levels", "a density needs no dequantisation"
        raise _invalid("ode", levels, repr(objective.decoder), hint)
    parts = data_for(source, loaded, options.data)
    found: Images = getattr(parts, options.split)
    images = found.pixels.to(device)
    train = parts.train.pixels.to(device) if options.ode else images
    settings: dict[str, Any] = {
        word: getattr(options, word)
        for word in ("steps", "tolerance", "budget", "draws", "replicates", "seed", "batch")
    }
    settings |= {
        "schedule": objective.schedule,
        "decoder": objective.decoder,
        "steps": config.chain if options.steps is None else options.steps,
    }
    if config.conditional:
        settings["condition"] = {"label": found.labels.to(device)}
    _check_shape(source, images)
    record = {"run": str(source.folder), "split": options.split, "ema": config.ema[0]}
    record |= loaded.record | {"data set": options.data or config.data}
    record["trained on"] = loaded.data or "images that are not recorded"
    name = "evaluation.json" if options.against is None else "comparison.json"
    out = Path(options.out) if options.out else source.folder / name
    if options.out or not out.is_symlink():
        output_file("out", out)
    kept, failed, started = Keeper(out), dict[str, str](), time.monotonic()
    with processes(), noted_warnings() as heard, kept, interruptible():
        first = here().first
        quiet = options.quiet or not first
        settings |= {"share": share_of_rank(), "record": record}
        report: Report | Comparison
        if options.against is not None:
            other = Run(options.against)
            named = options.data is not None
            report = against(
                other, source, kept, objective, images, None if named else parts, options, settings
            )
        else:
            with progress_bar(quiet, "bound", _unit(options)) as progress:
                report = kept.through(
                    "bound", evaluate_bound, objective.model, images, progress=progress, **settings
                )
            if options.ode:
                report, failed = with_ode(
                    report, kept, objective, images, train, options, settings
                )
        listed = tuple(report.warnings)
        report.warnings.extend(text for text in heard if not text.endswith(listed))
        if first:
            lines = [report, *(f"FAILED: {name}: {why}" for name, why in failed.items())]
            if options.data is None and not loaded.data:
                unknown = "on what the weights were trained is not recorded"
                lines.append(f"{config.data} is the data that the config names; {unknown}")
            numbers = report.asdict() | ({"failed": failed} if failed else {})
            try:
                say(*lines)
            finally:  # one of the two disks may be full
                write_text(out, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
            say(f"{time.monotonic() - started:.0f} s; in {printable(str(out))}")
        kept.clear()
    return 1 if failed else 0


def against(
    other: "Run",
    source: "Run",
    kept: "Keeper",
    objective: Objective,
    images: Tensor,
    parts: Splits | None,
    options: argparse.Namespace,
    settings: dict[str, Any],
) -> Comparison:
    """By how much the bound of a run lies above another's, each the whole bound of its run."""
    _check_shape(other, images)
    loaded, hint = other.loaded(), "evaluate each of the two by itself"
    if parts is not None:
        check_known(other, loaded, parts)
    theirs = loaded.objective.to(images.device)
    chains = source.config.chain, other.config.chain
    for what, (own, came) in {
        "decoder": (repr(objective.decoder), repr(theirs.decoder)),
        "chain": chains if options.steps is None else (None, None),
        "conditions": tuple("label" * run.config.conditional or None for run in (source, other)),
    }.items():
        if own != came:
            same = f"be a run with the same {what}, {own}"
            raise _invalid("against", same, came, hint)
    settings["record"] |= {"against": str(other.folder)}
    settings["record"] |= {f"{name} against": value for name, value in loaded.record.items()}
    pairs = {"schedule": (objective.schedule, theirs.schedule)}
    quiet = options.quiet or settings["share"].index > 0
    with progress_bar(quiet, "comparison", _unit(options)) as progress:
        given = objective.model, theirs.model, images
        return kept.through("comparison", compare, *given, progress=progress, **settings | pairs)


def _unit(options: argparse.Namespace) -> str:
    return "network evaluations" + (" at least" if options.tolerance else "")


def with_ode(
    report: Report,
    kept: "Keeper",
    objective: Objective,
    images: Tensor,
    train: Tensor,
    options: argparse.Namespace,
    settings: dict[str, Any],
) -> tuple[Report, dict[str, str]]:
    """A report with the ODE's likelihood under each dequantisation beside the bound, and why one
    failed.

    The prior is a Gaussian with the moments of the training images.
    """
    decoder, schedule = objective.decoder, objective.schedule
    assert isinstance(decoder, Levels)
    known, failed = decoder.encode(train), dict[str, str]()
    prior = Gaussian.fit(known, diagonal=known[0].numel() > FULL)
    record = settings["record"] | {"prior fitted to": f"{len(train)} training images"}
    for name, noise in {
        "truncated normal": TruncatedNormal(decoder, schedule.logsnr_max),
        "uniform": Uniform(decoder),
    }.items():
        label = f"ODE, {name} dequantisation"
        share = settings["share"]
        draws = REPLICATES * len(range(share.index, len(images), share.count))
        quiet, unit = options.quiet or share.index > 0, "draws, each a path of the ODE"
        given = {"dequantization": noise, "schedule": schedule, "prior": prior, "audit": True}
        given |= {"tolerance": options.ode_tolerance, "replicates": REPLICATES, "record": record}
        given |= {"seed": options.seed, "share": share}
        given |= {"condition": settings.get("condition")}
        with progress_bar(quiet, label, unit, draws) as progress:
            try:
                part, solve = name.split()[0], partial(dequantized_ode, progress=progress)
                found = kept.through(part, solve, objective.model, images, **given)
                report = report.with_reference(label, found)
            except (RuntimeError, ValueError) as why:  # of a solver, another process, memory
                failed[label] = str(why)
    return report, failed


def _check_shape(run: "Run", images: Tensor) -> None:
    """Raise for images of another shape than those that a run was trained on."""
    came, shape = list(images.shape[1:]), list(run.config.shape)
    if came != shape:
        same = f"be images of shape {shape}, as {run.folder.name} was trained on"
        raise _invalid("data", same, came)


def _invalid(argument: str, requirement: str, got: object, hint: str = "") -> InvalidValue:
    error = InvalidValue(argument, requirement, got, hint)
    error.function = "evaluate"
    return error


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """The texts of the warnings of a block, which are shown as ever.

    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("always")
    ...     warnings.showwarning = lambda *_: None                # not on this page
    ...     with noted_warnings() as heard:
    ...         warnings.warn("an example")
    >>> heard
    ['an example']
    """
    with warnings.catch_warnings():
        heard: list[str] = []
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **more: Any) -> None:
            heard.append(str(message))
            show(message, *rest, **more)

        warnings.showwarning = note
        yield heard


@contextmanager
def progress_bar(quiet: bool, label: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """For `progress=`: how much there is to do before any of it is done, then a bar on a terminal.

    Elsewhere it is a line each minute. The total grows when a second stage is known.
    """
    said = quiet
    with Bar(unit="eval", label=label, quiet=quiet) as bar:

        def show(done: int, total: int) -> None:
            nonlocal said
            if not said:
                say(f"{label}: {total:,} {unit}", file=sys.stderr)
                said = True
            bar.to(done, total)

        if total is not None:
            show(0, total)
        yield show


__all__ = ["DATA", "add", "images_of", "run"]
