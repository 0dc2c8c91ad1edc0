"""Faults of likelihoods other than the bound: the probability-flow ODE, dequantised data, whole
paths, I-MMSE."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff import Denoiser, Prediction
from vdiff.decoder import Categorical
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.flow import SolverError
from vdiff.likelihood import (
    DequantizedLikelihood,
    Exact,
    Hutchinson,
    TruncatedNormal,
    Uniform,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
    path_importance,
    verify_estimators,
)
from vdiff.likelihood.replicated import Replicated
from vdiff.oracle import Gaussian, GaussianMixture, Lattice
from vdiff.parameterization import Eps, Score, V, X
from vdiff.sampling import Clipped
from vdiff.schedule import Linear

from .common import Net, assert_refused, assert_refused_with

PLACE = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(
    [1 / 8] * 8, 2**0.5 * torch.stack([PLACE.cos(), PLACE.sin()], 1), torch.full((8, 2), 0.01)
)
WIDE = Linear(18.0, -9.0)
LEVELS = Categorical(5)
LATTICE = Lattice(LEVELS.level_values, torch.arange(1, 6) / 15.0)
UNIFORM = Uniform(LEVELS)


def points(n: int) -> Tensor:
    return RING.sample(n, torch.Generator().manual_seed(0))


def flow(model: Any = RING, x: Tensor | None = None, **options: Any) -> Any:
    return ode_likelihood(model, points(4) if x is None else x, **{"schedule": WIDE} | options)


def levels(
    model: Any = LATTICE, data: Tensor | None = None, **options: Any
) -> DequantizedLikelihood:
    known = {"schedule": Linear(4.0, -9.0), "dequantization": UNIFORM}
    return dequantized_ode(
        model, torch.arange(5)[:, None] if data is None else data, **known | options
    )


def paths(model: Any = RING, x: Tensor | None = None, **options: Any) -> Replicated:
    known = {"schedule": Linear(6.0, -5.0), "decoder": GaussianDecoder(), "steps": 2, "samples": 2}
    return path_importance(model, points(4) if x is None else x, **known | options)


def error_of_the_denoiser(
    model: Any = RING, x: Tensor | None = None, **options: Any
) -> Replicated:
    return immse(
        model,
        points(4) if x is None else x,
        **{"schedule": WIDE, "gaussian": RING.matched()} | options,
    )


EVERY: list[Callable[..., Replicated]] = [flow, paths, error_of_the_denoiser]


@pytest.mark.parametrize(
    ("estimate", "name"),
    [(flow, "ode_likelihood"), (paths, "Gaussian.encode"), (error_of_the_denoiser, "immse")],
)
def test_fault_01_data_that_is_not_finite(estimate: Callable[..., Any], name: str) -> None:
    x = points(3)
    x[2, 1] = torch.nan
    argument = "data" if estimate is paths else "x"
    with assert_refused(
        ValueError,
        name,
        argument,
        "be finite",
        "1 NaN or infinite values, the first at index (2, 1)",
    ):
        estimate(x=x)


@pytest.mark.parametrize("estimate", EVERY)
def test_fault_07_one_example_has_no_error_over_examples(estimate: Callable[..., Any]) -> None:
    found = estimate(x=points(1))
    assert found.estimate.images is None
    assert "one image" in str(found)


def test_fault_07_one_probe_knows_no_error_and_says_so() -> None:
    found = flow(trace=Hutchinson(probes=1))
    assert math.isnan(found.estimate.monte_carlo)
    assert "± nan (Monte Carlo)" in str(found)


def test_fault_14_data_of_the_wrong_kind() -> None:
    with assert_refused(
        TypeError, "ode_likelihood", "x", "be real and floating", "a discrete decoder does it"
    ):
        flow(x=torch.arange(5)[:, None])
    with assert_refused_with(
        TypeError,
        "Categorical.encode: data must be integer levels, 0 to 4 .. dequantised or scaled data",
    ):
        levels(data=torch.rand(4, 1))
    with assert_refused(
        ValueError, "Categorical.encode", "data", "lie in 0 … 4", "values from 0 to 16"
    ):
        levels(data=torch.tensor([[0], [16]]))
    with assert_refused(TypeError, "Uniform", "decoder", "be a Levels", "ode_likelihood"):
        Uniform(GaussianDecoder())  # type: ignore[arg-type]
    with assert_refused(TypeError, "dequantized_ode", "dequantization", "be a Dequantization"):
        levels(dequantization=Uniform)


def broken() -> Callable[..., Prediction]:
    """NaN where the noise is large, at the examples near (2, 2) alone."""

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        away = (z / logsnr.sigmoid().sqrt()[:, None] - 2.0).abs().amax(1) > 1.0
        out = RING(z, logsnr).eps
        return Prediction(
            z, logsnr, torch.where((away | (logsnr < 3.0))[:, None], out, torch.nan), Eps()
        )

    return model


@pytest.mark.parametrize("estimate", EVERY)
@pytest.mark.parametrize("batch", [2, 256])
def test_fault_28_nan_from_the_network_names_the_example_and_the_level(
    estimate: Callable[..., Any], batch: int
) -> None:
    x = points(6)
    x[4] = 2.0
    kind = SolverError if estimate is flow else ValueError
    with pytest.raises(kind, match=r"NaN or infinit.* for example 4") as seen:
        estimate(broken(), x, batch=batch, **({"steps": 8} if estimate is paths else {}))
    level = re.search(r"λ = (-?[0-9.]+)", str(seen.value))
    assert level is not None
    assert float(level[1]) >= 3.0


def test_fault_30_a_model_in_training_mode_is_evaluated_without_dropout_and_left_as_it_was() -> (
    None
):
    noisy, quiet = Denoiser(Net(dropout=0.5), V()).train(), Denoiser(Net(dropout=0.5), V()).eval()
    for estimate in EVERY:
        told = (
            pytest.warns(UserWarning, match="beyond the clean end")
            if estimate is error_of_the_denoiser
            else nullcontext()
        )
        with told:  # a network that was never trained
            found = [
                estimate(m, points(3).float(), schedule=Linear(6.0, -5.0)) for m in (noisy, quiet)
            ]
        assert torch.equal(found[0].nats, found[1].nats)
        assert noisy.training
        assert not quiet.training


@pytest.mark.parametrize(
    ("row", "schedule"),
    [(Eps(), Linear(9.0, -40.0)), (Score(), Linear(9.0, -40.0)), (X(), Linear(40.0, -9.0))],
)
def test_fault_32_a_flow_that_starts_or_ends_where_the_output_says_nothing(
    row: Any, schedule: Linear
) -> None:
    def predicts(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, 0 * z, row)

    level = "-40" if schedule.logsnr_min < -9 else "40"
    words = (
        "end where the model's output determines x̂ and ε̂",
        f"{row!r} at λ = {level}",
        "predict v",
    )
    with assert_refused(ValueError, "ode_likelihood", "schedule", *words):
        flow(predicts, points(2).float(), schedule=schedule)
    shorter = Linear(
        max(-25.0, schedule.logsnr_max) if schedule.logsnr_max < 20 else 25.0,
        max(schedule.logsnr_min, -25.0),
    )
    with pytest.warns(
        UserWarning,
        match=r" at λ = -?25 leaves x̂ or ε̂ with an error of 0.0\d+ by rounding: predict v",
    ):
        flow(predicts, points(2).float(), schedule=shorter)


def test_fault_32_a_bound_whose_clean_end_leaves_no_digits() -> None:
    def predicts(row: Any) -> Any:
        return lambda z, logsnr: Prediction(z, logsnr, 0 * z, row)

    setting: dict[str, Any] = {"decoder": GaussianDecoder(), "draws": 8}
    with pytest.warns(
        UserWarning,
        match=(
            r"X\(\) at λ = 25 leaves ε̂ with an error of 0.03 by rounding in float32: the bound "
            r"comes out too"
        ),
    ):
        found = evaluate(predicts(X()), points(8).float(), schedule=Linear(25.0, -9.0), **setting)
    assert "WARNING: X() at λ = 25" in str(found)
    for row, schedule in (
        (V(), Linear(25.0, -9.0)),
        (Eps(), Linear(9.0, -25.0)),
        (X(), Linear(13.3, -25.0)),
    ):
        evaluate(
            predicts(row), points(8).float(), schedule=schedule, **setting
        )  # and no warning, which is an error here
    evaluate(
        predicts(X()), points(8), schedule=Linear(25.0, -9.0), **setting
    )  # float64 has the digits


@pytest.mark.parametrize("word", ["samples", "replicates", "batch"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_fault_45_counts(word: str, value: object, error: type[Exception]) -> None:
    for estimate, name in ((paths, "path_importance"), (levels, "dequantized_ode")):
        with assert_refused(error, name, word, "be"):
            estimate(**{word: value})
    if word != "samples":
        with assert_refused(error, "immse", word, "be"):
            error_of_the_denoiser(**{word: value})
    with assert_refused(error, "verify_estimators", "points", "be"):
        verify_estimators(points=value)  # type: ignore[arg-type]


def test_fault_46_a_solver_that_gives_up_says_where_why_and_what_to_try() -> None:
    def explodes(z: Tensor, logsnr: Tensor) -> Prediction:  # infinite before the other end
        return Prediction(z, logsnr, 3.0 * z.pow(3), V())

    text = r"dopri5 gave up at t = .* of the way \(λ = .*\) after \d+ evaluations: underflow in dt"
    with pytest.raises(SolverError, match=text) as caught:
        flow(explodes, torch.ones(2, 1).double(), schedule=Linear(), max_evaluations=5000)
    for word in ("rtol = ", "atol = ", "|v̂| was", "float64"):
        assert word in str(caught.value)
    with pytest.raises(SolverError, match=r"^dopri5 gave up"):
        levels(explodes, torch.full((2, 1), 4), max_evaluations=5000)


def test_fault_47_a_limit_of_evaluations_and_of_time() -> None:
    for estimate in (flow, levels):
        with pytest.raises(
            SolverError, match=r"after 20 evaluations: reached max_evaluations = 20"
        ):
            estimate(max_evaluations=20)
        with pytest.raises(SolverError, match=r"reached max_seconds = 1e-09"):
            estimate(max_seconds=1e-9)
    assert int(flow(max_evaluations=500).evaluations.max()) <= 500
    with assert_refused(ValueError, "ode_likelihood", "max_evaluations", "be at least 1"):
        flow(max_evaluations=0)


def test_fault_48_no_probes() -> None:
    for value, error in ((0, ValueError), (1.0, TypeError)):
        with assert_refused(error, "Hutchinson", "probes", "be"):
            Hutchinson(probes=value)  # type: ignore[arg-type]


def test_fault_49_an_answer_depends_on_its_batch_by_no_more_than_the_tolerance() -> None:
    """The tolerance is a step's: over a trajectory it adds up to some tens of it."""
    x = torch.cat([points(5), torch.tensor([[4.0, -3.0]])])  # one far out, hard to solve
    same: dict[str, Any] = {"prior": RING.matched(), "tolerance": 1e-6}
    nats = torch.cat([flow(x=one[None], **same).nats for one in x])
    together, pieces = flow(x=x, **same), flow(x=x, batch=5, **same)
    easy = flow(
        x=torch.cat([x[:5].repeat(16, 1), x[5:]]), **same
    )  # 80 easy ones do not outvote it
    for other in (together.nats, pieces.nats, easy.nats[-6:]):
        assert torch.allclose(other, nats, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("estimate", [paths, error_of_the_denoiser])
def test_fault_49_noise_does_not_depend_on_the_batch(estimate: Callable[..., Any]) -> None:
    whole, parts = estimate(), estimate(batch=3)
    torch.testing.assert_close(whole.replicates, parts.replicates, rtol=1e-12, atol=1e-12)


def test_fault_50_a_clipped_model_has_another_flow() -> None:
    with assert_refused_with(
        ValueError,
        "ode_likelihood: model must leave x̂ as it is .. x̂ clipped to [-1, "
        "1] .. clipping changes the flow",
    ):
        flow(Clipped(RING))
    with assert_refused(ValueError, "dequantized_ode", "model", "leave x̂ as it is"):
        levels(Clipped(LATTICE))


def test_fault_51_the_seed_tells_everything() -> None:
    """Probes and noise are a function of the seed and the example's place."""
    for estimate, options in (
        (flow, {"trace": Hutchinson(), "tolerance": 1e-8}),
        (levels, {}),
        (paths, {}),
        (error_of_the_denoiser, {}),
    ):
        whole = estimate(**options)  # type: ignore[operator]
        assert torch.equal(whole.replicates, estimate(**options).replicates)  # type: ignore[operator]
        assert not torch.allclose(
            whole.replicates, estimate(seed=1, **options).replicates, atol=1e-3
        )  # type: ignore[operator]
        pieces = estimate(batch=2, **options)  # type: ignore[operator]
        torch.testing.assert_close(whole.replicates, pieces.replicates, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "argument", "words"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance", "be finite and greater than 0"),
        ({"method": "dopri6"}, ValueError, "method", "did you mean 'dopri"),
        ({"unit": -1.0}, ValueError, "unit", "be finite and greater than 0"),
        ({"batch": 0}, ValueError, "batch", "be at least 1"),
        ({"model": lambda z, logsnr: z}, TypeError, "model", "return a Prediction"),
        (
            {"model": lambda z, logsnr: Prediction(z, logsnr, RING(z, logsnr).eps.detach(),
            Eps())},
            ValueError, "model", "be differentiable in z",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(
    change: dict[str, Any], error: type[Exception], argument: str, words: str
) -> None:
    with assert_refused(error, "ode_likelihood", argument, words):
        flow(**change)


def test_bad_arguments_of_dequantisation_are_named() -> None:
    hint = "trace=Exact()"
    with assert_refused(
        ValueError, "dequantized_ode", "samples", "be 1 with a random trace; got 4", hint
    ):
        levels(data=torch.zeros(2, 20).long(), samples=4)
    with assert_refused(
        ValueError, "dequantized_ode", "samples", "be 1 with a random trace", hint
    ):
        levels(samples=4, trace=Hutchinson())
    with assert_refused(ValueError, "dequantized_ode", "replicates", "be at least 2; got 1"):
        levels(replicates=1, trace=Exact())
    with assert_refused(ValueError, "TruncatedNormal", "logsnr_max", "be finite"):
        TruncatedNormal(LEVELS, math.inf)
    with assert_refused(TypeError, "immse", "gaussian", "be a Gaussian"):
        error_of_the_denoiser(gaussian=RING)
    assert isinstance(RING.matched(), Gaussian)
