"""Decoders and units: probabilities that sum to one, tails, bits per dimension."""

import math

import torch
from torch import Tensor

from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian, Levels, normal_nodes
from vdiff.gaussian import alpha, bits_per_dim, diffuse
from vdiff.oracle import Lattice
from vdiff.theorems.integral import log_normal, panels
from vdiff.theorems.subject import Subject, mixture
from vdiff.theorems.theorem import Sides, equal, theorem

LEVELS = 32
MEANS = torch.tensor([-1.4, -1.0, -0.2, 0.03, 0.9, 0.98], dtype=torch.float64)
LOGSNR = 5.0


def masses(decoder: Levels) -> Tensor:
    """p(k | mean) of every level k, a row for each mean.

    >>> masses(Categorical(32)).shape
    torch.Size([6, 32])
    """
    level = torch.arange(LEVELS)[None].expand(len(MEANS), LEVELS).reshape(-1, 1)
    return (
        decoder.log_prob(level, MEANS.repeat_interleave(LEVELS)[:, None], LOGSNR)
        .exp()
        .view(len(MEANS), LEVELS)
    )


DECODERS: tuple[Levels, ...] = (
    Categorical(LEVELS),
    Categorical(LEVELS, closed=True),
    DiscretizedGaussian(LEVELS),
    DiscretizedGaussian(LEVELS, variance=0.09),
)


@theorem(
    source="DDPM, arXiv:2006.11239, eq. 13; VDM, arXiv:2107.00630, eq. 8",
    given="the end bins reach to infinity",
)
def decoders_sum_to_one(subject: Subject) -> Sides:
    """Each discrete decoder is a distribution over levels, for means in the range and outside
    it."""
    return equal(
        torch.stack([masses(d).sum(1) for d in DECODERS]), 1.0, rel=1e-10, why="float64 rounding"
    )


@decoders_sum_to_one.without("the end bins reach to infinity")
def _(subject: Subject) -> Sides:
    grid, half = DECODERS[3].grid, 0.5 * DECODERS[3].spacing
    upper, lower = (
        torch.special.ndtr((grid + side - MEANS[:, None]) / 0.3) for side in (half, -half)
    )
    return equal((upper - lower).sum(1), 1.0, rel=1e-10, why="")


def _bin(tanh: bool) -> Sides:
    """log P of an inner bin up to ten standard deviations away, by integrating the density over
    it."""
    std, decoder = 0.05, DiscretizedGaussian(LEVELS, variance=0.05**2)
    level = torch.arange(8, 24)
    ours = decoder.log_prob(level[:, None], torch.zeros(16, 1, dtype=torch.float64), LOGSNR)
    center = decoder.grid[level]
    node, width = panels(torch.linspace(-0.5, 0.5, 5, dtype=torch.float64), 10)
    density = log_normal(center[:, None] + decoder.spacing * node, 0.0, std)
    right = torch.logsumexp(density + (decoder.spacing * width).log(), 1)
    if tanh:
        edges = torch.stack([center - decoder.spacing / 2, center + decoder.spacing / 2]) / std
        low, high = 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (edges + 0.044715 * edges**3)))
        ours = (high - low).clamp(min=1e-12).log()
    return equal(ours, right, rel=1e-9, why="quadrature over the bin")


@theorem(
    source="DDPM, arXiv:2006.11239, eq. 13",
    given="the normal distribution is taken exactly, without a floor",
)
def bins_in_the_tails(subject: Subject) -> Sides:
    """The discretised Gaussian's log-probability is that of its bin, ten standard deviations away
    too."""
    return _bin(tanh=False)


@bins_in_the_tails.without("the normal distribution is taken exactly, without a floor")
def _(subject: Subject) -> Sides:
    return _bin(tanh=True)


def _table(exact: bool) -> Sides:
    """The table of E[−log p(k | z₀)] against the average of `log_prob` over noise."""
    node, mass = normal_nodes()
    left, right = [], []
    for decoder in DECODERS[:3]:
        k = torch.arange(LEVELS)
        x = decoder.grid.repeat_interleave(len(node))[:, None]
        z = diffuse(
            x, node.repeat(LEVELS)[:, None], torch.full((len(x),), LOGSNR, dtype=torch.float64)
        )
        mean = z / alpha(torch.tensor(LOGSNR, dtype=torch.float64)) if exact else z
        nll = -decoder.log_prob(k.repeat_interleave(len(node))[:, None], mean, LOGSNR)
        left.append(decoder.table(LOGSNR))
        right.append(nll.view(LEVELS, -1) @ mass)
    return equal(
        torch.stack(left), torch.stack(right), rel=1e-9, why="quadrature over ε", atol=1e-12
    )


@theorem(source="VDM, arXiv:2107.00630, section 3.3", given="the mean is z₀/α₀")
def reconstruction_is_a_table(subject: Subject) -> Sides:
    """A decoder that reads z₀ alone has a reconstruction term that depends on the level and on
    λ_max only."""
    return _table(exact=True)


@reconstruction_is_a_table.without("the mean is z₀/α₀")
def _(subject: Subject) -> Sides:
    return _table(exact=False)


def _gaussian_term(variance: float | None, claimed: float) -> Sides:
    """E[−log N(x; z₀/α₀, v)] with x the mixture's, by nodes."""
    x, eps, weight = mixture().nodes(LOGSNR)
    z = diffuse(x, eps, torch.full((len(x),), LOGSNR, dtype=torch.float64))
    nll = -Gaussian(variance=variance).log_prob(
        x, z / torch.sigmoid(torch.tensor(LOGSNR, dtype=torch.float64)).sqrt(), LOGSNR
    )
    return equal(weight @ nll, claimed, rel=1e-9, why="quadrature")


@theorem(
    source="of the Gaussian's entropy", given="the decoder's variance is the noise's, e^(−λ_max)"
)
def gaussian_reconstruction(subject: Subject) -> Sides:
    """For continuous data the Gaussian decoder's term is ½ d (log 2πe − λ_max): it falls for ever
    as λ_max grows."""
    return _gaussian_term(None, 0.5 * (math.log(2 * math.pi * math.e) - LOGSNR))


@gaussian_reconstruction.without("the decoder's variance is the noise's, e^(−λ_max)")
def _(subject: Subject) -> Sides:
    return _gaussian_term(0.1, 0.5 * (math.log(2 * math.pi * math.e) - LOGSNR))


def _bits(bin_width: float) -> Sides:
    """Bits of a fine quantisation of N(0.1, 0.04) against its differential entropy with a bin
    width."""
    width = 2 / 256
    edges = torch.arange(-256, 257, dtype=torch.float64) * width
    p = torch.special.ndtr((edges - 0.1) / 0.2).diff()
    discrete = -(p * p.clamp(min=1e-300).log()).sum()
    entropy = torch.tensor(0.5 * math.log(2 * math.pi * math.e * 0.2**2), dtype=torch.float64)
    return equal(
        bits_per_dim(discrete, 1),
        bits_per_dim(entropy, 1, bin_width),
        rel=1e-4,
        why="of the order of (bin/std)²",
    )


@theorem(
    source="Theis et al., arXiv:1511.01844", given="the bin's width is that of the data's grid"
)
def bits_of_a_density(subject: Subject) -> Sides:
    """Quantised to bins of width b, a density h nats has h/ln 2 − log₂ b bits per dimension: 7
    more on 256 levels over [−1, 1]."""
    return _bits(2 / 256)


@bits_of_a_density.without("the bin's width is that of the data's grid")
def _(subject: Subject) -> Sides:
    return _bits(2 / 255)


GRID = Categorical(3).grid
PMF = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def _discrete(fitted: bool) -> Sides:
    """The whole bound of three levels against the entropy: at a high λ_max the ends leave nothing
    over, at λ_max = 0 much."""
    oracle = Lattice(GRID, PMF)
    bound = oracle.bound(8.0 if fitted else 0.0, -14.0, Categorical(3)).total[0]
    return equal(
        bound,
        oracle.entropy(),
        rel=1e-5,
        why="what the ends leave over, ½ SNR_min and the decoder's errors",
    )


@theorem(source="VDM, arXiv:2107.00630, section 4", given="λ_max is high enough to read z₀")
def bound_of_discrete_data(subject: Subject) -> Sides:
    """For discrete data the bound of the exact denoiser tends to the entropy as the ends
    recede."""
    return _discrete(fitted=True)


@bound_of_discrete_data.without("λ_max is high enough to read z₀")
def _(subject: Subject) -> Sides:
    return _discrete(fitted=False)


__all__: list[str] = []
