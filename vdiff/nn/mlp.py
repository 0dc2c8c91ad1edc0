"""A small network for points."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._validate import Count, validated
from vdiff.nn.embedding import FourierFeatures
from vdiff.nn.field import FieldNetwork, mean_level, one_or_field, takes_field


class MLP(FieldNetwork):
    """Points (batch, dims) and their noise level (batch,) to (batch, `dims_out`), with `depth`
    hidden layers. With `field`, the noise level may be a field (batch, dims): a level for each
    dimension.

    >>> MLP(2)(torch.zeros(4, 2), torch.zeros(4)).shape
    torch.Size([4, 2])
    """

    first_layer = "layers.0"

    @validated
    def __init__(
        self,
        dims: Count,
        *,
        dims_out: Count | None = None,
        width: Count = 128,
        depth: int = 3,
        features: int = 32,
        field: bool = False,
    ) -> None:
        super().__init__()
        self.channels = dims
        self.time = FourierFeatures(features)
        layers: list[nn.Module] = [nn.Linear(dims + features, width), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dims_out or dims))
        if field:
            self.take_field()

    def forward(
        self, z: Float[Tensor, "batch dims"], logsnr: Float[Tensor, "batch *field"]
    ) -> Float[Tensor, "batch dims_out"]:
        if logsnr.ndim != 1:
            return self._of_field(z, logsnr)
        out: Tensor = self.layers(torch.cat([z, self.time(logsnr).to(z.dtype)], 1))
        return out

    @validated(rules=[takes_field, one_or_field])
    def _of_field(self, z: Tensor, logsnr: Tensor) -> Tensor:
        level = mean_level(logsnr)
        h: Tensor = torch.cat([z, self.time(level).to(z.dtype)], 1)
        first, *others = self.layers
        h = self.from_field(first, h, logsnr, level, z)
        for layer in others:
            h = layer(h)
        return h
