"""A small U-Net for images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import checking, must, readable
from vdiff.nn.embedding import FourierFeatures


class Block(nn.Module):
    """A residual block whose second norm is scaled and shifted by the embedding of the noise level."""

    def __init__(self, channels_in: int, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in), _norm(channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).to(h.dtype)[:, :, None, None].chunk(2, 1)
        u = self.conv1(F.silu(self.norm1(h)))
        u = self.dropout(F.silu(torch.addcmul(shift, self.norm2(u), 1 + scale)))
        out: Tensor = self.skip(h) + self.conv2(u)
        return out


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        q, k, v = self.qkv(self.norm(h)).view(b, 3, self.heads, c // self.heads, height * width).transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, height, width)
        out: Tensor = h + self.out(mixed)
        return out


class UNet(nn.Module):
    """Images (batch, channels, height, width) and their noise level to (batch, `channels_out`, height, width).

    `blocks` residual blocks per resolution, `width` × each of `multipliers` channels, halving in between; attention in
    the middle. With `labels`, it takes `label` (batch,) in [0, labels) as a condition.

    >>> network = UNet(1, width=16, multipliers=(1, 2))
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        channels_out: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 2,
        dropout: float = 0.0,
        labels: int | None = None,
    ) -> None:
        super().__init__()
        self.levels, embedding = len(multipliers), 2 * width
        self.time = FourierFeatures(2 * width)
        self.embed = nn.Sequential(nn.Linear(2 * width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.label = None if labels is None else nn.Embedding(labels, embedding)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        now, skips = width, [width]
        for i, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(Block(now, width * multiplier, embedding, dropout))
                now = width * multiplier
                skips.append(now)
            if i < self.levels - 1:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
        self.middle1, self.attention, self.middle2 = (
            Block(now, now, embedding, dropout),
            Attention(now, heads),
            Block(now, now, embedding, dropout),
        )
        for i, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(Block(now + skips.pop(), width * multiplier, embedding, dropout))
                now = width * multiplier
            if i > 0:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
        self.blocks = blocks
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zero(nn.Conv2d(now, channels_out or channels, 3, padding=1)))

    def forward(
        self, z: Float[Tensor, "batch c h w"], logsnr: Float[Tensor, " batch"], label: Tensor | None = None
    ) -> Float[Tensor, "batch c_out h w"]:
        if z.shape[-1] % 2 ** (self.levels - 1) or z.shape[-2] % 2 ** (self.levels - 1):
            raise ValueError(must("UNet", "z", f"have height and width divisible by {2 ** (self.levels - 1)}", tuple(z.shape)))
        embedding = self.embed(self.time(logsnr).to(self.embed[0].weight.dtype))
        if self.label is not None:
            if label is None:
                raise ValueError(must("UNet", "label", f"be given: the network was made for {self.label.num_embeddings} labels", None))
            if (
                checking()
                and readable(label)
                and label.device.type == "cpu"
                and not ((label >= 0) & (label < self.label.num_embeddings)).all()
            ):
                raise ValueError(
                    must("UNet", "label", f"lie in 0 … {self.label.num_embeddings - 1}", f"values from {label.min()} to {label.max()}")
                )
            embedding = embedding + self.label(label)
        h = self.first(z)
        skips = [h]
        for i in range(self.levels):
            for block in self.down[i * self.blocks : (i + 1) * self.blocks]:
                h = block(h, embedding)
                skips.append(h)
            if i < self.levels - 1:
                h = self.shrink[i](h)
                skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, embedding)), embedding)
        for i in range(self.levels):
            for block in self.up[i * (self.blocks + 1) : (i + 1) * (self.blocks + 1)]:
                h = block(torch.cat([h, skips.pop()], 1), embedding)
            if i < self.levels - 1:
                h = self.grow[i](F.interpolate(h, scale_factor=2))
        out: Tensor = self.last(h)
        return out


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(g for g in range(1, 9) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a residual branch at zero."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


__all__ = ["UNet"]
