"""The benchmark of a loss: how many operations each one adds to the network's."""

import sys
from pathlib import Path

import pytest
import torch

import vdiff

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import loss_overhead

MOST = {
    "linear, ε, ELBO": 28,
    "cosine, v, sigmoid": 50,
    "EDM": 61,
    "flow matching": 56,
    "cosine, ε, MSE x min-SNR": 58,
    "γ_η: spline": 190,
}


@pytest.mark.parametrize("name", MOST)
def test_a_loss_adds_no_more_operations_than_it_did(name):
    network, data = vdiff.nn.MLP(2), torch.randint(0, 256, (8, 2))
    x = vdiff.decoder.Categorical(256).encode(data)
    step, bare = loss_overhead.losses(network, x, data)[name], loss_overhead.bare_step(network, x)
    added, own = (loss_overhead.operations(network, one)[0] for one in (step, bare))
    assert added - own <= MOST[name]
