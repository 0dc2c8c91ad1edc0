"""A batch is a function of seed, step and slot, however it is divided."""

from dataclasses import replace

import pytest
import torch
from points import data_of, points

from vdiff.sampling import Guided
from vdiff.training import Config, train
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


def test_labels_are_dropped_by_seed_step_and_slot():
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "labels": 11}
    config = Config(network, conditional=True, label_dropout=0.3, batch=120)
    data, labels = data_of(config), torch.arange(500) % 10
    batches, whole = Batches(data, config, labels=labels), []
    for step in range(40):
        batch = batches(step, 0)
        label, null = batch.condition["label"], batch.condition["label"] == 10
        assert torch.equal(label[~null], labels[batch.images][~null])
        whole.append(null)
        for index in range(2):
            half = Batches(data, config, labels=labels, rank=Rank(index, 2))(step, 0)
            assert torch.equal(half.condition["label"], label[index::2])
    dropped = torch.stack(whole).double()
    assert abs(dropped.mean() - 0.3) < 4 * (0.3 * 0.7 / dropped.numel()) ** 0.5
    assert len(dropped.unique(dim=0)) == 40
    never = Batches(data, replace(config, label_dropout=0.0), labels=labels)(3, 0)
    assert torch.equal(never.condition["label"], labels[never.images])
    with pytest.raises(
        ValueError, match="'labels' must be below the null class, 10; got a label 10"
    ):
        Batches(data, config, labels=torch.arange(500) % 11)


def test_the_null_class_is_trained_and_guides():
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "labels": 3}
    config = Config(network, conditional=True, label_dropout=0.5, batch=8, steps=3)
    objective = config.objective()
    before = objective.model.network.network.label.weight.detach().clone()
    data = data_of(config)
    averaged = train(
        objective, data, config, labels=torch.zeros(500, dtype=torch.int64), quiet=True
    )
    moved = (objective.model.network.network.label.weight - before).abs().amax(1)
    assert moved[0] > 3 * moved[1]  # by weight decay alone
    assert moved[2] > 3 * moved[1]
    guided = Guided(averaged.model, scale=2.0, unconditional={"label": 2})
    z, logsnr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert guided(z, logsnr, label=torch.tensor([0, 0])).eps.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_dropout": 0.1}, "'label_dropout' must come with a conditional network"),
        ({"label_dropout": 1.0}, r"'label_dropout' must be a probability in \[0, 1\)"),
        ({"data": "photos"}, "'data' must be one of cifar10, digits, patches, or a path"),
        ({"data_options": {"sise": 3}}, "did you mean 'size'"),
    ],
)
def test_a_config_says_what_does_not_fit_of_its_data(changes, said):
    with pytest.raises(ValueError, match=said):
        points(**changes)
