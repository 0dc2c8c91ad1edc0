"""The parts of U-Nets: residual blocks with the noise level, attention, norms, initial weights."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as compute_again

from vdiff._validate import Count, require, validated
from vdiff.errors import has_values

Conv = type[nn.Conv1d] | type[nn.Conv2d]
Layer = TypeVar("Layer", bound=nn.Module)


class Block(nn.Module):
    """A residual of norm, swish and convolution of size 3, twice, with the embedding of the noise
    level in between.

    With `scale_shift` the embedding scales and shifts the second norm (iDDPM); without, it is
    added before that norm (DDPM, VDM). With `heads`, attention over all pixels follows. With
    `checkpoint`, the backward pass keeps only the input and computes the rest again, with the same
    dropout. `conv=nn.Conv1d` is for sequences (batch, channels, length).

    >>> Block(16, 32, embedding=8)(torch.zeros(2, 16, 4, 4), torch.zeros(2, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        heads: int = 0,
        scale_shift: bool = True,
        groups: int = 8,
        eps: float = 1e-5,
        checkpoint: bool = False,
        conv: Conv = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.scale_shift, self.checkpoint = scale_shift, checkpoint
        self.norm1 = group_norm(channels_in, groups, eps)
        self.norm2 = group_norm(channels, groups, eps)
        self.conv1 = conv(channels_in, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, (2 if scale_shift else 1) * channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(conv(channels, channels, 3, padding=1))
        same = channels_in == channels
        self.skip = nn.Identity() if same else conv(channels_in, channels, 1)
        self.attention: nn.Module = nn.Identity()
        if heads:
            self.attention = Attention(channels, heads, groups=groups, eps=eps, conv=conv)

    def forward(
        self, h: Float[Tensor, "batch c_in *size"], embedding: Float[Tensor, "batch e"]
    ) -> Float[Tensor, "batch c_out *size"]:
        if self.checkpoint and torch.is_grad_enabled():
            out: Tensor = compute_again(self._forward, h, embedding, use_reentrant=False)
            return out
        return self._forward(h, embedding)

    def _forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        level = self.modulate(embedding).to(h.dtype)
        level = level.view(*level.shape, *(1 for _ in h.shape[2:]))
        u = self.conv1(F.silu(self.norm1(h)))
        if self.scale_shift:
            scale, shift = level.chunk(2, 1)
            u = torch.addcmul(shift, self.norm2(u), 1 + scale)
        else:
            u = self.norm2(u + level)
        out: Tensor = self.attention(self.skip(h) + self.conv2(self.dropout(F.silu(u))))
        return out


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual.

    >>> Attention(16, heads=2)(torch.ones(2, 16, 4, 4)).mean()  # its last layer starts at zero
    tensor(1., grad_fn=<MeanBackward0>)
    """

    @validated
    def __init__(
        self,
        channels: int,
        heads: Count,
        *,
        groups: int = 8,
        eps: float = 1e-5,
        conv: Conv = nn.Conv2d,
    ) -> None:
        super().__init__()
        require(channels % heads == 0, "heads", f"divide its {channels} channels", heads)
        self.heads = heads
        self.norm = group_norm(channels, groups, eps)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = zero(conv(channels, channels, 1))

    def forward(self, h: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *size"]:
        q, k, v = rearrange(
            self.qkv(self.norm(h)).flatten(2),
            "b (qkv heads c) pixels -> qkv b heads pixels c",
            qkv=3,
            heads=self.heads,
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = rearrange(mixed, "b heads pixels c -> b (heads c) pixels").view_as(h)
        out: Tensor = h + self.out(mixed)
        return out


def group_norm(channels: int, groups: int = 8, eps: float = 1e-5) -> nn.GroupNorm:
    """A group norm of at most `groups` groups of equal size, with at least two channels each: a
    norm of one channel would remove the embedding that was added to it.

    >>> group_norm(30).num_groups, group_norm(32, groups=32).num_groups
    (6, 16)
    """
    most = max(1, min(groups, channels // 2))
    return nn.GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps)


def zero(layer: Layer) -> Layer:
    """The layer with all parameters set to zero, for the end of a residual branch."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def init_weights(network: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """Draw new weights for all convolutions and linear layers and set their biases to zero. Layers
    whose weights are all zero stay as they are."""
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not has_values(layer.weight):
            continue
        if layer.weight.any():
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
