"""Data augmentation as a function of given random numbers, so that a run can be repeated and
resumed."""

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.decoder import signed
from vdiff.errors import did_you_mean, must

KINDS = ("none", "flip", "flip-turn")
NUMBERS = 3  # uniform numbers that an example takes


def augment(
    images: Tensor, kind: str, u: Float[Tensor, "batch 3"]
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """Images (batch, channels, height, width) augmented, and 1 for each that was changed, which a
    network can be told.

    "flip" mirrors half of them, left to right. "flip-turn" is VDM's: that, and half of them
    turned, by one, two or three right angles. Which and how follows from three uniform numbers for
    each image: u₀ < ½ mirrors, u₁ < ½ turns, ⌊3u₂⌋ + 1 times. Draw them for the whole batch of a
    step and each process takes its rows: then the augmentation does not depend on their number.

    Kingma et al., Variational Diffusion Models, arXiv:2107.00630, and the authors' code (which
    turns after it mirrors).

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> augment(image, "flip-turn", torch.tensor([[0.0, 0.0, 0.0]]))
    (tensor([[[[1, 3],
              [2, 4]]]]), tensor([1.]))
    """
    if kind not in KINDS:
        raise ValueError(
            must(
                "augment",
                "kind",
                f"be one of {', '.join(KINDS)}",
                repr(kind),
                did_you_mean(str(kind), KINDS),
            )
        )
    if images.ndim != 4 or (kind == "flip-turn" and images.shape[2] != images.shape[3]):
        raise ValueError(
            must(
                "augment",
                "images",
                "have shape (batch, channels, side, side)",
                tuple(images.shape),
            )
        )
    if u.shape != (len(images), NUMBERS):
        raise ValueError(
            must(
                "augment",
                "u",
                f"have shape (batch, {NUMBERS}) = ({len(images)}, {NUMBERS})",
                tuple(u.shape),
            )
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
    return ways[turns, torch.arange(len(images), device=images.device)], (
        mirrored | (turns > 0)
    ).float()


__all__ = ["KINDS", "NUMBERS", "augment"]
