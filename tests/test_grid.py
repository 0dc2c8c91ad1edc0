"""Grids: their levels on schedules and on tables, and that any of them leads to the same end."""

import numpy as np
import pytest
import torch
from mixtures import PLANE, noise

from vdiff import Denoiser, sample, trajectory
from vdiff.denoiser import TableStep
from vdiff.parameterization import Eps
from vdiff.sampling import (
    adams_bashforth,
    ddim,
    leading,
    logistic,
    ode,
    trailing,
    uniform,
)
from vdiff.schedule import (
    Cosine,
    Karras,
    Linear,
    OptimalTransport,
    PerDimension,
    Shifted,
    Tabulated,
)

COUNTS = 1, 2, 3, 7, 16, 20, 30, 48, 64, 333, 500, 501, 999, 1000


def published(spacing: str, levels: int, steps: int) -> list[int]:
    """The timesteps of diffusers' schedulers, in their own words."""
    if spacing == "leading":
        step_ratio = levels // steps
        return (np.arange(0, steps) * step_ratio).round()[::-1].copy().astype(np.int64).tolist()
    step_ratio = levels / steps
    return (np.round(np.arange(levels, 0, -step_ratio)).astype(np.int64) - 1)[:steps].tolist()


SPACINGS = {"leading": leading, "trailing": trailing}
TABLES = {
    "DDPM": Tabulated.linear_betas(),
    "iDDPM": Tabulated.cosine_betas(),
    "100": Tabulated.linear_betas(levels=100, rescale_from=1000),
    "23": Tabulated.cosine_betas(23),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_levels_are_those_of_the_published_steps(spacing, name):
    table = TABLES[name]
    size = table.steps + 1
    for steps in (n for n in COUNTS if n <= size):
        expected = published(spacing, size, steps)
        levels = SPACINGS[spacing](table, steps)
        assert torch.equal(levels, table.table[expected])
        told = TableStep(table, integer=True)(levels)
        assert (told.dtype, told.tolist()) == (torch.int64, expected)
        assert TableStep(table)(levels).tolist() == expected
        assert TableStep(table)(levels).float().tolist() == expected
    for shift in (0.7, -2.0):
        moved = SPACINGS[spacing](Shifted(Shifted(table, 1.0), shift), 5)
        assert torch.equal(moved, SPACINGS[spacing](table, 5) + (shift + 1.0))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_table_for_each_dimension_has_its_own_levels(spacing):
    tables = TABLES["DDPM"], Shifted(TABLES["iDDPM"], -1.5), TABLES["iDDPM"]
    levels = SPACINGS[spacing](PerDimension(tables), 20, ndim=3)
    assert levels.shape == (20, 1, 3, 1)
    for i, table in enumerate(tables):
        assert torch.equal(levels[:, 0, i, 0], SPACINGS[spacing](table, 20))
    mixed = PerDimension([TABLES["DDPM"], TABLES["23"]])  # no common steps
    assert SPACINGS[spacing](mixed, 20, ndim=2).shape == (20, 1, 2)


def test_the_steps_of_the_papers():
    table = TABLES["DDPM"]
    step = TableStep(table, integer=True)
    assert step(leading(table, 20)).tolist() == list(range(950, -1, -50))
    assert step(trailing(table, 20)).tolist() == list(range(999, 48, -50))
    assert step(leading(table, 30)).tolist() == list(range(957, -1, -33))
    for spacing in SPACINGS.values():
        torch.testing.assert_close(spacing(table, 1000), uniform(table, 999), rtol=1e-12, atol=0.0)


def test_more_steps_than_a_table_has_levels_lie_between_them():
    table = TABLES["23"]
    for spacing in SPACINGS.values():
        levels = spacing(table, 50)
        assert len(levels) == 50
        assert (levels.diff() > 0).all()
        assert table.table[-1] <= levels[0]
        assert levels[-1] <= table.table[0]


class Unet(torch.nn.Module):
    """Remembers what it is given."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 4
        self.told = []

    def forward(self, z, step):
        self.told.append(step[0].item())
        return torch.tanh(z @ self.weight) * (1 + step[:, None].double() / 1000)


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("steps", [7, 20, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_on_them_is_ddim_as_published(spacing, steps, integer):
    """arXiv:2010.02502, eq. 12 with η = 0, from each step to the next, and from the last to ᾱ =
    1."""
    table, unet = TABLES["DDPM"], Unet()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_cumprod, timesteps = torch.cumprod(1 - betas, 0), published(spacing, 1000, steps)
    start = x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        after = torch.ones(()) if following is None else alphas_cumprod[following]
        eps = Unet()(x, torch.full((8,), t))
        clean = (x - (1 - alphas_cumprod[t]).sqrt() * eps) / alphas_cumprod[t].sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * eps
    model = Denoiser(unet, Eps(), time=TableStep(table, integer=integer))
    made = sample(model, start, levels=SPACINGS[spacing](table, steps), step=ddim)
    assert unet.told == timesteps
    torch.testing.assert_close(made, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [Karras(), Cosine(), logistic(), OptimalTransport(), Tabulated.cosine_betas()],
    ids=lambda s: type(s).__name__,
)
def test_any_grid_leads_to_the_same_end(schedule):
    z = noise(dims=2)
    levels = uniform(schedule, 199)
    *_, (got, _) = trajectory(PLANE, z, levels=levels, step=adams_bashforth)
    exact = ode(PLANE, z, levels[:1].expand(64), levels[-1:].expand(64), rtol=1e-9, atol=1e-9)
    assert (got - exact).square().mean().sqrt() < 1e-3


def test_grids():
    schedule = Linear(10.0, -10.0)
    assert trailing(schedule, 1).tolist() == [-10.0]
    assert uniform(schedule, 4).tolist() == [-10.0, -5.0, 0.0, 5.0, 10.0]
    assert trailing(schedule, 5).tolist() == pytest.approx([-10.0, -6.0, -2.0, 2.0, 6.0])
    assert leading(schedule, 5).tolist() == pytest.approx([-6.0, -2.0, 2.0, 6.0, 10.0])
    torch.testing.assert_close(
        torch.exp(-0.5 * uniform(Karras(), 17)), Karras().sigmas(18), rtol=1e-12, atol=0.0
    )
    table = Tabulated.linear_betas()
    torch.testing.assert_close(uniform(table, 999), table.table.flip(0), rtol=1e-12, atol=1e-12)


def test_levels_are_any_array_of_numbers():
    z, wanted = (
        noise(dims=2),
        sample(
            PLANE,
            noise(dims=2),
            levels=torch.tensor([-9.1, -0.3, 4.7], dtype=torch.float64),
            step=ddim,
        ),
    )
    for levels in ([-9.1, -0.3, 4.7], (-9.1, -0.3, 4.7), np.array([-9.1, -0.3, 4.7])):
        assert torch.equal(sample(PLANE, z, levels=levels, step=ddim), wanted)
