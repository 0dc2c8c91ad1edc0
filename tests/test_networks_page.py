"""The table of docs/networks.md: what a perfect network loses on each path, exactly; and its
commands."""

import functools
import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff.chain import first_variance
from vdiff.cli import main
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
# the builders of the page, and what each one's estimate is compared with
CODE = re.findall(r"^agrees\((\w+)\(\), ([\d.]+)", PAGE, re.MULTILINE)
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
    assert [exact for _, exact in CODE] == [
        ROWS[i][1] for i in range(len(ROWS)) if i not in (1, 3)
    ]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The code of the page as a program, without its own estimates, and its data."""
    folder = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = "\n".join(blocks)
    (folder / "mine.py").write_text(re.sub(r"^agrees\(.*?\)$", "", program, flags=re.MULTILINE))
    names = runpy.run_path(str(folder / "mine.py"))
    images = names["images"].to(torch.uint8)
    for i, image in enumerate(images):
        where = folder / "test_photos" / str(i % 2)
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(where / f"{i}.png")
    np.save(folder / "latents.npy", names["latents"].numpy())
    return folder, {"": names["truth"], "latent": names["density"]}


@pytest.mark.parametrize(("function", "exact"), CODE)
def test_the_command_of_a_section_gives_its_number(function, exact, mine, monkeypatch, capsys):
    """As it stands there, but for the tolerance: one command for each kind of network."""
    folder, truth = mine
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = re.findall(rf"`vdiff (evaluate mine.py:{function} [^`]+)`", PAGE)[0]
    words = command.split()[:-2]  # without the tolerance
    assert main([*words, "--draws", "32", "--quiet"]) == 0, capsys.readouterr().err
    total = json.loads((folder / f"mine-{function}" / "evaluation.json").read_text())["total"]
    above = total["value"] - truth.get(function, truth[""])
    assert abs(above - float(exact)) < 4 * total["monte_carlo"]
