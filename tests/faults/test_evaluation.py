"""Faults of an evaluation: data that is not what it should be, one image, NaN from the network, a
tolerance out of reach."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdiff import Denoiser
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import (
    GaussianError,
    Independent,
    Report,
    VarianceReduction,
    compare,
    evaluate,
)
from vdiff.parameterization import X
from vdiff.schedule import Linear

from .common import Net, assert_refused, assert_refused_with

SCHEDULE = Linear(7.0, -6.0)
DECODER = Categorical(levels=17)


def images(n: int = 6) -> Tensor:
    return torch.randint(0, 17, (n, 2), generator=torch.Generator().manual_seed(0))


def model() -> Denoiser:
    return Denoiser(Net(), X())


def report(data: Tensor | None = None, decoder: Any = DECODER, **options: Any) -> Report:
    return evaluate(
        model(),
        images() if data is None else data,
        schedule=SCHEDULE,
        decoder=decoder,
        **{"draws": 8} | options,
    )


def test_fault_01_continuous_data_that_is_not_finite_and_the_way_to_leave_it_out() -> None:
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    whole = data.clone()
    data[3, 1] = torch.nan
    with assert_refused_with(
        ValueError,
        "Gaussian.encode: data must be finite .. got 1 NaN or infinite "
        "values, the first at index (3, 1)",
    ):
        report(data, Gaussian())
    kept = report(data, Gaussian(), skip_nonfinite=True)
    assert (kept.protocol["images"], kept.protocol["skipped"]) == (7, 1)
    assert kept.prior.value == pytest.approx(
        report(whole[[0, 1, 2, 4, 5, 6, 7]], Gaussian()).prior.value
    )


def test_fault_03_images_outside_the_range_are_warned_of_once() -> None:
    data = torch.linspace(0, 255, 128).view(8, 1, 4, 4)
    network = Denoiser(lambda z, logsnr: 0 * z, X())
    text = (
        r"evaluate: the images run from .* to 25\d.*, outside \[−1, 1\]: 2 x/\(levels − 1\) − 1 "
        r"brings levels there"
    )
    with pytest.warns(UserWarning, match=text) as seen:
        outcome = evaluate(network, data, schedule=SCHEDULE, decoder=Gaussian(), draws=8)
    assert len(seen) == 1
    assert "outside [−1, 1]" in outcome.warnings[0]
    assert "WARNING: the images run from" in str(outcome)


def test_fault_07_one_image_has_no_error_over_images() -> None:
    outcome = report(images(1))
    assert outcome.total.images is None
    assert outcome.total.monte_carlo > 0
    assert "one image" in str(outcome)
    assert outcome.asdict()["total"]["images"] is None  # type: ignore[index]
    assert all(v is None for v in outcome.asdict()["diagnostics"]["curve"]["error"])  # type: ignore[index]


def test_fault_13_levels_that_the_data_never_reaches() -> None:
    """Beyond the grid is an error of the decoder's; far below its top is a warning, for a data set
    can be dark."""
    with assert_refused(
        ValueError, "Categorical.encode", "data", "values are not on the 17-level grid"
    ):
        report(images() + 5)
    digits = torch.randint(0, 17, (20, 1, 8, 8))
    network = Denoiser(lambda z, logsnr: 0 * z, X())
    with pytest.warns(
        UserWarning,
        match=r"no level above 16 of 255: digits have 17 levels, bytes 256; is levels=256 right\?",
    ):
        evaluate(network, digits, schedule=SCHEDULE, decoder=Categorical(256), draws=8)


def test_fault_14_dequantised_data_for_levels_and_levels_for_a_density() -> None:
    with assert_refused_with(
        TypeError,
        "Categorical.encode: data must be integer levels .. dequantised or "
        "scaled data needs a Gaussian decoder",
    ):
        report(images() + 0.5)
    with assert_refused(
        TypeError, "Gaussian.encode", "data", "be real and floating", "encode first"
    ):
        report(images(), Gaussian())


class Broken(nn.Module):
    """NaN at the images that are `value`, at high noise only."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        near = (z[:, :1] > self.value) & (logsnr[:, None] > 5.0)
        return torch.where(near, torch.nan, 0 * z)


@pytest.mark.parametrize("pilot", [8, 8192])  # a pilot of 8 misses it
def test_fault_28_nan_from_the_network_names_the_image_and_the_level(pilot: int) -> None:
    data = torch.zeros(40, 2, dtype=torch.long)
    data[17] = 16
    broken = Denoiser(Broken(0.7), X())
    with pytest.raises(
        ValueError,
        match=(
            r"evaluate: argument 'model' must give a finite bound; got NaN or infinity on image "
            r"17 at λ = [56]\.\d+ \("
        ),
    ):
        evaluate(
            broken,
            data,
            schedule=SCHEDULE,
            decoder=DECODER,
            draws=32,
            plan=VarianceReduction(pilot=pilot),
        )
    with pytest.raises(
        ValueError,
        match=(
            r"compare: argument 'model' must give a finite bound; got "
            r"NaN or infinity on image 17"
        ),
    ):
        compare(
            broken,
            Denoiser(Broken(math.inf), X()),
            data,
            schedule=SCHEDULE,
            decoder=DECODER,
            draws=32,
        )


@pytest.mark.parametrize("word", ["draws", "replicates", "batch", "steps", "budget"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_fault_45_counts(word: str, value: object, error: type[Exception]) -> None:
    with assert_refused(error, "evaluate", word, "be"):
        report(**{word: value})


def test_fault_45_one_step_is_a_chain() -> None:
    assert report(steps=1).protocol["T"] == 1


def test_fault_45_what_an_evaluation_cannot_be() -> None:
    with assert_refused(
        ValueError, "evaluate", "replicates", "be at least 2", "one has no standard error"
    ):
        report(replicates=1)
    with assert_refused_with(
        ValueError,
        "evaluate: tolerance must lie in [1e-12, 1e+12] .. a standard error in bits/dim",
    ):
        report(tolerance=0.0)
    with assert_refused(ValueError, "evaluate", "budget", "come with tolerance"):
        report(budget=100)
    with assert_refused(ValueError, "evaluate", "draws", "be even with antithetic noise", "got 7"):
        report(draws=7, plan=VarianceReduction(antithetic=True))
    with assert_refused(ValueError, "compare", "other", "be another model"):
        one = model()
        compare(one, one, images(), schedule=SCHEDULE, decoder=DECODER)
    for options, words in (
        ({"times": Independent}, ("times", "be a Times", "an instance: Independent()")),
        (
            {"controls": (GaussianError,)},
            ("controls", "be a Control", "an instance: GaussianError()"),
        ),
        ({"importance": 0.5}, ("importance", "be a bool or Schedule")),
    ):
        with assert_refused(TypeError, "VarianceReduction", *words):
            VarianceReduction(**options)  # type: ignore[arg-type]


def test_fault_45_a_tolerance_beyond_the_budget_names_the_budget_that_would_do() -> None:
    setting: dict[str, Any] = {
        "tolerance": 1.0,
        "draws": 16,
        "plan": VarianceReduction(controls=(), antithetic=False),
    }
    with pytest.raises(
        ValueError,
        match=(
            r"'tolerance' must be within reach of budget = 1,000 network evaluations; got 1 "
            r"bits/dim"
        ),
    ) as seen:
        report(budget=1000, **setting)
    named = int(str(seen.value).split("a budget of ")[1].split(" would")[0].replace(",", ""))
    done = report(budget=named, **setting)
    assert done.total.monte_carlo <= 1.0
    evaluations = done.protocol["evaluations"]
    assert isinstance(evaluations, int)
    assert evaluations == named + 8192
    with pytest.raises(ValueError, match="'tolerance' must be within reach"):
        report(budget=named - 1, **setting)


def test_fault_49_an_images_answer_does_not_depend_on_its_batch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*more than uniform noise")  # the model is untrained
        whole = report(batch=4096)
        small = report(batch=8)
    assert small.total.value == pytest.approx(whole.total.value, rel=1e-6)
    assert small.total.monte_carlo == pytest.approx(whole.total.monte_carlo, rel=1e-4)


@pytest.mark.parametrize("word", ["clip", "clip_denoised", "threshold"])
def test_fault_50_a_clipped_prediction_is_another_model(word: str) -> None:
    with assert_refused(
        ValueError, "evaluate", word, "be left out", "a clipped x̂ is another model"
    ):
        report(condition={word: True})


def test_fault_51_the_seed_tells_everything() -> None:
    assert report(seed=3).total == report(seed=3).total
    assert report(seed=3).total.value != report(seed=4).total.value


def test_a_misspelt_word_is_named_and_a_condition_goes_along_with_its_image() -> None:
    with pytest.raises(
        TypeError, match=r"evaluate: argument 'scheduel' is unknown; did you mean 'schedule'\?"
    ):
        evaluate(model(), images(), schedule=SCHEDULE, decoder=DECODER, scheduel=1)
    with pytest.raises(TypeError, match=r"plan: plan=VarianceReduction\(any_order=…\)"):
        evaluate(model(), images(), schedule=SCHEDULE, decoder=DECODER, any_order=False)
    seen = []

    def network(z: Tensor, logsnr: Tensor, *, label: Tensor, scale: float) -> Tensor:
        seen.append((z.shape[0], label, scale))
        return scale * label[:, None] * z

    labels = torch.arange(6)
    outcome = evaluate(
        Denoiser(network, X()),
        images(),
        schedule=SCHEDULE,
        decoder=DECODER,
        draws=8,
        condition={"label": labels, "scale": 0.1},
    )
    assert all(n == len(label) and scale == 0.1 for n, label, scale in seen)
    assert len({tuple(label.tolist()) for _, label, _ in seen}) > 1
    assert outcome.total.value > 0


def test_a_model_in_training_mode_is_evaluated_without_dropout_and_left_as_it_was() -> None:
    noisy = Denoiser(Net(dropout=0.5), X()).train()
    quiet = Denoiser(Net(dropout=0.5), X()).eval()
    outcomes = [
        evaluate(m, images(), schedule=SCHEDULE, decoder=DECODER, draws=8) for m in (noisy, quiet)
    ]
    assert outcomes[0].total == outcomes[1].total
    assert noisy.training
    assert not quiet.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            evaluate(quiet, images(), schedule=SCHEDULE, decoder=DECODER, draws=8).total
            == outcomes[1].total
        )
