"""A small network for points."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._modules import WithArguments
from vdiff._validate import Count, validated
from vdiff.nn.embedding import FourierFeatures


class MLP(WithArguments, nn.Module):
    """Points (batch, dims) and their noise level (batch,) to (batch, `dims_out`), with `depth`
    hidden layers.

    >>> MLP(2)(torch.zeros(4, 2), torch.zeros(4)).shape
    torch.Size([4, 2])
    """

    @validated
    def __init__(
        self,
        dims: Count,
        *,
        dims_out: Count | None = None,
        width: Count = 128,
        depth: int = 3,
        features: int = 32,
    ) -> None:
        super().__init__()
        self.time = FourierFeatures(features)
        layers: list[nn.Module] = [nn.Linear(dims + features, width), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dims_out or dims))

    def forward(
        self, z: Float[Tensor, "batch dims"], logsnr: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch dims_out"]:
        out: Tensor = self.layers(torch.cat([z, self.time(logsnr).to(z.dtype)], 1))
        return out
