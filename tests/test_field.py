"""One log-SNR for each dimension, in the losses and the bound."""

import math
from functools import partial

import pytest
import torch
from networks_of_fields import LINEAR, D, N, Network, T, data, draw, of_levels, told
from torch import Tensor

from tests.registry import CLOSED_TARGETS, DECODERS, SCHEDULES, WEIGHTINGS, made_of
from vdiff import Denoiser, Objective, elbo, weighted_elbo
from vdiff.chain import vlb
from vdiff.decoder import Gaussian
from vdiff.errors import InvalidValue
from vdiff.gaussian import bits_per_dim, diffuse
from vdiff.losses import VLB, Weighted
from vdiff.parameterization import V
from vdiff.reverse import Estimator, MonteCarlo, RaoBlackwell, Raw
from vdiff.schedule import Adaptive, InTurn, PerDimension, Shifted, Spline
from vdiff.variance import (
    FixedLarge,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
    ReverseVariance,
)
from vdiff.weighting import Sigmoid


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CLOSED_TARGETS)
def test_a_constant_field_is_the_number(name: str, dtype: torch.dtype) -> None:
    model = Denoiser(Network(dtype=dtype), CLOSED_TARGETS[name])
    x, eps, t = data(dtype)
    for make in made_of(SCHEDULES, 8.0, -6.0).values():
        schedule = make().eval()
        if isinstance(schedule, Adaptive):
            continue  # learns from one λ per example, below
        loss = partial(weighted_elbo, model, x, schedule=schedule, eps=eps)
        number, one, each = loss(t=t), loss(t=t[:, None]), loss(t=t[:, None].expand(N, D))
        assert torch.equal(one, number)
        assert close(each, number, dtype)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if WEIGHTINGS[n]().steps is None])
def test_a_constant_field_has_the_weight_of_the_number(name: str) -> None:
    model, (x, eps, t) = Denoiser(Network(), V()), data()
    loss = partial(weighted_elbo, model, x, schedule=LINEAR, weighting=WEIGHTINGS[name](), eps=eps)
    assert torch.equal(loss(t=t[:, None]), loss(t=t))
    assert close(loss(t=t[:, None].expand(N, D)), loss(t=t), torch.float32)


@pytest.mark.parametrize("estimator", [RaoBlackwell(), MonteCarlo(), Raw()])
@pytest.mark.parametrize("variance", [None, FixedLarge(), LearnedRange()])
@pytest.mark.parametrize("name", DECODERS)
def test_a_bound_at_a_constant_field(name: str, variance: object, estimator: Estimator) -> None:
    decoder, (x, eps, t) = DECODERS[name](), data(torch.float64)
    given = x if isinstance(decoder, Gaussian) else of_levels()
    model = Denoiser(Network(1 + isinstance(variance, LearnedRange)), V(), variance=variance)
    t = (t * T).ceil() / T
    bound = partial(
        elbo, model, given, schedule=LINEAR, decoder=decoder, steps=T, estimator=estimator, eps=eps
    )
    if not isinstance(decoder, Gaussian):
        eps = eps.float()
    bound = partial(bound, eps=eps)
    bound = partial(bound, t=t)
    number, one, each = (
        bound(schedule=schedule, generator=draw())
        for schedule in (LINEAR, PerDimension([LINEAR]), PerDimension([LINEAR] * D))
    )
    masked = bound(generator=draw(), mask=torch.ones(D, dtype=torch.bool))
    for part in ("prior", "diffusion", "reconstruction"):
        expected = getattr(number, part)
        assert torch.equal(getattr(one, part), expected)
        assert close(getattr(each, part), expected, torch.float32)
        assert close(getattr(masked, part), expected, torch.float32)
    assert torch.equal(masked.dims, torch.full((N,), D))


def test_each_dimension_has_its_own_time() -> None:
    x, eps, _ = data(torch.float64)
    t = torch.rand(N, D, dtype=torch.float64, generator=draw())
    loss = weighted_elbo(told, x, schedule=LINEAR, weighting=Sigmoid(1.0), t=t, eps=eps)
    level = 8.0 - 14.0 * t
    z = level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * eps
    error = eps - 0.5 * z - torch.tanh(level + level.flip(-1))
    expected = (0.5 * torch.sigmoid(1.0 - level) * 14.0 * error.square()).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_each_dimension_has_its_own_step_of_a_chain() -> None:
    x, eps, _ = data(torch.float64)
    i = torch.arange(N * D).view(N, D).double() % T + 1
    loss = weighted_elbo(told, x, schedule=LINEAR, steps=T, t=i / T, eps=eps)
    error = eps - told(diffuse(x, eps, LINEAR(i / T)), LINEAR(i / T)).eps
    expected = (0.5 * T * math.expm1(1.4) * error.square()).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_what_a_network_is_told() -> None:
    seen = []

    def network(z: Tensor, time: Tensor) -> Tensor:
        seen.append(time)
        return z

    z, field = torch.zeros(3, 2, 4), torch.linspace(-1, 1, 6).view(3, 2, 1)
    with_field, without = Denoiser(network, V(), field=True), Denoiser(network, V())
    with_field(z, torch.zeros(3))
    with_field(z, field)
    without(z, torch.ones(3))
    without(z, torch.ones(3, 1, 1))
    without(z, torch.ones(3, 2, 4))
    assert [tuple(time.shape) for time in seen] == [(3, 1, 1), (3, 2, 1), (3,), (3,), (3,)]
    with pytest.raises(InvalidValue, match=r"logsnr.*one number per example.*field=True"):
        without(z, field)


def test_a_learned_shape_and_independent_times() -> None:
    schedule, (x, eps, _) = Spline(8.0, -6.0, knots=5, learn_ends=False), data(torch.float64)
    t = torch.rand(N, D, dtype=torch.float64, generator=draw())
    weighted_elbo(told, x, schedule=schedule, t=t, eps=eps).mean().backward()
    assert all(p.grad.isfinite().all() for p in schedule.parameters())
    with pytest.raises(InvalidValue, match="one time per example"):
        weighted_elbo(told, x, schedule=Adaptive(8.0, -6.0), t=t, eps=eps)


def test_the_decoder_of_each_examples_own_end() -> None:
    shifts, x = torch.tensor([0.0, -1.0, 2.0, 0.5]), torch.zeros(4, 2)
    decoder = Gaussian(uses_network=True)
    call = partial(vlb, told, steps=8, decoder=decoder, t=torch.tensor([0.0, 0.0, 0.5, 0.0]))
    eps = torch.randn(4, 2, generator=draw())
    bound = call(x, schedule=Shifted(LINEAR, shifts), eps=eps).total
    for i, shift in enumerate(shifts.tolist()):
        own = call(x, schedule=Shifted(LINEAR, shift), eps=eps).total[i]
        torch.testing.assert_close(bound[i], own)


@pytest.mark.parametrize("variance", [LearnedLogVariance(), LearnedVariance(), LearnedRange()])
def test_a_dimension_at_rest_adds_nothing(variance: ReverseVariance) -> None:
    model, x = Denoiser(Network(2), V(), variance=variance, field=True), data()[0]
    for estimator in (RaoBlackwell(), MonteCarlo(), Raw()):
        bound = elbo(
            model, x, schedule=InTurn(LINEAR, D), decoder=Gaussian(), steps=T, draws=T,
            estimator=estimator, generator=draw(),
        )  # fmt: skip
        assert bound.total.isfinite().all()
        bound.total.mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_bound_has_one_time_for_each_example() -> None:
    x, t = torch.zeros(3, 2), torch.full((3, 2), 0.5)
    objective = Objective(Denoiser(Network(), V()), schedule=LINEAR, loss=VLB(Gaussian()))
    for bound in (
        lambda: elbo(told, x, schedule=LINEAR, decoder=Gaussian(), t=t),
        lambda: objective(x, t=t),
        lambda: objective(x, u=t),
    ):
        with pytest.raises(InvalidValue, match="independent times lie on no path"):
            bound()


def test_an_objective_refuses_a_schedule_over_other_dims() -> None:
    for loss in (Weighted(), VLB(Gaussian())):
        objective = Objective(told, schedule=PerDimension([LINEAR] * 6), loss=loss)
        with pytest.raises(InvalidValue, match="have a λ for each dimension of x"):
            objective(torch.zeros(4, 1, 5))


def test_numbers_of_dimensions_keep_the_digits_of_the_nats() -> None:
    nats = torch.tensor([1.0, 7.0], dtype=torch.float64)
    bits = bits_per_dim(nats, torch.tensor([3, 5]))
    assert torch.equal(bits[:1], bits_per_dim(nats[:1], 3))
    assert torch.equal(bits[1:], bits_per_dim(nats[1:], 5))
    assert bits_per_dim(nats.float(), torch.tensor([3, 5])).dtype == torch.float32
