"""A chain of a few steps, and a network with a head for its variance."""

import torch
from registry import objective_of
from torch import nn

from vdiff import Denoiser
from vdiff.chain import first_variance
from vdiff.decoder import DiscretizedGaussian
from vdiff.parameterization import Eps
from vdiff.schedule import Tabulated
from vdiff.variance import LearnedRange

STEPS = 9
TABLE = Tabulated.cosine_betas(STEPS + 1)
DECODER = DiscretizedGaussian(
    17, uses_network=True, posterior_variance=first_variance(TABLE, STEPS)
)
LEVELS = torch.randint(0, 17, (STEPS + 1, 2), generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(STEPS + 1, 2, generator=torch.Generator().manual_seed(2))
EVERY = (
    torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
)  # every level of the chain, the decoder's first


class Heads(nn.Module):
    """A smooth network of points with a mean and, with `heads` = 2, a variance."""

    def __init__(self, heads=2):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2 * heads)
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)

    def forward(self, z, logsnr):
        return self.outer(torch.tanh(self.inner(torch.cat([z, 0.1 * logsnr[:, None]], 1))))


def chain(**options):
    return objective_of(
        Denoiser(Heads(), Eps(), variance=LearnedRange()),
        schedule=TABLE,
        decoder=DECODER,
        steps=STEPS,
        **options,
    )


class Told(nn.Module):
    """A model whose error at a token depends on the λ of all tokens."""

    def forward(self, z, logsnr):
        field = logsnr.expand_as(z)
        return torch.tanh(0.1 * field + 0.05 * field.mean(1, keepdim=True)) * z
