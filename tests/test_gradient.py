"""A network that hides part of itself from autograd has no divergence that could be trusted."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vdiff import Denoiser
from vdiff.decoder import Categorical
from vdiff.likelihood import Exact, Hutchinson, Uniform, dequantized_ode, ode_likelihood
from vdiff.likelihood.gradient import check_gradient
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps, V, X
from vdiff.schedule import Linear

DATA = Gaussian([0.3, -0.2], [0.25, 0.5])
SCHEDULE = Linear(14.0, -16.0)


class Wrong(torch.autograd.Function):
    """The identity, with a backward pass that forgets half of it."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, given):
        return 0.5 * given


def by_no_grad(v):
    with torch.no_grad():
        return 1.0 * v


def by_inference_mode(v):
    with torch.inference_mode():
        found = 1.0 * v
    return found.clone()


def by_a_switch(v):
    with torch.set_grad_enabled(False):
        return 1.0 * v


def in_half_of_the_rows(v):
    return torch.cat([v[: len(v) // 2], v[len(v) // 2 :].detach()])


CUTS = {
    "no_grad": by_no_grad,
    "inference_mode": by_inference_mode,
    "set_grad_enabled": by_a_switch,
    "detach": lambda v: v.detach(),
    "data": lambda v: v.data,
    "numpy": lambda v: torch.from_numpy(v.detach().numpy()),
    "list": lambda v: torch.tensor(v.tolist(), dtype=v.dtype),
    "rounding": lambda v: torch.round(v * 2**8) / 2**8,
    "a wrong backward pass": Wrong.apply,
    "one dimension": lambda v: torch.cat([v[:, :1], v[:, 1:].detach()], 1),
    "half of the rows": in_half_of_the_rows,
    "a residual": lambda v: 0.5 * v + 0.5 * v.detach(),
    "a tenth": lambda v: 0.9 * v + 0.1 * v.detach(),
    "a fiftieth": lambda v: 0.98 * v + 0.02 * v.detach(),
}


class Exactly(nn.Module):
    """x̂ of `DATA` with one trainable weight, behind which `cut` is applied."""

    def __init__(self, cut=lambda v: v):
        super().__init__()
        self.cut, self.one, self.calls = cut, nn.Parameter(torch.ones(1, dtype=torch.float64)), 0

    def forward(self, z, logsnr):
        self.calls += 1
        signal, noise = logsnr.sigmoid()[:, None], logsnr.neg().sigmoid()[:, None]
        mean, variance = DATA.means[0], DATA.variances[0]
        moved = signal.sqrt() * variance / (variance * signal + noise) * (z - signal.sqrt() * mean)
        return self.one * (mean + self.cut(moved))


def points(n):
    return DATA.sample(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trace", [Exact(), Hutchinson()], ids=repr)
@pytest.mark.parametrize("n", [1, 24])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_inside_the_network_is_refused(cut, n, trace):
    model = Denoiser(Exactly(CUTS[cut]), X())
    with pytest.raises(ValueError, match=r"^ode_likelihood: .* must be differentiable"):
        ode_likelihood(model, points(n), schedule=SCHEDULE, trace=trace)


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "one dimension"])
def test_a_cut_of_a_float32_network_shows_at_the_levels_where_rounding_is_small(cut):
    """x̂ hardly changes with z at λ_min: rounding hides a cut there, and nowhere else."""
    model = Denoiser(Exactly(CUTS[cut]).float(), X())
    with pytest.raises(ValueError, match=r"^ode_likelihood: .* must be differentiable"):
        ode_likelihood(model, points(24).float(), schedule=SCHEDULE)


def test_a_cut_of_one_example_among_many_is_refused():
    """As of one class, or of large z: the mean over the batch hides it."""

    class OneClass(Exactly):
        def forward(self, z, logsnr, label):
            whole, cut = super().forward(z, logsnr), super().forward(z.detach(), logsnr)
            return torch.where((label == 0)[:, None], cut, whole)

    for row in (0, 100, 200):
        label = torch.ones(256, dtype=torch.long)
        label[row] = 0
        with pytest.raises(ValueError, match=r"misses about \d+% .* in 1 of 256 examples"):
            ode_likelihood(
                Denoiser(OneClass(), X()), points(256), schedule=SCHEDULE,
                condition={"label": label},
            )  # fmt: skip


def test_without_a_cut_the_number_is_right_and_every_evaluation_is_counted():
    network, x = Exactly(), points(24)
    found = ode_likelihood(Denoiser(network, X()), x, schedule=SCHEDULE, tolerance=1e-6)
    assert torch.allclose(found.nats, -DATA.log_prob(x), atol=1e-3)
    assert network.calls == int(found.evaluations[0])
    assert found.protocol["NFE"] == network.calls


@pytest.mark.parametrize("n", [1, 24])
@pytest.mark.parametrize("beyond", [1.0, -1.0])
def test_a_cut_at_some_levels_alone_is_refused(beyond, n):
    """As in a network with an expert for each range of λ, one of which keeps no gradient."""

    class Expert(Exactly):
        def forward(self, z, logsnr):
            whole, cut = super().forward(z, logsnr), super().forward(z.detach(), logsnr)
            return torch.where(((logsnr - beyond) * beyond > 0)[:, None], cut, whole)

    with pytest.raises(ValueError, match=r"^ode_likelihood: .* must be differentiable"):
        ode_likelihood(Denoiser(Expert(), X()), points(n), schedule=SCHEDULE)


def test_a_cut_of_discrete_data_is_refused_too():
    decoder = Categorical(4)
    model, data = Denoiser(Exactly(CUTS["a residual"]), X()), torch.ones(3, 2).long()
    with pytest.raises(ValueError, match=r"^dequantized_ode: .* must be differentiable"):
        dequantized_ode(model, data, dequantization=Uniform(decoder), schedule=SCHEDULE)


def test_an_error_of_autograd_is_named():
    """`Tensor.numpy` refuses a gradient, and an inference tensor cannot be saved for one."""

    def through_numpy(z, logsnr):
        return torch.from_numpy(z.numpy().copy())

    def saved(z, logsnr):
        with torch.inference_mode():
            found = 1.0 * z
        return nn.functional.linear(found, nn.Parameter(torch.eye(2, dtype=torch.float64)))

    for network in (through_numpy, saved):
        with pytest.raises(
            ValueError, match=r"'model' must be differentiable in z; got .* \(no_grad, inference"
        ):
            ode_likelihood(Denoiser(network, X()), points(3), schedule=SCHEDULE)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # not of autograd
        ode_likelihood(
            Denoiser(lambda z, logsnr: z @ torch.ones(3, 2).double(), X()),
            points(3),
            schedule=SCHEDULE,
        )


class Deep(nn.Module):
    """A network of images with random weights."""

    def __init__(self, activation, dtype=torch.float32, width=16):
        super().__init__()
        torch.manual_seed(3)
        layers = [nn.Conv2d(1, width, 3, padding=1), activation(), nn.GroupNorm(4, width)]
        layers += [
            nn.Conv2d(width, width, 3, padding=1),
            activation(),
            nn.Conv2d(width, 1, 3, padding=1),
        ]
        self.layers = nn.Sequential(*layers).to(dtype)

    def forward(self, z, logsnr):
        return self.layers(z)


class Checkpointed(Deep):
    def forward(self, z, logsnr):
        return checkpoint(self.layers, z, use_reentrant=False)


class Lowered(Deep):
    def forward(self, z, logsnr):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layers(z).float()


class Absolute(nn.Module):
    def forward(self, v):
        return v.abs()


HEALTHY = {
    "smooth": lambda: Deep(nn.SiLU),
    "kinked": lambda: Deep(nn.ReLU),
    "kinked without a slope": lambda: Deep(nn.Hardtanh),
    "absolute values": lambda: Deep(Absolute),
    "bfloat16": lambda: Deep(nn.SiLU, torch.bfloat16),
    "kinked bfloat16": lambda: Deep(nn.ReLU, torch.bfloat16),
    "float64": lambda: Deep(nn.ReLU, torch.float64),
    "autocast": lambda: Lowered(nn.ReLU),
    "checkpointed": lambda: Checkpointed(nn.SiLU),
}


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("kind", HEALTHY)
def test_kinks_and_rounding_are_no_cut(kind, n):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    options = {"method": "euler", "trace": Hutchinson(1)}  # the check alone counts here
    model = Denoiser(HEALTHY[kind](), V())
    found = ode_likelihood(model, x, schedule=Linear(9.0, -9.0), **options)
    assert found.nats.isfinite().all()
    assert found.evaluations.max() <= 1 + 14


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_cut_shows_through_kinks_and_rounding(kind):
    network = HEALTHY[kind]()
    network.layers[3].register_forward_hook(lambda module, given, out: out.detach())
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with pytest.raises(ValueError, match="be differentiable in z"):
        ode_likelihood(Denoiser(network, V()), x, schedule=Linear(9.0, -9.0), trace=Hutchinson(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_of_many_networks_none_is_refused_and_cut_ones_are(activation, dtype):
    """Two hundred networks with random weights; half of the last layer's input is cut off."""
    logsnr, seen = torch.zeros(8, dtype=torch.float64), 0

    def check(network):
        check_gradient(lambda z: network(z.to(dtype)).float(), x, logsnr)

    class Half(nn.Module):
        def forward(self, v):
            return torch.cat([v[:, ::2].detach(), v[:, 1::2]], 1)

    for seed in range(200):
        torch.manual_seed(seed)
        dims, width = (1, 2, 8)[seed % 3], (16, 64)[seed % 2]
        first, last = nn.Linear(dims, width), nn.Linear(width, dims)
        whole = nn.Sequential(first, activation(), last).to(dtype)
        half = nn.Sequential(first, activation(), Half(), nn.Sequential(*whole[2:]))
        x = torch.randn(8, dims)
        check(whole)
        try:
            check(half)
        except ValueError:
            seen += 1
    assert seen >= (190 if dtype == torch.float32 else 120)


def test_a_constant_network_and_one_that_is_not_finite_are_left_to_the_solver():
    x, logsnr = torch.randn(8, 2), torch.zeros(8)
    assert check_gradient(lambda z: torch.zeros_like(z), x, logsnr) == 14
    assert check_gradient(lambda z: z / 0.0, x, logsnr) == 3
    assert check_gradient(lambda z: z.detach() * math.nan, x, logsnr) == 3


def test_a_target_with_a_gradient_of_its_own_does_not_cover_for_the_network():
    """v̂ is made of z and ε̂: the part of z has its gradient whatever the network does."""
    model = Denoiser(lambda z, logsnr: 0.3 * z.detach(), Eps())
    with pytest.raises(ValueError, match=r"misses about [89]\d% of how the output"):
        ode_likelihood(model, points(4), schedule=Linear(8.0, -8.0))
