"""`evaluate` on data whose bound is in the records, to its own Monte Carlo errors."""

import math
from typing import Any

import pytest
import torch
from oracle_records import denoiser, of, oracle, vector
from torch import Tensor

from vdiff import Prediction
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import Estimate, evaluate
from vdiff.loss import Model
from vdiff.schedule import Linear, Tabulated
from vdiff.variance import FixedLarge, FixedSmall, ReverseVariance


def assert_within_errors(estimate: Estimate, known: float, dims: int) -> None:
    """Raise AssertionError unless an estimate in bits/dim is a value in nats to 4 standard
    errors."""
    known = known / (dims * math.log(2))
    assert abs(estimate.value - known) < 4 * estimate.monte_carlo + 1e-6 * abs(known) + 1e-9


@of("nll_bound_x")
def test_the_bound_of_given_x(record):
    p = record["params"]
    x = vector(p["x"])[None].repeat(
        16, 1
    )  # sixteen times the same image, each with draws of its own
    report = evaluate(
        oracle(record["case"]),
        x,
        schedule=Linear(p["lam_max"], p["lam_min"]),
        decoder=Gaussian(),
        draws=64,
    )
    assert_within_errors(report.total, record["value"], x.shape[1])
    assert report.total.monte_carlo < 0.1


@of("L_inf_x")
def test_the_diffusion_term_of_given_x(record):
    p = record["params"]
    x = vector(p["x"])[None].repeat(16, 1)
    schedule = Linear(p["lam_max"], p["lam_min"])
    report = evaluate(
        denoiser(record["case"], p["denoiser"]),
        x,
        schedule=schedule,
        decoder=Gaussian(),
        draws=64,
        seed=1,
    )
    assert_within_errors(report.diffusion, record["value"], x.shape[1])


@of("nll_bound_continuous")
def test_the_bound_over_the_data(record):
    """Images drawn from the data: the error over images is what is left."""
    p, data = record["params"], oracle(record["case"])
    x = data.sample(512, torch.Generator().manual_seed(0))
    report = evaluate(
        data, x, schedule=Linear(p["lam_max"], p["lam_min"]), decoder=Gaussian(), draws=16
    )
    for estimate, name in (
        (report.prior, "prior_kl"),
        (report.diffusion, "L_inf"),
        (report.total, "total"),
    ):
        known = record["value"][name] / (data.dims * math.log(2))
        assert estimate.images is not None
        assert abs(estimate.value - known) < 4 * math.hypot(
            estimate.images, estimate.monte_carlo
        ), name
    assert report.reconstruction.value == pytest.approx(
        record["value"]["L0_gaussian_decoder"] / (data.dims * math.log(2)), rel=1e-9
    )


def over_levels(model: Model, seeds: int, **setting: Any) -> tuple[Tensor, Tensor]:
    """Bits of a distribution over 256 levels, every level once and weighted by its probability:
    the mean and its error over seeds."""
    weights, levels = oracle("pixels_pmf").weights, torch.arange(256)[:, None]
    found = [
        evaluate(model, levels, batch=8192, seed=seed, **setting).by_image for seed in range(seeds)
    ]
    bits = torch.stack([weights @ one for one in found if one is not None])
    return bits.mean(), bits.std() / math.sqrt(seeds)


@of("vdm_bound")
def test_the_bound_of_levels(record):
    p, known = record["params"], record["value"]
    decoder, schedule = Categorical(256, levels_at_ends=True), Linear(p["lam_max"], p["lam_min"])
    mean, error = over_levels(
        oracle(record["case"]), 10, schedule=schedule, decoder=decoder, draws=16
    )
    assert abs(mean - known["total_bits_per_dim"]) < 4 * error
    assert error < 0.05


@of("ddpm_bound")
def test_the_bound_of_ddpms_chain(record):
    """Its 999 steps and a decoder that looks at the network, with either variance of a step and of
    the decoder."""
    data, table = oracle(record["case"]), Tabulated.linear_betas()
    for name, kind, choice in (
        ("beta_1", "small", FixedSmall()),
        ("beta_tilde_2", "large", FixedLarge()),
    ):

        def model(z: Tensor, logsnr: Tensor, choice: ReverseVariance = choice) -> Prediction:
            said = data(z, logsnr)
            return Prediction(z, logsnr, said.output, said.parameterization, choice)

        decoder = DiscretizedGaussian(
            256, variance=record["params"]["decoder_var"][name], uses_network=True
        )
        mean, error = over_levels(model, 8, schedule=table, decoder=decoder, steps=999, draws=16)
        assert abs(mean - record["value"][f"total_bits_per_dim_{kind}"][name]) < 4 * error, (
            name,
            kind,
        )
        assert error < 0.08
