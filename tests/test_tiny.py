"""The file that one reads first: its formulas are the library's, and it learns."""

import importlib.util
from pathlib import Path

import pytest
import torch

import vdiff
from vdiff.schedule import Cosine

SPEC = importlib.util.spec_from_file_location(
    "tiny", Path(__file__).parent.parent / "examples/tiny.py"
)
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return tiny.Network()


def test_each_loss_is_that_of_the_library(network):
    x, t, eps = tiny.two_moons(512), torch.rand(512), torch.randn(512, 2)
    ends = tiny.LOGSNR_MAX, tiny.LOGSNR_MIN
    model = vdiff.Denoiser(network, vdiff.parameterization.V())
    theirs = vdiff.weighted_elbo(
        model, x, schedule=Cosine(*ends), weighting=vdiff.weighting.Sigmoid(bias=2), t=t, eps=eps
    )
    torch.testing.assert_close(tiny.loss_of(network, x, t, eps), theirs, rtol=2e-4, atol=1e-5)


def test_samples_lie_on_the_moons(network):
    def far(points):  # how many points are more than 0.3 from all data
        return (torch.cdist(points, tiny.two_moons(4000)).amin(1) > 0.3).float().mean().item()

    tiny.train(network, steps=1000)
    assert far(torch.randn(1000, 2)) > 0.2
    assert far(tiny.sample(network, 1000)) < 0.1
