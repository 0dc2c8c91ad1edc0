"""The benchmark of a loss: how many operations each one adds to the network's."""

import sys
from pathlib import Path

import pytest
import torch

import vdiff

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import loss_overhead
import token_loss

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


TOKENS = {"masks": 55, "any order": 79, "uniform": 208, "gidd": 308}


@pytest.mark.parametrize("name", TOKENS)
def test_a_loss_over_tokens_adds_no_more_operations_than_it_did(name):
    process = token_loss.PROCESSES[name](16)
    network = token_loss.Network(process.states, 16, 4, 8, 1)
    bare, step = token_loss.steps(network, process, torch.randint(0, 16, (8, 4)), learned=False)
    added, own = (loss_overhead.operations(network, one)[0] for one in (step, bare))
    assert added - own <= TOKENS[name]
