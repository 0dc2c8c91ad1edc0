"""Networks, images and files of the codec."""

import functools
import math
from pathlib import Path

import numpy as np
import torch

from vdiff import Objective
from vdiff.codec import batches, compress, decompress
from vdiff.codec.code import Rows
from vdiff.codec.latents import Latents
from vdiff.codec.stack import Stack
from vdiff.likelihood._models import evaluating
from vdiff.schedule import Linear

WEIGHTS = Path(__file__).parents[1] / "examples" / "weights" / "digits"
LINEAR = Linear(9.0, -7.0)


class Net(torch.nn.Module):
    """A small network for any shape, untrained: two layers over the values of an image."""

    def __init__(self, dims, channels=1, seed=0, labels=False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.channels, self.labels = channels, labels
        self.a = torch.nn.Parameter(torch.randn(dims, 16, generator=generator) / dims**0.5)
        self.b = torch.nn.Parameter(torch.randn(16, channels * dims, generator=generator) / 8)

    def forward(self, z, logsnr, label=None):
        shift = 0 if label is None else label[:, None].to(z.dtype)
        hidden = torch.tanh(z.flatten(1) @ self.a + 0.1 * logsnr[:, None].to(z.dtype) + shift)
        out = hidden @ self.b
        return out.view(len(z), self.channels * z.shape[1], *z.shape[2:])


def round_trip(tmp_path, model, data, schedule, decoder, steps, **options):
    given, path = {"schedule": schedule, "decoder": decoder}, tmp_path / "images.vdiff"
    written = compress(model, data, path, steps=steps, **given, **options)
    back = decompress(model, path, **given)
    assert written.bytes == path.stat().st_size
    assert len(list(tmp_path.iterdir())) == 1
    return written, back


@functools.cache
def objective():
    return Objective.from_pretrained(WEIGHTS)


def of_digits():
    return {"schedule": objective().schedule, "decoder": objective().decoder}


def latents_of(model, schedule, decoder, steps, **options):
    return Latents(model, schedule, decoder, steps, torch.device("cpu"), **options)


def push(latents, data, seed=0):
    """The bits that a batch adds to random ones, and the log-ratios of its paths, bits."""
    rng, count = np.random.default_rng(seed), int(latents.start_bits * data.numel() / 16) + 60
    words = rng.integers(0, 2**32, count, dtype=np.uint32)
    words[-1] |= 1
    stack = Stack(words)
    before = stack.bits
    with evaluating():
        ratio = batches.push(stack, latents, data, Rows(tuple(data.shape), {}), lambda: None)
    return stack.bits - before, ratio / math.log(2)
