"""Noise of its own for each sample, whatever its batch."""

from functools import partial

import pytest
import torch
from mixtures import EVERY, PLANE

from vdiff import sample
from vdiff.sampling import (
    ancestral,
    ode,
    per_sample_generators,
    start,
)
from vdiff.schedule import Karras, Linear


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_is_the_same_in_any_batch(name):
    """An adaptive solver's steps are the batch's: of those a fixed one is asked."""
    options = {
        "schedule": Karras(),
        "steps": 9,
        "step": EVERY[name] if name != "ode" else partial(ode, method="rk4"),
    }
    together = sample(
        PLANE,
        start((2,), per_sample_generators(7, range(9)), torch.float64),
        generator=per_sample_generators(7, range(9)),
        **options,
    )
    apart = [
        sample(
            PLANE,
            start((2,), per_sample_generators(7, numbers), torch.float64),
            generator=per_sample_generators(7, numbers),
            **options,
        )
        for numbers in (range(4), range(4, 5), range(5, 9))
    ]
    # each sample's noise is its own to the last bit; sums over a batch of another size are rounded
    # in another order
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(
        together,
        sample(
            PLANE,
            start((2,), per_sample_generators(8, range(9)), torch.float64),
            generator=per_sample_generators(8, range(9)),
            **options,
        ),
    )


def test_noise_of_its_own_goes_to_each_sample_at_each_step():
    seen = []

    def step(model, z, logsnr_t, logsnr_s, history):
        there = ancestral(model, z, logsnr_t, logsnr_s, history)
        seen.append(there - z)
        return there

    z = torch.zeros(3, 2, dtype=torch.float64)
    sample(
        PLANE,
        z,
        schedule=Linear(),
        steps=3,
        step=step,
        generator=per_sample_generators(0, [0, 1, 0]),
    )
    assert all(
        torch.allclose(moved[0], moved[2]) and not torch.allclose(moved[0], moved[1])
        for moved in seen
    )
    assert not torch.allclose(seen[0][0], seen[1][0])
