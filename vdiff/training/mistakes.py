"""What a first training gets wrong most often, said at its start."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vdiff._diffusion import Diffusion, diffusion_of
from vdiff._validate import require
from vdiff.data.images import like_pixels
from vdiff.errors import InvalidType
from vdiff.masks import MaskSampler, masks_of_step
from vdiff.objective import Objective

MISSING = "train(…, mask=lambda x, g: (~x.isnan(), x.isnan())) trains what is not missing"
TO_LEVELS = {"[0, 1]": "(x * 255)", "[-1, 1]": "((x + 1) * 127.5)", "[0, 255]": "x"}


def of_density(scaled: str) -> str:
    """What is done with floating pixels in a range of `like_pixels`, and how levels are given."""
    return (
        f"floating numbers in {scaled}: they are trained as a density, whose bits are not "
        f"bits/dim of levels. Pictures with 256 levels are {TO_LEVELS[scaled]}"
        ".round().to(torch.uint8) with a decoder, such as VLB(Categorical(256)). If a density is "
        "meant, a decoder Gaussian() says so"
    )


def warn_of_pixels(data: Tensor, objective: Objective) -> None:
    """Warn where floating data look like pixels in [0, 1] or [0, 255], and no decoder says what is
    meant. A weighted loss takes pixels in [−1, 1] as they are."""
    meant = objective.decoder is not None or not diffusion_of(objective.model).continuous
    scaled = "" if meant else like_pixels(data)
    if scaled in ("[0, 1]", "[0, 255]"):
        text = f"train: the loss has no decoder, and the data are {of_density(scaled)}"
        warnings.warn(text, stacklevel=2)


def check_trainable(objective: Objective) -> None:
    """Raise unless a parameter of an objective takes a gradient."""
    parameters = list(objective.parameters())
    free = any(p.requires_grad for p in parameters)
    came = f"{len(parameters):,}, all frozen" if parameters else "none"
    hint = "network.requires_grad_(True), or for a part of it network.head.requires_grad_(True)"
    require(free, "objective", "have parameters that require a gradient", came, hint)


def network_to_train(objective: Objective) -> nn.Module:
    """The network of an objective. Raises InvalidType for what has no weights."""
    network = getattr(objective.model, "network", objective.model)
    if not isinstance(network, nn.Module):
        what, hint = "hold a network that is an nn.Module", "nothing else has weights"
        raise InvalidType("objective", what, repr(network), hint)
    return network


def check_tokens(process: Diffusion, data: Tensor, mask: MaskSampler | None = None) -> None:
    """Raise unless data are tokens of a process, but for those that the mask calls absent."""
    absent = None if mask is None else masks_of_step(mask, data, seed=0, step=0)[1]
    with torch.no_grad():
        process.check(data, "data", {"absent": absent})


def channels_hint(got: Sequence[int], shape: Sequence[int]) -> str:
    """The likely mistake where data have their channels last, or other channels.

    >>> channels_hint((8, 8, 3), (3, 8, 8))
    "channels come first: x.movedim(-1, 1), or torchvision's ToTensor"
    """
    if [*got[-1:], *got[:-1]] == [*shape]:
        return "channels come first: x.movedim(-1, 1), or torchvision's ToTensor"
    if len(got) == 3 and [*got[1:]] == [*shape[1:]]:
        return "other channels: vdiff.data.load(…, channels=1) reads pictures as grey, 3 as RGB"
    return ""
