"""Mixtures to sample from, the steps, and short names for what their tests need."""

from functools import partial

import torch

from vdiff import trajectory
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.sampling import (
    STEPS,
    adams_bashforth,
    ancestral,
    ddim,
)
from vdiff.variance import FixedLarge

GAUSSIAN = Gaussian([0.3], [0.25])
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])
PLANE = GaussianMixture(
    [0.2, 0.5, 0.3],
    [[-1.0, 0.4], [0.5, 0.9], [0.3, -1.1]],
    [[0.04, 0.1], [0.09, 0.02], [0.1, 0.3]],
)
TARGETS: tuple[Parameterization, ...] = (X(), Eps(), V(), V(0.5), Flow())
EVERY = STEPS | {
    "ancestral, large variance": partial(ancestral, variance=FixedLarge()),
    "ddim, some noise": partial(ddim, eta=0.5),
    "adams_bashforth in x": partial(adams_bashforth, target=X()),
    "adams_bashforth in v": partial(adams_bashforth, target=V(0.5), order=2),
    "adams_bashforth in ε": partial(adams_bashforth, target=Eps()),
}


def noise(n=64, dims=1, seed=0):
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def level(value, n=64):
    return torch.full((n,), float(value), dtype=torch.float64)


def end(model, z, step, schedule, steps):
    *_, (z, _) = trajectory(model, z, schedule=schedule, steps=steps, step=step)
    return z
