"""A small Transformer over tokens."""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vdiff._modules import RestorableModule, WithArguments
from vdiff._validate import Count, Fraction, Whole, require, validated
from vdiff.errors import InvalidValue
from vdiff.nn.block import zero
from vdiff.nn.embedding import FourierFeatures

PERIOD = 10_000.0  # 2π times this, in tokens, is the longest period of a rotation
EXPANSION = 4  # hidden units of a feed-forward layer for each of its inputs

Reach = Annotated[int, Whole(at_least=0, hint="tokens on each side; 0 is no convolution")]


def tokens_fit(self: "Transformer", z: Tensor, logsnr: Tensor | None) -> None:
    """Rule: not more tokens than the network was made for; λ exactly where it takes one."""
    shape = tuple(z.shape)
    most = f"have shape (batch, length ≤ {self.length})"
    require(z.ndim == 2 and shape[1] <= self.length, "z", most, shape)
    if self.time is None:
        what, hint = "be left out: the network was made without time", "Transformer(…, time=True)"
        require(logsnr is None, "logsnr", what, "one", hint)
    elif logsnr is None:
        hint = "TokenDenoiser(network, process, time=logsnr_time)"
        raise InvalidValue("logsnr", "be given: the network was made with time", None, hint)


class Transformer(WithArguments, nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary), with norms before the layers
    and rotary positions.

    Tokens may have vocabulary + 1 states, of which the last is the mask. `length` is that of the
    longest sequence. With `time`, it also takes λ (batch,), as `TokenDenoiser(…,
    time=logsnr_time)` gives it. With `causal`, the logits of a place depend on the tokens up to it
    alone: shift the tokens by one place for an autoregressive model. With `neighbours`, a
    convolution adds what so many tokens on each side say (of twice as many before it, with
    `causal`): a small network then learns from few steps what stands beside what. The last layer
    starts at zero, so that the first prediction is uniform.

    Vaswani et al., arXiv:1706.03762; Su et al., arXiv:2104.09864 (rotary positions).

    >>> network = Transformer(256, length=64, width=32, depth=2, heads=2)
    >>> network(torch.zeros(4, 64, dtype=torch.long)).shape
    torch.Size([4, 64, 256])
    """

    @validated
    def __init__(
        self,
        vocabulary: Count,
        *,
        length: Count,
        width: Count = 128,
        depth: Count = 4,
        heads: Count = 4,
        dropout: Fraction = 0.0,
        neighbours: Reach = 0,
        causal: bool = False,
        time: bool = False,
    ) -> None:
        super().__init__()
        what = f"be a multiple of twice the heads, {2 * heads}"
        require(width % (2 * heads) == 0, "width", what, width)
        self.vocabulary, self.length, self.causal = vocabulary, length, causal
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.time: nn.Module | None = None
        if time:
            self.time = nn.Sequential(FourierFeatures(), nn.Linear(32, width), nn.SiLU())
        self.beside = Neighbours(width, neighbours, causal=causal) if neighbours else None
        self.rotation = Rotation(length, width // heads)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, dropout, causal=causal) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = zero(nn.Linear(width, vocabulary))

    @validated(rules=[tokens_fit])
    def forward(
        self, z: Int[Tensor, "batch length"], logsnr: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length vocabulary"]:
        h = self.embed(z)
        if self.time is not None:
            h = h + self.time(logsnr)[:, None]
        if self.beside is not None:
            h = h + self.beside(h)
        cos_sin = self.rotation(z.shape[1])
        for block in self.blocks:
            h = block(h, cos_sin)
        out: Tensor = self.last(self.norm(h))
        return out


class Neighbours(nn.Conv1d):
    """A convolution over each token and `reach` on each side, or with `causal` 2 · `reach` before
    it."""

    def __init__(self, width: int, reach: int, *, causal: bool) -> None:
        super().__init__(width, width, 2 * reach + 1)
        self.around = (2 * reach, 0) if causal else (reach, reach)

    def forward(self, h: Float[Tensor, "batch length width"]) -> Tensor:
        out: Tensor = super().forward(F.pad(h.transpose(1, 2), self.around)).transpose(1, 2)
        return out


class TransformerBlock(nn.Module):
    """Attention over all tokens, or with `causal` over those up to each, and two layers for each
    token; both with a residual."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = zero(nn.Linear(width, width, bias=False))
        hidden = EXPANSION * width
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), zero(nn.Linear(hidden, width))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Float[Tensor, "batch length width"], cos_sin: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch length width"]:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(h)).chunk(3, 2)
        )
        q, k = rotated(q, cos_sin), rotated(k, cos_sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = h + self.dropout(self.layers(self.norm2(h)))
        return out


class Rotation(RestorableModule):
    """cos and sin of the angles by which rotary positions turn pairs of channels, (length,
    channels/2) each."""

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        pairs = torch.arange(channels // 2, dtype=torch.float64, device="cpu")
        places = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = places[:, None] * PERIOD ** (-2 * pairs / channels)
        self.register_constructed("cos", angle.cos().float(), persistent=False)
        self.register_constructed("sin", angle.sin().float(), persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        return self.cos[:length], self.sin[:length]


def rotated(
    v: Float[Tensor, "batch heads length channels"], cos_sin: tuple[Tensor, Tensor]
) -> Float[Tensor, "batch heads length channels"]:
    """Channels i and i + channels/2 turned as a pair, by an angle in proportion to the place."""
    cos, sin = (part.to(v.dtype) for part in cos_sin)
    a, b = v.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


__all__ = ["Transformer", "TransformerBlock"]
