"""An outline takes no memory, is bounded, and leaves nothing behind."""

import threading

import pytest
import torch
from torch import nn

from vdiff.nn import MLP, UNet, VDMUNet
from vdiff.training import Config
from vdiff.training.outline import TENSORS, outline_of

UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}


@pytest.mark.parametrize(
    "make",
    [
        lambda: VDMUNet(width=8, depth=10**9),
        lambda: UNet(1, width=8, blocks=10**9),
        lambda: UNet(1, width=8, multipliers=[1] * 10**4),
        lambda: MLP(2, width=4, depth=10**9),
        lambda: MLP(2, width=2**19),
        lambda: nn.ModuleList(nn.BatchNorm1d(1, affine=False) for _ in range(10**9)),
    ],
    ids=["depth", "blocks", "resolutions", "layers", "width", "buffers"],
)
def test_a_network_that_is_too_large_is_stopped(make):
    with pytest.raises(
        ValueError, match=r"'network' must have at most 16,384 tensors and 68,719,4"
    ):
        outline_of(make)
    assert nn.Linear(1, 1).weight.device.type == "cpu"


def test_other_threads_do_not_count():
    """A thread makes more modules than an outline may, while one is made."""
    going, done = threading.Event(), threading.Event()

    def others() -> None:
        for _ in range(TENSORS + 1):
            nn.PReLU()
            going.set()
        done.set()

    def make() -> nn.Module:
        thread.start()
        assert going.wait(60)
        assert done.wait(60)
        return nn.Linear(2, 2)

    thread = threading.Thread(target=others)
    assert outline_of(make).weight.is_meta
    thread.join()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"schedule": {"name": "Monotone", "hidden": 7}},
        {"schedule": {"name": "Adaptive"}, "weighting": {"name": "EDM", "monotone": True}},
        {"chain": 4, "resampling": True, "schedule": {"name": "Spline"}},
        {"network": {"name": "DDPMUNet", "channels": 1, "width": 8}, "level_head": False},
    ],
)
def test_an_outline_has_the_tensors_of_the_objective_and_draws_nothing(fields):
    config = Config(**{"network": UNET, **fields})
    torch.manual_seed(0)
    outline = config.objective(outline=True)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
    assert all(value.is_meta for value in outline.model.parameters())
    said, real = outline.state_dict(), config.objective().state_dict()
    assert {k: (v.shape, v.dtype) for k, v in said.items()} == {
        k: (v.shape, v.dtype) for k, v in real.items()
    }


def test_an_objective_that_is_too_large_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="must have at most 16,384 tensors"):
        Config(network=UNET | {"width": 2**20}).objective()
    with pytest.raises(ValueError, match="must have at most 16,384 tensors"):
        Config(network=UNET | {"blocks": 2**20}).objective()
