"""Noise that depends on the input: the latent's KL is exact, and the schedule sees no noise."""

import copy
import itertools
import math

import pytest
import torch
from registry import EXAMPLE, Encoder
from torch import nn

from vdiff import Denoiser, elbo, plots, weighted_elbo
from vdiff.chain import path_bound
from vdiff.decoder import Categorical
from vdiff.groups import parameter_groups
from vdiff.likelihood import evaluate, path_gap, path_importance
from vdiff.objective import VLB, Objective
from vdiff.parameterization import V
from vdiff.sampling import sample
from vdiff.schedule import MuLAN, MultivariateSpline
from vdiff.schedule.mulan import coin_kl

NDIM = 1 + len(EXAMPLE)


def mulan(**options):
    schedule = MuLAN(Encoder(3), EXAMPLE, 6.0, -4.0, latents=3, knots=5, **options)
    generator = torch.Generator().manual_seed(4)
    for p in (schedule.log_density, schedule.log_factors):
        p.data += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return schedule


def data(n=8):
    return torch.randn(n, *EXAMPLE, generator=torch.Generator().manual_seed(0))


def test_the_kl_is_that_of_the_joint_law():
    logits = torch.tensor([[0.0, 0.0], [1.0, -2.0], [30.0, 0.3], [-800.0, 800.0]]).double()
    chance = logits.sigmoid()
    for row, nats in zip(chance, coin_kl(logits), strict=True):
        law = [
            math.prod(p.item() if c else 1 - p.item() for c, p in zip(coins, row, strict=True))
            for coins in itertools.product((0, 1), repeat=2)
        ]
        assert sum(law) == pytest.approx(1)
        joint = sum(q * math.log(4 * q) for q in law if q > 0)
        assert nats.item() == pytest.approx(joint, abs=1e-12)
    several = torch.randn(1000, 5, dtype=torch.float64) * torch.logspace(-8, 2, 1000)[:, None]
    assert coin_kl(several).min() > -1e-14
    assert coin_kl(several).max() <= 5 * math.log(2) + 1e-12


def test_the_coins_have_the_encoders_chances():
    schedule, x = mulan(), data(1).expand(20_000, *EXAMPLE)
    seen = []
    schedule.given = lambda coins: seen.append(coins) or schedule
    schedule.for_data(x, torch.Generator().manual_seed(1))
    coins = seen[0].detach()
    assert set(coins.unique().tolist()) == {0.0, 1.0}
    chance = schedule.encoder(x[:1]).sigmoid()[0].double()
    error = 4 * (chance * (1 - chance) / len(x)).sqrt()
    assert ((coins.mean(0) - chance).abs() < error).all()


def test_each_example_has_the_schedule_of_its_latent():
    schedule = mulan()
    coins = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    t = torch.rand(2, dtype=torch.float64)
    of_batch = schedule.given(coins)
    got = of_batch.at(t, ndim=NDIM)
    for i in range(2):
        one = MultivariateSpline(EXAMPLE, 6.0, -4.0, knots=5)
        signs = (2 * coins[i] - 1).view(-1, 1, 1, 1)
        one.log_density.data = (
            schedule.log_density.data + (signs * schedule.log_factors).sum(0).data
        )
        want = one.at(t[i : i + 1], ndim=NDIM)
        for field, alone in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(field[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_coin_is_straight_through():
    schedule, x = mulan(), data()
    of_batch, _ = schedule.for_data(x, torch.Generator().manual_seed(1))
    t = torch.full((len(x),), 0.4, dtype=torch.float64)
    value = of_batch.logsnr_at(t.view(-1, *[1] * len(EXAMPLE))).sum()
    (to_weight,) = torch.autograd.grad(value, [schedule.encoder.weight], retain_graph=True)
    uniform = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chance = (x.flatten(1) @ schedule.encoder.weight).double().sigmoid().detach()
    coins = (uniform < chance).double().requires_grad_()
    same = schedule.given(coins).logsnr_at(t.view(-1, *[1] * len(EXAMPLE))).sum()
    assert same == value
    (to_coins,) = torch.autograd.grad(same, [coins])
    want = x.flatten(1).double().T @ (to_coins * chance * (1 - chance))
    torch.testing.assert_close(to_weight.double(), want, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, z, logsnr):
        return self.scale * (z - 0.1 * logsnr.to(z.dtype))


def objective(**options):
    model = Denoiser(Net(), V(), field=True)
    return Objective(model, schedule=mulan(**options), loss=VLB(Categorical(5)))


LEVELS = torch.randint(0, 5, (8, *EXAMPLE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("follow", ["loss", "both"])
def test_the_bound_has_the_kl_and_trains_everything(follow):
    one = objective(follow=follow)
    x = Categorical(5).encode(LEVELS).float()
    bound = one.bound(LEVELS, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(one)
    plain.schedule.encoder.weight.data.zero_()  # fair coins
    fair = plain.bound(LEVELS, generator=torch.Generator().manual_seed(1))
    kl = coin_kl(one.schedule.encoder(x).double())
    assert kl.min() > 0
    torch.testing.assert_close((bound.prior - fair.prior).double(), kl, rtol=1e-4, atol=1e-4)
    bound.total.mean().backward()
    for name, p in one.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    one.update()
    assert (one.schedule.mean_loss > 0) == (follow == "both")


def test_without_factors_it_is_the_multivariate_spline():
    schedule = mulan()
    schedule.log_factors.data.zero_()
    one = MultivariateSpline(EXAMPLE, 6.0, -4.0, knots=5)
    one.log_density.data.copy_(schedule.log_density.data)
    t = torch.rand(8, dtype=torch.float64)
    of_batch, _ = schedule.for_data(data())
    want = one.at(t, ndim=NDIM)
    for got, alone in zip(of_batch.at(t, ndim=NDIM)[:2], want[:2], strict=True):
        torch.testing.assert_close(got, alone, rtol=1e-13, atol=1e-13)


def test_a_generator_decides_the_latent():
    schedule, x, t = mulan(), data(), torch.rand(8, dtype=torch.float64)

    def levels(seed):
        of_batch, _ = schedule.for_data(x, torch.Generator().manual_seed(seed))
        return of_batch.at(t, ndim=NDIM).logsnr

    assert torch.equal(levels(1), levels(1))
    assert not torch.equal(levels(1), levels(2))
    samples = schedule.for_samples(8, torch.Generator().manual_seed(1)).at(t, ndim=NDIM).logsnr
    assert samples.shape == (8, *EXAMPLE)


def test_what_it_refuses():
    schedule = mulan()
    assert schedule.depends_on_data
    model = Denoiser(Net(), V(), field=True)
    with pytest.raises(ValueError, match="weighted_elbo: argument 'schedule' must not depend on"):
        weighted_elbo(model, data(), schedule=schedule)
    with pytest.raises(ValueError, match=r"must be that of a batch; .*for_data\(x\)"):
        schedule.at(torch.rand(8), ndim=NDIM)
    of_batch, _ = schedule.for_data(data())
    assert not of_batch.depends_on_data
    with pytest.raises(ValueError, match=r"must have as many times as the batch .* 8; got 5"):
        of_batch.at(torch.rand(5), ndim=NDIM)
    wrong = MuLAN(nn.Flatten(), EXAMPLE, latents=5)
    with pytest.raises(ValueError, match=r"'encoder' must return logits \(batch, latents\) = "):
        wrong.for_data(data())
    schedule.log_factors.data[0] = math.nan
    with pytest.raises(ValueError, match="must have finite parameters"):
        schedule.check()


def test_the_encoder_is_trained_as_the_model_is():
    one = objective()
    model, schedule = parameter_groups(one)
    assert {id(p) for p in model["params"]} == {
        id(p) for p in (one.model.network.scale, one.schedule.encoder.weight)
    }
    assert len(schedule["params"]) == 4


def test_the_encoder_keeps_its_dtype_and_sees_x_in_it():
    of_batch, nats = mulan().for_data(data().double())
    assert nats.dtype == of_batch.table.dtype == torch.float64


def test_a_bound_refuses_the_schedule_of_one_batch():
    """It would leave out the latent's KL. A sampler takes it."""
    of_batch, _ = mulan().for_data(data())
    model, decoder = Denoiser(Net(), V(), field=True), Categorical(5)
    given = {"schedule": of_batch}
    for call in (
        lambda: elbo(model, LEVELS, decoder=decoder, **given),
        lambda: path_bound(model, LEVELS, decoder=decoder, steps=4, **given),
        lambda: path_importance(model, LEVELS, decoder=decoder, steps=4, samples=2, **given),
        lambda: evaluate(model, LEVELS, decoder=decoder, draws=4, batch=8, **given),
        lambda: path_gap(model, LEVELS, decoder=decoder, paths=[of_batch, of_batch], draws=4),
        lambda: weighted_elbo(model, data(), **given),
        lambda: Objective(model, loss=VLB(decoder), **given),
        lambda: Objective(model, **given),
    ):
        with pytest.raises(ValueError, match="must be without latents"):
            call()
    assert sample(model, data(), steps=3, **given).shape == data().shape


def test_the_bound_of_float32_data_is_float32():
    schedule, model = mulan(), Denoiser(Net(), V(), field=True)
    for x in (data(), data().double()):
        assert schedule.for_data(x)[1].dtype == x.dtype
    assert elbo(model, LEVELS, schedule=schedule, decoder=Categorical(5)).total.dtype == (
        torch.float32
    )


def test_the_schedule_of_a_batch_is_shown_and_copied():
    schedule = mulan()
    of_batch = schedule.for_samples(5)
    assert of_batch._repr_html_().count("<svg") == schedule._repr_html_().count("<svg") > 0
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    shown = of_batch.curves(t)
    mean = copy.copy(of_batch)
    mean.table = of_batch.table.mean(0, keepdim=True).expand(9, *of_batch.table.shape[1:])
    first = mean.at(t, ndim=NDIM).logsnr.flatten(1)[:, 0]
    torch.testing.assert_close(next(iter(shown.values()))[0], first)
    plots.schedule({"a": of_batch})
    again = copy.deepcopy(of_batch)
    t = torch.rand(5)
    assert torch.equal(again.at(t, ndim=NDIM).logsnr, of_batch.at(t, ndim=NDIM).logsnr)
    assert not again.table.requires_grad
    assert of_batch.table.requires_grad


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_coins_have_any_dtype(dtype):
    coins = torch.tensor([[0, 1, 1], [1, 0, 0]])
    got, want = (mulan().given(c).table for c in (coins.to(dtype), coins.double()))
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match=r"'coins' must have shape \(batch, 3\)"):
        mulan().given(coins[:, :2].to(dtype))
