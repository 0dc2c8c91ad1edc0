"""Compress images or tokens without loss, with the trained chain of a run: a file as long as its
bound.

    vdiff compress RUN images.npz out.vdiff
    vdiff decompress RUN out.vdiff images.npz

IMAGES is a .npy or .npz file of levels or tokens, as the run was trained on. Prints the bytes and
bits/dim of the file, the bound of the same chain, what the discretisation of the latents and the
first bits cost, and the bytes of PNG, gzip, xz and zstd of the same images. Each image takes T
evaluations of the network, and as many to decompress, which needs the same software and number of
threads.

Tokens need masks. Without --steps, and in a run without steps whose network gets no time, each
evaluation codes one token of a text.

RUN may also be FILE.py:NAME, a builder, or a folder of save_pretrained, as for evaluate.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdiff._arguments import original
from vdiff._diffusion import diffusion_of, takes_time
from vdiff._validate import require
from vdiff.cli.load import in_words_of_the_command, output_file, parse_device
from vdiff.cli.parser import positive
from vdiff.cli.progress import progress_bar
from vdiff.cli.source import Source, add_source, open_source
from vdiff.codec import Compressed, compress
from vdiff.codec.baselines import baselines
from vdiff.codec.latents import TOLERANCE
from vdiff.data.arrays import read_arrays
from vdiff.data.mapped import Mapped
from vdiff.decoder import Levels
from vdiff.errors import InvalidValue, printable
from vdiff.extras import extra
from vdiff.likelihood import Estimate, evaluate
from vdiff.terminal import say, say_json

STEPS = 250  # T of a run that was trained in continuous time
MOST = 1 << 24  # values of the images whose bound is evaluated
REPLICATES = 2


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff compress`."""
    option = parser.add_argument
    add_source(parser)
    option("data", metavar="IMAGES", help="a .npy or .npz file of levels or tokens")
    option("out", metavar="FILE", help="the file to write, such as images.vdiff")
    text = f"T, the steps of the chain (default: the run's own, or {STEPS}; or one token each)"
    option("--steps", type=positive, metavar="T", help=text)
    text = "bits/dim by which discretisation may lengthen the code (default: %(default)s)"
    option("--tolerance", type=float, default=TOLERANCE, help=text)
    option("--batch", type=positive, default=64, help="most images at a time (default: 64)")
    option("--no-bound", action="store_true", help="do not evaluate the bound")
    option("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    option("--json", action="store_true", help="print JSON instead of the table")
    option("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Compress, and print the sizes; returns 0."""
    with extra("codec"):  # before the run is loaded
        import constriction  # noqa: F401
    out = output_file("out", options.out)
    source, chain, values = open_chain(options)
    model = chain.pop("model")
    steps = options.steps or source.loaded.objective.steps or _steps_of(model)
    data, record = read_images(Path(options.data), values)
    shape = tuple(source.run.config.shape)
    what = (
        f"be {diffusion_of(model).unit.example}s of shape {list(shape)}, as the run was trained on"
    )
    fits = not source.is_run or data.shape[1:] == shape
    require(fits, "IMAGES", what, list(data.shape[1:]))
    with progress_bar(options.quiet, "compress", "network evaluations") as progress:
        given = {"tolerance": options.tolerance, "batch": options.batch, "record": record}
        written = compress(model, data, out, steps=steps, progress=progress, **chain, **given)
    bound = None if options.no_bound else _bound(options, model, data, steps, chain)
    others = baselines(data, values)
    if options.json:
        say_json(_numbers(written, bound, others, steps))
    else:
        say(_table(written, bound, others, steps), f"in {printable(str(out))}")
    return 0


def _steps_of(model: Any) -> int | None:
    """T of a model that was trained in continuous time; None codes tokens in any order."""
    order = diffusion_of(model).any_order()
    return STEPS if order is None or takes_time(original(model)) else None


def open_chain(options: argparse.Namespace) -> tuple[Source, dict[str, Any], int]:
    """A source, with its model, schedule and decoder on the device, and how many values its data
    have. Raises ValueError for a run without levels or tokens, or with classes."""
    device = parse_device(options.device)
    source = open_source(options.run, options.model, options.classes, data=options.data)
    objective = source.loaded.objective.to(device)
    hint = "vdiff.codec.compress(…, condition=…) takes labels"
    require(not source.run.config.conditional, "run", "take no labels", "a run with classes", hint)
    decoder = objective.decoder
    process: Any = diffusion_of(objective.model)
    chain = {"model": objective.model, "schedule": objective.schedule, "decoder": decoder}
    if not process.continuous:
        return source, chain, process.vocabulary
    if not isinstance(decoder, Levels):
        hint = "a density has no file: its values are not finitely many"
        raise InvalidValue("run", "have a decoder of levels", repr(decoder), hint)
    return source, chain, decoder.levels


def read_images(path: Path, values: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The array of a file, mapped, as (n, channels, height, width); and what turns it back."""
    what = "be a .npy or .npz file"
    require(path.suffix in (".npy", ".npz") and path.is_file(), "IMAGES", what, str(path))
    with in_words_of_the_command():
        try:
            images = read_arrays(path, levels=values, alpha="refuse")
        except InvalidValue as error:  # floating data takes no `levels`
            floating = error.argument == "levels"
            require(not floating, "IMAGES", "hold whole numbers", f"floating data in {path}")
            raise
    store = images.store
    assert isinstance(store, Mapped)
    require(store.kind.kind in "ui", "IMAGES", "hold whole numbers", f"{store.kind} in {path}")
    if bool((images.labels != 0).any()):
        warnings.warn(f"the labels of {path.name} are not compressed", stacklevel=2)
    raw = np.memmap(path, store.kind, "r", store.offset, store.full, store.order)
    if store.layout == "no channels":
        return raw[:, None], {"layout": store.layout}
    if store.layout == "channels last":
        return np.moveaxis(raw, -1, 1), {"layout": store.layout}
    return raw, {"layout": store.layout}


def _bound(
    options: argparse.Namespace,
    model: Any,
    data: np.ndarray,
    steps: int | None,
    chain: dict[str, Any],
) -> Estimate:
    """The bound of the first images, as many as fit into memory."""
    most = max(1, MOST // int(np.prod(data.shape[1:])))
    kind = data.dtype.newbyteorder("=")
    images = torch.from_numpy(np.array(data[:most], dtype=kind, order="C"))
    images = images.to(parse_device(options.device))
    with progress_bar(options.quiet, "bound", "network evaluations") as progress:
        settings = {"steps": steps, "replicates": REPLICATES, "progress": progress}
        report = evaluate(model, images, **settings, **chain)
    return report.total


def _parts(written: Compressed) -> str:
    return "tokens" if written.unit.name == "bits/token" else "dimensions"


def _numbers(
    written: Compressed, bound: Estimate | None, others: dict[str, int], steps: int | None
) -> dict[str, Any]:
    over = written.bits_per_dim - written.path_bits_per_dim
    numbers: dict[str, Any] = {
        "images": written.images, "dims": written.dims, "steps": steps, "bytes": written.bytes,
        "bytes of the images": -(-written.bits // 8), "bytes of the start": written.start // 8,
        "bytes of the container": written.container, written.unit.name: written.bits_per_dim,
        f"{written.unit.name} of the paths": written.path_bits_per_dim, "discretisation": over,
        "cost of the grids": written.cost, "others": others,
    }  # fmt: skip
    if bound is not None:
        of = {"value": bound.value, "Monte Carlo": bound.monte_carlo, "images": bound.images}
        numbers["bound"] = of
    return json.loads(json.dumps(numbers))  # type: ignore[no-any-return]


def _table(
    written: Compressed, bound: Estimate | None, others: dict[str, int], steps: int | None
) -> str:
    over = written.bits_per_dim - written.path_bits_per_dim
    what = f"{written.images:,} {written.unit.example}s of {written.dims:,} {_parts(written)}"
    lines = [f"{what}, {steps:,} steps" if steps else f"{what}, one token in each step"]
    lines += [str(written), ""]
    if bound is not None:
        lines.append(f"{'bound':<26}{bound.value:>12.4f} ± {bound.monte_carlo:.4f}")
    lines.append(f"{'log-ratio of the paths':<26}{written.path_bits_per_dim:>12.4f}")
    lines.append(f"{'discretisation':<26}{over:>12.4f}, grids at most {written.cost:.4f}")
    lines += ["", f"{'':<12}{'bytes':>14}{'of the file':>12}"]
    lines += [
        f"{name:<12}{size:>14,}{size / written.bytes:>11.2f}×" for name, size in others.items()
    ]
    return "\n".join(lines)
