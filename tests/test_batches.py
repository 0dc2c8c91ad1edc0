"""A batch is a function of seed, step and slot, however it is divided."""

import pytest
import torch
from points import data_of, points

from vdiff.training.batches import Batches
from vdiff.training.ranks import Rank


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 3)])
def test_shares_put_together_are_the_batch(world_size, accumulate):
    config, shares = points(accumulate=accumulate), world_size * accumulate
    data = data_of(config)
    full = Batches(data, points())(5, 0)
    for index in range(world_size):
        batches = Batches(data, config, rank=Rank(index, world_size))
        for part in range(accumulate):
            share = batches(5, part)
            rows = slice(part * world_size + index, None, shares)
            for name in ("data", "eps", "images"):
                assert torch.equal(getattr(share, name), getattr(full, name)[rows])
            torch.testing.assert_close(share.u, full.u[rows], rtol=0, atol=1e-12)


def test_another_step_or_seed_is_another_batch():
    data = data_of(points())
    first, step = Batches(data, points())(0, 0), Batches(data, points())(1, 0)
    seed = Batches(data, points(seed=1))(0, 0)
    for other in (step, seed):
        assert not torch.equal(first.eps, other.eps)
        assert not torch.equal(first.images, other.images)
        assert not torch.equal(first.u, other.u)
