"""Training with random masks: resumed, in micro-batches, recorded and validated."""

import itertools
import json
import math
import re
import warnings

import pytest
import torch
from points import data_of, points, tensors
from torch import nn

from vdiff import Denoiser, Objective, elbo
from vdiff.likelihood import evaluate
from vdiff.losses import Weighted
from vdiff.masks import Absent, Bernoulli, Mixture, NothingGiven, RandomHalf, masks_of_step
from vdiff.parameterization import V
from vdiff.training import Run, Validation, train
from vdiff.training.batches import Batches
from vdiff.training.ranks import Rank
from vdiff.training.validation import FIXED


class Field(nn.Module):
    """A small network of points that takes a field."""

    def __init__(self, dims=64, width=32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * dims, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, dims),
        )  # fmt: skip

    def forward(self, z, logsnr):
        told = torch.tanh(0.1 * logsnr.to(z.dtype)).expand_as(z)
        return self.layers(torch.cat([z, told], 1))


HALF = RandomHalf(dims=(-1,))
HALVES = Mixture([NothingGiven(), HALF, Absent(HALF), Bernoulli(0.5)])


def objective_of(config, loss=None):
    """That of the config, with a network that takes a field."""
    torch.manual_seed(0)
    meant = config.objective()
    model = Denoiser(Field(config.shape[0]), V(), field=True)
    return Objective(model, schedule=meant.schedule, loss=loss or meant.loss)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (3, 2)])
def test_ranks_and_micro_batches_have_the_masks_of_the_step(world_size, accumulate):
    config, shares = points(accumulate=accumulate), world_size * accumulate
    data = data_of(config)
    whole = Batches(data, points(), mask=HALVES)(5, 0)
    mask, absent = masks_of_step(HALVES, whole.data, seed=0, step=5)
    assert torch.equal(whole.mask, mask)
    assert torch.equal(whole.absent, absent)
    for index, part in itertools.product(range(world_size), range(accumulate)):
        batches = Batches(data, config, mask=HALVES, rank=Rank(index, world_size))
        share = batches(5, part)
        rows = slice(part * world_size + index, None, shares)
        assert torch.equal(share.mask, whole.mask[rows])
        none = torch.zeros_like(share.mask)
        assert torch.equal(none if share.absent is None else share.absent, whole.absent[rows])
    assert Batches(data, points())(5, 0).mask is None


def trained(config, folder=None, **options):
    options = {"mask": HALVES, "every": 3, "quiet": True, **options}
    objective = objective_of(config, options.pop("loss", None))
    if folder is None:
        return train(objective, data_of(config), config, **options)
    with Run.open(folder, config) as run:
        return train(objective, data_of(config), config, run=run, **options)


class Stop(Exception):
    pass


def test_training_with_masks_resumes_bit_for_bit(tmp_path):
    config = points()
    trained(config, tmp_path / "whole")

    def stop(averaged):
        raise Stop

    with pytest.raises(Stop):
        trained(config, tmp_path / "parts", every=6, store_every=6, validate=stop)
    trained(config, tmp_path / "parts")
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())
    trained(config, tmp_path / "other", mask=None)
    other = tensors(tmp_path / "other")
    assert not all(torch.equal(value, whole[name]) for name, value in other.items())


def test_micro_batches_change_only_rounding():
    whole, parts = (trained(points(accumulate=n)) for n in (1, 3))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_loss_is_of_the_modelled_dimensions_over_all_and_is_called_a_loss(tmp_path):
    config, log = points(steps=1), []
    trained(config, log=log.append)
    batch = Batches(data_of(config), config, mask=HALVES)(0, 0)
    assert batch.absent.any()
    draws = {"u": batch.u, "eps": batch.eps, "mask": batch.mask, "absent": batch.absent}
    found = objective_of(config)(batch.data, **draws)
    expected = found.mean().item() / (64 * torch.log(torch.tensor(2.0)).item())
    assert log[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert "train_bits_per_dim" not in log[0]


def test_a_run_records_its_mask_and_another_one_is_said(tmp_path):
    config = points()
    with pytest.raises(Stop):
        trained(config, tmp_path, every=6, store_every=6, validate=raises)
    with pytest.warns(UserWarning, match=r"another mask: .*RandomHalf.*"):
        trained(config, tmp_path, mask=RandomHalf(dims=(-1,)))
    loaded = Run(tmp_path).loaded(objective=objective_of(config))
    assert loaded.record["trained with masks"] == "RandomHalf(dims=(-1,))"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(config, tmp_path / "none", mask=None)
    record = Run(tmp_path / "none").loaded(objective=objective_of(config)).record
    assert "trained with masks" not in record


def raises(averaged):
    raise Stop


def test_training_with_masks_learns_the_conditional():
    """All dimensions are equal: given one half, the bound of the other is far below that of the
    whole."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(3)).repeat(1, 8)
    ends = {"name": "Linear", "logsnr_max": 3.0, "logsnr_min": -5.0}
    options = {"schedule": ends, "decoder": {"name": "Gaussian"}, "lr": 0.01, "shape": [8]}
    config = points(steps=300, batch=64, **options)
    half, bits = torch.arange(8) >= 4, {}
    for name, training in {"masks": HALVES, "none": None}.items():
        averaged = train(objective_of(config), x, config, mask=training, quiet=True)
        options = {"schedule": averaged.schedule, "decoder": averaged.decoder, "draws": 8}
        for given in (None, half):
            generator = torch.Generator().manual_seed(0)
            bound = elbo(averaged.model, x, mask=given, generator=generator, **options)
            bits[name, given is half] = bound.bits_per_dim.mean().item()
    assert bits["masks", True] < bits["masks", False] - 0.2
    assert bits["masks", True] < bits["none", True] - 0.2


def missing(x, generator):
    return ~x.isnan(), x.isnan()


def normals(**changes):
    """A config of floating points, and points of which some values are missing."""
    ends = {"name": "Linear", "logsnr_max": 3.0, "logsnr_min": -5.0}
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    x[:, :2][::2] = torch.nan
    return points(schedule=ends, decoder={"name": "Gaussian"}, shape=[8], **changes), x


def test_missing_values_are_trained_with_a_run(tmp_path):
    config, x = normals(steps=2)
    with Run.open(tmp_path, config) as run:
        averaged = train(objective_of(config), x, config, run=run, mask=missing, quiet=True)
    assert all(p.isfinite().all() for p in averaged.parameters())
    bits = Validation(x, mask=missing, draws=2)(averaged).value
    assert math.isfinite(bits)


def test_missing_values_without_a_mask_are_told_of_one(tmp_path):
    config, x = normals()
    hint = re.escape("mask=lambda x, g: (~x.isnan(), x.isnan())")
    with pytest.raises(ValueError, match=f"the data hold NaN or infinity: .*{hint}"):
        train(objective_of(config, Weighted()), x, config, quiet=True)
    with Run.open(tmp_path, config) as run, pytest.raises(ValueError, match=f"row 0 .*{hint}"):
        train(objective_of(config), x, config, run=run, quiet=True)
    for mask in (None, HALF):
        with pytest.raises(ValueError, match=f"'data' must be finite where .*{hint}"):
            Validation(x, mask=mask)


def test_a_step_that_is_not_finite_is_reported_with_its_masks(tmp_path):
    config = points()
    objective = objective_of(config)
    objective.model.network.layers[0].weight.data[0, 0] = torch.nan
    options = {"mask": HALVES, "on_nonfinite": "raise", "quiet": True}
    with Run.open(tmp_path, config) as run, pytest.raises(ValueError, match="NaN or infinity"):
        train(objective, data_of(config), config, run=run, **options)
    (path,) = tmp_path.glob("nonfinite-*.json")
    slots = json.loads(path.read_text())["slots"]
    batch = Batches(data_of(config), config, mask=HALVES)(0, 0)
    modelled = batch.mask & ~batch.absent
    assert [row["modelled"] for row in slots] == modelled.sum(1).tolist()


def test_training_draws_independent_times_for_the_loss_that_asks():
    config = points(accumulate=2)
    data = data_of(config)
    whole = Batches(data, points(), independent=(1,))(5, 0)
    assert whole.u.shape == (12, 64)
    for part in range(2):
        share = Batches(data, config, independent=(1,))(5, part)
        assert torch.equal(share.u, whole.u[part::2])
    config, seen = points(steps=2, decoder=None, weighting={"name": "ELBO"}), []
    objective = objective_of(config, Weighted(independent=(1,)))
    objective.model.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    train(objective, data_of(config).float() / 8 - 1, config, mask=HALVES, quiet=True)
    assert [told.shape for told in seen] == [(12, 64)] * 2


def test_train_takes_a_function_and_no_tensor():
    with pytest.raises(TypeError, match=r"train: argument 'mask' must be a function of \(x, gen"):
        trained(points(), mask=torch.ones(64, dtype=torch.bool))


def test_a_validation_has_one_mask_for_each_example_and_by_default_none():
    config = points()
    objective, data = objective_of(config).eval(), data_of(config)[:24]
    mask, absent = masks_of_step(HALVES, data, seed=0, step=0)
    validate = Validation(data, draws=4, mask=HALVES)
    found = validate(objective)
    assert validate(objective).value == found.value
    parts = {"schedule": objective.schedule, "decoder": objective.decoder, "draws": 4}
    options = {**parts, "replicates": 2, "plan": FIXED}
    expected = evaluate(objective.model, data, mask=mask, absent=absent, **options).total
    assert found.value == expected.value
    whole = Validation(data, draws=4)(objective)
    assert whole.value == evaluate(objective.model, data, **options).total.value != found.value


def test_a_loss_without_a_decoder_is_validated_over_what_is_modelled():
    """The ratio of sums over examples, as the bound's."""
    config = points(decoder=None, weighting={"name": "ELBO"})
    objective, x = objective_of(config).eval(), data_of(config)[:24].float() / 8 - 1
    found = Validation(x, draws=4, replicates=16, mask=HALVES)(objective)
    mask, absent = masks_of_step(HALVES, x, seed=0, step=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        draws = [objective(x, mask=mask, absent=absent, generator=generator) for _ in range(200)]
    nats, modelled = torch.stack(draws).mean(1), (mask & ~absent).sum()
    bits = nats * len(x) / (modelled * math.log(2))
    error = math.hypot(found.monte_carlo, (bits.std() / len(bits) ** 0.5).item())
    assert abs(found.value - bits.mean().item()) < 4 * error
    assert sum(band.loss.value for band in found.bands) == pytest.approx(found.value)


def test_independent_times_are_validated_at_one_time_for_each_example():
    config = points(decoder=None, weighting={"name": "ELBO"})
    x = data_of(config)[:8].float() / 8 - 1
    several, one = (
        Validation(x, draws=4)(objective_of(config, loss).eval())
        for loss in (Weighted(independent=(1,)), Weighted())
    )
    assert several == one
