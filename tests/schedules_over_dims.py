"""Schedules with a λ(t) for each dimension, and a network for them."""

import math

import pytest
import torch
from registry import EXAMPLE, SCHEDULES_OVER_DIMS, made_of, moved, of_batch

NDIM = 1 + len(EXAMPLE)
MADE = made_of(SCHEDULES_OVER_DIMS, 7.0, -6.0)
every = pytest.mark.parametrize("name", MADE)


def moved_for(name, batch):
    schedule = moved(MADE[name]())
    return schedule, of_batch(schedule, batch)


class Net(torch.nn.Module):
    """Takes a field of λ."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        dims = math.prod(EXAMPLE)
        self.first, self.last = torch.nn.Linear(2 * dims, 8), torch.nn.Linear(8, dims)
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator)

    def forward(self, z, logsnr):
        told = torch.cat([z, (0.2 * logsnr).expand_as(z)], -1).flatten(1).to(z.dtype)
        return self.last(torch.tanh(self.first(told))).view_as(z)
