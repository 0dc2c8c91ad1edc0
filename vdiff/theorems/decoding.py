"""Decoders and units: probabilities that sum to one, tails, bits per dimension."""

import math

import torch
from torch import Tensor

from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian, Levels, normal_nodes
from vdiff.gaussian import alpha, bits_per_dim, diffuse
from vdiff.loss import elbo
from vdiff.oracle import Lattice
from vdiff.schedule import Linear
from vdiff.theorems.integral import log_normal, over_time, panels
from vdiff.theorems.subject import ORACLE, f64
from vdiff.theorems.theorem import Sides, equal, theorem

LEVELS, LOGSNR, STD = 32, 5.0, 0.3
MEANS = f64([-1.4, -1.0, -0.2, 0.03, 0.9, 0.98])
DECODERS: tuple[Levels, ...] = (
    Categorical(LEVELS),
    Categorical(LEVELS, levels_at_ends=True),
    DiscretizedGaussian(LEVELS),
    DiscretizedGaussian(LEVELS, variance=STD**2),
)
GRID, SPACING = torch.linspace(-1, 1, LEVELS, dtype=torch.float64), 2 / (LEVELS - 1)


def _normal_bins(edges_at_infinity: bool) -> Tensor:
    """Φ over the bin of each level around each mean."""
    edges = torch.cat([GRID - SPACING / 2, GRID[-1:] + SPACING / 2]).expand(len(MEANS), -1).clone()
    if edges_at_infinity:
        edges[:, 0], edges[:, -1] = -math.inf, math.inf
    bins: Tensor = torch.special.ndtr((edges - MEANS[:, None]) / STD).diff(dim=1)
    return bins


@theorem(
    "DDPM, arXiv:2006.11239, eq. 13; VDM, arXiv:2107.00630, eq. 8",
    without={"the end bins reach to infinity": {"to_infinity": False}},
)
def decoders_sum_to_one(to_infinity: bool = True) -> Sides:
    """Each discrete decoder is a distribution over levels, for means in the range and outside it;
    the discretised Gaussian's is that of its bins."""
    level = torch.arange(LEVELS).repeat(len(MEANS))[:, None]
    mean = MEANS.repeat_interleave(LEVELS)[:, None]
    mass = [d.log_prob(level, mean, LOGSNR).exp().view(-1, LEVELS) for d in DECODERS]
    sums, bins = torch.stack(mass).sum(2), _normal_bins(to_infinity)
    left = torch.cat([sums.flatten(), mass[3].flatten()])
    right = torch.cat([torch.ones_like(sums).flatten(), bins.flatten()])
    return equal(left, right, rel=1e-9, atol=1e-15)


@theorem(
    "DDPM, arXiv:2006.11239, eq. 13",
    without={"the normal distribution is taken exactly, without a floor": {"tanh": True}},
)
def bins_in_the_tails(tanh: bool = False) -> Sides:
    """The discretised Gaussian's log-probability is that of its bin, even ten standard deviations
    away."""
    std, level = 0.05, torch.arange(8, 24)
    decoder, center = DiscretizedGaussian(LEVELS, variance=std**2), GRID[level]
    ours = decoder.log_prob(level[:, None], torch.zeros(16, 1, dtype=torch.float64), LOGSNR)
    node, width = panels(torch.linspace(-0.5, 0.5, 5, dtype=torch.float64), 10)
    density = log_normal(center[:, None] + SPACING * node, 0.0, std)
    right = torch.logsumexp(density + (SPACING * width).log(), 1)
    if tanh:
        edges = torch.stack([center - SPACING / 2, center + SPACING / 2]) / std
        low, high = 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (edges + 0.044715 * edges**3)))
        ours = (high - low).clamp(min=1e-12).log()
    return equal(ours, right, rel=1e-9, why="quadrature over the bin")


@theorem("VDM, arXiv:2107.00630, section 3.3", without={"the mean is z₀/α₀": {"exact": False}})
def reconstruction_is_a_table(exact: bool = True) -> Sides:
    """A decoder that reads z₀ alone has a reconstruction term that depends on the level and on
    λ_max only."""
    node, mass = normal_nodes()
    level = torch.arange(LEVELS).repeat_interleave(len(node))[:, None]
    lam = f64(LOGSNR)
    tables, averages = [], []
    for decoder in DECODERS[:3]:
        z = diffuse(
            decoder.level_values[level], node.repeat(LEVELS)[:, None], lam.expand(len(level))
        )
        log_p = decoder.log_prob(level, z / alpha(lam) if exact else z, LOGSNR)
        tables.append(decoder.table(LOGSNR))
        averages.append(-log_p.view(LEVELS, -1) @ mass)
    left, right = torch.stack(tables), torch.stack(averages)
    return equal(left, right, rel=1e-9, why="quadrature over ε", atol=1e-12)


@theorem(
    "from the Gaussian's entropy",
    without={"the decoder's variance is the noise's, e^(−λ_max)": {"variance": 0.1}},
)
def gaussian_reconstruction(variance: float | None = None) -> Sides:
    """For continuous data the Gaussian decoder's term is ½ d (log 2πe − λ_max): it falls without
    bound as λ_max grows."""
    x, eps, weight = ORACLE.nodes(LOGSNR)
    z = diffuse(x, eps, torch.full((len(x),), LOGSNR, dtype=torch.float64))
    log_p = Gaussian(variance=variance).log_prob(x, z / alpha(f64(LOGSNR)), LOGSNR)
    right = 0.5 * (math.log(2 * math.pi * math.e) - LOGSNR)
    return equal(-weight @ log_p, right, rel=1e-9, why="quadrature")


@theorem(
    "Theis et al., arXiv:1511.01844",
    without={"the bin's width is that of the data's grid": {"width": 2 / 255}},
)
def bits_of_a_density(width: float = 2 / 256) -> Sides:
    """Quantised to bins of width b, a density h nats has h/ln 2 − log₂ b bits per dimension: 7
    more on 256 levels over [−1, 1]."""
    edges = torch.arange(-256, 257, dtype=torch.float64) * 2 / 256
    p = torch.special.ndtr((edges - 0.1) / 0.2).diff()
    bits = -(p * p.clamp(min=1e-300).log2()).sum()
    entropy = f64(0.5 * math.log(2 * math.pi * math.e * 0.2**2))
    why = "of the order of (bin/std)²"
    return equal(bits_per_dim(entropy, 1, width), bits, rel=1e-4, why=why)


@theorem(
    "VDM, arXiv:2107.00630, section 4", without={"λ_max is high enough to read z₀": {"high": 0.0}}
)
def bound_of_discrete_data(high: float = 8.0) -> Sides:
    """For discrete data the bound of the exact denoiser tends to the entropy as the ends
    recede."""
    pmf, decoder = [0.2, 0.5, 0.3], Categorical(3)
    oracle = Lattice(decoder.level_values, pmf)

    def total(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        level = (1.5 * x + 1).round().long()
        schedule = Linear(high, -14.0)
        found = elbo(oracle, level, schedule=schedule, decoder=decoder, t=t, eps=eps.float())
        return found.total

    bound = over_time(total, oracle, Linear(high, -14.0))
    entropy = -sum(p * math.log(p) for p in pmf)
    return equal(bound, entropy, rel=1e-5, why="½ SNR_min and the decoder's errors")
