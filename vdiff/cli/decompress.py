"""Restore the images or tokens of a file of `vdiff compress`, byte for byte.

    vdiff decompress RUN out.vdiff images.npz

The file is checked before anything is decoded: it must be whole, and written with the weights of
this run, the same software and the same device. The images are checked before the new file
replaces an old one. The number of threads is set to that of the file.
"""

import argparse
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.cli.compress import open_chain
from vdiff.cli.load import output_file
from vdiff.cli.progress import progress_bar
from vdiff.cli.source import add_source
from vdiff.codec import decompress_batches
from vdiff.codec.container import Container, Facts
from vdiff.disk import atomic_write
from vdiff.errors import printable
from vdiff.extras import extra
from vdiff.terminal import say

MOST_THREADS = 1024


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `vdiff decompress`."""
    option = parser.add_argument
    add_source(parser)
    option("data", metavar="FILE", help="a file of vdiff compress")
    option("out", metavar="IMAGES", help="the .npy or .npz file to write")
    option("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    option("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Decompress into a file of arrays; returns 0."""
    with extra("codec"):
        import constriction  # noqa: F401
    out, path = output_file("out", options.out), Path(options.data)
    arrays = out.suffix in (".npy", ".npz")
    require(arrays, "out", "end with .npy or .npz", str(out))
    facts = Container.open(path).facts
    _, chain, _ = open_chain(options)
    with _threads(facts), progress_bar(options.quiet, "decompress", "evaluations") as progress:
        parts = decompress_batches(chain.pop("model"), path, progress=progress, **chain)
        write_images(out, facts, parts)
    size = out.stat().st_size
    examples = "images" if facts.kind == "latents" else "texts"
    say(f"{facts.shape[0]:,} {examples}, {size:,} bytes, in {printable(str(out))}")
    return 0


@contextmanager
def _threads(facts: Facts) -> Iterator[None]:
    """As many threads as the file was written with."""
    before, wanted = torch.get_num_threads(), facts.of.get("threads")
    if type(wanted) is int and 1 <= wanted <= MOST_THREADS:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_images(path: Path, facts: Facts, parts: Iterator[Tensor]) -> None:
    """Write images as they come, in the layout that they had, to a .npy or .npz file, which is
    replaced when all of them are right."""
    with atomic_write(path) as aside:
        if path.suffix == ".npy":
            with aside.open("wb") as stream:
                _write(stream, facts, parts)
        else:
            with (
                zipfile.ZipFile(aside, "w") as archive,
                archive.open("images.npy", mode="w", force_zip64=True) as member,
            ):
                _write(member, facts, parts)


def _write(stream: Any, facts: Facts, parts: Iterator[Tensor]) -> None:
    layout, shape, kind = facts.record.get("layout"), facts.shape, np.dtype(facts.dtype)
    images = len(shape) == 4
    if layout == "no channels" and images and shape[1] == 1:
        shape = [shape[0], *shape[2:]]
    elif layout == "channels last" and images:
        shape = [shape[0], *shape[2:], shape[1]]
    head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, head | {"shape": tuple(shape)})
    for part in parts:
        values = part.numpy()
        values = np.moveaxis(values, 1, -1) if layout == "channels last" and images else values
        stream.write(np.ascontiguousarray(values).tobytes())
