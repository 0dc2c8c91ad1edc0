"""Samples along fields of log-SNR: constant, of schedules over dimensions, one dimension after
another."""

import math
from functools import partial

import pytest
import torch
from fields_of_noise import COVARIANCE, GAUSSIAN, PLANE, OfDimensions, OneByOne
from inpainted import covariance_of, draws
from mixtures import EVERY
from mixtures import PLANE as POINTS
from torch import nn

from vdiff import sample, trajectory
from vdiff.sampling import adams_bashforth, ddim, dpmpp_2m, heun, leading, ode, trailing, uniform
from vdiff.schedule import Cosine, InTurn, Linear, MuLAN, PerDimension, Shifted
from vdiff.variance import LearnedLogVariance


def number(z, logsnr):
    """A mixture's denoiser, told a number by a field that is one."""
    told = logsnr if logsnr.ndim == 1 else logsnr.flatten(1)[:, 0]
    return POINTS(z, told).replace(logsnr=logsnr)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_a_constant_field_is_the_number_bit_for_bit(step):
    z, levels = draws(9, 2), uniform(Cosine(9.0, -9.0), 6)
    options = {"step": step}
    scalar, constant, expanded = (
        sample(number, z, levels=v, generator=torch.Generator().manual_seed(1), **options)
        for v in (levels, levels.view(-1, 1, 1), levels.view(-1, 1, 1).expand(-1, 9, 2))
    )
    assert torch.equal(scalar, constant)
    torch.testing.assert_close(scalar, expanded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_a_dimension_whose_level_rests_does_not_move(step):
    """In one step, whoever calls it, and through all steps of a sampler."""
    z = draws(5, 3)
    t = torch.tensor([[-2.0, 1.0, -5.0]], dtype=torch.float64).expand(5, 3)
    s = t + torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    made = step(GAUSSIAN, z, t, s)
    assert torch.equal(made[:, 1], z[:, 1])
    assert (made[:, ::2] - z[:, ::2]).abs().min() > 1e-4
    path = trajectory(
        GAUSSIAN, z, schedule=OneByOne(8.0, -8.0, [2, 0, 1]), steps=12, step=step,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    states = torch.stack([state for state, _ in path])
    moves = (states.diff(dim=0) != 0).all(1)  # (steps, dimensions), from noise to data
    turn = torch.arange(12) // 4
    assert torch.equal(moves, turn[:, None] == torch.tensor([0, 2, 1]))
    assert torch.isfinite(states).all()


def test_a_dimension_rests_whatever_a_step_does():
    def step(model, z, t, s, history):
        return model(z, t).z + 1

    z, options = draws(5, 3), {"schedule": OneByOne(8.0, -8.0, [2, 0, 1]), "steps": 6}
    for i, (state, _) in enumerate(trajectory(GAUSSIAN, z, step=step, **options)):
        moved = torch.tensor([min(max(i - 2 * turn, 0), 2) for turn in (0, 2, 1)])
        torch.testing.assert_close(state, z + moved)


def test_a_dimension_that_rests_does_not_mind_a_learned_variance():
    """log Σ over a posterior variance of 0 is infinite."""

    def model(z, logsnr):
        made = GAUSSIAN(z, logsnr)
        return made.replace(variance=LearnedLogVariance(), variance_output=torch.zeros_like(z) - 3)

    z = draws(5, 3).requires_grad_()
    made = sample(model, z, schedule=OneByOne(8.0, -8.0, [2, 0, 1]), steps=6, differentiable=True)
    (gradient,) = torch.autograd.grad(made.sum(), z)
    assert torch.isfinite(made).all()
    assert torch.isfinite(gradient).all()


# steps of each dimension, and the largest error of its covariance
ACCURATE = {ddim: (400, 0.05), heun: (150, 0.01), dpmpp_2m: (200, 0.01),
            adams_bashforth: (100, 0.01), ode: (1, 1e-3)}  # fmt: skip


@pytest.mark.parametrize("step", ACCURATE, ids=lambda step: step.__name__)
def test_one_dimension_after_another_is_an_autoregressive_sampler(step):
    """With the exact denoiser, the covariance is that of the data."""
    steps, error = ACCURATE[step]
    schedule = OneByOne(13.0, -13.0, [1, 2, 0])
    found = covariance_of(step, 3 * steps, schedule=schedule)
    assert torch.allclose(found, COVARIANCE, rtol=0.0, atol=error), found - COVARIANCE


def test_one_dimension_after_another_with_noise():
    """Within four standard errors."""
    n, generator = 1000, torch.Generator().manual_seed(2)
    schedule = OneByOne(10.0, -9.0, [1, 2, 0])
    made = sample(GAUSSIAN, draws(n, 3), schedule=schedule, steps=600, generator=generator)
    variance = COVARIANCE.diagonal()
    error = ((torch.outer(variance, variance) + COVARIANCE**2) / n).sqrt()
    assert ((made.T @ made / n - COVARIANCE).abs() < 4 * error).all()


@pytest.mark.parametrize("step", ACCURATE, ids=lambda step: step.__name__)
def test_a_path_whose_dimensions_have_their_own_ends(step):
    schedule, (steps, error) = (
        OfDimensions([10.0, 13.0, 12.0], [-14.0, -11.0, -13.0]),
        ACCURATE[step],
    )
    found = covariance_of(step, steps, schedule=schedule)
    assert torch.allclose(found, COVARIANCE, rtol=0.0, atol=error), found - COVARIANCE
    for i, (_, at) in enumerate(trajectory(GAUSSIAN, draws(2, 3), schedule=schedule, steps=2)):
        wanted = schedule.logsnr_at(torch.full((1, 1), 1 - i / 2, dtype=torch.float64))
        assert torch.equal(at.logsnr, wanted.expand(2, 3))


def test_the_orders_of_multistep_methods_hold_along_a_field():
    """The error falls by 2² and 2³ with twice the steps."""
    schedule, z = OfDimensions([6.0, 8.0, 7.0], [-8.0, -6.0, -7.0]), draws(8, 3)
    exact = end(schedule, z, adams_bashforth, 800)
    for step, order in ((dpmpp_2m, 2), (heun, 2), (adams_bashforth, 2.8)):
        off = [(end(schedule, z, step, n) - exact).square().mean().sqrt() for n in (50, 100)]
        assert math.log2(off[0] / off[1]) > order - 0.3, step


def end(schedule, z, step, steps):
    *_, (made, _) = trajectory(GAUSSIAN, z, schedule=schedule, steps=steps, step=step)
    return made


@pytest.mark.parametrize(
    ("schedule", "same"),
    [
        (PerDimension([Linear(9.0, -7.0), Linear(5.0, -8.0), Linear(6.0, -6.0)]),
         OfDimensions([9.0, 5.0, 6.0], [-7.0, -8.0, -6.0])),
        (InTurn(Linear(9.0, -9.0), [1, 2, 0]), OneByOne(9.0, -9.0, [1, 2, 0])),
    ],
    ids=["per dimension", "in turn"],
)  # fmt: skip
def test_the_schedules_of_the_library_are_such_paths(schedule, same):
    one, two = (end(s, draws(4, 3), adams_bashforth, 9) for s in (schedule, same))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_levels_of_a_schedule_over_dimensions():
    schedule = OfDimensions([9.0, 5.0], [-9.0, -5.0])
    assert uniform(schedule, 2, ndim=2).tolist() == [[[-9.0, -5.0]], [[0.0, 0.0]], [[9.0, 5.0]]]
    assert torch.equal(trailing(schedule, 2, ndim=2), uniform(schedule, 2, ndim=2)[:-1])
    assert torch.equal(leading(schedule, 2, ndim=2), uniform(schedule, 2, ndim=2)[1:])
    z, options = draws(3, 2), {"step": ddim}
    by_schedule = sample(PLANE, z, schedule=schedule, steps=4, **options)
    by_levels = sample(PLANE, z, levels=uniform(schedule, 4, ndim=2), **options)
    assert torch.equal(by_schedule, by_levels)


def test_levels_of_each_sample():
    """A field for each sample, such as a pyramid of tokens, is each sample's alone."""
    z = draws(2, 3)
    rows = torch.stack([uniform(s, 5) for s in (Linear(8.0, -8.0), Linear(6.0, -9.0))], 1)
    made = sample(GAUSSIAN, z, levels=rows[..., None], step=ddim)
    for i in range(2):
        one = sample(GAUSSIAN, z[i : i + 1], levels=rows[:, i], step=ddim)
        torch.testing.assert_close(made[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_a_shift_for_each_sample():
    z, shifts = draws(3, 3), [0.0, 1.0, -2.0]
    made = sample(
        GAUSSIAN, z, schedule=Shifted(Cosine(9.0, -9.0), torch.tensor(shifts)), steps=4, step=ddim
    )
    for i, shift in enumerate(shifts):
        schedule = Shifted(Cosine(9.0, -9.0), shift)
        one = sample(GAUSSIAN, z[i : i + 1], schedule=schedule, steps=4, step=ddim)
        torch.testing.assert_close(made[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_a_schedule_that_depends_on_the_data_draws_its_latents():
    torch.manual_seed(0)
    schedule, z = MuLAN(nn.Linear(3, 4), [3], latents=4), draws(5, 3)
    nn.init.normal_(schedule.log_factors)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    options = {"steps": 4, "step": ddim}
    made = sample(GAUSSIAN, z, schedule=schedule, generator=generators[0], **options)
    drawn = schedule.for_samples(5, generators[1])
    assert torch.equal(made, sample(GAUSSIAN, z, schedule=drawn, **options))
    other = sample(GAUSSIAN, z, schedule=schedule, generator=generators[2], **options)
    assert not torch.allclose(made, other)
    with pytest.raises(ValueError, match="generator' must be one generator for such a schedule"):
        sample(GAUSSIAN, z, schedule=schedule, generator=[torch.Generator()] * 5, **options)


def test_the_ode_between_fields_returns_to_its_start():
    z, tight = draws(8, 3), partial(ode, rtol=1e-9, atol=1e-9)
    low = torch.tensor([[-9.0, -8.0, 4.0]], dtype=torch.float64).expand(8, 3)
    high = torch.tensor([[7.0, 9.0, 4.0]], dtype=torch.float64).expand(8, 3)
    there = tight(GAUSSIAN, z, low, high)
    assert torch.equal(there[:, 2], z[:, 2])
    torch.testing.assert_close(tight(GAUSSIAN, there, high, low), z, rtol=0.0, atol=1e-6)
