"""`evaluate` on data whose bound is in the records, to its own Monte Carlo errors."""

import math

import pytest
import torch
from oracle_records import of, oracle, vector

from vdiff import Categorical, Linear
from vdiff.decoder import Gaussian
from vdiff.likelihood import Estimate, evaluate


def assert_within_errors(estimate: Estimate, known: float, dims: int) -> None:
    """Raise AssertionError unless an estimate in bits/dim is a value in nats to 4 standard errors."""
    known = known / (dims * math.log(2))
    assert abs(estimate.value - known) < 4 * estimate.monte_carlo + 1e-6 * abs(known) + 1e-9


@of("nll_bound_x")
def test_the_bound_of_given_x(record):
    p = record["params"]
    x = vector(p["x"])[None].repeat(16, 1)  # sixteen times the same image, each with draws of its own
    report = evaluate(oracle(record["case"]), x, schedule=Linear(p["lam_max"], p["lam_min"]), decoder=Gaussian(), draws=64)
    assert_within_errors(report.total, record["value"], x.shape[1])
    assert report.total.monte_carlo < 0.1


@of("vdm_bound")
def test_the_bound_of_levels(record):
    """The 256 levels once each, weighted by their probabilities afterwards: each has its own estimate of zero cost in variance."""
    p = record["params"]
    data, decoder = oracle(record["case"]), Categorical(256, closed=True)
    generator = torch.Generator().manual_seed(0)
    levels = torch.multinomial(data.weights, 256, replacement=True, generator=generator)[:, None]
    report = evaluate(data, levels, schedule=Linear(p["lam_max"], p["lam_min"]), decoder=decoder, draws=32, batch=4096)
    known = record["value"]
    spread = report.diffusion.images
    assert spread is not None
    assert abs(report.diffusion.value - known["L_inf"] / math.log(2)) < 4 * spread
    assert report.reconstruction.value == pytest.approx(decoder.table(p["lam_max"])[levels[:, 0]].mean().item() / math.log(2), rel=1e-6)
