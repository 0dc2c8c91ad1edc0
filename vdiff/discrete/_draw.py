"""Draws of tokens, and the state from which a sampler starts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vdiff._diffusion import Generators, standard_normal
from vdiff._inputs import batch, is_integer
from vdiff._precision import float64_for, to_float64
from vdiff._validate import require
from vdiff.errors import InvalidType, shown

DRAWN = -1  # stands for a token of the first state that is to be drawn


def uniform_noise(z: Tensor, generator: Generators) -> Tensor:
    """U(0, 1) for each token, in float64."""
    like = torch.empty(z.shape, dtype=float64_for(z.device), device=z.device)
    return standard_normal(like, generator, torch.rand)


def draw(log_probs: Tensor, z: Tensor, generator: Generators) -> Tensor:
    """A state for each token of z from log-probabilities over the states.

    One uniform number for each token goes through the cumulative distribution, both in float64.
    Gumbel noise from float32 is cut off at −log(−log(1 − 2⁻²⁴)), about 16.6. That makes likely
    tokens likelier, as a lower temperature does (Zheng et al., arXiv:2409.02908).
    """
    cdf = to_float64(log_probs).exp().cumsum(-1)
    total = cdf[..., -1]
    place = uniform_noise(z, generator) * total
    place = torch.minimum(place, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cdf, place[..., None], right=True)[..., 0]
    return drawn.clamp(max=cdf.shape[-1] - 1)  # NaN lies beyond all


def first_state(z: Any, argument: str, states: int, device: torch.device) -> Tensor:
    """Tokens, or of a shape tokens that are to be drawn. Raises unless it is one of the two."""
    if not isinstance(z, Tensor):
        return torch.full(_shape(z, argument), DRAWN, device=device)
    hint = f"a shape draws them: {tuple(z.shape)}"
    if not is_integer(z):
        raise InvalidType(argument, "be integer tokens, or their shape", z.dtype, hint)
    low, high = int(batch(z, argument, {}).min()), int(z.max())
    inside, got = low >= 0 and high < states, f"values from {low} to {high}"
    require(inside, argument, f"lie in 0 … {states - 1}", got, hint)
    return z


def _shape(shape: Any, argument: str) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or not all(type(size) is int for size in shape):
        what, hint = "be integer tokens, or their shape", "(8, 256): 8 sequences of 256 tokens"
        raise InvalidType(argument, what, shown(shape), hint)
    fits = len(shape) >= 2 and min(shape) >= 1
    require(fits, argument, "be a shape (batch, …) of one token or more", tuple(shape))
    return tuple(shape)


__all__ = ["DRAWN", "draw", "first_state", "uniform_noise"]
