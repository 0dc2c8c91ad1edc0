"""A learned λ(t) for each dimension: its shape follows what it says, its ends the bound."""

import math

import pytest
import torch
from torch import nn

from vdiff import Denoiser, elbo, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.objective import VLB, Objective
from vdiff.parameterization import V
from vdiff.schedule import MultivariateSpline, Spline

LEVELS, MEAN = 5, 7.0


@pytest.fixture
def float64():
    """Encodings in float64: decoders use the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        for p in self.parameters():
            p.data = 0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64)

    def forward(self, z, logsnr):
        told = torch.cat([z, 0.2 * logsnr.expand_as(z)], 1)
        return self.last(torch.tanh(self.first(told)))


def stirred(schedule):
    generator = torch.Generator().manual_seed(4)
    for name, p in schedule.named_parameters():
        size = 0.1 if name in ("low", "high") else 0.5
        p.data += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    schedule.mean_loss.fill_(MEAN)
    return schedule


def objective(**options):
    schedule = stirred(MultivariateSpline([2], 6.0, -4.0, knots=7, **options))
    model = Denoiser(Net(), V(), field=True)
    return Objective(model, schedule=schedule, loss=VLB(Categorical(LEVELS)))


def draws(n=24):
    generator = torch.Generator().manual_seed(5)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.randint(0, LEVELS, (n, 2), generator=generator), {"t": t, "eps": eps}


def gradients(one, value):
    names, parameters = zip(*one.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, found, strict=True))


RULES = {
    "loss": lambda loss: loss,
    "variance": lambda loss: (loss - MEAN) ** 2 / MEAN,
    "both": lambda loss: loss + (loss - MEAN) ** 2 / MEAN,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("follow", RULES)
def test_the_shape_follows_what_it_says_and_the_rest_the_bound(follow):
    data, given = draws()
    plain = objective(follow="loss")
    bound = plain.bound(data, **given)
    rule = gradients(plain, RULES[follow](bound.diffusion).mean())
    rest = gradients(plain, bound.total.mean())
    one = objective(follow=follow)
    one(data, **given).mean().backward()
    for name, p in one.named_parameters():
        want = rule[name] if name == "schedule.log_density" else rest[name]
        assert want.abs().max() > 0
        torch.testing.assert_close(p.grad, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_loss_has_a_gradient_of_its_own_only_over_dimensions():
    """The expected loss of an inexact denoiser depends on the path, and not on the shape of a
    single λ, whose gradient is the noise of the same draws."""
    one = objective(follow="loss", learn_ends=False)
    schedule = one.schedule
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    generator = torch.Generator().manual_seed(6)
    x = torch.tensor([[0.5, -0.25]], dtype=torch.float64).expand(4000, 2)
    eps = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    loss = weighted_elbo(one.model, x, schedule=schedule, t=t, eps=eps)
    (gradient,) = torch.autograd.grad(loss.mean(), [schedule.log_density])
    both = Spline(6.0, -4.0, knots=7, learn_ends=False, follow_variance=False)
    both.log_density.data.copy_(schedule.log_density.data.mean(0))
    field = Denoiser(one.model.network, V(), field=True)
    scalar = weighted_elbo(field, x, schedule=both, t=t, eps=eps)
    (noise,) = torch.autograd.grad(scalar.mean(), [both.log_density])
    assert gradient.norm() > 3 * noise.norm()


@pytest.mark.usefixtures("float64")
def test_on_a_chain_the_shape_follows_the_loss():
    data, given = draws()
    given["t"] = torch.ceil(given["t"] * 5) / 5
    options = {"decoder": Categorical(LEVELS), "steps": 5, **given}
    found = []
    for follow in RULES:
        one = objective(follow=follow)
        elbo(one.model, data, schedule=one.schedule, **options).total.mean().backward()
        found.append(one.schedule.log_density.grad)
        assert one.schedule.low.grad.abs() > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    p = one.schedule.log_density
    for index in ((0, 0), (1, 3)):
        change = []
        for step in (1e-6, -1e-6):
            p.data[index] += step
            change.append(elbo(one.model, data, schedule=one.schedule, **options).total.mean())
            p.data[index] -= step
        slope = ((change[0] - change[1]) / 2e-6).item()
        assert p.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_weighted_elbo_gives_the_ends_nothing():
    one = objective()
    loss = weighted_elbo(one.model.float(), torch.randn(6, 2), schedule=one.schedule)
    loss.mean().backward()
    assert one.schedule.low.grad is None
    assert one.schedule.log_density.grad.abs().max() > 0


@pytest.mark.parametrize("steps", [None, 9])
def test_equal_splines_are_the_spline_of_one(steps):
    one = stirred(Spline(6.0, -4.0, knots=7))
    several = MultivariateSpline([2, 1, 3], 6.0, -4.0, knots=7)
    several.log_density.data.copy_(one.log_density.data.expand(2, 1, 3, 7))
    several.low.data.copy_(one.low.data)
    several.high.data.copy_(one.high.data)
    t = torch.arange(1, 10, dtype=torch.float64) / 9
    want, got = one.at(t, steps), several.at(t, steps, ndim=4)
    for scalar, field in zip(want[:2], got[:2], strict=True):
        assert field.shape == (9, 2, 1, 3)
        scalar = scalar.view(-1, 1, 1, 1).expand_as(field)
        torch.testing.assert_close(field, scalar, rtol=1e-12, atol=1e-12)


def test_a_size_of_one_is_shared():
    several = stirred(MultivariateSpline([3, 1], 6.0, -4.0, knots=5))
    t = torch.rand(4, 3, 6, dtype=torch.float64)  # a field of times
    logsnr = several.at(t, ndim=3).logsnr
    assert logsnr.shape == (4, 3, 6)
    for i in range(6):
        same = several.at(t[:, :, i : i + 1], ndim=3).logsnr
        torch.testing.assert_close(logsnr[:, :, i : i + 1], same)


def test_the_derivative_of_the_splines_by_their_parameters():
    schedule = stirred(MultivariateSpline([2], 6.0, -4.0, knots=4, learn_ends=False))
    t = torch.rand(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def field(values):
        changed = torch.func.functional_call(Field(schedule), {"one.log_density": values}, (t,))
        return changed

    assert torch.autograd.gradcheck(field, schedule.log_density.detach().requires_grad_())


class Field(nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.one = schedule

    def forward(self, t):
        return torch.stack(self.one.cdf_and_pdf(t))


def test_update_follows_the_mean_loss():
    one, (data, given) = objective(follow="variance").float(), draws()
    given = {name: v.float() for name, v in given.items()}
    one.model.float()
    one.schedule.mean_loss.zero_()
    losses = one.bound(data, **given).diffusion.double()
    assert one.schedule.seen[1] == len(data)
    one.update()
    assert one.schedule.mean_loss.item() == pytest.approx(losses.mean().item())
    assert not one.schedule.seen.any()


@pytest.mark.parametrize("size", [0.0, 1.0, 3.0])
def test_many_dimensions_are_checked_however_rough_they_are(size):
    big = MultivariateSpline([3, 32, 32])
    generator = torch.Generator().manual_seed(0)
    big.log_density.data.normal_(0.0, size, generator=generator)
    assert big.check() is big
    big.log_density.data[1, 4, 5, 0] = math.nan
    with pytest.raises(ValueError, match="must have finite logsnr_at"):
        big.check()
