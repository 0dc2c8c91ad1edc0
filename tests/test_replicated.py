"""Replicates: their means and errors, and how a run computes them."""

import math

import pytest
import torch

from vdiff.likelihood.chunks import Run
from vdiff.likelihood.replicated import Replicated, example_generators, run_replicates

NATS = torch.tensor([[1.0, 4.0], [3.0, 4.0], [2.0, 7.0]], dtype=torch.float64)


def test_means_and_errors():
    estimate = Replicated(NATS, 2, torch.tensor([8, 8]))
    assert estimate.nats.tolist() == [2.0, 5.0]
    assert torch.allclose(estimate.standard_error, NATS.std(0) / 3**0.5)
    assert estimate.mean == 3.5
    assert estimate.mean_error == pytest.approx(math.hypot(*estimate.standard_error.tolist()) / 2)
    assert estimate.spread_error == pytest.approx(1.5)
    assert torch.allclose(estimate.bits_per_dim, estimate.nats / (2 * math.log(2)))
    assert estimate.estimate.value == pytest.approx(3.5 / (2 * math.log(2)))


def test_one_replicate_has_an_error_only_if_it_is_exact():
    one, count = NATS[:1], torch.tensor([8, 8])
    assert Replicated(one, 2, count).standard_error.isnan().all()
    assert Replicated(one, 2, count, exact=True).standard_error.eq(0).all()
    assert math.isnan(Replicated(NATS[:, :1], 2, count[:1]).spread_error)


def test_a_generator_depends_on_the_seed_the_repetition_the_example_and_the_name():
    def draw(*given):
        return [g.initial_seed() for g in example_generators(*given)]

    rows = torch.tensor([3, 5])
    assert draw(0, 1, rows) == draw(0, 1, rows)
    assert draw(0, 1, rows)[::-1] == draw(0, 1, rows.flip(0))
    others = [draw(1, 1, rows), draw(0, 2, rows), draw(0, 1, rows, "cpu", "bin of ")]
    assert len({seed for seeds in (draw(0, 1, rows), *others) for seed in seeds}) == 8


def run(**options):
    def work(repetition, rows):
        generators = example_generators(0, repetition, rows)
        return {"value": torch.stack([torch.rand(2, generator=g) for g in generators])}

    return run_replicates(
        work, torch.zeros(5, 1), shapes={"value": (2,)}, repetitions=3, model=abs,
        dtype=torch.float32, condition={}, settings={"K": 2}, record={"ema": 0.9},
        run=Run(seed=7, **options),
    )  # fmt: skip


def test_results_do_not_depend_on_the_chunks_and_resume():
    states = []
    results, protocol = run(batch=2, checkpoint=states.append)
    assert results["value"].shape == (3, 5, 2)
    assert torch.equal(results["value"], run()[0]["value"])
    assert torch.equal(results["value"], run(batch=3, resume=states[2])[0]["value"])
    known = {"images": 5, "K": 2, "seed": 7, "ema": 0.9, "dtype": "float32", "processes": 1}
    assert known.items() <= protocol.items()
