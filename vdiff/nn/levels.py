"""A head for data on a grid of levels: logits of the levels, and Bayes' rule."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import RestorableModule
from vdiff._validate import require, validated
from vdiff.decoder import Levels
from vdiff.errors import validation_enabled
from vdiff.loss import full_precision
from vdiff.nn.field import one_or_field, takes_field, with_field


class LevelHead(RestorableModule):
    """x̂ = Σ_k x_k softmax_k( logits_k(z, λ) − ½ e^λ (z/α − x_k)² ): a network that predicts x
    (use it with `X()`).

    `network` returns `levels` logits for each channel, (batch, channels·levels, …), for what the
    other pixels imply about this one. The pixel's own noisy value enters in closed form, so that
    at high log-SNR, where x̂ is the nearest level, the denoiser is exact without training. Like
    VDM's Fourier features and categorical decoder, it knows the levels of the data; its bound is
    a valid bound.

    >>> from vdiff.decoder import Categorical
    >>> head = LevelHead(lambda z, logsnr: torch.zeros(1, 4, 1, 1), Categorical(levels=4))
    >>> head(torch.tensor([[[[0.3]]]]), torch.tensor([20.0]))
    tensor([[[[0.2500]]]])
    """

    grid: Tensor

    @validated
    def __init__(self, network: Callable[..., Tensor], decoder: Levels) -> None:
        super().__init__()
        self.network = network
        self.register_constructed("grid", decoder.level_values, persistent=False)

    @property
    def field(self) -> bool:
        """Whether the noise level may be a field: whether `network` has a true `field`."""
        return bool(getattr(self.network, "field", False))

    def take_field(self) -> None:
        """Take a field from now on, if `network` is one of `vdiff.nn`."""
        network: Any = self.network
        self.network = with_field(network)

    @validated(rules=[takes_field, one_or_field])
    def forward(
        self,
        z: Float[Tensor, "batch channels *size"],
        logsnr: Float[Tensor, "batch *field"],
        **condition: Tensor,
    ) -> Float[Tensor, "batch channels *size"]:
        logits = self.network(z, logsnr, **condition)
        levels, shape = len(self.grid), (z.shape[0], z.shape[1] * len(self.grid), *z.shape[2:])
        if validation_enabled():
            what = f"return channels × levels logits, shape {shape}"
            require(logits.shape == shape, "network", what, tuple(logits.shape))
        with full_precision(z.device):
            field = logsnr if logsnr.ndim > 1 else logsnr.view(-1, *(1 for _ in z.shape[1:]))
            column = field[:, :, None]
            grid = self.grid.to(z.dtype).view(levels, *(1 for _ in range(z.ndim - 2)))
            clean = z[:, :, None] * torch.rsqrt(torch.sigmoid(column))
            fit = -0.5 * torch.exp(column) * (clean - grid).square()
            logits = logits.view(z.shape[0], z.shape[1], levels, *z.shape[2:]).to(z.dtype)
            x: Tensor = ((logits + fit).softmax(2) * grid).sum(2)
            return x
