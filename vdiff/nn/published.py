"""The networks of published CIFAR-10 results, with their sizes, initial weights and times."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._precision import HALF
from vdiff._validate import Count, Fraction, validated
from vdiff.denoiser import ScaledGamma, TableStep
from vdiff.errors import InvalidType
from vdiff.nn.block import Block, group_norm, init_weights, zero
from vdiff.nn.embedding import FourierFeatures
from vdiff.nn.field import FieldNetwork, mean_level, one_or_field, takes_field
from vdiff.nn.unet import UNet
from vdiff.schedule import Tabulated


def _single_precision(z: Tensor) -> None:
    """Rule: z has the digits for the features of its last bits."""
    if z.dtype in HALF:
        features = "its features turn 128 times over a unit of z"
        hint = f"{features}: keep the weights in float32 and run it under torch.autocast"
        raise InvalidType("z", "be in float32 or float64", z.dtype, hint)


class VDMUNet(FieldNetwork):
    """VDM's network: `depth` and `depth` + 1 residual blocks at full resolution, with skip
    connections, without downsampling; 30.58 M parameters.

    Its inputs are z, sin and cos of 2ⁿ·2πz for n = 6 and 7, which resolve the last bits of a grey
    level at high log-SNR, and γ = −λ scaled to [0, 1] between `logsnr_max` and `logsnr_min`. Its
    output is ε̂, with z added: use it with `Eps()`. `augmented` (batch,) is 1 for images that were
    flipped or turned, 0 by default. With augmentation, VDM uses width 256 and dropout 0.05. Those
    features need z in float32: for half precision, use `torch.autocast`. Without `heads` there is
    no attention in the middle, which takes most of a small network's time on a CPU.

    Variational Diffusion Models, arXiv:2107.00630, appendix B, and the authors' code.

    >>> network = VDMUNet(width=32, depth=2)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), augmented=torch.ones(2)).shape
    torch.Size([2, 3, 8, 8])
    """

    first_layer = "first"

    @validated
    def __init__(
        self,
        channels: Count = 3,
        *,
        width: Count = 128,
        depth: int = 32,
        heads: int = 1,
        dropout: Fraction = 0.1,
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        checkpoint: bool = False,
        field: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        wide = 4 * width
        # the authors scale to [0, 1000] and take frequencies from 1 to 1e-4
        self.time = FourierFeatures(
            width,
            2 * math.pi * 10,
            2 * math.pi / 1000,
            of=ScaledGamma(logsnr_max=logsnr_max, logsnr_min=logsnr_min),
        )
        self.embed = nn.Sequential(
            nn.Linear(width + 1, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU()
        )
        block = partial(
            Block, channels=width, embedding=wide, dropout=dropout, scale_shift=False, groups=32,
            eps=1e-6, checkpoint=checkpoint,
        )  # fmt: skip
        self.first = nn.Conv2d(5 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(block(width) for _ in range(depth))
        self.middle1, self.middle2 = block(width, heads=heads), block(width)
        self.up = nn.ModuleList(block(2 * width) for _ in range(depth + 1))
        last = zero(nn.Conv2d(width, channels, 3, padding=1))
        self.last = nn.Sequential(group_norm(width, 32, 1e-6), nn.SiLU(), last)
        for residual in (*self.down, self.middle1, self.middle2, *self.up):
            residual.modulate = zero(nn.Linear(wide, width, bias=False))
        init_weights(self, _lecun_normal)
        if field:
            self.take_field()

    @validated(rules=[_single_precision, takes_field, one_or_field])
    def forward(
        self,
        z: Float[Tensor, "batch c h w"],
        logsnr: Float[Tensor, "batch *field"],
        augmented: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        level = mean_level(logsnr)
        time = self.time(level)
        flag = time.new_zeros(len(z)) if augmented is None else augmented
        embedding = self.embed(torch.cat([time, flag[:, None]], 1).to(self.first.weight.dtype))
        h = torch.cat([z, _last_bits(z)], 1)
        told = logsnr.ndim > 1
        h = self.from_field(self.first, h, logsnr, level, z) if told else self.first(h)
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle2(self.middle1(h, embedding), embedding)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), embedding)
        out: Tensor = z + self.last(h)
        return out


class DDPMUNet(UNet):
    """DDPM's network, 35.75 M parameters: four resolutions, two blocks each, attention with one
    head at 16×16. Use it with `Eps()`.

    Its time is the step of DDPM's β table at λ, fractional between two steps; for another table or
    schedule, pass `time=FourierFeatures(128, …)`.

    Denoising Diffusion Probabilistic Models, arXiv:2006.11239, appendix B, and the authors' code.

    >>> network = DDPMUNet(width=32, multipliers=(1, 2))
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        channels_out: int | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
        labels: int | None = None,
        time: FourierFeatures | None = None,
        checkpoint: bool = False,
        field: bool = False,
    ) -> None:
        step = TableStep(Tabulated.linear_betas())
        super().__init__(
            channels, channels_out=channels_out, width=width, multipliers=multipliers, blocks=2,
            attention=attention, heads=1, dropout=dropout, labels=labels,
            time=time or FourierFeatures(width, 2 * math.pi * 1e4, 2 * math.pi, of=step),
            embedding=4 * width, scale_shift=False, groups=32, eps=1e-6, checkpoint=checkpoint,
            field=field,
        )  # fmt: skip
        # TensorFlow's "same" padding of a strided convolution: 0 before, 1 after
        wide = [width * multiplier for multiplier in multipliers[:-1]]
        self.shrink = nn.ModuleList(
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c, c, 3, stride=2)) for c in wide
        )
        init_weights(self, nn.init.xavier_uniform_)


class IDDPMUNet(UNet):
    """iDDPM's network with a learned variance, hence twice the output channels: three blocks each
    at four resolutions, attention with four heads at 16×16 and 8×8, the embedding as scale and
    shift; 52.55 M parameters.

    Use it as `Denoiser(IDDPMUNet(), Eps(), variance=LearnedRange())`. Its time is the step of
    iDDPM's cosine table of 4,000 levels at λ, divided by 4.

    Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672, and the authors' code.

    >>> network = IDDPMUNet(width=32, multipliers=(1, 2))
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 6, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        channels_out: int | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: Sequence[int] = (1, 2),
        dropout: float = 0.3,
        labels: int | None = None,
        time: FourierFeatures | None = None,
        checkpoint: bool = False,
        field: bool = False,
    ) -> None:
        longest = 2 * math.pi * 4 * 1e4 ** (1 - 2 / width)  # its frequencies end one short of 1e-4
        step = TableStep(Tabulated.cosine_betas(4000))
        super().__init__(
            channels, channels_out=channels_out or 2 * channels, width=width,
            multipliers=multipliers, blocks=3, attention=attention, heads=4, dropout=dropout,
            labels=labels,
            time=time or FourierFeatures(width, longest, 2 * math.pi * 4, of=step),
            embedding=4 * width, groups=32, checkpoint=checkpoint, field=field,
        )  # fmt: skip


def _last_bits(z: Tensor) -> Tensor:
    """sin and cos of 2⁶·2πz and 2⁷·2πz, as channels."""
    turns = 2 * math.pi * torch.tensor([64.0, 128.0], dtype=z.dtype, device=z.device)
    angle = rearrange(z[:, :, None] * turns[:, None, None], "b c n y x -> b (c n) y x")
    return torch.cat([angle.sin(), angle.cos()], 1)


def _lecun_normal(weight: Tensor) -> Tensor:
    """A normal of variance 1/fan-in, cut at two standard deviations: flax's default."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978  # the deviation left after the cut
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
