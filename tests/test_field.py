"""One log-SNR for each dimension, masks and absent values, in the losses and the bound."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.registry import CLOSED_TARGETS, DECODERS, SCHEDULES, WEIGHTINGS, made_of
from vdiff import Denoiser, Objective, elbo, weighted_elbo
from vdiff.bound import Bound
from vdiff.chain import hybrid_loss, path_bound, vlb
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.errors import InvalidValue
from vdiff.gaussian import bits_per_dim, diffuse, prior_kl
from vdiff.losses import VLB, Hybrid, Loss, Weighted
from vdiff.nn import MLP
from vdiff.parameterization import Eps, V
from vdiff.prediction import Prediction
from vdiff.reverse import Estimator, MonteCarlo, RaoBlackwell, Raw
from vdiff.schedule import (
    Adaptive,
    Cosine,
    InTurn,
    Linear,
    MuLAN,
    PerDimension,
    Shifted,
    Spline,
    Tabulated,
)
from vdiff.variance import (
    FixedLarge,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
    ReverseVariance,
)
from vdiff.weighting import MSE, Sigmoid

N, D, T = 12, 2, 10
LINEAR = Linear(8.0, -6.0)


class Network(nn.Module):
    """Takes (batch,) times and fields; mixes the dimensions and their times."""

    def __init__(self, parts: int = 1, dtype: torch.dtype = torch.float32, dims: int = D) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(dims, parts * dims, dtype=dtype)
        self.parts = parts

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        time = time[:, None] if time.ndim == 1 else time
        gate = torch.sigmoid(time).to(z.dtype).expand_as(z)
        return self.layer(gate * z) * gate.repeat(1, self.parts)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, N, D, dtype=dtype, generator=generator)
    return x, eps, (torch.arange(N).double() + 0.5) / N


def of_levels() -> Tensor:
    return torch.arange(N * D).view(N, D) % 17


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(2)


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


def told(z: Tensor, logsnr: Tensor) -> Prediction:
    """ε̂_i = ½ z_i + tanh(λ_i + the other's λ), whatever the shape of λ."""
    level = logsnr if logsnr.ndim == z.ndim else logsnr.view(-1, *[1] * (z.ndim - 1))
    level = level.expand_as(z)
    return Prediction(z, logsnr, 0.5 * z + torch.tanh(level + level.flip(-1)), Eps())


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


MASK = torch.tensor([[True, False], [False, True], [True, True], [False, False]]).repeat(3, 1)


def test_a_mask_is_a_condition() -> None:
    x, eps, t = data(torch.float64)
    loss = weighted_elbo(told, x, schedule=LINEAR, t=t, eps=eps, mask=MASK)
    level = torch.where(MASK, (8.0 - 14.0 * t)[:, None], 8.0)
    z = torch.where(MASK, level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * eps, x)
    error = torch.where(MASK, eps - 0.5 * z - torch.tanh(level + level.flip(-1)), 0.0)
    torch.testing.assert_close(loss, 7.0 * error.square().sum(1), rtol=1e-12, atol=0)
    assert loss[3] == 0


def test_an_absent_value_is_noise_and_never_read() -> None:
    x, eps, t = data(torch.float64)
    x = torch.where(MASK, x, math.nan)
    loss = weighted_elbo(told, x, schedule=LINEAR, t=t, eps=eps, absent=~MASK)
    level = torch.where(MASK, (8.0 - 14.0 * t)[:, None], -6.0)
    z = torch.where(MASK, level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * eps, eps)
    error = torch.where(MASK, eps - 0.5 * z - torch.tanh(level + level.flip(-1)), 0.0)
    torch.testing.assert_close(loss, 7.0 * error.square().sum(1), rtol=1e-12, atol=0)


def test_given_and_absent_are_not_confused() -> None:
    seen = []

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        seen.append((z, logsnr))
        return told(z, logsnr)

    x, eps, t = torch.ones(2, 3), torch.full((2, 3), 7.0), torch.full((2,), 0.5).double()
    mask, absent = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    bound = elbo(
        model, x, schedule=LINEAR, decoder=Gaussian(), t=t, eps=eps, mask=mask, absent=absent
    )
    [(z, logsnr)] = seen
    assert logsnr.tolist() == [[1.0, 8.0, -6.0]] * 2
    assert z[:, 1:].tolist() == [[1.0, 7.0]] * 2
    assert bound.dims.tolist() == [1, 1]


@pytest.mark.parametrize("steps", [None, T])
def test_the_parts_of_a_masked_bound(steps: int | None) -> None:
    x, eps, t = data(torch.float64)
    t = t if steps is None else (t * T).ceil() / T
    bound = elbo(
        told, x, schedule=LINEAR, decoder=Gaussian(), steps=steps, t=t, eps=eps, mask=MASK
    )
    loss = weighted_elbo(told, x, schedule=LINEAR, steps=steps, t=t, eps=eps, mask=MASK)
    torch.testing.assert_close(bound.diffusion, loss, rtol=1e-12, atol=0)
    prior = torch.stack([prior_kl(x[:, i : i + 1], -6.0) for i in range(D)], 1)
    torch.testing.assert_close(bound.prior, (MASK * prior).sum(1), rtol=1e-12, atol=0)
    each = Gaussian().expected_nll(x[:, :1], 8.0)
    expected = each * MASK.sum(1)
    torch.testing.assert_close(bound.reconstruction, expected, rtol=1e-12, atol=0)
    assert torch.equal(bound.dims, MASK.sum(1))
    assert bound.bits_per_dim[3] == 0
    ratio = bound.total.sum() / (MASK.sum() * math.log(2))
    torch.testing.assert_close(bound.mean_bits_per_dim, ratio)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_sums_over_the_mask(name: str) -> None:
    decoder, (x, _, _) = DECODERS[name](), data(torch.float64)
    given = x if isinstance(decoder, Gaussian) else of_levels()
    only = [torch.tensor([i == j for j in range(D)]) for i in range(D)]
    whole = decoder.log_prob(given, x, 2.0)
    parts = [decoder.log_prob(given, x, 2.0, mask=mask.expand(N, D)) for mask in only]
    torch.testing.assert_close(sum(parts), whole)
    other = torch.tensor([[2.0, 3.0]]).double()
    mixed = decoder.log_prob(given, x, other)
    third = decoder.log_prob(given, x, 3.0, mask=only[1].expand(N, D))
    torch.testing.assert_close(mixed, parts[0] + third)
    if not decoder.uses_network:
        first, second = (
            decoder.expected_nll(given, level, mask=mask.expand(N, D))
            for level, mask in zip((2.0, 3.0), only, strict=True)
        )
        both = decoder.expected_nll(given, other).to(first.dtype)
        torch.testing.assert_close(both, first + second)


@pytest.mark.parametrize("loss", [hybrid_loss, vlb, path_bound])
def test_the_losses_of_a_chain_take_a_mask(loss: object) -> None:
    model = Denoiser(Network(2), V(), variance=LearnedRange(), field=True)
    decoder, levels = DiscretizedGaussian(17, uses_network=True), of_levels()
    call = partial(loss, model, levels, schedule=LINEAR, decoder=decoder, steps=T)
    full, none = torch.ones(N, D, dtype=torch.bool), torch.zeros(N, D, dtype=torch.bool)
    whole = call(generator=draw())
    masked, empty = (call(mask=mask, generator=draw()) for mask in (full, none))
    if loss is hybrid_loss:
        torch.testing.assert_close(masked, whole)
        assert empty.tolist() == [0.0] * N
        return
    read = ("log_ratio", "rao_blackwell") if loss is path_bound else ("total", "bits_per_dim")
    for word in read:
        torch.testing.assert_close(getattr(masked, word), getattr(whole, word))
        assert getattr(empty, word).abs().max() == 0


def test_three_bounds_of_a_masked_chain_agree() -> None:
    model = Denoiser(Network(2), V(), variance=LearnedRange(), field=True)
    decoder, levels = DiscretizedGaussian(17, uses_network=True), of_levels().repeat(400, 1)
    mask = MASK.repeat(400, 1)
    call = {"schedule": LINEAR, "decoder": decoder, "steps": T, "mask": mask}
    with torch.no_grad():
        totals = [
            elbo(model, levels, **call, draws=T, generator=draw()).total,
            path_bound(model, levels, **call, generator=draw()).log_ratio,
            path_bound(model, levels, **call, generator=draw()).rao_blackwell,
            vlb(model, levels, **call, generator=draw()).total,
        ]
    means = torch.stack([total.double().mean() for total in totals])
    errors = torch.stack([total.double().std() / len(total) ** 0.5 for total in totals])
    assert ((means - means[0]).abs() < 4 * (errors + errors[0])).all()


@pytest.mark.parametrize("loss", [
    Weighted(), VLB(Categorical(17), steps=T), Hybrid(T, bound_weight=0.0, decoder=Categorical(17))
])  # fmt: skip
def test_an_objective_takes_a_mask(loss: object) -> None:
    objective = Objective(Denoiser(Network(), V(), field=True), schedule=LINEAR, loss=loss)
    x = data()[0] if isinstance(loss, Weighted) else of_levels()
    value = objective(x, mask=MASK, generator=draw())
    assert value[3] == 0
    assert (value[:3] > 0).all()
    value.mean().backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters())


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


def test_what_a_mask_must_be() -> None:
    model, (x, _, _) = Denoiser(Network(), V(), field=True), data()
    loss = partial(weighted_elbo, model, x, schedule=LINEAR)
    with pytest.raises(InvalidValue, match=r"mask.*broadcast over x, \(12, 2\)"):
        loss(mask=torch.ones(N, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask.*bool"):
        loss(mask=torch.ones(N, D))
    with pytest.raises(InvalidValue, match="'x' must be finite"):
        weighted_elbo(model, x.log(), schedule=LINEAR, absent=torch.zeros(D, dtype=torch.bool))
    with pytest.raises(InvalidValue, match="network takes no more"):
        weighted_elbo(Denoiser(Network(), V()), x, schedule=LINEAR, mask=MASK)


def test_a_decoder_of_the_whole_example_takes_no_mask() -> None:
    class Joint(Gaussian):
        factorises = False

    x, call = data()[0], {"schedule": LINEAR, "decoder": Joint(), "mask": MASK}
    with pytest.raises(InvalidValue, match=r"decoder.*factorise"):
        elbo(told, x, **call)


@pytest.mark.parametrize("method", ["log_prob", "expected_nll"])
def test_a_decoder_that_factorises_takes_a_mask(method: str) -> None:
    def old(self: Gaussian, data: Tensor, at: Tensor, logsnr: Tensor | None = None) -> Tensor:
        return data.flatten(1).sum(1)

    decoder = type("Own", (Gaussian,), {method: old})()
    x, call = data()[0], {"schedule": LINEAR, "decoder": decoder}
    elbo(told, x, **call)
    with pytest.raises(InvalidValue, match=rf"'decoder' must take mask= in {method}, for fact"):
        elbo(told, x, mask=MASK, **call)


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


def test_nothing_modelled_has_no_latent() -> None:
    schedule = MuLAN(nn.Linear(D, 4), [D], 8.0, -6.0, latents=4, learn_ends=False)
    nn.init.normal_(schedule.encoder.bias, 3.0)
    x = data()[0]
    bound = elbo(told, x, schedule=schedule, decoder=Gaussian(), mask=MASK)
    assert bound.total[3] == 0
    assert (bound.prior[:3] > 1.0).all()


def test_what_is_absent_at_zero_terminal_snr() -> None:
    table = Tabulated.linear_betas(zero_terminal_snr=True)
    weighting = MSE(table, V(), steps=999)
    model = Denoiser(MLP(D, field=True), V())
    loss = partial(weighted_elbo, model, schedule=table, steps=999, weighting=weighting)
    assert loss(data()[0], absent=~MASK).isfinite().all()


@pytest.mark.parametrize("make", [
    lambda: Weighted(decoder=Categorical(17)), lambda: VLB(Categorical(17)),
    lambda: Hybrid(T, bound_weight=0.0, decoder=Categorical(17)),
])  # fmt: skip
def test_absent_levels_are_not_read(make: Callable[[], Loss]) -> None:
    objective = Objective(Denoiser(Network(), V(), field=True), schedule=LINEAR, loss=make())
    levels = torch.where(MASK, of_levels(), -1)
    loss = objective(levels, absent=~MASK, generator=draw())
    other = objective(of_levels(), absent=~MASK, generator=draw())
    assert torch.equal(loss, other)


def test_an_objective_refuses_a_schedule_over_other_dims() -> None:
    for loss in (Weighted(), VLB(Gaussian())):
        objective = Objective(told, schedule=PerDimension([LINEAR] * 6), loss=loss)
        with pytest.raises(InvalidValue, match="have a λ for each dimension of x"):
            objective(torch.zeros(4, 1, 5))


def test_containers_keep_the_mask() -> None:
    flatten, unflatten = torch.utils._pytree.tree_flatten, torch.utils._pytree.tree_unflatten
    x = data()[0]
    bound = elbo(told, x, schedule=Cosine(), decoder=Gaussian(), mask=MASK)
    again = unflatten(*flatten(bound))
    assert isinstance(again, Bound)
    assert torch.equal(again.dims, bound.dims)
    prediction = told(x, torch.zeros(N)).replace(modelled=MASK)
    assert torch.equal(unflatten(*flatten(prediction)).modelled, MASK)
    assert torch.equal(prediction.rows(torch.tensor([1])).modelled, MASK[1:2])


def test_no_dimension_is_no_bit() -> None:
    bits = bits_per_dim(torch.tensor([1.0, 0.0]), torch.tensor([2, 0]))
    assert bits.tolist() == pytest.approx([0.5 / math.log(2), 0.0])


def test_numbers_of_dimensions_keep_the_digits_of_the_nats() -> None:
    nats = torch.tensor([1.0, 7.0], dtype=torch.float64)
    bits = bits_per_dim(nats, torch.tensor([3, 5]))
    assert torch.equal(bits[:1], bits_per_dim(nats[:1], 3))
    assert torch.equal(bits[1:], bits_per_dim(nats[1:], 5))
    assert bits_per_dim(nats.float(), torch.tensor([3, 5])).dtype == torch.float32
