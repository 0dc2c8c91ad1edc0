"""Masks and absent values in the losses and the bound."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from networks_of_fields import LINEAR, D, N, Network, T, data, draw, of_levels, told
from torch import Tensor, nn

from tests.registry import DECODERS
from vdiff import Denoiser, Objective, elbo, weighted_elbo
from vdiff.bound import Bound
from vdiff.chain import hybrid_loss, path_bound, vlb
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.errors import InvalidValue
from vdiff.gaussian import bits_per_dim, prior_kl
from vdiff.losses import VLB, Hybrid, Loss, Weighted
from vdiff.nn import MLP
from vdiff.parameterization import V
from vdiff.prediction import Prediction
from vdiff.schedule import Cosine, MuLAN, Tabulated
from vdiff.variance import LearnedRange
from vdiff.weighting import MSE

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
