"""A small estimate of each kind."""

import torch

from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import Hutchinson, TruncatedNormal, dequantized_ode, immse, ode_likelihood
from vdiff.likelihood.importance import path_importance
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.schedule import Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
X = DATA.sample(7, torch.Generator().manual_seed(0))
LEVELS = Categorical(4)
LATTICE = Lattice(LEVELS.level_values, [0.4, 0.3, 0.2, 0.1])
INTEGERS = torch.arange(4).repeat(2)[:7, None]
NARROW = Linear(6.0, -8.0)


def of_ode(**options):
    return ode_likelihood(
        DATA, X, schedule=NARROW, trace=Hutchinson(probes=3), tolerance=1e-3, audit=True, **options
    )


def of_levels(**options):
    given = {
        "dequantization": TruncatedNormal(LEVELS, 6.0),
        "samples": 2,
        "audit": True,
        "tolerance": 1e-3,
    }
    return dequantized_ode(LATTICE, INTEGERS, schedule=NARROW, **given, **options)


def of_paths(**options):
    return path_importance(
        DATA,
        X,
        schedule=NARROW,
        decoder=Gaussian(),
        steps=3,
        samples=2,
        **{"replicates": 3, "batch": 4} | options,
    )


def of_error(**options):
    return immse(
        DATA,
        X,
        schedule=NARROW,
        gaussian=DATA.matched(),
        draws=4,
        replicates=3,
        **{"batch": 12} | options,
    )


EVERY = {"ODE": of_ode, "dequantised ODE": of_levels, "paths": of_paths, "I-MMSE": of_error}


def fields(found):
    """Every tensor of a result."""
    return {name: v for name, v in vars(found).items() if isinstance(v, torch.Tensor)}
