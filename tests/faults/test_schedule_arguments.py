"""Fault 17: what schedules are made of."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vdiff import Objective, elbo, weighted_elbo
from vdiff.decoder import Gaussian
from vdiff.parameterization import V
from vdiff.schedule import (
    Cosine,
    Karras,
    Laplace,
    LearnedLinear,
    Linear,
    LinearBeta,
    Normal,
    OptimalTransport,
    Schedule,
    Shifted,
    Tabulated,
)
from vdiff.weighting import MSE

from .common import SCHEDULE, assert_refused, assert_refused_with, batch, model
from .own_schedules import INF, NAN, Own, falls, twenty


@pytest.mark.parametrize(
    ("name", "build"),
    [*((build.__name__, build) for build in (Linear, Cosine, LinearBeta, OptimalTransport,
    LearnedLinear)), ("Normal", lambda a, b: Normal(0.0, 3.0, a, b)),
     ("Laplace", lambda a, b: Laplace(0.0, 1.0, a, b)), ("Own", lambda a, b: Own(falls, twenty, a,
     b))],
)  # fmt: skip
@pytest.mark.parametrize(
    ("high", "low", "argument", "words"),
    [
        (
            -5.0,
            5.0,
            "logsnr_max",
            "be greater than logsnr_min = 5 .. got -5 (t = 0 is data and has the larger λ; if "
            "these are γ = −λ, write logsnr_max=5, logsnr_min=-5)",
        ),
        (
            5.0,
            5.0,
            "logsnr_max",
            "be greater than logsnr_min = 5 .. got 5 (equal ends leave nothing between)",
        ),
        (
            5.0,
            -INF,
            "logsnr_min",
            "be finite .. got -inf (λ = −∞ is zero terminal SNR .. stop at about −15",
        ),
        (
            INF,
            -5.0,
            "logsnr_max",
            "be finite .. got inf (λ = +∞ is data without noise .. stop at about 15",
        ),
        (5.0, NAN, "logsnr_min", "be finite .. got nan"),
        ("13.3", -5.0, "logsnr_max", "be a number .. got '13.3'"),
        (5.0, torch.zeros(2), "logsnr_min", "be a number .. got a tensor of shape (2,)"),
    ],
    ids=["reversed", "equal", "zero terminal SNR", "no noise", "nan", "text", "vector"],
)
def test_fault_17_ends(
    name: str, build: Callable[..., Schedule], high: object, low: object, argument: str, words: str
) -> None:
    with assert_refused(
        TypeError if words.startswith("be a number") else ValueError, name, argument, words
    ):
        build(high, low)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normal(0.0, 0.0), "Normal: std must be finite and greater than 0 .. got 0"),
        (lambda: Normal(NAN, 1.0), "Normal: mean must be finite .. got nan"),
        (lambda: Laplace(0.0, -1.0), "Laplace: scale must be finite and greater than 0 .. got -1"),
        (
            lambda: LinearBeta(beta_min=-0.1),
            "LinearBeta: beta_min must be finite and greater than 0 .. got -0.1",
        ),
        (
            lambda: LinearBeta(beta_min=20.0, beta_max=0.1),
            "LinearBeta: beta_max must be at least beta_min = 20 .. got 0.1 (swapped?)",
        ),
        (lambda: Cosine(shift=INF), "Cosine: shift must be finite .. got inf"),
        (
            lambda: Cosine(offset=-0.008),
            "Cosine: offset must be finite and at least 0 .. got -0.008",
        ),
        (
            lambda: Cosine(shift=1.0, offset=0.008),
            "Cosine: offset must be zero where shift is given .. Shifted(",
        ),
        (
            lambda: Karras(80.0, 0.002),
            "Karras: sigma_min must be below sigma_max = 0.002 .. got 80 (swapped?)",
        ),
        (
            lambda: Karras(0.0, 80.0),
            "Karras: sigma_min must be finite and greater than 0 .. got 0 (σ = 0 is λ = +∞",
        ),
        (lambda: Karras(rho=0.0), "Karras: rho must be finite and greater than 0 .. got 0"),
        (lambda: Shifted(SCHEDULE, NAN), "Shifted: shift must be finite .. got nan"),
        (
            lambda: Shifted(LearnedLinear(), 1.0),
            "Shifted: schedule must have fixed ends .. LearnedLinear(",
        ),
        (
            lambda: Tabulated([1.0]),
            "Tabulated: logsnr must be one row of at least two levels .. shape (1,)",
        ),
        (
            lambda: Tabulated(np.zeros((2, 3))),
            "Tabulated: logsnr must be one row of at least two levels .. shape (2, 3)",
        ),
        (
            lambda: Tabulated([3.0, -INF, -INF]),
            "Tabulated: logsnr must be finite, or −∞ at the last level .. -inf at level 2 of 3",
        ),
        (
            lambda: Tabulated([3.0, 2.0, 2.0]),
            "Tabulated: logsnr must be strictly decreasing .. 2 at level 2 of 3 and "
            "2 at level 3 of 3",
        ),
        (
            lambda: Tabulated.from_betas([0.1, 1.0, 0.2]),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. 1 at step 2 of "
            "3 (β = 1 leaves pure noise: it is the last",
        ),
        (
            lambda: Tabulated.from_betas([0.0, 0.1]),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. 0 at "
            "step 1 of 2 (β = 0 adds no noise",
        ),
        (
            lambda: Tabulated.linear_betas(1e-2, 2.0, 10),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. "
            "1.1 .. rescaled to few steps",
        ),
        (
            lambda: Tabulated.from_betas(torch.full((2, 5), 0.1)),
            "Tabulated.from_betas: betas must be one row .. shape (2, 5)",
        ),
        (
            lambda: V(0.0),
            "V: sigma_data must be finite and greater than 0 .. got 0 (the "
            "standard deviation of the data",
        ),
    ],
)
def test_fault_17_what_a_schedule_is_made_of(build: Callable[[], object], message: str) -> None:
    with assert_refused_with(ValueError, message):
        build()


@pytest.mark.parametrize("schedule", [Cosine, "cosine", None, lambda t: 10 - 20 * t])
def test_fault_17_what_is_no_schedule(schedule: object) -> None:
    words = (
        ("got the class Cosine (an instance: Cosine())",)
        if schedule is Cosine
        else ("got", "for instance Cosine(); schedule.Custom takes a function of t")
    )
    x = batch()[0]
    with assert_refused(TypeError, "weighted_elbo", "schedule", "be a Schedule", *words):
        weighted_elbo(model(), x, schedule=schedule)  # type: ignore[arg-type]
    with assert_refused(TypeError, "elbo", "schedule", "be a Schedule", *words):
        elbo(model(), x, schedule=schedule, decoder=Gaussian())  # type: ignore[arg-type]
    with assert_refused(TypeError, "Objective", "schedule", "be a Schedule", *words):
        Objective(model(), schedule=schedule)  # type: ignore[arg-type]
    with assert_refused(TypeError, "Shifted", "schedule", "be a Schedule", *words):
        Shifted(schedule, 1.0)  # type: ignore[arg-type]
    with assert_refused(TypeError, "MSE", "schedule", "be a Schedule", *words):
        MSE(schedule, V())  # type: ignore[arg-type]


def test_fault_17_a_table_of_signal_taken_for_one_of_logsnr() -> None:
    with assert_refused_with(
        ValueError,
        "Tabulated: logsnr must be log α²/σ²; got values from 0.1 to 0.9 alone (these look "
        "like ᾱ: Tabulated.from_alphas_cumprod",
    ):
        Tabulated([0.9, 0.5, 0.1])
    with assert_refused_with(
        ValueError,
        "Tabulated.from_alphas_cumprod: alphas_cumprod must lie strictly between 0 and 1; got 0 "
        "at level 2 of 3 (ᾱ = 0 is pure noise: it is the last",
    ):
        Tabulated.from_alphas_cumprod([0.9, 0.0, 0.0])
