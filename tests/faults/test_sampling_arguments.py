"""Faults 45 to 51: steps, grids, states, masks and options of a sampler."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdiff import Prediction, sample, trajectory
from vdiff.decoder import Gaussian
from vdiff.parameterization import Eps, Score, V, X
from vdiff.sampling import (
    Counted,
    adams_bashforth,
    ancestral,
    ddim,
    invert,
    leading,
    ode,
    per_sample_generators,
    start,
    to_levels,
    to_uint8,
    trailing,
    uniform,
)
from vdiff.schedule import Karras, Linear
from vdiff.variance import FixedLarge

from .common import assert_refused, model
from .exact_samples import ORACLE, Z, made


@pytest.mark.parametrize("steps", [0, -1])
def test_fault_45_too_few_steps(steps: int) -> None:
    with assert_refused(ValueError, "sample", "steps", "be at least 1", f"got {steps}"):
        made(steps=steps)
    for grid in (uniform, trailing, leading):
        with assert_refused(ValueError, grid.__name__, "steps", "be at least 1", f"got {steps}"):
            grid(Linear(), steps)
        with assert_refused(TypeError, grid.__name__, "steps", "be a Python int", "got None"):
            grid(Linear(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [2.0, True, "3"])
def test_fault_45_steps_that_are_no_number(steps: object) -> None:
    with assert_refused(TypeError, "sample", "steps", "be a Python int"):
        made(steps=steps)


def test_fault_45_one_step_and_none() -> None:
    assert made(steps=1).shape == Z.shape
    with assert_refused(TypeError, "sample", "steps", "be given, schedule and steps"):
        made(steps=None)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (
            [10.0, 0.0, -10.0],
            ("rise strictly, from noise to data", "got 10 and then 0", "levels.flip(0)"),
        ),
        ([-10.0, 0.0, 0.0], ("rise strictly", "got 0 and then 0", "noise falls at each step")),
        (
            [-math.inf, -math.inf, 0.0],
            ("rise strictly", "got -inf and then -inf", "noise falls at each step"),
        ),
        ([-10.0, math.nan], ("below +∞", "got -10 and then nan")),
        ([math.nan], ("below +∞", "got nan and then inf")),
        ([-10.0, math.inf], ("below +∞", "got inf and then inf", "x̂ is the step to λ = +∞")),
    ],
)
def test_fault_45_a_grid_whose_noise_does_not_fall(
    levels: list[Any], words: tuple[str, ...]
) -> None:
    with assert_refused(ValueError, "sample", "levels", *words):
        sample(ORACLE, Z, levels=torch.tensor(levels))


def test_fault_45_a_grid_that_is_no_row_of_numbers_or_not_alone() -> None:
    for levels in (
        7.0,
        "-1 1",
        ["a", "b"],
        [None, 1.0],
        [[1.0], [2.0, 3.0]],
        {"a": 1.0},
        [],
        [[1.0]],
    ):
        with assert_refused(
            TypeError,
            "sample",
            "levels",
            "be one row of log-SNR",
            "[-10.0, 0.0, 10.0]",
        ):
            sample(ORACLE, Z, levels=levels)  # type: ignore[arg-type]
    for steps in ([0, 250, 500], torch.arange(3), np.array([0, 1])):
        with assert_refused(
            TypeError,
            "sample",
            "levels",
            "be one row of log-SNR, floating",
            "table.table[steps]",
        ):
            sample(ORACLE, Z, levels=steps)
    with assert_refused(ValueError, "sample", "levels", "come without schedule and steps"):
        made(levels=torch.tensor([-1.0, 1.0]))
    with assert_refused(
        TypeError, "sample", "schedule", "be given, schedule and steps; or levels instead", "None"
    ):
        sample(ORACLE, Z, steps=2)


def test_encoding_takes_a_step_that_can_run_backwards() -> None:
    with assert_refused(ValueError, "invert", "step", "be ode, which runs backwards", "ancestral"):
        invert(ORACLE, Z, schedule=Linear(), step=ancestral)
    assert torch.isfinite(invert(ORACLE, Z, schedule=Linear(), step=partial(ode, rtol=1e-3))).all()


MASK = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("error", "argument", "words", "options"),
    [
        (TypeError, "given", ("come with a mask", "the samples are x"), {"mask": MASK}),
        (TypeError, "mask", ("come with what is given", "None"), {"given": Z}),
        (TypeError, "mask", ("be a bool tensor", "float32"), {"mask": MASK.float(), "given": Z}),
        (ValueError, "mask", ("broadcast over z, (4, 2)", "(3,)"), {"mask": MASK[[0, 1, 1]]}),
        (ValueError, "absent", ("broadcast over z", "(3, 2)"), {"absent": MASK.expand(3, 2)}),
        (ValueError, "given", ("have the shape of z, (4, 2)", "(1, 2)", "in silence"),
         {"mask": MASK, "given": Z[:1]}),
        (TypeError, "given", ("be a floating tensor", "int64"), {"mask": MASK, "given": Z.long()}),
        (TypeError, "given", ("be a torch.Tensor", "list"), {"mask": MASK, "given": Z.tolist()}),
        (ValueError, "given", ("be finite", "4 NaN", "(0, 1)"),
         {"mask": MASK, "given": Z * torch.tensor([1.0, math.nan])}),
        (ValueError, "given", ("be finite", "4 NaN", "(0, 1)"),
         {"mask": MASK, "given": Z * torch.tensor([1.0, math.nan]), "absent": MASK}),
    ],
)  # fmt: skip
def test_fault_45_what_is_given_and_what_is_not(
    error: type[Exception], argument: str, words: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Before any evaluation; NaN is allowed in what is absent."""
    counted = Counted(ORACLE)
    for verb in (sample, trajectory):
        with assert_refused(error, verb.__name__, argument, *words):
            verb(counted, Z, schedule=Linear(), steps=2, step=ddim, **options)
    assert counted.evaluations == 0


def test_fault_45_a_mask_for_a_network_that_is_told_one_number() -> None:
    words = "be one number per example", "field=True"
    with assert_refused(ValueError, "Denoiser", "logsnr", *words):
        sample(model(), Z.float(), schedule=Linear(), steps=2, mask=MASK, given=Z.float())


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([[[-3.0, -2.0]], [[1.0, -2.5]]], ("fall in no dimension", "-0.5 to 4 in step 1")),
        ([[[-3.0, -2.0]], [[-3.0, -2.0]]], ("rise in one at least", "from 0 to 0 in step 1")),
        ([[[-3.0, -2.0, 0.0]]], ("be fields that broadcast over z, (4, 2)", "(1, 1, 3)")),
        ([[[-math.inf, -2.0]], [[1.0, 2.0]]], ("be finite", "1 NaN or infinite")),
    ],
)
def test_fault_45_fields_of_levels(levels: list[Any], words: tuple[str, ...]) -> None:
    with assert_refused(ValueError, "sample", "levels", *words):
        sample(ORACLE, Z, levels=torch.tensor(levels))


def test_fault_45_a_field_is_named_by_its_range() -> None:
    def breaks(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, torch.where(logsnr.amax() > 0, torch.nan, z), V())

    levels = torch.tensor([[[-8.0, -9.0]], [[1.0, -3.0]], [[2.0, 5.0]]])
    words = "NaN or infinity in 4 of 4 samples after step 2, from λ = -3 to 1 to the field 2 to 5"
    with assert_refused(ValueError, "sample", "model", "lead to finite states", words):
        sample(breaks, Z, levels=levels, step=ddim)
    with assert_refused(ValueError, "sample", "levels", "start where", "Eps() at λ = -40 to 2"):
        sample(
            lambda z, logsnr: Prediction(z, logsnr, 0 * z, Eps()),
            Z.float(),
            levels=torch.tensor([[[-40.0, 2.0]]]),
        )


def test_fault_45_states_that_are_not_finite() -> None:
    def breaks(z: Tensor, logsnr: Tensor) -> Prediction:
        out = torch.where(
            (logsnr > 0)[:, None] & (torch.arange(len(z)) == 1)[:, None], torch.nan, z
        )
        return Prediction(z, logsnr, out, V())

    words = (
        "lead to finite states",
        "NaN or infinity in 1 of 4 samples after step 3, from λ = 2 to 6",
    )
    with assert_refused(ValueError, "sample", "model", *words):
        sample(breaks, Z, levels=torch.tensor([-8.0, -2.0, 2.0, 6.0]), step=ddim)


def test_fault_45_what_is_no_state_no_model_and_no_step() -> None:
    with assert_refused(TypeError, "sample", "z", "be real and floating"):
        sample(ORACLE, Z.long(), schedule=Linear(), steps=2)
    with assert_refused(ValueError, "sample", "z", "have shape (batch, …)"):
        sample(ORACLE, Z[0], schedule=Linear(), steps=2)
    with assert_refused(TypeError, "sample", "model", "be called as model(z, logsnr)"):
        sample("model", Z, schedule=Linear(), steps=2)  # type: ignore[arg-type]
    with assert_refused(TypeError, "sample", "model", "return a Prediction", "Tensor"):
        sample(lambda z, logsnr: z, Z, schedule=Linear(), steps=2)  # type: ignore[arg-type, return-value]
    for bad in (math.nan, math.inf):
        with assert_refused(
            ValueError,
            "sample",
            "z",
            "be finite",
            "1 NaN or infinite values, the first at index (2, 0)",
        ):
            sample(
                ORACLE,
                torch.where(torch.arange(4)[:, None] == 2, torch.tensor([[bad, 0.0]]), Z),
                schedule=Linear(),
                steps=2,
            )
    with assert_refused(ValueError, "sample", "step", "evaluate the model it is given"):
        made(step=lambda model, z, t, s, history: z)


@pytest.mark.parametrize(
    ("error", "step", "argument", "words"),
    [
        (ValueError, partial(ddim, eta=-0.1), "eta", ("lie in [0, 1]",)),
        (ValueError, partial(ddim, eta=1.5), "eta", ("lie in [0, 1]",)),
        (ValueError, partial(adams_bashforth, order=4), "order", ("be 1, 2 or 3",)),
        (ValueError, partial(adams_bashforth, order=0), "order", ("be at least 1",)),
        (
            ValueError,
            partial(adams_bashforth, target=Score()),
            "target",
            ("be a velocity", "Score()"),
        ),
        (
            ValueError,
            partial(ode, method="dopri55"),
            "method",
            ("be one of 'dopri8', 'dopri5'", "did you mean 'dopri5'?"),
        ),
        (ValueError, partial(ode, rtol=0.0), "rtol", ("be finite and greater than 0",)),
        (ValueError, partial(ode, max_evaluations=0), "max_evaluations", ("be at least 1",)),
        (TypeError, partial(ddim, eta="all"), "eta", ("be a number", "'all'")),
        (TypeError, partial(adams_bashforth, order=2.0), "order", ("be a Python int", "2.0")),
        (TypeError, partial(adams_bashforth, order=True), "order", ("be a Python int", "True")),
        (
            TypeError,
            partial(adams_bashforth, target=V),
            "target",
            ("be a Parameterization", "the class V", "an instance"),
        ),
        (
            TypeError,
            partial(ancestral, variance=FixedLarge),
            "variance",
            ("be a ReverseVariance", "the class FixedLarge", "an instance"),
        ),
        (
            TypeError,
            partial(ancestral, variance="large"),
            "variance",
            ("be a ReverseVariance", "'large'"),
        ),
    ],
)
def test_fault_45_options_of_steps(
    error: type[Exception], step: Any, argument: str, words: tuple[str, ...]
) -> None:
    """Before any evaluation."""
    counted = Counted(ORACLE)
    with assert_refused(error, step.func.__name__, argument, *words):
        sample(counted, Z, schedule=Linear(), steps=2, step=step)
    assert counted.evaluations == 0


def test_fault_51_the_seed_of_a_sample() -> None:
    shape = (1, 5)
    whole = start(shape, per_sample_generators(3, range(6)))
    assert torch.equal(
        torch.cat([start(shape, per_sample_generators(3, [i])) for i in range(6)]), whole
    )
    assert len({tuple(one.flatten().tolist()) for one in whole}) == 6
    with assert_refused(
        ValueError, "sample", "generator", "be one generator, or 4", "got 3 of them"
    ):
        made(step=ancestral, generator=per_sample_generators(0, range(3)))
    with assert_refused(TypeError, "sample", "generator", "be a torch.Generator", "got 0"):
        made(step=ancestral, generator=0)
    with assert_refused(TypeError, "sample", "generator", "be a torch.Generator", "got 1"):
        made(step=ancestral, generator=[torch.Generator(), 1, 2, 3])
    with pytest.raises(TypeError, match="Generator"):
        start(shape, torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        per_sample_generators(3, 6)  # type: ignore[arg-type]


def test_fault_45_levels_of_what_has_none() -> None:
    last = Prediction(Z, torch.full((4,), 9.0), Z, X())
    with assert_refused(TypeError, "to_levels", "decoder", "be a Levels"):
        to_levels(Gaussian(), last)  # type: ignore[arg-type]


def test_fault_45_bytes_of_what_is_no_image() -> None:
    for integers in (torch.tensor([[1, 2]]), torch.tensor([[1, 2]], dtype=torch.uint8)):
        with assert_refused(TypeError, "to_uint8", "x", "be real and floating"):
            to_uint8(integers)
    with assert_refused(ValueError, "to_uint8", "x", "be finite", "1 NaN"):
        to_uint8(torch.tensor([[0.0, math.nan]]))
    with assert_refused(TypeError, "to_uint8", "x", "be a torch.Tensor", "list"):
        to_uint8([0.1])  # type: ignore[arg-type]


def test_fault_45_encoding() -> None:
    with assert_refused(TypeError, "invert", "schedule", "be a Schedule"):
        invert(ORACLE, Z, schedule=Karras)  # type: ignore[arg-type]
    with assert_refused(TypeError, "invert", "z", "be real and floating"):
        invert(ORACLE, Z.long(), schedule=Karras())
    with assert_refused(ValueError, "invert", "z", "be finite"):
        invert(ORACLE, Z * math.nan, schedule=Karras())
