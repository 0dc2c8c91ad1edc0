"""Evaluate a run: its bound in bits per dimension with errors, or the difference from another run's.

Takes the averaged weights and whole splits. Writes RUN/evaluation.json (or --out), from whose protocol the number can be computed
again. When interrupted, the same command takes up where it stopped. Several processes share the images:
`torchrun --nproc-per-node 2 --no-python vdiff evaluate RUN`.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vdiff.cli.load import device_of
from vdiff.data import Images, Splits, splits
from vdiff.data.registry import DATASETS
from vdiff.errors import did_you_mean, must
from vdiff.likelihood import Comparison, Report, compare
from vdiff.likelihood import evaluate as evaluate_bound
from vdiff.training import Run, here, processes
from vdiff.training.run import write_aside
from vdiff.training.share import share_of_rank

DATA: dict[str, Callable[[str], Splits]] = {name: partial(splits, name) for name in DATASETS}
SPLITS = ("test", "selection", "train")
PAUSE = 60.0  # seconds between checkpoints


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff evaluate`.

    >>> parser = argparse.ArgumentParser()
    >>> add(parser)
    >>> parser.parse_args(["runs/digits", "--tolerance", "0.005"]).tolerance
    0.005
    """
    parser.add_argument("run", metavar="RUN", help="run folder, as a training writes it")
    parser.add_argument("--data", help=f"{', '.join(DATA)}, or a folder with CIFAR-10 (default: the run's own)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    parser.add_argument("--tolerance", type=float, help="Monte Carlo standard error to reach, bits/dim")
    parser.add_argument("--budget", type=int, help="most network evaluations that may take")
    parser.add_argument("--draws", type=int, help="times per image and replicate (default: 32, or what the tolerance needs)")
    parser.add_argument("--replicates", type=int, default=4, help="grids per image, or of the first stage (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, help="the bound of a chain of so many steps (default: the run's own chain, or continuous time)"
    )
    parser.add_argument("--against", metavar="RUN", help="report by how much the bound lies above that of another run")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="network evaluations at a time (default: %(default)s)")
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
    ValueError: Run: argument 'folder' must hold a config.json; got ...
    """
    source = Run(options.run)
    config, device = source.config, device_of(options.device)
    objective = source.load().to(device)
    if objective.decoder is None:
        raise ValueError(must("evaluate", "run", "have a decoder", None, "without one there is no bound"))
    found = images_of(options.data or config.data, options.split, config.folder)
    images = found.pixels.to(device)
    settings: dict[str, Any] = {
        word: getattr(options, word) for word in ("steps", "tolerance", "budget", "draws", "replicates", "seed", "batch")
    }
    settings |= {"schedule": objective.schedule, "decoder": objective.decoder, "steps": options.steps or config.chain}
    if config.conditional:
        settings["label"] = found.labels.to(device)
    record = {"run": str(source.folder), "split": options.split, "ema": config.ema[0], "weights file": weights_hash(source)}
    out = Path(options.out) if options.out else source.folder / ("evaluation.json" if options.against is None else "comparison.json")
    with processes(), progress_bar(options.quiet or not here().first) as progress:
        settings |= {"share": share_of_rank(), "progress": progress}
        report: Report | Comparison
        if options.against is not None:
            other = Run(options.against)
            record |= {"against": str(other.folder), "weights file against": weights_hash(other)}
            report = compare(objective.model, other.load().to(device).model, images, record=record, **settings)
        else:
            kept = Kept(out.with_suffix(f".{settings['share'].index}.safetensors"))
            report = evaluate_bound(objective.model, images, record=record, resume=kept.state(), checkpoint=kept, **settings)
            kept.path.unlink(missing_ok=True)
        if here().first:
            write_aside(out, json.dumps(report.asdict(), indent=2, allow_nan=False) + "\n")
            print(f"{report}\nin {out}")
    return 0


class Kept:
    """A checkpoint on disk, written at most once a minute.

    >>> Kept(Path("no-such-file")).state() is None
    True
    """

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, time.monotonic()

    def __call__(self, state: dict[str, Tensor]) -> None:
        """Write, if it is time to."""
        if time.monotonic() - self.last > PAUSE:
            aside = self.path.with_suffix(".partial")
            save_file(state, aside)
            os.replace(aside, self.path)
            self.last = time.monotonic()

    def state(self) -> dict[str, Tensor] | None:
        """What an interrupted command left."""
        return load_file(self.path) if self.path.is_file() else None


def images_of(name: str, split: str, folder: str) -> Images:
    """A split of a data set whose files are in `folder`, or of CIFAR-10 in the folder that is named in its place; an unknown name is
    answered with the nearest.

    >>> images_of("digits", "test", "data").pixels.shape
    torch.Size([297, 1, 8, 8])
    """
    if name not in DATA and Path(name).is_dir():
        name, folder = "cifar10", name
    if name not in DATA:
        raise ValueError(must("evaluate", "data", f"be one of {', '.join(DATA)}, or a folder", repr(name), did_you_mean(name, DATA)))
    images: Images = getattr(DATA[name](folder), split)
    return images


def weights_hash(run: Run) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the averaged weights' file."""
    return hashlib.sha256(run.weights().read_bytes()).hexdigest()[:16]


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Any]:
    """A bar for `progress=`; its total grows when the second stage is known."""
    from tqdm import tqdm

    with tqdm(total=0, unit="eval", disable=quiet, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


__all__ = ["add", "run"]
