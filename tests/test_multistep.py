"""Multistep methods in each velocity, against what they are exact for and the plain rule."""

import math
from functools import partial

import pytest
import torch
from mixtures import PLANE, end, level, noise

from vdiff.gaussian import alpha, sigma
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.sampling import (
    adams_bashforth,
    ddim,
    uniform,
)
from vdiff.schedule import Linear, OptimalTransport


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_velocity_at_the_data_scale_is_exact_for_gaussian_data_in_one_step(std, order):
    z = noise()
    got = end(
        Gaussian([0.0], [std**2]),
        z,
        partial(adams_bashforth, order=order, target=V(std)),
        Linear(8.0, -8.0),
        1,
    )
    exact = z * math.sqrt(
        (std**2 + math.exp(-8.0))
        / (1 + math.exp(-8.0))
        / ((std**2 * math.exp(-8.0) + 1) / (math.exp(-8.0) + 1))
    )
    torch.testing.assert_close(got, exact, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("target", [X(), Eps(), Flow()], ids=repr)
def test_a_first_order_exponential_step_is_ddim(target):
    z = noise(dims=2)
    for low, high in ((-9.0, -8.9), (-5.0, 3.0), (2.0, 12.0)):
        one, other = (
            step(PLANE, z, level(low), level(high))
            for step in (partial(adams_bashforth, order=1, target=target), ddim)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_first_order_step_in_v_is_ddim_but_for_its_second_order():
    z = noise(dims=2)
    gap = [
        (
            adams_bashforth(PLANE, z, level(0.0), level(h), order=1, target=V())
            - ddim(PLANE, z, level(0.0), level(h))
        )
        .abs()
        .max()
        for h in (0.2, 0.1)
    ]
    assert 3.5 < gap[0] / gap[1] < 4.5


def test_the_plain_rule_on_the_rectified_path():
    """Adams–Bashforth of order 3 with equal steps in t = σ/(α + σ): (23 u₀ − 16 u₁ + 5 u₂)/12."""
    schedule, steps = OptimalTransport(9.0, -9.0), 11
    levels = uniform(schedule, steps)
    t = torch.sigmoid(-0.5 * levels)
    y, velocities = noise(dims=2) / (alpha(levels[0]) + sigma(levels[0])), []
    for i, (logsnr, now) in enumerate(zip(levels[:-1], t[:-1], strict=True)):
        prediction = PLANE(y * (alpha(logsnr) + sigma(logsnr)), logsnr.expand(len(y)))
        velocities.insert(0, prediction.eps - prediction.x)
        rule = {0: (1.0,), 1: (1.5, -0.5)}.get(i, (23 / 12, -16 / 12, 5 / 12))
        y = y + (t[i + 1] - now) * sum(w * u for w, u in zip(rule, velocities, strict=False))
    got = end(PLANE, noise(dims=2), partial(adams_bashforth, target=Flow()), schedule, steps)
    torch.testing.assert_close(
        got, y * (alpha(levels[-1]) + sigma(levels[-1])), rtol=1e-10, atol=1e-12
    )
