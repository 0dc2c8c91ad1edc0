"""A chain of DDPM: its table, its own formulas, and a network."""

import torch

from vdiff import Denoiser
from vdiff.chain import first_variance
from vdiff.decoder import DiscretizedGaussian
from vdiff.parameterization import Eps
from vdiff.schedule import Tabulated
from vdiff.variance import LearnedRange

LEVELS, STEPS = 40, 39
TABLE = Tabulated.linear_betas(levels=LEVELS, rescale_from=100)


def network(z, logsnr):
    """Twice the channels: some ε̂, and some log-interpolation."""
    return torch.cat([0.7 * z + 0.1 * torch.tanh(logsnr)[:, None], torch.sin(3 * z)], 1)


def model_and_decoder():
    decoder = DiscretizedGaussian(
        17, uses_network=True, posterior_variance=first_variance(TABLE, STEPS)
    )
    return Denoiser(network, Eps(), variance=LearnedRange()), decoder
