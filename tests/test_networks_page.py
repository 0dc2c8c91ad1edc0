"""The table of docs/networks.md: what a perfect network loses on each path, exactly."""

import functools
import math
import re
from pathlib import Path

import pytest
import torch

from vdiff.chain import first_variance
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.gaussian import diffuse
from vdiff.oracle import Gaussian, Lattice
from vdiff.schedule import Tabulated

LEVEL = torch.arange(256, dtype=torch.float64)
PIXEL = Lattice(2 * LEVEL / 255 - 1, torch.softmax(-(LEVEL - 120).abs() / 3, 0))
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
TABLE = Tabulated.from_betas(BETAS)
RESCALED = Tabulated.from_betas(BETAS, zero_terminal_snr=True)
CATEGORICAL = Categorical(256, levels_at_ends=True)
NETWORK = DiscretizedGaussian(256, uses_network=True)
DDPM = DiscretizedGaussian(256, uses_network=True, posterior_variance=first_variance(TABLE, 999))
PAGE = (Path(__file__).parents[1] / "docs/networks.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| .+ \| ([\d.]+) \|$", PAGE, re.MULTILINE)


def reconstruction(decoder, logsnr_max):
    """E[−log p(level | z₀)], nats, by quadrature."""
    if not decoder.uses_network:
        return PIXEL.bound(logsnr_max, -1.0, decoder).reconstruction[0]
    x, eps, weight = PIXEL.nodes(logsnr_max)
    likely = weight > 1e-12
    x, eps, weight = x[likely], eps[likely], weight[likely]
    logsnr = torch.full((len(x),), logsnr_max, dtype=torch.float64)
    level = ((x + 1) * 127.5).round().long()
    return weight @ decoder.nll(level, diffuse(x, eps, logsnr), logsnr_max, PIXEL)


def above(logsnr_max, logsnr_min, decoder, table=None):
    """The bound of the perfect network minus the entropy, bits; of a chain over a whole table."""
    bound = PIXEL.bound(logsnr_max, logsnr_min, CATEGORICAL)
    diffusion = bound.diffusion[0]
    if table is not None:
        diffusion = chain_diffusion(table)
    total = bound.prior[0] + diffusion + reconstruction(decoder, logsnr_max)
    return (total - PIXEL.entropy()).item() / math.log(2)


@functools.cache
def chain_diffusion(table):
    """The sum of T steps, each ½ expm1(Δ) E‖ε − ε̂‖²."""
    return 0.5 * (torch.expm1(-table.table.diff()) * PIXEL.mmse(table.table[1:])).sum()


def latents_above():
    covariance = 0.02 * torch.eye(16, dtype=torch.float64) + 0.03
    data = Gaussian(torch.zeros(16), covariance)
    nats = data.bound(12.0, -8.0).total.item() - data.entropy().item()
    return nats / 16 / math.log(2)


END = 2 * math.log(999)
PATHS = [
    lambda: above(TABLE.logsnr_max, TABLE.logsnr_min, DDPM, TABLE),
    lambda: above(TABLE.logsnr_max, TABLE.logsnr_min, NETWORK, TABLE),
    lambda: above(TABLE.logsnr_max, TABLE.logsnr_min, NETWORK),
    lambda: above(TABLE.logsnr_max, TABLE.logsnr_min, CATEGORICAL),
    lambda: above(RESCALED.logsnr_max, RESCALED.table[-2].item(), NETWORK),
    lambda: above(-2 * math.log(0.002), -2 * math.log(80), CATEGORICAL),
    lambda: above(END, -END, CATEGORICAL),
    latents_above,
    lambda: above(13.3, -6.0, CATEGORICAL),
]


def test_the_table_has_every_path():
    assert len(ROWS) == len(PATHS)


@pytest.mark.parametrize(("row", "path"), list(zip(ROWS, PATHS, strict=False)))
def test_a_number_of_the_table_is_exact(row, path):
    assert f"{path():.3f}" == row[1]


def test_the_code_checks_the_numbers_of_the_table():
    in_code = re.findall(r"agrees\(\s*model, ([\d.]+),", PAGE)
    table = [number for name, number in ROWS if "latent" not in name]
    del table[3], table[1]  # have no code
    assert in_code == table
