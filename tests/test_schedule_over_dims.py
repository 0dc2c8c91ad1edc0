"""Schedules with a λ(t) for each dimension: what holds for all of them, and one per index."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from registry import EXAMPLE, SCHEDULES, SCHEDULES_OVER_DIMS, made_of, moved, of_batch
from schedules_over_dims import MADE, NDIM, Net, every, moved_for

from vdiff import Denoiser, elbo, plots, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.parameterization import V
from vdiff.schedule import Cosine, Histogram, InTurn, Linear, Path, PerDimension, Tabulated


def field(t):
    return t.view(-1, *[1] * len(EXAMPLE))


def whole(value, batch):
    return torch.as_tensor(value, dtype=torch.float64).expand(batch, *EXAMPLE)


@every
def test_it_runs_from_the_ends_of_each_dimension_and_never_rises(name):
    t = torch.linspace(0, 1, 901, dtype=torch.float64)
    schedule, own = moved_for(name, len(t))
    if schedule.depends_on_data:  # one latent for all times
        own = schedule.given(torch.tensor([[0.0, 1.0, 1.0]]).expand(len(t), -1).double())
    schedule.check()
    logsnr = whole(own.at(t, ndim=NDIM).logsnr, len(t))
    high, low = (whole(end, 1) for end in schedule.ends_of(NDIM))
    torch.testing.assert_close(logsnr[:1], high, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logsnr[-1:], low, rtol=1e-9, atol=1e-9)
    assert (high.max(), low.min()) == (schedule.logsnr_max, schedule.logsnr_min)
    drop = logsnr[:-1] - logsnr[1:]
    assert drop.min() >= 0
    assert (drop.flatten(1).max(1).values > 0).all()


@every
def test_the_rate_is_the_derivative(name):
    t, h = torch.linspace(0.001, 0.999, 331, dtype=torch.float64) + 1e-5, 1e-7
    _, own = moved_for(name, len(t))
    rate = (own(field(t - h)) - own(field(t + h))) / (2 * h)
    torch.testing.assert_close(own.rate(field(t)), rate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.at(t, ndim=NDIM).rate, own.rate(field(t)), rtol=0, atol=0)


@every
@pytest.mark.parametrize("steps", [1, 6, 49])
def test_the_steps_of_a_chain_sum_to_the_range_of_each_dimension(name, steps):
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    schedule, own = moved_for(name, len(t))
    if schedule.depends_on_data:
        own = schedule.given(torch.tensor([[0.0, 1.0, 0.0]]).expand(len(t), -1).double())
    at = own.at(t, steps, ndim=NDIM)
    high, low = (whole(end, 1) for end in schedule.ends_of(NDIM))
    total = whole(at.delta, len(t)).sum(0, keepdim=True)
    torch.testing.assert_close(total, high - low, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at.rate, steps * torch.expm1(at.delta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(own.delta(field(t), steps), at.delta, rtol=1e-12, atol=1e-12)


@every
def test_a_field_of_times_is_elementwise(name):
    """Each dimension at its own time has the λ that it has when all are at that time."""
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(4, *EXAMPLE, dtype=torch.float64, generator=generator)
    _, own = moved_for(name, 4)
    at = own.at(t, ndim=NDIM)
    for place in np.ndindex(EXAMPLE):
        same = own.at(t[(..., *place)], ndim=NDIM)
        for got, want in ((at.logsnr, same.logsnr), (at.rate, same.rate)):
            torch.testing.assert_close(
                whole(got, 4)[(..., *place)], whole(want, 4)[(..., *place)], rtol=1e-12, atol=1e-12
            )


@every
def test_a_copy_a_pickle_and_a_state_have_the_same_levels(name):
    t = torch.rand(5, dtype=torch.float64)
    schedule = moved(MADE[name]())

    def levels(one):
        return of_batch(one, 5).at(t, ndim=NDIM)

    fresh = MADE[name]()
    fresh.load_state_dict(schedule.state_dict())
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), fresh):
        for got, want in zip(levels(other)[:2], levels(schedule)[:2], strict=True):
            assert torch.equal(got, want)
    if schedule.state_dict():
        with pytest.raises(RuntimeError, match="must have the ends of this module"):
            SCHEDULES_OVER_DIMS[name](8.0, -6.0).load_state_dict(schedule.state_dict())


@every
def test_reset_parameters_restores_the_values_of_construction(name):
    fresh, schedule = MADE[name](), moved(MADE[name]())
    schedule.reset_parameters()
    for (key, value), want in zip(
        schedule.state_dict().items(), fresh.state_dict().values(), strict=True
    ):
        assert key.startswith("encoder.") or torch.equal(value, want)


@every
def test_lambda_is_not_in_half_precision(name):
    t = torch.rand(5, dtype=torch.float64)
    schedule = moved(MADE[name]())
    want = of_batch(schedule, 5).at(t, ndim=NDIM).logsnr
    assert torch.equal(of_batch(schedule.half().float(), 5).at(t, ndim=NDIM).logsnr, want)
    assert of_batch(schedule, 5)(field(t.to(torch.bfloat16))).dtype == torch.float32


@every
def test_there_is_no_density_over_a_single_lambda(name):
    schedule = MADE[name]()
    for method in (schedule.inverse, schedule.density):
        with pytest.raises(ValueError, match="must have one λ for all dimensions"):
            method(torch.zeros(3))


@every
def test_reports_have_one_lambda_for_each_time(name):
    t = torch.rand(2, 3, dtype=torch.float64)
    schedule, own = moved_for(name, 6)
    levels = schedule.mean_logsnr(t)
    assert levels.shape == t.shape
    assert levels.min() > schedule.logsnr_min
    if not schedule.depends_on_data:
        mean = whole(own.at(t.flatten(), ndim=NDIM).logsnr, 6).flatten(1).mean(1)
        torch.testing.assert_close(levels.flatten(), mean, rtol=1e-12, atol=1e-12)


@every
def test_it_shows_itself(name):
    schedule = moved(MADE[name]())
    text = schedule._repr_html_()
    assert text.count("<svg") == min(math.prod(schedule.field_shape(NDIM)), 5)
    left, right = plots.schedule({"linear": Linear(7.0, -6.0), name: schedule})
    same = 2 if name == "per column" else 0  # as the linear one
    assert len(left.lines) == 1 + text.count("<svg") - same
    assert len(right.lines) == len(left.lines)


@every
@pytest.mark.parametrize("steps", [None, 6])
def test_a_bound_trains_network_and_schedule(name, steps):
    model, schedule = Denoiser(Net(), V(), field=True), MADE[name]()
    data = torch.randint(0, 5, (8, *EXAMPLE), generator=torch.Generator().manual_seed(0))
    bound = elbo(model, data, schedule=schedule, decoder=Categorical(5), steps=steps, draws=2)
    bound.total.mean().backward()
    assert bound.total.isfinite().all()
    for p in (*model.parameters(), *schedule.parameters()):
        assert p.grad is not None
        assert p.grad.isfinite().all()
    schedule.update()
    if not schedule.depends_on_data:
        loss = weighted_elbo(model, torch.randn(8, *EXAMPLE), schedule=schedule, steps=steps)
        assert loss.isfinite().all()


@every
def test_a_mask_leaves_out_dimensions_of_a_path(name):
    """The bound counts the rest, and does not read the value of what is absent."""
    schedule, generator = MADE[name](), torch.Generator().manual_seed(0)
    model = Denoiser(Net(), V(), field=True)
    data = torch.randint(0, 5, (8, *EXAMPLE), generator=generator)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    absent = torch.zeros_like(mask)
    absent[0, 2] = True

    def bound(data):
        parts = {"schedule": schedule, "decoder": Categorical(5), "mask": mask, "absent": absent}
        return elbo(model, data, **parts, generator=torch.Generator().manual_seed(1))

    got = bound(data)
    assert got.total.isfinite().all()
    assert got.dims.tolist() == [3] * 8
    other = data.clone()
    other[:, absent] = 0
    assert torch.equal(bound(other).total, got.total)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "learned linear"])
def test_the_same_schedule_for_each_index_is_it_bit_for_bit(name, steps):
    make = made_of(SCHEDULES, 7.0, -6.0)[name]
    if make().learns_shape:
        return
    t = torch.arange(1, 22, dtype=torch.float64) / 21
    one = make().check()
    several = PerDimension([one] * 3, dim=2).check()
    want, got = one.at(t, steps), several.at(t, steps, ndim=4)
    for scalar, many in zip(want[:2], got[:2], strict=True):
        assert many.shape == (21, 1, 3, 1)
        assert torch.equal(many, scalar.view(-1, 1, 1, 1).expand_as(many))
    assert several.ends() == one.ends()


C = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.5, 0.5], [0.3, 0.5, 0.7]], dtype=torch.float64)
ENDS = 8.0, -14.0
POWER = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
PATHS = {
    "per column": (PerDimension([Linear(*ENDS), Cosine(*ENDS), Linear(*ENDS)]), 3),
    "one by one": (InTurn(Linear(*ENDS), 3), 3),
    "reversed": (InTurn(Linear(*ENDS), [2, 1, 0]), 3),
    "two groups": (InTurn(Cosine(*ENDS), [0, 1, 0]), 2),
    "path": (Path(lambda t: ENDS[0] - (ENDS[0] - ENDS[1]) * (t + 0.2 * t**POWER) / 1.2, [3]), 1),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_exact_denoiser_has_the_same_loss_on_every_path(name):
    """N(0, C): Σ_i E e_i² dλ_i is exact, and the loss is the mutual information."""
    schedule, panels = PATHS[name]
    u, w = np.polynomial.legendre.leggauss(400)
    edges = torch.linspace(0, 1, panels + 1, dtype=torch.float64)
    t = torch.cat(
        [
            edges[i] + (edges[i + 1] - edges[i]) * torch.from_numpy((u + 1) / 2)
            for i in range(panels)
        ]
    )
    dt = torch.from_numpy(np.tile(w, panels)) / 2 / panels
    logsnr, rate = (v.expand(-1, 3) for v in schedule.at(t, ndim=2)[:2])
    posterior = torch.linalg.inv(torch.linalg.inv(C) + torch.diag_embed(logsnr.exp()))
    squares = logsnr.exp() * torch.diagonal(posterior, dim1=-2, dim2=-1)
    loss = (0.5 * dt[:, None] * rate * squares).sum().item()
    eye = torch.eye(3, dtype=torch.float64)
    high, low = (0.5 * torch.logdet(eye + math.exp(end) * C).item() for end in ENDS)
    assert loss == pytest.approx(high - low, rel=1e-7)
    assert loss == pytest.approx(11.60929558, rel=1e-7)


def test_a_loaded_table_brings_its_ends():
    made = PerDimension([Tabulated([5.0, 1.0, -3.0]), Histogram([1.0, 2.0], 5.0, -3.0)])
    other = PerDimension([Tabulated([5.0, 1.0, -3.0]), Histogram([3.0, 1.0], 5.0, -3.0)])
    made.load_state_dict(other.state_dict())
    assert torch.equal(made.schedules[1].mass, other.schedules[1].mass)
    table = PerDimension([Tabulated([5.0, 1.0, -3.0])])
    table.load_state_dict(PerDimension([Tabulated([6.0, 1.0, -4.0])]).state_dict())
    assert table.ends_of(2) == table.ends() == (6.0, -4.0)
