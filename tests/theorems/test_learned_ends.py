"""End points of a schedule are trained by the whole bound alone."""

import math

import numpy as np
import pytest
import torch

from vdiff import Denoiser, elbo, weighted_elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.nn import MLP
from vdiff.parameterization import Eps, V, X
from vdiff.schedule import LearnedLinear, Linear
from vdiff.weighting import EDM, ELBO, MSE, Sigmoid

from .reference import gmm1d
from .test_bound import GRID, HIGH, LOW, PMF, lattice_bound, lattice_mmse, lattice_reconstruction


def gradients(schedule) -> tuple[float, float]:
    """(∂/∂λ_max, ∂/∂λ_min) from the gradients of the parameters."""
    by_high = schedule.high.grad.item() / torch.sigmoid(schedule.high - schedule.low).item()
    return by_high, schedule.low.grad.item() + schedule.high.grad.item() - by_high


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize(
    "weighting",
    [ELBO(), Sigmoid(2.0), EDM(), MSE(Linear(9, -9), V()), torch.exp],
    ids=lambda w: "exp" if w is torch.exp else str(w),
)
def test_a_weighted_loss_passes_the_ends_no_gradient(weighting, steps):
    schedule = LearnedLinear(3.0, -4.0)
    torch.manual_seed(0)
    network = MLP(1)
    loss = weighted_elbo(
        Denoiser(network, V()),
        gmm1d().sample(64).float(),
        schedule=schedule,
        weighting=weighting,
        steps=steps,
    )
    loss.mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in schedule.parameters())
    assert all(p.grad.any() for p in network.parameters())


@pytest.mark.usefixtures("float64")
def test_the_bound_gives_the_ends_their_gradient():
    schedule = LearnedLinear(HIGH, LOW)
    lattice_bound(schedule).backward()
    signal = 1 / (1 + math.exp(-LOW))
    step = 1e-4
    decoding = (
        lattice_reconstruction(HIGH + step, 1) - lattice_reconstruction(HIGH - step, 1)
    ) / (2 * step)
    prior = 0.5 * signal * (1 - signal) * (PMF @ GRID**2 - 1) + 0.5 * signal
    want = 0.5 * lattice_mmse(HIGH) + decoding, prior - 0.5 * lattice_mmse(LOW)
    assert gradients(schedule) == pytest.approx(want, rel=1e-6)


def chain_total(high: float, low: float, steps: int) -> float:
    lam = high - (high - low) * np.arange(1, steps + 1) / steps
    prior = 0.5 * ((PMF @ GRID**2 - 1) / (1 + math.exp(-low)) + math.log1p(math.exp(low)))
    return (
        prior
        + 0.5 * math.expm1((high - low) / steps) * sum(map(lattice_mmse, lam))
        + lattice_reconstruction(high, 1)
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [1, 4])
def test_the_bound_of_a_chain_gives_the_ends_their_gradient(steps):
    schedule, h = LearnedLinear(HIGH, LOW), 1e-4
    lattice_bound(schedule, steps).backward()
    by_high = (chain_total(HIGH + h, LOW, steps) - chain_total(HIGH - h, LOW, steps)) / (2 * h)
    by_low = (chain_total(HIGH, LOW + h, steps) - chain_total(HIGH, LOW - h, steps)) / (2 * h)
    assert gradients(schedule) == pytest.approx((by_high, by_low), rel=1e-6)


def test_a_plain_loss_under_learned_ends_is_refused():
    with pytest.raises(ValueError, match=r"MSE: argument 'schedule' must be fixed.*moves with it"):
        MSE(LearnedLinear(), Eps())


def test_learned_ends_with_a_gaussian_decoder_are_refused():
    data = torch.zeros(2, 1)
    with pytest.raises(
        ValueError, match="elbo: argument 'schedule' must have fixed ends with a Gaussian decoder"
    ):
        elbo(gmm1d(), data, schedule=LearnedLinear(), decoder=Gaussian())


@pytest.mark.parametrize("decoder", [Categorical(levels=5), DiscretizedGaussian(levels=5)])
@pytest.mark.parametrize("error", [0.0, 30.0])
def test_the_ends_stay_ordered_under_large_steps(decoder, error):
    """Whether the bound wants a wide range (a good model) or none at all (a model that is always
    wrong)."""
    torch.manual_seed(0)
    schedule = LearnedLinear(2.0, -2.0)
    data = torch.randint(0, 5, (64, 3))
    network = (
        (lambda z, logsnr: decoder.encode(data)) if error == 0 else (lambda z, logsnr: z + error)
    )
    model = Denoiser(network, X() if error == 0 else Eps())
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.5)
    before = [schedule.logsnr_max, schedule.logsnr_min]
    for _ in range(300):
        optimizer.zero_grad()
        elbo(model, data, schedule=schedule, decoder=decoder).total.mean().backward()
        optimizer.step()
        assert schedule.logsnr_min < schedule.logsnr_max
    after = [schedule.logsnr_max, schedule.logsnr_min]
    assert (after[0] - after[1] > before[0] - before[1]) == (error == 0)
