"""A batch of images onto a stack of bits and off it again: bits-back coding of a chain.

    push:  pop z₀ ~ q(z₀ | x);  push x under p(x | z₀);
           t = 1 … T:  pop z_t ~ q(z_t | z_s);  push z_s under p(z_s | z_t);
           push z_T under N(0, I)

What is popped are bits that the stack had before; a `pop` puts them back. The expected growth is
the bound of the chain. Step by step, a batch needs the bits of two latents to begin with, and not
those of all (Bit-Swap, Kingma et al., arXiv:1905.06845).
"""

import math

import numpy as np
import torch
from torch import Tensor

from vdiff._diffusion import GAUSSIAN
from vdiff.codec.code import Code, Rows, Tick
from vdiff.codec.latents import SPARE_BITS, Latents, Normal
from vdiff.codec.stack import Floats, Integers, Stack
from vdiff.likelihood.digest import digest, weights_digest


class BitsBack(Code):
    """The code of images under a chain."""

    kind, unit = "latents", GAUSSIAN.unit

    def __init__(self, latents: Latents) -> None:
        self.latents, self.device = latents, latents.device
        self.steps, self.spacing, self.cost = latents.steps, latents.spacing, latents.cost

    def identity(self) -> dict[str, str]:
        latents, decoder = self.latents, self.latents.decoder
        chain = (latents.logsnr, latents.delta, torch.from_numpy(latents.grid))
        levels = b"".join(v.numpy().tobytes() for v in chain)
        of_decoder = f"{decoder} {weights_digest(decoder)}"
        return {"chain": digest(levels), "decoder": digest(of_decoder.encode())}

    def needed(self, images: int, dims: int) -> float:
        """Their mean and six standard deviations."""
        count = images * dims
        return count * self.latents.start_bits + 6 * math.sqrt(2 * count) + 2 * SPARE_BITS

    def more(self, dims: int) -> float:
        return dims * self.latents.start_bits

    def push(self, stack: Stack, data: Tensor, rows: Rows, tick: Tick) -> Floats:
        return push(stack, self.latents, data, rows, tick)

    def pop(self, stack: Stack, rows: Rows, tick: Tick) -> Tensor:
        return pop(stack, self.latents, rows, tick)


def push(stack: Stack, latents: Latents, data: Tensor, rows: Rows, tick: Tick) -> Floats:
    """Push a batch of levels; returns the log-ratio of each image's path, log q(z₀ … z_T | x) −
    log p(x, z₀ … z_T) of the continuous latents, nats."""
    q = latents.of_data(data)
    stack.whiten(0, q.most_bits)
    index = _pop(stack, q)
    ratio = q.log_density(index)
    probabilities = latents.levels(index, rows)
    levels = data.cpu().numpy().astype(np.int64).ravel()
    stack.push_levels(levels, probabilities)
    ratio -= np.log(probabilities[np.arange(len(levels)), levels])
    for i in range(1, latents.steps + 1):
        q = latents.forward(i, index)
        stack.whiten(i, q.most_bits)
        noisier = _pop(stack, q)
        p = latents.reverse(i, noisier, rows)
        stack.push_normal(index, p.mean, p.std)
        ratio += q.log_density(noisier) - p.log_density(index)
        index = noisier
        tick()
    prior = latents.prior(len(index))
    stack.push_normal(index, prior.mean, prior.std)
    ratio -= prior.log_density(index)
    of_images: Floats = ratio.reshape(len(data), -1).sum(1)
    return of_images


def pop(stack: Stack, latents: Latents, rows: Rows, tick: Tick) -> Tensor:
    """Pop a batch of levels, in int64."""
    index = _pop(stack, latents.prior(int(np.prod(rows.shape))))
    for i in range(latents.steps, 0, -1):
        less_noisy = _pop(stack, latents.reverse(i, index, rows))
        q = latents.forward(i, less_noisy)
        stack.push_normal(index, q.mean, q.std)
        stack.whiten(i, q.most_bits)
        index = less_noisy
        tick()
    levels = torch.from_numpy(stack.pop_levels(latents.levels(index, rows))).view(rows.shape)
    q = latents.of_data(levels)
    stack.push_normal(index, q.mean, q.std)
    stack.whiten(0, q.most_bits)
    return levels


def _pop(stack: Stack, normal: Normal) -> Integers:
    return stack.pop_normal(normal.mean, normal.std)
