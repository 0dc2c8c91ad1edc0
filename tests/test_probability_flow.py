"""The probability-flow ODE as a step, there and back."""

from functools import partial

import pytest
import torch
from mixtures import PLANE, level, noise

from vdiff import sample, trajectory
from vdiff.sampling import (
    invert,
    logistic,
    ode,
)
from vdiff.schedule import Linear


def test_an_adaptive_solver_moves_a_sample_as_its_batch_does_within_its_own_error():
    """About 1e-5 on this mixture, at the default tolerances, and rarely much more; none where they
    are tight."""
    z, moved = noise(dims=2), {}
    for tolerance, method in ((1e-5, "dopri5"), (1e-9, "dopri8")):
        options = {
            "schedule": logistic(),
            "steps": 1,
            "step": partial(ode, method=method, rtol=tolerance, atol=tolerance),
        }
        alone = torch.cat([sample(PLANE, one[None], **options) for one in z[:6]])
        moved[tolerance] = (sample(PLANE, z, **options)[:6] - alone).abs().max().item()
    assert 1e-6 < moved[1e-5] < 1.5e-4
    assert moved[1e-9] < 1e-7


def test_encoding_returns_to_its_start():
    z0, schedule, step = (
        noise(dims=2, seed=3),
        Linear(9.0, -9.0),
        partial(ode, rtol=1e-9, atol=1e-9),
    )
    z1 = invert(PLANE, z0, schedule=schedule, step=step)
    torch.testing.assert_close(step(PLANE, z1, level(-9.0), level(9.0)), z0, rtol=0.0, atol=1e-6)
    assert (z1 - z0).abs().max() > 0.1


def test_a_solver_stays_between_its_ends():
    """torchdiffeq's own first guess is a step far beyond the other end where the velocity in λ is
    small."""
    seen = []

    def model(z, logsnr):
        seen.append(logsnr[0].item())
        return PLANE(z, logsnr)

    ode(model, noise(dims=2), level(-10.0), level(10.0))
    assert -10.0 <= min(seen) < -9.99
    assert 9.99 < max(seen) <= 10.0


@pytest.mark.parametrize("method", ["rk4", "dopri5", "midpoint", "heun3"])
def test_any_solver_is_a_step(method):
    z = noise(dims=2)
    *_, (got, _) = trajectory(
        PLANE, z, schedule=logistic(9.0, -9.0), steps=39, step=partial(ode, method=method)
    )
    exact = ode(PLANE, z, level(-9.0), level(9.0), rtol=1e-9, atol=1e-9)
    assert (got - exact).square().mean().sqrt() < 5e-3
