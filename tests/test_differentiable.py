"""Gradients through sampling and the flow's density, against finite differences."""

import math

import pytest
import torch
from registry import STEPS
from torch import nn

from vdiff import Denoiser, sample, trajectory
from vdiff.likelihood import Exact, Hutchinson, Share, log_prob, ode_likelihood
from vdiff.oracle import Gaussian
from vdiff.parameterization import V, X
from vdiff.sampling import Guided, ddim, invert
from vdiff.schedule import Linear

SCHEDULE = Linear(6.0, -6.0)


class Network(nn.Module):
    """Points in the plane, told a shift."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        self.dropout = nn.Dropout(dropout)

    def forward(self, z, logsnr, shift):
        hidden = torch.tanh(self.first(torch.cat([z + shift, 0.1 * logsnr[:, None]], 1)))
        return self.last(self.dropout(hidden))


@pytest.fixture
def case():
    """A model, and what its answers depend on, by name: z, a condition, weights."""
    network = Network(dropout=0.5)
    generator = torch.Generator().manual_seed(1)
    z, shift = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    leaves = {"z": z.requires_grad_(), "shift": shift.requires_grad_()}
    return Denoiser(network, V()), leaves | dict(network.named_parameters())


def assert_gradients(function, leaves, h=1e-5):
    """Of a number, against central differences along a random direction of each leaf."""
    generator = torch.Generator().manual_seed(2)
    found = torch.autograd.grad(function(), list(leaves.values()))
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        along, values = torch.randn(leaf.shape, generator=generator, dtype=torch.float64), []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * h * along)
                values.append(function().item())
                leaf.sub_(sign * h * along)
        slope = (values[0] - values[1]) / (2 * h)
        assert abs(slope) > 1e-3, name
        assert (gradient * along).sum().item() == pytest.approx(slope, rel=1e-4), name


WEIGHT = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_of_samples(case, step):
    model, leaves = case

    def made(differentiable=True):
        noise = torch.Generator().manual_seed(4)
        options = {
            "steps": 5,
            "step": STEPS[step],
            "generator": noise,
            "condition": {"shift": leaves["shift"]},
        }
        options |= {"differentiable": differentiable}
        return sample(model, leaves["z"], schedule=SCHEDULE, **options)

    assert_gradients(lambda: (WEIGHT * made()).sum(), leaves)
    assert torch.equal(made(), made(differentiable=False))
    assert not made(differentiable=False).requires_grad
    assert model.training
    with torch.no_grad():
        assert not made().requires_grad


def test_gradients_of_a_trajectory_and_of_a_guided_sample(case):
    model, leaves = case

    def path(model):
        options = {
            "steps": 3,
            "step": ddim,
            "differentiable": True,
            "condition": {"shift": leaves["shift"]},
        }
        states = trajectory(model, leaves["z"], schedule=SCHEDULE, **options)
        return sum((WEIGHT * (z + prediction.x)).sum() for z, prediction in states)

    assert_gradients(lambda: path(model), leaves)
    assert_gradients(lambda: path(Guided(model, 2.0, {"shift": 0.0})), leaves)
    states = trajectory(
        model, leaves["z"], schedule=SCHEDULE, steps=3, condition={"shift": leaves["shift"]}
    )
    assert not any(z.requires_grad or prediction.x.requires_grad for z, prediction in states)


def test_gradients_of_an_encoding(case):
    model, leaves = case

    def noise(**options):
        given = {
            "schedule": SCHEDULE,
            "step": STEPS["ode"],
            "condition": {"shift": leaves["shift"]},
        }
        return invert(model, leaves["z"], **given, **options)

    assert_gradients(lambda: (WEIGHT * noise(differentiable=True)).sum(), leaves)
    assert not noise().requires_grad


@pytest.mark.parametrize("trace", [Exact(), Hutchinson()], ids=repr)
def test_gradients_of_the_flows_density(case, trace):
    model, leaves = case
    setting = {
        "schedule": SCHEDULE,
        "tolerance": 1e-7,
        "trace": trace,
        "condition": {"shift": leaves["shift"]},
    }

    def nats(**options):
        return ode_likelihood(model, leaves["z"], batch=2, **setting, **options).nats

    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert_gradients(lambda: weight @ nats(differentiable=True), leaves)
    assert_gradients(lambda: weight @ log_prob(model, leaves["z"], **setting), leaves)
    assert not nats().requires_grad
    assert torch.allclose(log_prob(model, leaves["z"], **setting), -nats(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not log_prob(model, leaves["z"], **setting).requires_grad
        assert not nats(differentiable=True).requires_grad
    assert model.training


def gaussian_denoiser(mean, variance):
    """Of N(mean, variance) in each dimension; both may have a gradient."""

    def network(z, logsnr):
        signal, noise = logsnr.sigmoid()[:, None], logsnr.neg().sigmoid()[:, None]
        gain = signal.sqrt() * variance / (variance * signal + noise)
        return mean + gain * (z - signal.sqrt() * mean)

    return Denoiser(network, X())


def test_the_density_and_its_gradients_in_closed_form():
    """log N(x; m, v) has the derivatives −(x − m)/v, (x − m)/v and ½ ((x − m)²/v² − 1/v)."""
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    law = Gaussian(mean.detach(), variance.detach())
    x = law.sample(5, torch.Generator().manual_seed(0)).requires_grad_()
    ends = Linear(16.0, -16.0)
    found = log_prob(gaussian_denoiser(mean, variance), x, schedule=ends, tolerance=1e-8)
    assert found.shape == (5,)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.detach(), law.log_prob(x.detach()), rtol=0, atol=5e-4)
    score, by_mean, by_variance = torch.autograd.grad(found.sum(), [x, mean, variance])
    off = (x - mean).detach()
    v = variance.detach()
    torch.testing.assert_close(score, -off / v, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(by_mean, (off / v).sum(0), rtol=1e-3, atol=1e-3)
    of_variance = (0.5 * (off.square() / v - 1) / v).sum(0)
    torch.testing.assert_close(by_variance, of_variance, rtol=1e-3, atol=1e-3)


def test_a_posteriors_density_integrates_to_one():
    """Of a random network on a line, given a condition."""
    torch.manual_seed(0)
    first, last = nn.Linear(3, 16).double(), nn.Linear(16, 1).double()

    def network(z, logsnr, observed):
        seen = torch.cat([z, 0.1 * logsnr[:, None], observed[:, None]], 1)
        return last(torch.tanh(2 * first(seen)))

    with pytest.warns(UserWarning, match="hidden from optimizers"):
        model = Denoiser(network, V())
    x = torch.linspace(-12, 12, 961, dtype=torch.float64)[:, None]
    with torch.no_grad():
        for value in (-1.0, 2.0):
            observed = torch.full((len(x),), value, dtype=torch.float64)
            density = log_prob(model, x, schedule=SCHEDULE, condition={"observed": observed}).exp()
            assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1.0, abs=1e-3)


def test_float32_and_images():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.rand(2, 1, 4, 4).requires_grad_()
    with pytest.warns(UserWarning, match="hidden from optimizers"):
        model = Denoiser(lambda z, logsnr: torch.tanh(network(z)), V())
    found = log_prob(model, x, schedule=SCHEDULE, tolerance=1e-4)
    (score,) = torch.autograd.grad(found.sum(), x)
    assert score.shape == x.shape
    assert score.dtype == torch.float32
    assert (score != 0).all()
    again = log_prob(model, x, schedule=SCHEDULE, tolerance=1e-4)
    assert torch.equal(found, again)


def test_under_inference_mode_there_is_a_density_without_a_gradient():
    model = gaussian_denoiser(torch.zeros(2), torch.tensor([0.25, 0.5]))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    right = log_prob(model, x, schedule=SCHEDULE)
    with torch.inference_mode():
        for given in (x, x.clone()):
            assert torch.equal(log_prob(model, given, schedule=SCHEDULE), right)
            assert torch.equal(ode_likelihood(model, given, schedule=SCHEDULE).nats, -right)


def test_a_graph_is_not_shared_kept_or_resumed():
    model, x = gaussian_denoiser(torch.zeros(2), torch.ones(2)), torch.zeros(3, 2)
    states = []
    ode_likelihood(model, x, schedule=SCHEDULE, checkpoint=states.append)
    for given in ({"share": Share(0, 2)}, {"resume": states[0]}, {"checkpoint": states.append}):
        with pytest.raises(ValueError, match="argument 'differentiable' must be False"):
            ode_likelihood(model, x, schedule=SCHEDULE, differentiable=True, **given)


def test_the_name_is_hinted_at_and_a_cut_is_refused():
    model, z = gaussian_denoiser(torch.zeros(2), torch.ones(2)), torch.zeros(3, 2)
    with pytest.raises(TypeError, match="'differentiabel' is unknown; did you mean"):
        sample(model, z, schedule=SCHEDULE, steps=1, differentiabel=True)
    cut = Denoiser(lambda z, logsnr: 0.3 * z.detach() + 0.1 * z, X())
    with pytest.raises(ValueError, match="log_prob: argument 'model' must be differentiable in z"):
        log_prob(cut, z, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="log_prob: argument 'x' must be finite"):
        log_prob(model, z + math.nan, schedule=SCHEDULE)
