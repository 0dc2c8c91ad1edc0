"""The two ends of sampling: from pure noise, λ = −∞, and to data, λ = +∞."""

import math
from functools import partial

import pytest
import torch

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.gaussian import alpha, sigma
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.sampling import (
    History,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    ode,
)
from vdiff.variance import FixedLarge

PLANE = GaussianMixture(
    [0.2, 0.5, 0.3],
    [[-1.0, 0.4], [0.5, 0.9], [0.3, -1.1]],
    [[0.04, 0.1], [0.09, 0.02], [0.1, 0.3]],
)
CENTER = torch.tensor([0.4, -0.2], dtype=torch.float64)
TARGETS: tuple[Parameterization, ...] = (X(), V(), V(0.5), Flow())
DETERMINISTIC = {"ddim": ddim, "ode": partial(ode, rtol=1e-9, atol=1e-9)} | {
    f"adams_bashforth {order} {target!r}": partial(adams_bashforth, order=order, target=target)
    for order in (1, 3)
    for target in TARGETS
}
FROM_NOISE = DETERMINISTIC | {
    "ancestral": ancestral,
    "ancestral, forward": partial(ancestral, variance=FixedLarge()),
    "ddim 0.5": partial(ddim, eta=0.5),
}


def noise(n=64):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def level(value, n=64):
    return torch.full((n,), float(value), dtype=torch.float64)


def estimate(z, logsnr):
    """An x̂ without any 1/α, which at λ = −∞ is CENTER."""
    return CENTER + torch.tanh(3 * alpha(logsnr)[:, None] * z)


def saying(target):
    """The model with this x̂ in terms of a target."""

    def model(z, logsnr):
        x = estimate(z, logsnr)
        eps = (z - alpha(logsnr)[:, None] * x) / sigma(logsnr)[:, None]
        return Prediction(z, logsnr, target.target(x, eps, logsnr), target)

    return model


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("step", FROM_NOISE.values(), ids=FROM_NOISE)
def test_pure_noise_is_the_limit_of_much_noise(step, target):
    ends = [
        sample(
            saying(target),
            noise(),
            levels=[first, -3.0, 0.0, 2.0, 6.0],
            step=step,
            generator=torch.Generator().manual_seed(1),
        )
        for first in (-math.inf, -60.0)
    ]
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("step", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_pure_noise_in_float32(step):
    """Also for a solver whose own time is float32, in which a right angle is more than one."""
    exact, single = (
        sample(saying(V()), z, levels=[-math.inf, -3.0, 0.0, 2.0, 6.0], step=step)
        for z in (noise(), noise().float())
    )
    torch.testing.assert_close(single.double(), exact, rtol=0.0, atol=1e-5)


def test_the_second_step_of_dpmpp_from_pure_noise_is_of_first_order():
    """Its past is infinitely far away."""
    made = [
        [
            z
            for z, _ in trajectory(
                saying(V()), noise(), levels=[-math.inf, -3.0, 0.0, 2.0], step=step
            )
        ]
        for step in (dpmpp_2m, ddim)
    ]
    torch.testing.assert_close(made[0][:3], made[1][:3], rtol=1e-12, atol=1e-12)
    assert (made[0][3] - made[1][3]).abs().max() > 1e-3


def test_steps_from_pure_noise():
    """z_s = α_s x̂ + σ_s n by the chain, n itself with the large variance, α_s x̂ + σ_s z by
    DDIM."""
    z, s = noise(), level(-1.0)
    mean, drawn = (
        CENTER,
        torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    a, b = alpha(s)[:, None], sigma(s)[:, None]
    wanted = {
        ancestral: a * mean + b * drawn,
        partial(ancestral, variance=FixedLarge()): a * mean + drawn,
        ddim: a * mean + b * z,
        partial(ddim, eta=1.0): a * mean + b * drawn,
        partial(ddim, eta=0.6): a * mean + b * (0.8 * z + 0.6 * drawn),
    }
    for step, there in wanted.items():
        got = step(
            saying(V()), z, level(-math.inf), s, History((), torch.Generator().manual_seed(1))
        )
        torch.testing.assert_close(got, there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_from_pure_noise_in_one_step_for_gaussian_data(std):
    """The whole turn of the angle in one quadrature."""
    data, s = Gaussian([0.0], [std**2]), 9.0

    def model(z, logsnr):
        return Prediction(
            z,
            logsnr,
            torch.zeros_like(z)
            if torch.isinf(logsnr).all()
            else data(z, logsnr).as_target(V(std)),
            V(std),
        )

    z = noise()[:, :1]
    got = adams_bashforth(model, z, level(-math.inf), level(s), target=V(std))
    torch.testing.assert_close(
        got, z * math.sqrt((std**2 + math.exp(-s)) / (1 + math.exp(-s))), rtol=1e-11, atol=0.0
    )


@pytest.mark.parametrize(
    "step",
    [
        ancestral,
        ddim,
        partial(ddim, eta=0.5),
        heun,
        dpmpp_2m,
        adams_bashforth,
        partial(adams_bashforth, target=X()),
    ],
)
def test_a_step_to_data_is_the_estimate(step):
    z, past = noise(), tuple(PLANE(noise(), level(value)) for value in (-1.0, -0.5))
    got = step(PLANE, z, level(0.0), level(math.inf), History(past))
    torch.testing.assert_close(got, PLANE(z, level(0.0)).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize(("low", "high"), [(-10.0, -6.0), (-20.0, -10.0), (-30.0, -20.0)])
def test_heun_keeps_its_digits_where_noise_dominates(low, high, target):
    """In float32, as far as the network's own output has them: written with ε̂ the last of these
    steps is off by 3e-5."""

    def model(z, logsnr):
        return Prediction(
            z, logsnr, PLANE(z.double(), logsnr).as_target(target).to(z.dtype), target
        )

    exact, single = (heun(model, z, level(low), level(high)) for z in (noise(), noise().float()))
    torch.testing.assert_close(single.double(), exact, rtol=0.0, atol=1.5e-6)


def test_heun_is_edms():
    """Algorithm 1 in (z/α, σ/α), by hand."""
    z, t, s = noise(), level(-1.0), level(0.7)
    noisy, clean = math.exp(0.5), math.exp(-0.35)
    at_t = PLANE(z, t)
    y = z / alpha(t)[:, None]
    first = y + (clean - noisy) * at_t.eps
    again = PLANE(alpha(s)[:, None] * first, s)
    wanted = alpha(s)[:, None] * (y + (clean - noisy) * 0.5 * (at_t.eps + again.eps))
    for target in (*TARGETS, Eps()):

        def model(z, logsnr, target=target):
            return Prediction(z, logsnr, PLANE(z, logsnr).as_target(target), target)

        torch.testing.assert_close(heun(model, z, t, s), wanted, rtol=1e-11, atol=1e-12)


def test_a_network_that_is_told_a_time_starts_from_pure_noise():
    """Of a zero terminal SNR: rectified flow's t is 1 there."""
    told = []

    def network(z, t):
        told.append(t[0].item())
        return 0.3 * z

    made = sample(
        Denoiser(network, Flow(), time=lambda logsnr: torch.sigmoid(-0.5 * logsnr)),
        noise(),
        levels=[-math.inf, 0.0],
        step=adams_bashforth,
    )
    assert told == [1.0, 0.5]
    torch.testing.assert_close(
        made, 0.85**2 * noise()
    )  # two of Euler's steps of y' = û = 0.3 y, from t = 1 to ½ and to 0
