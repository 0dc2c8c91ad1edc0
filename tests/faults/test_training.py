"""Faults 67, 70 and 71: the batches of a training; and its averages."""

from dataclasses import replace

import pytest
import torch
from points import data_of, points
from torch import Tensor, nn

from vdiff.training import train
from vdiff.training.batches import Batches
from vdiff.training.ema import EMA
from vdiff.training.ranks import Rank

from .common import Net, assert_refused
from .training_runs import objective_of


def test_fault_67_no_two_slots_share_their_noise() -> None:
    """There are no workers whose generators could be copies: a slot's noise is its own, on all
    ranks and in all steps."""
    config = points(augment="none", batch=12)
    noise = torch.cat(
        [
            Batches(data_of(config), config, rank=Rank(i, 2))(step, 0).eps
            for step in range(20)
            for i in range(2)
        ]
    )
    assert len(noise.unique(dim=0)) == 240
    flat = noise.flatten()
    assert flat.mean().abs() < 4 / len(flat) ** 0.5
    assert (flat.var() - 1).abs() < 4 * (2 / len(flat)) ** 0.5


def test_fault_70_a_batch_that_cannot_be_shared_evenly() -> None:
    config = points(batch=12)
    for place, accumulate, words in (
        (
            Rank(0, 5),
            1,
            ("be a multiple of 5", "12 for 5 processes of 1 micro-batches", "batch=10"),
        ),
        (Rank(0, 2), 4, ("be a multiple of 8", "batch=16")),
    ):
        with assert_refused(ValueError, "", "batch", *words):
            Batches(data_of(config), replace(config, accumulate=accumulate), rank=place)


def test_fault_70_every_image_counts_once_in_each_pass() -> None:
    """Of 500 images in batches of 12, over three passes, the last of which ends within a batch."""
    config = points(batch=12)
    batches = Batches(data_of(config), config)
    order = torch.cat([batches.images(step) for step in range(125)]).view(3, 500)
    assert all(len(one.unique()) == 500 for one in order)
    assert not torch.equal(order[0], order[1])


def test_fault_71_out_of_memory_says_what_helps() -> None:
    class Huge(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.inner, self.error = Net(64), error

        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            raise self.error

    config = points(accumulate=3)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"
        ),
    ):
        with pytest.raises(type(error)) as caught:
            train(objective_of(Huge(error)), data_of(config), config, quiet=True)
        assert caught.value is error
        assert caught.value.__notes__ == [
            "train: a batch of 12 in 3 micro-batches on 1 processes is 4 images at a time: "
            "raise accumulate, which leaves the result as it is; "
            "or lower the batch, take more processes, autocast, or a network with checkpoint=True"
        ]
    with pytest.raises(RuntimeError, match="something else") as caught:
        train(
            objective_of(Huge(RuntimeError("something else"))), data_of(config), config, quiet=True
        )
    assert "accumulate" not in "".join(caught.value.__notes__)


def test_averages_in_float32_of_a_network_in_half_precision() -> None:
    objective = objective_of(Net(64).bfloat16())
    averages = EMA(objective, [0.9999])
    averaged = averages.copies[0.9999]
    assert {p.dtype for p in averaged.model.parameters()} == {torch.float32}
    before = {k: v.clone() for k, v in averaged.state_dict().items()}
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(1.0)
    averages.update(10**6)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p, before[name] + 1e-4, rtol=0, atol=2e-6, check_dtype=False)
