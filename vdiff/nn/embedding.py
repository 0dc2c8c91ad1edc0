"""The noise level as features: always computed in float32 or better."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import must


class FourierFeatures(nn.Module):
    """sin and cos of a (batch,) noise level at geometric frequencies; (batch, features), in float32 at least.

    The defaults resolve log-SNR over [−20, 20]: periods from 100 down to 1.5.

    >>> FourierFeatures(32)(torch.zeros(4)).shape
    torch.Size([4, 32])
    """

    frequencies: Tensor

    def __init__(self, features: int = 32, longest: float = 100.0, shortest: float = 1.5) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(must("FourierFeatures", "features", "be even, a sine and a cosine each", features))
        exponent = torch.linspace(0, 1, features // 2, dtype=torch.float64)
        frequencies = 2 * torch.pi / (longest * (shortest / longest) ** exponent)
        self.register_buffer("frequencies", frequencies.float())

    def forward(self, level: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        with torch.autocast(level.device.type, enabled=False):
            angle = level[:, None] * self.frequencies.to(torch.promote_types(level.dtype, torch.float32))
            return torch.cat([angle.sin(), angle.cos()], 1)
