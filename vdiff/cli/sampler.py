"""A sample by its number: what all samples of a command have in common."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.cli.numbered import open_numbered, write_image
from vdiff.cli.pictures import to_bytes
from vdiff.decoder import Levels
from vdiff.errors import printable
from vdiff.sampling import per_sample_generators, start, to_levels
from vdiff.terminal import Bar, say

FRAMES = 60  # of a GIF, at most


@dataclass
class Sampler:
    """Draws samples by their numbers. `path` is a trajectory through `visited` levels; `classes`
    are taken in turn."""

    options: argparse.Namespace
    path: Callable[..., Any]
    decoder: Levels
    shape: list[int]
    classes: Tensor | None
    device: torch.device
    visited: int

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The classes of samples: those of --label, in turn."""
        if self.classes is None:
            return None
        return self.classes[torch.tensor(numbers) % len(self.classes)]

    def all(self) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """The data and x̂ of all samples, and for each batch the frames of its trajectory."""
        options = self.options
        goal = f"{options.count:,} samples"
        total, quiet = options.count * self.visited, options.quiet
        with Bar(total, "level", "sample", quiet=quiet, goal=goal) as bar:
            starts = range(0, options.count, options.batch)
            ends = (min(first + options.batch, options.count) for first in starts)
            drawn = [self.draw(range(*pair), bar) for pair in zip(starts, ends, strict=True)]
        data, x, frames = zip(*drawn, strict=True)
        return torch.cat(data), torch.cat(x), list(frames)

    def draw(self, numbers: Sequence[int], bar: Bar) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The data and x̂ of samples by their numbers, and with --gif the frames."""
        generators, frames = per_sample_generators(self.options.seed, numbers), list[Tensor]()
        label = self.labels(numbers)
        condition = {} if label is None else {"label": label.to(self.device)}
        z = start(self.shape, generators).to(self.device)
        for i, (_, prediction) in enumerate(
            self.path(z, generator=generators, condition=condition)
        ):
            bar.update(len(z))
            if self.options.gif and _is_frame(i, self.visited):
                frames.append(self.decoder.decode(prediction.x).cpu())
        drawn = to_levels(self.decoder, prediction, draw=self.options.draw, generator=generators)
        return drawn.cpu(), prediction.x.cpu(), frames

    def write_pngs(self, folder: Path, settings: dict[str, Any]) -> int:
        """Write the samples that a folder of numbered PNGs lacks. Processes share the batches,
        which are those of one process."""
        from vdiff.training.ranks import all_reduce, on_rank_zero, rank

        count, batch, process = self.options.count, self.options.batch, rank()
        missing = on_rank_zero(lambda: open_numbered(folder, settings, count))
        batches = [missing[first : first + batch] for first in range(0, len(missing), batch)]
        mine, quiet = batches[process.index :: process.world_size], not process.is_zero
        size = f"at most {math.prod(self.shape) * len(missing) / 1e6:,.1f} MB"
        if not quiet:
            say(f"{len(missing):,} of {count:,} PNGs to draw, {size}", file=sys.stderr)
        total, goal = sum(map(len, mine)) * self.visited, f"{len(missing):,} samples"
        with Bar(total, "level", "sample", quiet=quiet or self.options.quiet, goal=goal) as bar:
            try:
                for numbers in mine:
                    images = to_bytes(self.draw(numbers, bar)[0], self.decoder.levels)
                    for number, image in zip(numbers, images, strict=True):
                        write_image(folder, number, image)
            except KeyboardInterrupt as error:
                error.add_note(f"samples so far are in {folder}: the same command continues")
                raise
        all_reduce(torch.zeros(1))  # the others have written theirs
        if not quiet:
            say(f"{count:,} samples in {printable(str(folder))}")
        return 0


def _is_frame(i: int, visited: int) -> bool:
    """Whether level i is a frame: at most FRAMES of them, among them the last."""
    return (visited - 1 - i) % -(-visited // FRAMES) == 0
