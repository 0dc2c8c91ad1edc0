"""Faults 32 and 45 to 51: sampling."""

import math
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.decoder import Gaussian
from vdiff.discrete import Masked, TokenDenoiser, Uniform
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, Score, V, X
from vdiff.profile import Profile
from vdiff.sampling import (
    Clipped,
    Counted,
    Guided,
    History,
    SolverError,
    Tempered,
    adams_bashforth,
    ancestral,
    confidence,
    ddim,
    dpmpp_2m,
    heun,
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
from vdiff.variance import AnalyticVariance, FixedLarge

from .common import assert_refused, model

ORACLE = GaussianMixture([0.3, 0.7], [[-1.0, 0.2], [0.5, 0.1]], [[0.04, 0.1], [0.09, 0.1]])
Z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(**options: Any) -> Tensor:
    return sample(ORACLE, Z, **{"schedule": Linear(), "steps": 2, "step": ddim} | options)


def over_tokens(masked: bool = True, fill: float = 0.0) -> TokenDenoiser:
    """Five values; the logits of tokens that have one are `fill`."""

    def network(z: Tensor) -> Tensor:
        return torch.where(z == 5, 0.0, fill)[..., None].expand(*z.shape, 5)

    return TokenDenoiser(network, Masked(5) if masked else Uniform(5))


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


@pytest.mark.parametrize(
    ("step", "hint"),
    [
        ("huen", "did you mean 'heun'?"),
        ("dpmpp2m", "'dpmpp_2m'"),
        ("heun", "the function, without quotes: step=heun"),
        (7, "vdiff.sampling has ancestral, ddim"),
        (None, "adams_bashforth"),
    ],
)
def test_fault_32_an_unknown_step_gets_the_nearest(step: object, hint: str) -> None:
    with assert_refused(
        TypeError,
        "sample",
        "step",
        "be a function (model, z, logsnr_t, logsnr_s, history)",
        repr(step),
        hint,
    ):
        made(step=step)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("sheduel", "schedule"),
        ("setps", "steps"),
        ("generatr", "generator"),
        ("eta", "step=partial(ddim, eta=…)"),
        ("rtol", "partial(ode, rtol=…)"),
        ("order", "partial(adams_bashforth, order=…)"),
        ("target", "partial(adams_bashforth, target=…)"),
        ("variance", "partial(ancestral, variance=…)"),
        ("method", "partial(ode, method=…)"),
    ],
)
def test_fault_32_a_misspelt_keyword_and_the_option_of_a_step(word: str, hint: str) -> None:
    with pytest.raises(TypeError, match="sample: argument") as caught:
        made(**{word: 0.5})
    assert f"'{word}'" in str(caught.value)
    assert hint in str(caught.value)


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


def test_encoding_takes_a_step_that_can_run_backwards() -> None:
    with assert_refused(ValueError, "invert", "step", "be ode, which runs backwards", "ancestral"):
        invert(ORACLE, Z, schedule=Linear(), step=ancestral)
    assert torch.isfinite(invert(ORACLE, Z, schedule=Linear(), step=partial(ode, rtol=1e-3))).all()


def test_a_prediction_of_another_shape_is_refused() -> None:
    with assert_refused(
        ValueError,
        "sample",
        "model",
        "return a prediction of the shape of z",
        "it would broadcast",
    ):
        sample(lambda z, logsnr: Prediction(z, logsnr, z[:1], V()), Z, schedule=Linear(), steps=2)


def test_a_wrapper_says_what_the_one_inside_does_too() -> None:
    inner = Clipped(ORACLE, -1.0, 1.0)
    assert Clipped(inner, -2.0, 2.0).protocol == {"x̂ clipped to": "[-1, 1], then [-2, 2]"}


def test_fault_32_data_prediction_from_data() -> None:
    with assert_refused(ValueError, "sample", "levels", "start where", "X() at λ = 40"):
        sample(
            lambda z, logsnr: Prediction(z, logsnr, 0 * z, X()),
            Z.float(),
            levels=torch.tensor([40.0]),
        )


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
    ("step", "argument", "words"),
    [
        (partial(ddim, eta=-0.1), "eta", ("lie in [0, 1]",)),
        (partial(ddim, eta=1.5), "eta", ("lie in [0, 1]",)),
        (partial(adams_bashforth, order=4), "order", ("be 1, 2 or 3",)),
        (partial(adams_bashforth, order=0), "order", ("be at least 1",)),
        (partial(adams_bashforth, target=Score()), "target", ("be a velocity", "Score()")),
        (
            partial(ode, method="dopri55"),
            "method",
            ("be one of 'dopri8', 'dopri5'", "did you mean 'dopri5'?"),
        ),
        (partial(ode, rtol=0.0), "rtol", ("be finite and greater than 0",)),
        (partial(ode, max_evaluations=0), "max_evaluations", ("be at least 1",)),
    ],
)
def test_fault_45_options_of_steps(step: Any, argument: str, words: tuple[str, ...]) -> None:
    """Before any evaluation."""
    counted = Counted(ORACLE)
    with assert_refused(ValueError, step.func.__name__, argument, *words):
        sample(counted, Z, schedule=Linear(), steps=2, step=step)
    assert counted.evaluations == 0


@pytest.mark.parametrize(
    ("step", "argument", "words"),
    [
        (partial(ddim, eta="all"), "eta", ("be a number", "'all'")),
        (partial(adams_bashforth, order=2.0), "order", ("be a Python int", "2.0")),
        (partial(adams_bashforth, order=True), "order", ("be a Python int", "True")),
        (
            partial(adams_bashforth, target=V),
            "target",
            ("be a Parameterization", "the class V", "an instance"),
        ),
        (
            partial(ancestral, variance=FixedLarge),
            "variance",
            ("be a ReverseVariance", "the class FixedLarge", "an instance"),
        ),
        (partial(ancestral, variance="large"), "variance", ("be a ReverseVariance", "'large'")),
    ],
)
def test_fault_45_options_of_steps_of_another_type(
    step: Any, argument: str, words: tuple[str, ...]
) -> None:
    counted = Counted(ORACLE)
    with assert_refused(TypeError, step.func.__name__, argument, *words):
        sample(counted, Z, schedule=Linear(), steps=2, step=step)
    assert counted.evaluations == 0


def test_fault_46_a_solver_that_gives_up() -> None:
    with pytest.raises(SolverError) as caught:
        made(step=partial(ode, max_evaluations=20))
    for word in (
        "dopri5 gave up at t = ",
        "(λ = ",
        "after 20 evaluations: reached max_evaluations = 20",
        "|v̂| was",
        "Loosen rtol = 1e-05",
    ):
        assert word in str(caught.value)

    def explodes(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, z.abs().exp().exp(), V())

    with pytest.raises(
        SolverError,
        match=r"^dopri5 gave up at t = .* (underflow in dt|the field is NaN or infinite)",
    ):
        sample(explodes, 3 * Z, schedule=Linear(), steps=1, step=ode)


def test_fault_46_samples_at_different_levels() -> None:
    level = torch.tensor([0.0, 1.0, 0.0, 0.0])
    with assert_refused(ValueError, "ode", "logsnr_t", "be the same for all samples"):
        ode(ORACLE, Z, level, level + 1)


def test_fault_46_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'vdiff-torch\[ode\]'"):
        made(step=ode)


def test_fault_49_a_batch_moves_a_sample_within_the_solvers_error_alone() -> None:
    z, levels = torch.cat([Z, 3 * Z]), torch.full((8,), 8.0, dtype=torch.float64)
    together = ode(ORACLE, z, -levels, levels, rtol=1e-7, atol=1e-7)
    alone = torch.cat(
        [ode(ORACLE, one[None], -levels[:1], levels[:1], rtol=1e-7, atol=1e-7) for one in z]
    )
    torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-5)


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


def test_fault_45_guidance_without_its_other_half() -> None:
    def conditional(z: Tensor, logsnr: Tensor, label: Tensor) -> Prediction:
        return Prediction(z, logsnr, z * label[:, None], V())

    with assert_refused(ValueError, "Guided", "unconditional", "name what replaces the condition"):
        Guided(conditional, 1.5, {})
    guided = Guided(conditional, 1.5, {"label": 0})
    with assert_refused(ValueError, "Guided", "label", "be given as a condition"):
        sample(guided, Z, schedule=Linear(), steps=2)
    with assert_refused(
        ValueError, "Guided", "unconditional", "have the shape of the condition, (4,)", "(3,)"
    ):
        Guided(conditional, 1.5, {"label": torch.zeros(3)})(Z, torch.zeros(4), label=torch.ones(4))
    with assert_refused(ValueError, "Guided", "label", "be given as a condition", "got None"):
        sample(guided, Z, schedule=Linear(), steps=2, condition={"label": None})
    for interval in ((2.0, -1.0), (1.0, 1.0), (math.nan, 1.0)):
        with assert_refused(
            ValueError,
            "Guided",
            "interval",
            "be (lowest, highest) log-SNR",
            "noise has the lower λ",
        ):
            Guided(conditional, 1.5, {"label": 0}, interval=interval)
    for wrong in (3, (1.0,), (1.0, 2.0, 3.0), ("low", "high"), (None, 2.0), "12"):
        with assert_refused(
            TypeError,
            "Guided",
            "interval",
            "be (lowest, highest) log-SNR",
            repr(wrong),
            "±math.inf",
        ):
            Guided(conditional, 1.5, {"label": 0}, interval=wrong)  # type: ignore[arg-type]
    with assert_refused(ValueError, "Guided", "scale", "lie in", "2 is a common one"):
        Guided(conditional, math.inf, {"label": 0})
    with assert_refused(TypeError, "Guided", "scale", "be a number", "None"):
        Guided(conditional, None, {"label": 0})  # type: ignore[arg-type]
    with assert_refused(ValueError, "Guided", "unconditional", "name what replaces", "None"):
        Guided(conditional, 1.5, None)
    for nothing in (3, ["label"]):
        with assert_refused(TypeError, "Guided", "unconditional", "be a mapping", repr(nothing)):
            Guided(conditional, 1.5, nothing)  # type: ignore[arg-type]
    with assert_refused(TypeError, "Clipped", "model", "be called as model(z, logsnr)"):
        Clipped(Denoiser)  # type: ignore[arg-type]
    with assert_refused(ValueError, "Clipped", "low", "be below high = -1", "got 1"):
        Clipped(conditional, 1.0, -1.0)


def test_fault_45_a_label_that_would_be_cut_off_or_broadcast() -> None:
    classes = [V().row(torch.zeros(1))[0]] * 3

    def conditional(z: Tensor, logsnr: Tensor, label: Tensor) -> Prediction:
        return Prediction(
            z, logsnr, z * torch.stack([torch.as_tensor(c) for c in classes])[label], V()
        )

    label = torch.tensor([0, 1, 2, 0])
    for value in (0.5, 2.0, torch.tensor(1.0)):
        with assert_refused(
            TypeError,
            "Guided",
            "unconditional",
            "be integer for 'label', as the condition is",
            "cut off",
        ):
            Guided(conditional, 1.5, {"label": value})(Z, torch.zeros(4), label=label)
    with pytest.raises(TypeError, match="invalid data type 'str'"):
        Guided(conditional, 1.5, {"label": "none"})(Z, torch.zeros(4), label=label)
    for wrong in (label[:1], label[:3], torch.cat([label, label])):
        with assert_refused(
            ValueError,
            "Guided",
            "label",
            "have a row for each of 4 samples",
            f"({len(wrong)},)",
            "broadcast",
        ):
            Guided(conditional, 1.5, {"label": 0})(Z, torch.zeros(4), label=wrong)
    wanted = Guided(conditional, 1.5, {"label": 2})(Z, torch.zeros(4), label=label).output
    for same in (np.int64(2), torch.tensor(2), torch.tensor([2]), torch.full((4,), 2)):
        assert torch.equal(
            Guided(conditional, 1.5, {"label": same})(Z, torch.zeros(4), label=label).output,
            wanted,
        )


def test_fault_45_a_network_without_its_parameterization() -> None:
    for name, wrapped in (
        ("Clipped", Clipped(lambda z, logsnr: z)),
        ("Guided", Guided(lambda z, logsnr, label: z, 2.0, {"label": 0})),
    ):  # type: ignore[arg-type, return-value]
        with assert_refused(
            TypeError, name, "model", "return a Prediction", "got Tensor", "Denoiser(network, V())"
        ):
            sample(
                wrapped,
                Z,
                schedule=Linear(),
                steps=2,
                condition={"label": torch.ones(4)} if name == "Guided" else {},
            )


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


def test_fault_39_a_network_and_its_gradients_are_left_alone() -> None:
    network = model()
    out = sample(network, Z.float(), schedule=Linear(), steps=2, step=adams_bashforth)
    assert not out.requires_grad
    path = trajectory(
        network, Z.float().requires_grad_(), schedule=Linear(), steps=2, step=adams_bashforth
    )
    assert not any(
        v.requires_grad for z, prediction in path for v in (z, prediction.x, prediction.eps)
    )
    assert network.training
    level = torch.zeros(4)
    assert ddim(
        network, Z.float(), level, level + 1.0, History()
    ).requires_grad  # a step by itself has gradients
    assert Counted(network).evaluations == 0


PROMPT = {"mask": torch.tensor([True, False, False])}
DDIM = partial(ddim, eta=0.5)


@pytest.mark.parametrize(
    ("error", "argument", "words", "z", "options"),
    [
        (ValueError, "z", ("be a shape (batch, …)", "(8,)"), (8,), {}),
        (ValueError, "z", ("be a shape (batch, …)", "(8, 0)"), (8, 0), {}),
        (TypeError, "z", ("integer tokens, or their shape", "got 8 ("), 8, {}),
        (TypeError, "z", ("integer tokens, or their shape", "(8, 2.5)"), (8, 2.5), {}),
        (TypeError, "z", ("float32", "a shape draws them: (2, 3)"), torch.zeros(2, 3), {}),
        (ValueError, "z", ("lie in 0 … 5", "from 6 to 6"), torch.full((2, 3), 6), {}),
        (ValueError, "z", ("lie in 0 … 5", "from -1 to -1"), torch.full((2, 3), -1), {}),
        (ValueError, "z", ("have shape (batch, …)",), torch.zeros(3).long(), {}),
        (TypeError, "steps", ("be given",), (2, 3), {"steps": None}),
        (ValueError, "step", ("ancestral, confidence, tau_leaping; got ddim",), (2, 3),
         {"step": ddim}),
        (ValueError, "step", ("the model's process", "got ddim"), (2, 3), {"step": DDIM}),
        (TypeError, "step", ("without quotes: step=confidence",), (2, 3), {"step": "confidence"}),
        (ValueError, "differentiable", ("be False for tokens",), (2, 3), {"differentiable": True}),
        (TypeError, "given", ("come with a mask",), (2, 3), PROMPT),
        (ValueError, "given", ("lie in 0 … 4", "the mask is no value of the data"), (2, 3),
         PROMPT | {"given": torch.full((2, 3), 5)}),
        (TypeError, "given", ("be integer tokens", "given.long()"), (2, 3),
         PROMPT | {"given": torch.zeros(2, 3)}),
        (ValueError, "given", ("have the shape of z, (2, 3)", "(1, 3)"), (2, 3),
         PROMPT | {"given": torch.zeros(1, 3).long()}),
        (ValueError, "mask", ("broadcast over z, (2, 3)",), (2, 3),
         {"mask": torch.ones(4).bool(), "given": torch.zeros(2, 3).long()}),
    ],
)  # fmt: skip
def test_fault_45_tokens(
    error: type[Exception], argument: str, words: tuple[str, ...], z: Any, options: dict[str, Any]
) -> None:
    """Before any evaluation."""
    counted = Counted(over_tokens())
    for verb in (sample, trajectory):
        with assert_refused(error, verb.__name__, argument, *words):
            verb(counted, z, **{"steps": 2} | options)
    assert counted.evaluations == 0


def test_fault_45_steps_and_wrappers_of_another_process() -> None:
    words = "one of the model's process: ancestral, ddim, heun", "got confidence"
    with assert_refused(ValueError, "sample", "step", *words):
        made(step=confidence)
    with assert_refused(ValueError, "confidence", "model", "masked process", "got Uniform(5)"):
        sample(over_tokens(masked=False), (2, 3), steps=2, step=confidence)
    with assert_refused(ValueError, "ancestral", "variance", "be left out", "tokens has none"):
        sample(over_tokens(), (2, 3), steps=2, step=partial(ancestral, variance=FixedLarge()))
    with assert_refused(TypeError, "sample", "z", "be a torch.Tensor", "torch.randn(4, 2)"):
        sample(ORACLE, (4, 2), schedule=Linear(), steps=2)
    with assert_refused(ValueError, "Clipped", "model", "be Gaussian", "Tempered"):
        Clipped(over_tokens())
    with assert_refused(ValueError, "Tempered", "model", "be over tokens", "Clipped"):
        Tempered(ORACLE)
    for argument, options in ("temperature", {"temperature": -1.0}), ("top_p", {"top_p": 0.0}):
        with assert_refused(ValueError, "Tempered", argument):
            Tempered(over_tokens(), **options)


def test_fault_45_a_network_over_tokens_that_breaks() -> None:
    words = "predict a distribution", "NaN or infinity in step 2, at λ = 0"
    with assert_refused(ValueError, "sample", "model", *words):
        sample(over_tokens(fill=math.nan), (2, 30), steps=2)
    with assert_refused(ValueError, "sample", "model", "predict finite data", "the last level"):
        sample(over_tokens(fill=math.nan), (2, 30), levels=[-15.0, 15.0])
