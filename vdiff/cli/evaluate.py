"""Evaluate a run, or any network: its bound in bits per dimension with errors, or the difference
from another run's.

    vdiff evaluate runs/vdm --tolerance 0.002
    vdiff evaluate mine.py:build --data test/  an Objective, without a run
    vdiff evaluate FOLDER --data test/         a folder of save_pretrained
    torchrun --nproc-per-node 2 --no-python vdiff evaluate runs/vdm

With --against, each run's bound is complete, between its own ends.

Uses the averaged weights and a whole split, or its first images. --ode adds the likelihood of the
probability-flow ODE under each dequantisation. The ODE is another model, so the gap to the bound
may have either sign. Writes RUN/evaluation.json (or --out) with a protocol that reproduces the
numbers. Ctrl-C or SIGTERM saves the state beside that file, and the same command resumes from it.
Several processes share the images.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.cli.load import (
    DATA,
    check_training_data,
    data_for,
    data_options,
    output_file,
    parse_device,
    training_images,
)
from vdiff.cli.own import load_run
from vdiff.cli.parser import positive
from vdiff.cli.progress import noted_warnings, progress_bar
from vdiff.cli.resume import Resumable
from vdiff.cli.source import add_source, open_source
from vdiff.decoder import Levels
from vdiff.disk import write_text
from vdiff.errors import printable
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
from vdiff.oracle import Gaussian
from vdiff.terminal import say, say_json, wrapped

if TYPE_CHECKING:
    from vdiff.training import Run
    from vdiff.training.loading import Loaded

SPLITS = ("test", "selection", "train")
REPLICATES = 2  # of a likelihood by the ODE
MAX_FULL = 4096  # dimensions up to which the prior has a full covariance


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff evaluate`."""
    option, default = parser.add_argument, "(default: %(default)s)"
    add_source(parser)
    text = f"{', '.join(DATA)}, a folder of pictures, a .npy or .npz file (default: the run's own)"
    option("--data", help=text)
    text = "with --data: pixels of the shorter side (default: as the run reads its own data)"
    option("--size", type=positive, metavar="N", help=text)
    text = "with --data: how to read it, such as data_options.channels=3"
    option("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=text)
    option("--split", choices=SPLITS, default="test", help=default)
    text = "evaluate only the first N of the split; the protocol records it (default: all)"
    option("--images", type=positive, metavar="N", help=text)
    option("--tolerance", type=float, help="Monte Carlo standard error to reach, bits/dim")
    option("--budget", type=int, help="maximum number of network evaluations")
    text = "times per image and replicate (default: 32, or what the tolerance needs)"
    option("--draws", type=int, help=text)
    text = f"grids of times per image, in the first stage if a tolerance is given {default}"
    option("--replicates", type=int, default=4, help=text)
    text = "bound of a chain of this many steps (default: as the run, or continuous time)"
    option("--steps", type=int, help=text)
    text = "also the likelihood of the probability-flow ODE"
    option("--ode", action="store_true", help=text)
    text = f"of the ODE solver; half of it is solved as a check {default}"
    option("--ode-tolerance", type=float, default=1e-4, help=text)
    text = "report how far the bound lies above that of another run"
    option("--against", metavar="RUN", help=text)
    text = "the builder of that run's network (default: that of --model)"
    option("--against-model", metavar="FILE.py:NAME", help=text)
    option("--seed", type=int, default=0, help=default)
    option("--batch", type=int, default=1024, help=f"network evaluations at a time {default}")
    option("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    option("--out", help="file to write to (default: RUN/evaluation.json)")
    option("--json", action="store_true", help="print JSON instead of the table")
    option("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Evaluate, print and write; 1 if the ODE failed."""
    from vdiff.training import distributed, rank
    from vdiff.training.signals import interruptible

    if options.ode:
        with extra("ode"):  # before the bound is computed
            import torchdiffeq  # noqa: F401
    evaluation, started = Evaluation(options), time.monotonic()
    failed: dict[str, str] = {}
    with (
        distributed(),
        noted_warnings() as heard,
        evaluation.states,
        interruptible(),
    ):
        evaluation.start()
        report: Report | Comparison
        if options.against is not None:
            report = evaluation.against()
        else:
            report = evaluation.bound()
            if options.ode:
                report, failed = evaluation.with_ode(report)
        listed = tuple(report.warnings)
        report.warnings.extend(text for text in heard if not text.endswith(listed))
        if rank().is_zero:
            evaluation.write(report, failed)
            seconds, out = time.monotonic() - started, printable(str(evaluation.out))
            say(f"{seconds:.0f} s; in {out}", file=sys.stderr if options.json else None)
        evaluation.states.clear()
    return 1 if failed else 0


class Evaluation:
    """A run, its images, and what all estimates of one command have in common."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, parse_device(options.device)
        opened = open_source(options.run, options.model, options.classes, data=options.data)
        self.source, self.loaded, builder, is_run = opened
        config = self.source.config
        self.objective = self.loaded.objective.to(self.device)
        self.decoder = self.objective.decoder
        self._check_options()
        given = data_options(config, options)
        self.parts = data_for(self.source, self.loaded, options.data, given)
        whole, of_whole = getattr(self.parts, options.split), self.parts.train is self.parts.test
        hint = "other data than the run's has no split: all of it is measured"
        fits = not of_whole or options.split == "test"
        require(fits, "split", "be left out", options.split, hint)
        split = whole[: options.images]
        self.images = split.pixels.to(self.device)
        if is_run:
            _check_shape(self.source, self.images)
        words = ("tolerance", "budget", "draws", "replicates", "seed", "batch")
        self.settings: dict[str, Any] = {word: getattr(options, word) for word in words}
        self.settings["steps"] = self.objective.steps if options.steps is None else options.steps
        self.settings["decoder"] = self.decoder
        self.condition = {"label": split.labels.to(self.device)} if config.conditional else None
        part = f"the first {len(split)} of {len(whole)}" if len(split) < len(whole) else "all"
        self.record = {"run": str(self.source.folder), "split": options.split, "part": part}
        self.record |= {"ema": config.ema[0]} | self.loaded.record
        self.record |= {} if builder is None else {"network": str(builder)}
        self.record["data set"] = options.data or config.data
        self.record |= {"read as": whole.record} if whole.record else {}
        self.record["trained on"] = self.loaded.data or "images that are not recorded"
        name = "evaluation.json" if options.against is None else "comparison.json"
        self.out = Path(options.out) if options.out else self.source.folder / name
        if not options.out:
            self.source.folder.mkdir(exist_ok=True)  # weights that no run holds have none yet
        if options.out or not self.out.is_symlink():
            output_file("out", self.out)
        self.states = Resumable(self.out)

    def _check_options(self) -> None:
        ode, decoder = self.options.ode, self.decoder
        hint = "without one there is no bound"
        tokens = not diffusion_of(self.objective.model).continuous
        require(tokens or decoder is not None, "run", "have a decoder", None, hint)
        what, hint = "come without against", "evaluate each of the two with --ode"
        require(not ode or self.options.against is None, "ode", what, self.options.against, hint)
        what, hint = "come with a decoder of levels", "a density needs no dequantisation"
        require(not ode or isinstance(decoder, Levels), "ode", what, repr(decoder), hint)
        alone = self.options.against_model is None or self.options.against is not None
        require(alone, "against-model", "come with --against", self.options.against_model)

    def start(self) -> None:
        """What depends on the process group."""
        from vdiff.training.ranks import share_of_rank

        self.share = share_of_rank()
        self.quiet = self.options.quiet or self.share.index > 0
        self.settings |= {"share": self.share, "record": self.record, "condition": self.condition}
        if self.options.data is not None:
            self._record_overlap(self.source, self.loaded)
        self.goal = f"{len(self.images):,} images"
        self.unit = "network evaluations" + (" at least" if self.options.tolerance else "")

    def _record_overlap(self, run: "Run", loaded: "Loaded", name: str = "") -> None:
        """How many of other data's images a run was trained on."""
        warn = self.share.index == 0 and self.options.split != "train"
        found = training_images(run, loaded, self.images, warn=warn)
        self.record[f"in the training data{name}"] = found

    def bound(self) -> Report:
        """The bound of the run."""
        given = self.settings | {"schedule": self.objective.schedule}
        with progress_bar(self.quiet, "bound", self.unit, goal=self.goal) as progress:
            model = self.objective.model
            return self.states.call(
                "bound", evaluate_bound, model, self.images, progress=progress, **given
            )

    def against(self) -> Comparison:
        """By how much the bound of the run lies above that of another run, each between its own
        ends."""
        from vdiff.training import Run

        options, other = self.options, Run(self.options.against)
        _check_shape(other, self.images)
        model = options.against_model
        if model is None and other.config.own_network:
            model = options.model
        loaded, _ = load_run(other, model)
        if options.data is None:
            check_training_data(other, loaded, self.parts)
        else:
            self._record_overlap(other, loaded, " against")
        theirs, runs = loaded.objective.to(self.device), (self.source, other)
        pairs: dict[str, tuple[object, ...]] = {
            "decoder": (repr(self.decoder), repr(theirs.decoder)),
            "chain": (self.objective.steps, theirs.steps)
            if options.steps is None
            else (None, None),
            "conditions": tuple("label" * run.config.conditional or None for run in runs),
        }
        for what, (own, got) in pairs.items():
            hint = "evaluate each of the two by itself"
            require(own == got, "against", f"be a run with the same {what}, {own}", got, hint)
        self.record["against"] = str(other.folder)
        self.record |= {f"{name} against": value for name, value in loaded.record.items()}
        given = self.settings | {"schedule": (self.objective.schedule, theirs.schedule)}
        with progress_bar(self.quiet, "comparison", self.unit, goal=self.goal) as progress:
            models = self.objective.model, theirs.model
            return self.states.call(
                "comparison", compare, *models, self.images, progress=progress, **given
            )

    def with_ode(self, report: Report) -> tuple[Report, dict[str, str]]:
        """The report with the ODE's likelihood under each dequantisation beside the bound, and the
        errors of those that failed.

        The prior is a Gaussian with the moments of the training images.
        """
        decoder, schedule, failed = self.decoder, self.objective.schedule, dict[str, str]()
        assert isinstance(decoder, Levels)
        train = decoder.encode(self.parts.train.pixels.to(self.device))
        prior = Gaussian.fit(train, diagonal=train[0].numel() > MAX_FULL)
        names = ("share", "condition", "seed")
        given = {name: self.settings[name] for name in names}
        given |= {"schedule": schedule, "prior": prior, "audit": True, "replicates": REPLICATES}
        given["tolerance"] = self.options.ode_tolerance
        which = (
            "training images" if self.parts.train is not self.parts.test else "images, measured"
        )
        given["record"] = self.record | {"prior fitted to": f"{len(train)} {which}"}
        share, unit = self.share, "draws, each a path of the ODE"
        draws = REPLICATES * len(range(share.index, len(self.images), share.count))
        for name, noise in {
            "truncated normal": TruncatedNormal(decoder, schedule.logsnr_max),
            "uniform": Uniform(decoder),
        }.items():
            label, part = f"ODE, {name} dequantisation", name.split()[0]
            with progress_bar(self.quiet, label, unit, draws, self.goal) as progress:
                solve = partial(dequantized_ode, progress=progress, dequantization=noise)
                try:
                    model, images = self.objective.model, self.images
                    likelihood = self.states.call(part, solve, model, images, **given)
                    report = report.with_reference(label, likelihood)
                except (RuntimeError, ValueError) as why:  # of a solver, another process, memory
                    failed[label] = str(why)
        return report, failed

    def write(self, report: Report | Comparison, failed: dict[str, str]) -> None:
        """Print a report and write it."""
        lines = [report, *(f"FAILED: {name}: {why}" for name, why in failed.items())]
        if self.options.data is None and not self.loaded.data:
            unknown = "on what the weights were trained is not recorded"
            named = f"{self.source.config.data} is the data that the config names"
            lines.append(f"{named}; {unknown}")
        numbers = report.asdict() | ({"failed": failed} if failed else {})
        try:
            if self.options.json:
                say_json(numbers)
            else:
                say(*map(wrapped, lines))
        finally:  # one of the two disks may be full
            write_text(self.out, json.dumps(numbers, indent=2, allow_nan=False) + "\n")


def _check_shape(run: "Run", images: Tensor) -> None:
    """Raise unless images have the shape that a run was trained on."""
    got, shape = list(images.shape[1:]), list(run.config.shape)
    what = f"be images of shape {shape}, as {run.folder.name} was trained on"
    hint = f"--size {shape[-1]} resizes pictures" if len(shape) == 3 else ""
    if got[:1] != shape[:1] and shape[0] in (1, 3):
        hint = f"--set data_options.channels={shape[0]} converts pictures"
    require(got == shape, "data", what, got, hint)
