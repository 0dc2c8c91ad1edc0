"""Networks somebody already has: what they are told, what they return, and what they are mistaken for."""

import types

import pytest
import torch
from torch import nn

from vdiff import (
    Denoiser,
    Eps,
    Exploding,
    Flow,
    GaussianMixture,
    Linear,
    TableStep,
    Tabulated,
    V,
    X,
    edm_time,
    flow_time,
    sigma_time,
    weighted_elbo,
)
from vdiff.nn import MLP
from vdiff.parameterization import Parameterization

ORACLE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.5, 0.2]], [[0.04, 0.2], [0.09, 0.1]])


class EDMDenoiser(nn.Module):
    """D(x; σ) on z/α, perfect for the oracle's data; F is its inside."""

    def forward(self, noisy, sigma):
        logsnr = -2 * sigma.log()
        return ORACLE(noisy * logsnr.sigmoid().sqrt()[:, None], logsnr).x


class EDMInside(nn.Module):
    """F(c_in x; c_noise) with D = c_skip x + c_out F, σ_d = ½ (Karras et al., table 1)."""

    def forward(self, scaled, c_noise):
        sigma = torch.exp(4 * c_noise)[:, None]
        total = (sigma**2 + 0.25).sqrt()
        noisy = scaled * total
        return (EDMDenoiser()(noisy, sigma[:, 0]) - 0.25 / total**2 * noisy) / (sigma * 0.5 / total)


class Forwards(nn.Module):
    """Rectified flow with t = 1 at the noise, on z = (1 − t) x + t ε."""

    def forward(self, z, t):
        logsnr = 2 * torch.log((1 - t) / t)
        p = ORACLE(z / ((1 - t).square() + t.square()).sqrt()[:, None], logsnr)
        return p.eps - p.x


class Backwards(nn.Module):
    """The same with t = 1 at the data and target x − ε."""

    def forward(self, z, t):
        return -Forwards()(z, 1 - t)


class StepUNet(nn.Module):
    """Told a step of DDPM's table as an integer, returns an object with `.sample`."""

    def forward(self, z, step, label=None):
        assert step.dtype == torch.int64
        return types.SimpleNamespace(sample=ORACLE(z, Tabulated.linear_betas().table[step]).eps)


MODELS = {
    "edm D": lambda: Denoiser(EDMDenoiser(), Exploding(X()), time=sigma_time),
    "edm F": lambda: Denoiser(EDMInside(), V(0.5), time=edm_time, output=torch.neg),
    "flow": lambda: Denoiser(Forwards(), Flow(), time=flow_time),
    "flow, other way": lambda: Denoiser(Backwards(), Flow(), time=lambda logsnr: 1 - flow_time(logsnr), output=torch.neg),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_another_convention_is_the_same_model(name):
    generator = torch.Generator().manual_seed(0)
    x = ORACLE.sample(64, generator)
    eps = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    options = {"schedule": Linear(8.0, -6.0), "t": torch.linspace(0.01, 0.99, 64, dtype=torch.float64), "eps": eps}
    assert torch.allclose(weighted_elbo(MODELS[name](), x, **options), weighted_elbo(ORACLE, x, **options), rtol=1e-7)


def test_a_network_that_looks_up_integer_steps():
    table = Tabulated.linear_betas()
    model = Denoiser(StepUNet(), Eps(), time=TableStep(table, integer=True), output=lambda out: out.sample)
    x = ORACLE.sample(32, torch.Generator().manual_seed(0))
    options = {
        "schedule": table,
        "steps": 999,
        "t": torch.arange(1, 33, dtype=torch.float64) * 31 / 999,
        "eps": torch.ones(32, 2, dtype=torch.float64),
    }
    assert torch.allclose(weighted_elbo(model, x, **options, label=None), weighted_elbo(ORACLE, x, **options), rtol=1e-12)


def test_a_function_that_hides_a_network_is_warned_of():
    network = nn.Linear(2, 2)
    for hidden in (lambda z, t: network(z), network.forward):
        with pytest.warns(UserWarning, match="hand over the module itself, with time= and output="):
            Denoiser(hidden, Eps())
    assert len(list(Denoiser(network, Eps()).parameters())) == 2


class Column(Parameterization):
    def row(self, logsnr):
        return 0.0, logsnr[:, None]


def test_a_row_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"must have a row and an input scale of numbers or \(batch,\) tensors; got \(3, 1\) from Column"):
        Denoiser(lambda z, t: z, Column())


@pytest.mark.parametrize(
    ("weights", "data"), [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float64)]
)
def test_a_network_gets_its_own_dtype_and_answers_in_that_of_the_data(weights, data):
    model = Denoiser(MLP(2).to(weights), Eps())
    prediction = model(torch.ones(3, 2, dtype=data), torch.zeros(3))
    assert prediction.eps.dtype == data
    assert weighted_elbo(model, torch.ones(3, 2, dtype=data), schedule=Linear()).dtype == data
