"""The noise level as features, in float32 or better."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._modules import RestorableModule
from vdiff._precision import to_float64
from vdiff._validate import require, validated
from vdiff.denoiser import logsnr_time
from vdiff.loss import full_precision


class FourierFeatures(RestorableModule):
    """sin and cos of a (batch,) noise level at geometric frequencies: (batch, features), in
    float32 at least.

    The level is λ, or a function `of` it: `ScaledGamma()`, `TableStep(table)`. The default periods
    from 100 down to 1.5 resolve log-SNR over [−20, 20].

    >>> FourierFeatures(32)(torch.zeros(4)).shape
    torch.Size([4, 32])
    """

    frequencies: Tensor

    @validated
    def __init__(
        self,
        features: int = 32,
        longest: float = 100.0,
        shortest: float = 1.5,
        *,
        of: Callable[[Tensor], Tensor] = logsnr_time,
    ) -> None:
        super().__init__()
        even = "be even, a sine and a cosine each"
        require(features % 2 == 0, "features", even, features)
        self.features, self.of, self._periods = features, of, (longest, shortest)
        table = getattr(of, "schedule", None)
        # a submodule, so that it moves with the network
        self.table = table if isinstance(table, nn.Module) else None
        self.register_buffer("frequencies", torch.empty(features // 2, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        longest, shortest = self._periods
        device, count = self.frequencies.device, len(self.frequencies)
        exponent = torch.linspace(0, 1, count, dtype=torch.float64, device=device)
        self.frequencies.copy_(2 * torch.pi / (longest * (shortest / longest) ** exponent))

    def forward(self, logsnr: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        with full_precision(logsnr.device):
            dtype = torch.promote_types(logsnr.dtype, torch.float32)
            angle = self.of(to_float64(logsnr)).to(dtype)[:, None] * self.frequencies.to(dtype)
            return torch.cat([angle.sin(), angle.cos()], 1)
