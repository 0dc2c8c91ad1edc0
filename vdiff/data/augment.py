"""Data augmentation as a function of given random numbers, so that a run can be repeated and
resumed."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import OneOf, require, validated
from vdiff.decoder import signed

KINDS = ("none", "flip", "flip-turn")
NUMBERS = 3  # uniform numbers for each image


@validated
def augment(
    images: Tensor, kind: Annotated[str, OneOf(KINDS)], u: Float[Tensor, "batch 3"]
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """Augment images (batch, channels, height, width). Also returns 1 for each image that changed,
    a condition of the network.

    "flip" mirrors half of the images, left to right. "flip-turn" is VDM's: it also turns half of
    them, by one, two or three right angles. Each image has three uniform numbers: u₀ < ½ mirrors,
    u₁ < ½ turns, ⌊3u₂⌋ + 1 times. Draw them for the whole batch of a step, so that they do not
    depend on the number of processes.

    Kingma et al., Variational Diffusion Models, arXiv:2107.00630, and the authors' code (which
    turns after it mirrors).

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> augment(image, "flip-turn", torch.tensor([[0.0, 0.0, 0.0]]))
    (tensor([[[[1, 3],
              [2, 4]]]]), tensor([1.]))
    """
    fits = images.ndim == 4 and (kind != "flip-turn" or images.shape[2] == images.shape[3])
    require(fits, "images", "have shape (batch, channels, side, side)", tuple(images.shape))
    require(
        u.shape == (len(images), NUMBERS), "u", f"have shape ({len(images)}, 3)", tuple(u.shape)
    )
    if kind == "none":
        return images, torch.zeros(len(images), dtype=torch.float32, device=images.device)
    u, images = u.to(images.device), signed(images)
    mirrored = u[:, 0] < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if kind == "flip":
        return images, mirrored.float()
    turns = torch.where(u[:, 1] < 0.5, torch.floor(3 * u[:, 2]).clamp(max=2) + 1, 0).long()
    ways = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])
    rows = torch.arange(len(images), device=images.device)
    return ways[turns, rows], (mirrored | (turns > 0)).float()
