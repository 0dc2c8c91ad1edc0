"""Faults 32, 39 and 45 to 49: models, conditions and guidance of a sampler, and its solver."""

import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.parameterization import V
from vdiff.sampling import (
    Clipped,
    Counted,
    Guided,
    History,
    SolverError,
    adams_bashforth,
    ddim,
    ode,
)
from vdiff.schedule import Linear

from .common import assert_refused, model
from .exact_samples import ORACLE, Z, made


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
