"""The U-Net: residual blocks at several resolutions, with skip connections."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._validate import Count, Fraction, Given, Whole, require, validated
from vdiff.errors import InvalidValue, has_values
from vdiff.nn.block import Block, Conv, group_norm, zero
from vdiff.nn.embedding import FourierFeatures
from vdiff.nn.field import FieldNetwork, mean_level, one_or_field, takes_field


def _counts(multipliers: Sequence[int], argument: str, given: Given) -> Sequence[int]:
    for multiplier in multipliers:
        Whole()(multiplier, argument, given)
    return multipliers


def _fits(self: "UNet", z: Tensor, label: Tensor | None) -> None:
    """Rule: the image or sequence can be halved at each resolution; labels come exactly where the
    network was made for them."""
    parts, shape = 2 ** (self.resolutions - 1), tuple(z.shape)
    size = " and ".join(self.size)
    what = f"have shape (batch, channels, {', '.join(self.size)})"
    require(z.ndim == 2 + len(self.size), "z", what, shape)
    divisible = all(n % parts == 0 for n in shape[2:])
    require(divisible, "z", f"have {size} divisible by {parts}", shape)
    if self.label is None:
        made = "be left out: the network was made without labels"
        require(label is None, "label", made, "one", "UNet(…, labels=n)")
        return
    count = self.label.num_embeddings
    if label is None:
        made = f"be given: the network was made for {count} labels"
        raise InvalidValue("label", made, None)
    if has_values(label) and label.device.type == "cpu":
        came = f"values from {label.min()} to {label.max()}"
        inside = bool(((label >= 0) & (label < count)).all())
        require(inside, "label", f"lie in 0 … {count - 1}", came)


class UNet(FieldNetwork):
    """Images (batch, channels, height, width) and their noise level to (batch, `channels_out`,
    height, width).

    Each resolution is half the one before and has `blocks` residual blocks of `width` × one of
    `multipliers` channels. Attention is in the middle and after each block of the resolutions
    `attention` (0 is the finest). With `labels`, it takes `label` (batch,) in [0, labels) as a
    condition. With `field`, the noise level may be a field that broadcasts against the images. The
    defaults make a small network; `time` is its embedding of the noise level, `embedding` the
    width of the next layers, and `scale_shift`, `groups`, `eps` and `checkpoint` are those of
    `vdiff.nn.block.Block`.

    >>> network = UNet(1, width=16, multipliers=(1, 2))
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    first_layer = "first"
    conv: ClassVar[Conv] = nn.Conv2d
    size: ClassVar[tuple[str, ...]] = ("height", "width")

    @validated
    def __init__(
        self,
        channels: Count,
        *,
        channels_out: Count | None = None,
        width: Count = 32,
        multipliers: Annotated[Sequence[int], _counts] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 2,
        dropout: Fraction = 0.0,
        labels: Count | None = None,
        time: FourierFeatures | None = None,
        embedding: Count | None = None,
        scale_shift: bool = True,
        groups: int = 8,
        eps: float = 1e-5,
        checkpoint: bool = False,
        field: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.resolutions, self.blocks = len(multipliers), blocks
        wide = embedding or 2 * width
        self.time = time or FourierFeatures(2 * width)
        self.embed = nn.Sequential(
            nn.Linear(self.time.features, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU()
        )
        self.label = None if labels is None else nn.Embedding(labels, wide)

        block = partial(
            Block, embedding=wide, dropout=dropout, scale_shift=scale_shift, groups=groups,
            eps=eps, checkpoint=checkpoint, conv=self.conv,
        )  # fmt: skip
        widths = [width * multiplier for multiplier in multipliers]
        attends = [heads if i in attention else 0 for i in range(self.resolutions)]
        self.first = self.conv(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips = self._make_down(block, width, widths, attends)
        coarse, fine = skips[-1], widths[0]
        self.middle1, self.middle2 = block(coarse, coarse, heads=heads), block(coarse, coarse)
        self._make_up(block, skips, widths, attends)
        last = zero(self.conv(fine, channels_out or channels, 3, padding=1))
        self.last = nn.Sequential(group_norm(fine, groups, eps), nn.SiLU(), last)
        if field:
            self.take_field()

    def _make_down(
        self, block: Callable[..., Block], width: int, widths: list[int], attends: list[int]
    ) -> list[int]:
        """Add the layers from fine to coarse. Returns the channels of the skip connections."""
        skips = [width]
        for i, wide in enumerate(widths):
            for _ in range(self.blocks):
                self.down.append(block(skips[-1], wide, heads=attends[i]))
                skips.append(wide)
            if i < self.resolutions - 1:
                self.shrink.append(self.conv(skips[-1], skips[-1], 3, stride=2, padding=1))
                skips.append(skips[-1])
        return skips

    def _make_up(
        self, block: Callable[..., Block], skips: list[int], widths: list[int], attends: list[int]
    ) -> None:
        """Add the layers from coarse to fine."""
        channels = skips[-1]
        for i, wide in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                self.up.append(block(channels + skips.pop(), wide, heads=attends[i]))
                channels = wide
            if i > 0:
                self.grow.append(self.conv(channels, channels, 3, padding=1))

    @validated(rules=[_fits, takes_field, one_or_field])
    def forward(
        self,
        z: Float[Tensor, "batch c *size"],
        logsnr: Float[Tensor, "batch *field"],
        label: Tensor | None = None,
    ) -> Float[Tensor, "batch c_out *size"]:
        level = mean_level(logsnr)
        embedding = self.embed(self.time(level).to(self.embed[0].weight.dtype))
        if self.label is not None:
            embedding = embedding + self.label(label)
        told = logsnr.ndim > 1
        h = self.from_field(self.first, z, logsnr, level, z) if told else self.first(z)
        skips = [h]
        for i in range(self.resolutions):
            for block in self.down[i * self.blocks : (i + 1) * self.blocks]:
                h = block(h, embedding)
                skips.append(h)
            if i < self.resolutions - 1:
                h = self.shrink[i](h)
                skips.append(h)
        h = self.middle2(self.middle1(h, embedding), embedding)
        for i in range(self.resolutions):
            for block in self.up[i * (self.blocks + 1) : (i + 1) * (self.blocks + 1)]:
                h = block(torch.cat([h, skips.pop()], 1), embedding)
            if i < self.resolutions - 1:
                h = self.grow[i](F.interpolate(h, scale_factor=2))
        out: Tensor = self.last(h)
        return out


class UNet1d(UNet):
    """`UNet` for sequences: (batch, channels, length) and their noise level to (batch,
    `channels_out`, length).

    >>> UNet1d(1, width=16)(torch.zeros(2, 1, 64), torch.zeros(2)).shape
    torch.Size([2, 1, 64])
    """

    conv = nn.Conv1d
    size = ("length",)
