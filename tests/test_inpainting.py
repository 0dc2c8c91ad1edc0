"""Samples of a part given the rest: what is kept, and what law the rest has."""

import math

import pytest
import torch
from fields_of_noise import COVARIANCE, GAUSSIAN, PLANE, FieldMixture, OfDimensions
from inpainted import covariance_of, draws
from mixtures import EVERY
from torch import nn

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.parameterization import Eps, V, X
from vdiff.sampling import (
    Clipped,
    Counted,
    Guided,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    ode,
)
from vdiff.schedule import Linear

SCHEDULE = Linear(9.0, -9.0)
ENOUGH = {ancestral: 280, ddim: 150, heun: 40, dpmpp_2m: 80, adams_bashforth: 50, ode: 1}


def random_mask(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("step", ENOUGH, ids=lambda step: step.__name__)
def test_a_coordinate_of_a_mixture_given_the_other_has_the_exact_conditional_s_quantiles(step):
    n, value = 2000, 0.35
    given = torch.full((n, 2), value, dtype=torch.float64)
    made = sample(
        PLANE,
        draws(n, 2),
        schedule=Linear(13.0, -13.0),
        steps=ENOUGH[step],
        step=step,
        generator=torch.Generator().manual_seed(2),
        mask=torch.tensor([True, False]),
        given=given,
    )
    assert torch.equal(made[:, 1], given[:, 1])
    law = PLANE.conditional(torch.tensor([False, True]), torch.tensor([value]).double())
    places = law.cdf(made[:, :1])
    for q in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        assert abs((places < q).double().mean() - q) < 4 * math.sqrt(q * (1 - q) / n), q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_given_values_are_exact_in_every_state_and_in_the_result(step, dtype):
    """Each sample has its own mask."""
    z, given, mask = draws(6, 3, dtype=dtype), draws(6, 3, seed=3, dtype=dtype), random_mask(6, 3)
    options = {"schedule": SCHEDULE, "steps": 5, "step": step, "mask": mask, "given": given}
    states = list(trajectory(GAUSSIAN, z, generator=torch.Generator().manual_seed(1), **options))
    assert len(states) == 6
    for state, prediction in states:
        assert state.dtype == dtype
        assert torch.equal(state[~mask], given[~mask])
        assert torch.equal(prediction.modelled, mask)
    assert torch.equal(states[0][0][mask], z[mask])
    made = sample(GAUSSIAN, z, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(made[~mask], given[~mask])
    assert torch.equal(made[mask], states[-1][1].x[mask])
    assert made.dtype == dtype


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_a_mask_of_all_dimensions_changes_no_bit(step):
    def model(z, logsnr):
        return Prediction(z, logsnr, torch.tanh(2 * z), X())

    z = draws(7, 2, 3)
    whole, masked = (
        sample(
            model,
            z,
            schedule=SCHEDULE,
            steps=6,
            step=step,
            generator=torch.Generator().manual_seed(1),
            **options,
        )
        for options in ({}, {"mask": torch.ones(2, 3, dtype=torch.bool), "given": 0 * z})
    )
    assert torch.equal(whole, masked)


class Seen:
    """The exact denoiser of the Gaussian, which records what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, z, logsnr):
        self.calls.append((z.clone(), logsnr.clone()))
        return GAUSSIAN(z, logsnr)


@pytest.mark.parametrize("by_levels", [False, True])
def test_what_the_model_sees_and_is_told(by_levels):
    z, given = draws(4, 3), draws(4, 3, seed=3)
    mask, absent = torch.tensor([True, False, True]), random_mask(4, 3)
    given = given.masked_fill(absent, torch.nan)
    modelled, seen = mask & ~absent, Seen()
    levels = (
        {"levels": [-7.0, -2.0, 2.0, 6.0]} if by_levels else {"schedule": SCHEDULE, "steps": 3}
    )
    high, low = (6.0, -7.0) if by_levels else (9.0, -9.0)
    options = levels | {"step": heun, "mask": mask, "given": given, "absent": absent}
    states = list(trajectory(seen, z, **options))
    for x, logsnr in seen.calls:
        assert torch.equal(x[absent], z[absent])
        assert torch.equal(logsnr[absent], torch.full_like(z[absent], low))
        clean = ~mask & ~absent
        assert torch.equal(x[clean], given[clean])
        assert torch.equal(logsnr[clean], torch.full_like(z[clean], high))
    told = [prediction.logsnr[0].item() for _, prediction in states]
    assert {logsnr[modelled].unique().item() for _, logsnr in seen.calls} == set(told)
    assert all(torch.equal(state[absent], z[absent]) for state, _ in states)
    made = sample(GAUSSIAN, z, **options)
    assert torch.equal(made[absent], torch.zeros_like(made[absent]))
    assert torch.isfinite(made).all()


def test_absent_values_alone_need_no_data():
    """They leave the marginal of the rest."""
    absent, wanted = torch.tensor([False, True, False]), COVARIANCE.clone()
    wanted[1] = wanted[:, 1] = 0.0
    found = covariance_of(adams_bashforth, 60, schedule=Linear(13.0, -13.0), absent=absent)
    assert torch.allclose(found, wanted, atol=5e-3)


@pytest.mark.parametrize("interval", [None, (-3.0, 4.0)])
def test_guidance_beside_given_values(interval):
    """ô_u + s (ô_c − ô_u) in the modelled dimensions, each where its own λ is inside."""
    laws = [FieldMixture([1.0], [[m, 0.0, -m]], COVARIANCE[None]) for m in (0.0, 1.0)]

    def model(z, logsnr, label):
        both = torch.stack([law(z, logsnr).output for law in laws])
        return Prediction(z, logsnr, both[label, torch.arange(len(z))], Eps())

    def by_hand(z, logsnr):
        without, within = (law(z, logsnr).output for law in laws)
        low, high = interval or (-math.inf, math.inf)
        inside = (logsnr >= low) & (logsnr <= high)
        scale = torch.where(inside, 2.5, 1.0)
        return Prediction(z, logsnr, without + scale * (within - without), Eps())

    z, given, mask = draws(6, 3), draws(6, 3, seed=3), random_mask(6, 3)
    options = {"schedule": SCHEDULE, "steps": 9, "step": adams_bashforth}
    guided = Guided(model, 2.5, {"label": 0}, interval=interval)
    label = torch.ones(6, dtype=torch.long)
    for extra in ({"mask": mask, "given": given}, {}):
        schedule = {} if extra else {"schedule": OfDimensions([9.0, 8.0, 7.0], [-9.0, -6.0, -8.0])}
        setting = options | extra | schedule
        made = sample(guided, z, condition={"label": label}, **setting)
        torch.testing.assert_close(made, sample(by_hand, z, **setting), rtol=1e-9, atol=1e-9)


def test_clipping_and_counting_beside_given_values():
    z, given, mask = 3 * draws(6, 3), 9 * draws(6, 3, seed=3), random_mask(6, 3)
    model = Counted(Clipped(GAUSSIAN, -0.5, 0.5))
    made = sample(model, z, schedule=SCHEDULE, steps=4, step=ddim, mask=mask, given=given)
    assert model.evaluations == 5
    assert made[mask].abs().max() <= 0.5
    assert torch.equal(made[~mask], given[~mask])


def test_gradients_reach_the_noise_the_network_and_what_is_given():
    z, given = draws(3, 3).requires_grad_(), draws(3, 3, seed=3).requires_grad_()
    mask, factor = random_mask(3, 3), torch.ones((), dtype=torch.float64, requires_grad=True)

    def model(z, logsnr):
        made = GAUSSIAN(z, logsnr)
        return made.replace(output=factor * made.output)

    def total(z, given):
        made = sample(
            model, z, schedule=SCHEDULE, steps=5, step=ddim, mask=mask, given=given,
            differentiable=True,
        )  # fmt: skip
        return (made * torch.arange(9.0).view(3, 3)).sum()

    assert torch.autograd.gradcheck(total, (z, given))
    of_z, of_given, of_factor = torch.autograd.grad(total(z, given), (z, given, factor))
    assert torch.equal(of_z == 0, ~mask)
    assert (of_given[~mask] != 0).all()
    assert (of_given[mask] == 0).all()
    assert of_factor != 0
    plain = sample(model, z, schedule=SCHEDULE, steps=5, step=ddim, mask=mask, given=given)
    assert not plain.requires_grad


class Told(nn.Module):
    """A small network that is told a field, (batch, 1, height, width)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, z, time):
        time = time.expand(len(z), 1, *z.shape[2:]).to(z.dtype)
        return self.inner(torch.cat([z, 0.1 * time], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_takes_a_field_fills_in_images(dtype):
    model = Denoiser(Told().to(dtype), V(), field=True)
    z, given = draws(2, 2, 4, 4, dtype=dtype), draws(2, 2, 4, 4, seed=3, dtype=dtype)
    right = (torch.arange(4) >= 2).view(1, 1, 4).expand(1, 4, 4)
    options = {"schedule": SCHEDULE, "steps": 3, "given": given}
    made = sample(model, z, mask=right, **options)
    assert torch.equal(made[..., :2], given[..., :2])
    assert made.dtype == dtype
    whole = sample(model, z, schedule=SCHEDULE, steps=3, step=ddim)
    same = sample(model, z, step=ddim, mask=torch.ones(4, 4, dtype=torch.bool)[None], **options)
    torch.testing.assert_close(whole, same)


def test_without_a_mask_a_step_has_no_mask():
    seen = []

    def step(model, z, t, s, history):
        seen.append((t.shape, model(z, t).modelled))
        return ddim(model, z, t, s)

    sample(GAUSSIAN, draws(2, 3), schedule=SCHEDULE, steps=1, step=step)
    assert seen == [((2,), None)]
