"""Fault 32: predictions without the data at pure noise, or without the noise at the data."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff import Prediction, sample
from vdiff.parameterization import Eps, Flow, Score, V, X
from vdiff.profile import Profile
from vdiff.sampling import (
    Clipped,
    Counted,
    Guided,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    ode,
)
from vdiff.variance import AnalyticVariance

from .common import assert_refused
from .exact_samples import Z


@pytest.mark.parametrize("row", [Eps(), Score()], ids=repr)
def test_fault_32_noise_prediction_from_pure_noise(row: Any) -> None:
    def predicts(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, torch.zeros_like(z), row)

    with assert_refused(
        ValueError,
        "sample",
        "levels",
        "start where the model's output determines x̂ and ε̂",
        f"{row!r} at λ = -inf",
        "predict v",
    ):
        sample(predicts, Z, levels=torch.tensor([-math.inf, 0.0]), step=ddim)
    with assert_refused(ValueError, "sample", "levels", "start where", "at λ = -40"):
        sample(predicts, Z.float(), levels=torch.tensor([-40.0, 0.0]), step=ddim)
    with pytest.warns(
        UserWarning, match=r"at λ = -25 leaves x̂ or ε̂ with an error of 0.03 by rounding: predict v"
    ):
        sample(predicts, Z.float(), levels=torch.tensor([-25.0, 0.0]), step=ddim)
    sample(predicts, Z, levels=torch.tensor([-25.0, 0.0]), step=ddim)


@pytest.mark.parametrize(
    "wrap",
    [
        Clipped,
        lambda m: Clipped(Guided(m, 2.0, {"label": 0})),
        lambda m: Guided(Clipped(m), 2.0, {"label": 0}),
    ],
)
def test_fault_32_noise_prediction_from_pure_noise_within_a_wrapper(wrap: Any) -> None:
    """What is clipped is finite there, and means nothing."""

    def predicts(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Prediction:
        return Prediction(z, logsnr, torch.full_like(z, 0.1), Eps())

    for first in (-math.inf, -40.0):
        for step in (ancestral, ddim, dpmpp_2m, adams_bashforth, ode):
            with assert_refused(
                ValueError, "sample", "levels", "start where", f"Eps() at λ = {first:g}"
            ):
                sample(
                    wrap(predicts),
                    Z.float(),
                    levels=[first, 0.0],
                    step=step,
                    condition={"label": torch.ones(4)},
                )
    with pytest.warns(
        UserWarning,
        match=r"Eps\(\) at λ = -25 leaves x̂ or ε̂ with an error of 0.03 by rounding: predict v",
    ):
        sample(
            wrap(predicts),
            Z.float(),
            levels=[-25.0, 0.0],
            step=ddim,
            condition={"label": torch.ones(4)},
        )


def test_fault_32_steps_that_cannot_start_from_pure_noise() -> None:
    """Before any evaluation."""
    counted = Counted(lambda z, logsnr: Prediction(z, logsnr, z, V()))
    profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
    profile.update(torch.zeros(2), torch.tensor([1.0, 3.0]))
    with assert_refused(ValueError, "heun", "logsnr_t", "be above −∞", "ddim or adams_bashforth"):
        sample(counted, Z, levels=[-math.inf, 0.0], step=heun)
    with assert_refused(
        ValueError,
        "adams_bashforth",
        "target",
        "be another than Eps() at λ = −∞",
        "Flow(), V() or X()",
    ):
        sample(counted, Z, levels=[-math.inf, 0.0], step=partial(adams_bashforth, target=Eps()))
    assert counted.evaluations == 0
    with assert_refused(
        ValueError, "ancestral", "variance", "be known at λ = −∞", "FixedSmall() or FixedLarge()"
    ):
        sample(
            counted,
            Z,
            levels=[-math.inf, 0.0],
            step=partial(ancestral, variance=AnalyticVariance(profile, 2)),
        )


@pytest.mark.parametrize("row", [X(), V(), V(0.5), Flow()], ids=repr)
def test_fault_32_others_start_from_nearly_pure_noise(row: Any) -> None:
    made = sample(
        lambda z, logsnr: Prediction(z, logsnr, 0 * z, row),
        Z.float(),
        levels=torch.tensor([-40.0, 0.0]),
        step=ddim,
    )
    assert torch.isfinite(made).all()  # and no warning, which is an error here


def test_fault_32_data_prediction_from_data() -> None:
    with assert_refused(ValueError, "sample", "levels", "start where", "X() at λ = 40"):
        sample(
            lambda z, logsnr: Prediction(z, logsnr, 0 * z, X()),
            Z.float(),
            levels=torch.tensor([40.0]),
        )
