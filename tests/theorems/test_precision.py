"""float32 agrees with float64, and λ stays out of half precision."""

import copy

import pytest
import torch
from registry import CLOSED_TARGETS, TARGETS

from vdiff import Denoiser, weighted_elbo
from vdiff.nn import MLP
from vdiff.parameterization import PosteriorMean, V
from vdiff.schedule import Cosine, Linear
from vdiff.weighting import loss_factor

ALL_TARGETS = {**TARGETS, "posterior mean, cosine": PosteriorMean(Cosine(20.0, -20.0), 1000)}


def networks(dims: int = 2) -> tuple[MLP, MLP]:
    """A fixed random smooth network in float32, and the same in float64."""
    torch.manual_seed(0)
    network = MLP(dims, width=64)
    return network, copy.deepcopy(network).double()


def draws(n: int = 4096, dims: int = 2):
    """(x, t, ε) that float32 holds exactly, λ covering [−20, 20]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor([0.7, -0.4]) + 0.5 * torch.randn(n, dims, generator=generator)
    return x, (torch.arange(n) + 0.5) / n, torch.randn(n, dims, generator=generator)


def losses(target, n: int = 4096, ends: float = 20.0):
    x, t, eps = draws(n)
    schedule = Linear(ends, -ends)
    single, double = networks()
    low = weighted_elbo(Denoiser(single, target), x, schedule=schedule, t=t, eps=eps)
    high = weighted_elbo(
        Denoiser(double, target), x.double(), schedule=schedule, t=t.double(), eps=eps.double()
    )
    assert (low.dtype, high.dtype) == (torch.float32, torch.float64)
    return low, high, single, double


@pytest.mark.parametrize("target", ALL_TARGETS.values(), ids=ALL_TARGETS)
def test_the_mean_of_a_batch_agrees(target):
    low, high, *_ = losses(target)
    assert low.mean().item() == pytest.approx(high.mean().item(), rel=1e-5)


@pytest.mark.parametrize("target", [V(), V(0.5)], ids=repr)
def test_each_example_agrees_for_v(target):
    low, high, *_ = losses(target)
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=0)


@pytest.mark.parametrize("target", CLOSED_TARGETS.values(), ids=CLOSED_TARGETS)
def test_each_stretch_of_noise_levels_agrees(target):
    """The mean of a batch is ruled by its largest weights; each unit of λ agrees by itself."""
    low, high, *_ = losses(target)
    torch.testing.assert_close(
        low.double().view(32, 128).mean(1), high.view(32, 128).mean(1), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("target", CLOSED_TARGETS.values(), ids=CLOSED_TARGETS)
def test_the_loss_and_its_gradients_agree_at_the_far_ends(target):
    x, _, eps = draws(256)
    t = (torch.arange(256) % 2).float()  # λ = ±40
    single, double = networks()
    schedule = Linear(40.0, -40.0)
    low = weighted_elbo(Denoiser(single, target), x, schedule=schedule, t=t, eps=eps)
    high = weighted_elbo(
        Denoiser(double, target), x.double(), schedule=schedule, t=t.double(), eps=eps.double()
    )
    for end in (0, 1):  # apart: the weights of the two differ by e^40
        assert low[end::2].mean().item() == pytest.approx(high[end::2].mean().item(), rel=1e-5)
        for a, b in zip(
            torch.autograd.grad(low[end::2].mean(), single.parameters(), retain_graph=True),
            torch.autograd.grad(high[end::2].mean(), double.parameters(), retain_graph=True),
            strict=True,
        ):
            assert (a.double() - b).norm() <= 1e-5 * b.norm()


def test_the_mean_of_a_loop_of_ones_own_agrees():
    lam = torch.linspace(-20, 20, 401)
    for target in CLOSED_TARGETS.values():
        factor = loss_factor(torch.nn.functional.softplus, Cosine(20.0, -20.0), target)
        torch.testing.assert_close(factor(lam).double(), factor(lam.double()), rtol=1e-6, atol=0)


def test_autocast_leaves_the_noise_level_alone():
    told = []

    class Network(MLP):
        def forward(self, z, logsnr):
            told.append((z.dtype, logsnr))
            return super().forward(z, logsnr)

    torch.manual_seed(0)
    network = Network(2)
    x, t, eps = draws(512)
    schedule = Cosine(13.3, -5.0)
    plain = weighted_elbo(Denoiser(network, V()), x, schedule=schedule, t=t, eps=eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = weighted_elbo(Denoiser(network, V()), x, schedule=schedule, t=t, eps=eps)
    assert [dtype for dtype, _ in told] == [torch.float32, torch.float32]
    for _, logsnr in told:
        assert logsnr.dtype == torch.float32
        torch.testing.assert_close(logsnr, schedule(t.double()).float(), rtol=1e-6, atol=1e-6)
    assert cast.dtype == torch.float32
    assert cast.mean().item() == pytest.approx(plain.mean().item(), rel=0.02)


def test_half_precision_data_and_networks_are_computed_in_single():
    torch.manual_seed(0)
    network = MLP(2)
    x, t, eps = draws(256)
    half = copy.deepcopy(network).bfloat16()
    told = []
    half.register_forward_pre_hook(lambda module, args: told.append([a.dtype for a in args]))
    options = {"schedule": Cosine(13.3, -5.0), "t": t}
    plain = weighted_elbo(Denoiser(network, V()), x, eps=eps, **options)
    cast = weighted_elbo(Denoiser(half, V()), x.bfloat16(), eps=eps.bfloat16(), **options)
    assert told == [[torch.bfloat16, torch.float32]]
    assert cast.dtype == torch.float32
    assert cast.mean().item() == pytest.approx(plain.mean().item(), rel=0.02)
