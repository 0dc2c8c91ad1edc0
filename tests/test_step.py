"""Steps of one level: their orders, their noise, and what they have in common."""

import itertools
import math
from functools import partial

import pytest
import torch
from mixtures import EVERY, GAUSSIAN, MIXTURE, PLANE, TARGETS, end, level, noise

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.gaussian import Step, alpha, sigma
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import PosteriorMean, Score, V
from vdiff.reverse import reverse_mean
from vdiff.sampling import (
    History,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    uniform,
)
from vdiff.schedule import Cosine, Karras, LearnedLinear, Linear, Tabulated
from vdiff.variance import FixedLarge, FixedSmall

ORDER = {"ddim": (ddim, 1), "heun": (heun, 2), "dpmpp_2m": (dpmpp_2m, 2)} | {
    f"adams_bashforth {order} {target!r}": (
        partial(adams_bashforth, order=order, target=target),
        order,
    )
    for order in (1, 2, 3)
    for target in TARGETS
}


def transported(data, z, high, low):
    """The exact end of the probability-flow ODE in one dimension, F_high⁻¹(F_low(z)) of q(z), by
    bisection."""

    def cdf(value, logsnr):
        scale = (alpha(logsnr) ** 2 * data.variances + sigma(logsnr) ** 2).sqrt()
        return (
            data.weights[:, None]
            * torch.special.ndtr((value.T - alpha(logsnr) * data.means) / scale)
        ).sum(0)

    wanted = cdf(z, torch.tensor(low, dtype=torch.float64))
    below, above = torch.full_like(z, -9.0), torch.full_like(z, 9.0)
    for _ in range(60):
        middle = 0.5 * (below + above)
        low_side = (cdf(middle, torch.tensor(high, dtype=torch.float64)) < wanted)[:, None]
        below, above = torch.where(low_side, middle, below), torch.where(low_side, above, middle)
    return 0.5 * (below + above)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDER)
def test_the_order_of_convergence(name, data):
    """At numbers of steps where the first step, which is of first order, does not count yet."""
    step, order = ORDER[name]
    z, schedule = noise(), Linear(6.0, -5.0)
    exact = transported(data, z, 6.0, -5.0)
    errors = [
        (end(data, z, step, schedule, n) - exact).square().mean().sqrt().item() for n in (32, 64)
    ]
    assert errors[0] / errors[1] > 2 ** (order - 0.25)
    if order == 1:
        assert errors[0] / errors[1] < 2**1.25


def test_ddim_over_two_half_steps_and_over_one():
    """The two differ by the square of the step; on data that is one point, whose x̂ does not move,
    not at all."""
    z = noise(dims=2)

    def gap(data, h):
        half = ddim(data, ddim(data, z, level(0.0), level(h / 2)), level(h / 2), level(h))
        return (half - ddim(data, z, level(0.0), level(h))).abs().max()

    assert 3.6 < gap(PLANE, 0.2) / gap(PLANE, 0.1) < 4.4
    point = GaussianMixture([1.0], [[0.7, -0.2]], [[0.0, 0.0]])
    assert gap(point, 5.0) < 1e-14


def test_eta_one_is_ancestral_sampling_and_eta_zero_draws_nothing():
    z, generator = noise(dims=2), torch.Generator()
    for low, high in ((-8.0, -7.9), (-1.0, 0.5), (-5.0, 13.0)):
        one = ddim(
            PLANE, z, level(low), level(high), History((), generator.manual_seed(1)), eta=1.0
        )
        torch.testing.assert_close(
            one,
            ancestral(PLANE, z, level(low), level(high), History((), generator.manual_seed(1))),
            rtol=1e-9,
            atol=1e-12,
        )
    before = generator.manual_seed(1).get_state()
    for step in (ddim, heun, dpmpp_2m, adams_bashforth):
        step(PLANE, z, level(0.0), level(1.0), History((), generator))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_the_moments_of_ddim_with_some_noise(eta):
    """Its mean is α_s x̂ + σ_s √(1 − η²c) ε̂ and its spread η √c σ_s."""
    z, t, s = (
        torch.full((200_000, 1), 0.4, dtype=torch.float64),
        level(-1.0, 200_000),
        level(0.6, 200_000),
    )
    now = MIXTURE(z[:1], t[:1])
    c = 1 - math.exp(-1.6)
    mean = alpha(s[:1]) * now.x + sigma(s[:1]) * math.sqrt(1 - eta**2 * c) * now.eps
    spread = eta * math.sqrt(c) * sigma(s[:1]).item()
    drawn = ddim(MIXTURE, z, t, s, History((), torch.Generator().manual_seed(0)), eta=eta)
    assert abs(drawn.mean() - mean).item() < 4 * spread / math.sqrt(len(z))
    assert abs(drawn.std() / spread - 1).item() < 4 / math.sqrt(2 * len(z))


def test_ancestral_sampling_takes_every_reverse_variance():
    z, t, s = noise(), level(-1.0), level(0.5)
    own, small, large = (
        ancestral(
            MIXTURE, z, t, s, History((), torch.Generator().manual_seed(0)), variance=variance
        )
        for variance in (None, FixedSmall(), FixedLarge())
    )
    mean = reverse_mean(MIXTURE(z, t), Step(t, s - t))
    assert torch.equal(own, small)
    ratio = torch.full_like(z, math.sqrt((1 + math.exp(0.5)) / (1 + math.exp(-1.0))))  # σ_t/σ_s
    torch.testing.assert_close((large - mean) / (small - mean), ratio, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_the_same_samples_whatever_the_model_predicts(step):
    """The same (x̂, ε̂) in every parameterization, from the same noise."""

    def made(model):
        generator = torch.Generator().manual_seed(1)
        return sample(
            model,
            noise(dims=2),
            schedule=Cosine(9.0, -9.0),
            steps=11,
            step=step,
            generator=generator,
        )

    reference = made(PLANE)
    for target in (*TARGETS, Score(), PosteriorMean(Linear(13.0, -13.0), 100)):

        def as_target(z, logsnr, target=target):
            return Prediction(z, logsnr, PLANE(z, logsnr).as_target(target), target)

        torch.testing.assert_close(made(as_target), reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_the_same_samples_whatever_the_model_was_trained_with(step):
    """A model is given λ alone: nothing of a training schedule reaches a sampler."""
    network = torch.nn.Linear(2, 2).double()

    class Told(torch.nn.Module):
        def forward(self, z, time):
            return network(z) * time[:, None]

    z, made = noise(dims=2), []
    for schedule in (
        Linear(9.0, -9.0),
        Cosine(),
        LearnedLinear(8.0, -8.0),
        Tabulated.linear_betas(),
    ):
        model = Denoiser(Told(), V(), time=lambda logsnr: torch.sigmoid(logsnr))
        assert (
            len(list(trajectory(model, z, schedule=schedule, steps=3, step=ddim))) == 4
        )  # any schedule is a grid
        generator = torch.Generator().manual_seed(1)
        made.append(sample(model, z, schedule=Karras(), steps=8, step=step, generator=generator))
    assert all(torch.equal(one, made[0]) for one in made)


def test_the_step_to_data_is_the_exact_limit():
    """x̂ at the last level is where a deterministic step to λ → ∞ leads."""
    z, n = noise(dims=2), 64
    *_, (_, last) = trajectory(PLANE, z, schedule=Linear(2.0, -8.0), steps=4, step=ddim)
    for target in TARGETS:
        seen = Prediction(last.z, last.logsnr, last.as_target(target), target)
        there = ddim(
            lambda z, logsnr, seen=seen: seen,
            last.z,
            last.logsnr,
            torch.full((n,), torch.inf, dtype=torch.float64),
        )
        torch.testing.assert_close(there, last.x, rtol=1e-12, atol=1e-12)


def test_steps_that_need_no_driver():
    z = noise(dims=2)
    by_hand = z
    for t, s in itertools.pairwise(uniform(Karras(), 7)):
        by_hand = heun(PLANE, by_hand, t.expand(64), s.expand(64))
    torch.testing.assert_close(by_hand, end(PLANE, z, heun, Karras(), 7), rtol=1e-12, atol=0.0)
