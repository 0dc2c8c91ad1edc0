"""What an evaluation says of itself, by hand: its curve, its effective size, and each warning on
both sides of its threshold."""

import math
from dataclasses import replace

import pytest
import torch

from vdiff import Prediction
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import VarianceReduction
from vdiff.likelihood.density import Binned
from vdiff.likelihood.diagnostics import Curve, Diagnostics, examine, warnings_of
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.estimate import RunningMoments
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import PilotFit
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.likelihood.tally import BINS, Tally
from vdiff.oracle import Lattice
from vdiff.parameterization import X
from vdiff.schedule import Linear

ENDS = Linear(8.0, -8.0)
ZERO = torch.zeros(1)
FINE = Diagnostics(
    500.0, 0.01, 1000, Curve(logsnr_max=ZERO, logsnr_min=ZERO, value=ZERO, error=ZERO)
)  # gives no warning


def lattice(decoder=None) -> Lattice:
    decoder = decoder or Categorical(levels=2)
    return Lattice(decoder.level_values, [1 / decoder.levels] * decoder.levels)


def run_of(data, decoder=None, model=None, draws=4) -> Evaluation:
    decoder = decoder or Categorical(levels=2)
    integrand = Integrand(model or lattice(), data, ENDS, decoder)
    return Evaluation(integrand, VarianceReduction.plain(), Budget(draws=draws, replicates=2))


@pytest.fixture
def run():
    return run_of(torch.tensor([[0], [1]]))


def said(run, seen=FINE, found=None):
    return warnings_of(run, found or Tally.empty(run.images), seen)


def test_the_diagnostics_of_draws_by_hand(run):
    """Two images of three replicates with four draws."""
    found = Tally.empty(2)
    found.terms.count += 3
    found.weights = torch.tensor([[6.0, 12.0, 3.0], [4.0, 8.0, 2.0]], dtype=torch.float64)
    found.curve[0, 0], found.curve[1, 0], found.curve[1, BINS - 1] = 24.0, 72.0, -12.0
    seen = examine(run, found)
    assert seen.draws == 2 * 3 * 4
    assert seen.effective == pytest.approx((6 + 4) ** 2 / (12 + 8))
    assert seen.largest == pytest.approx(3 / (6 + 4))
    bits = 1 / math.log(2)  # of one dimension
    assert seen.curve.value[-1].item() == pytest.approx(
        (24 / 12 + 72 / 12) / 2 * bits
    )  # the first times are the highest λ
    assert seen.curve.error[-1].item() == pytest.approx(
        abs(24 / 12 - 72 / 12) / math.sqrt(2) / math.sqrt(2) * bits
    )
    assert seen.curve.value[0].item() == pytest.approx(-12 / 12 / 2 * bits)
    assert not seen.curve.value[1:-1].any()
    edges = torch.linspace(-8, 8, BINS + 1, dtype=torch.float64)
    torch.testing.assert_close(seen.curve.logsnr_min, edges[:-1])
    torch.testing.assert_close(seen.curve.logsnr_max, edges[1:])


def test_the_effective_size_has_no_unit(run):
    found = Tally.empty(2)
    found.terms.count += 3
    found.weights = 1e-3 * torch.tensor([[6.0, 12e-3, 3.0], [4.0, 8e-3, 2.0]], dtype=torch.float64)
    seen = examine(run, found)
    assert seen.effective == pytest.approx(5)
    assert seen.largest == pytest.approx(0.3)


def test_shares_of_a_curve_add_up_to_one():
    zero, value = torch.zeros(3), torch.tensor([1.0, 5.0, 2.0])
    curve = Curve(logsnr_max=zero, logsnr_min=zero, value=value, error=zero)
    assert curve.shares.tolist() == [0.125, 0.625, 0.25]


def test_equal_models_differ_by_nothing_with_all_draws_even(run):
    found = Tally.empty(2)
    found.terms.count += 3
    seen = examine(run, found)
    assert (seen.effective, seen.largest, seen.draws) == (24, 0.0, 24)


def test_one_image_has_a_curve_without_errors():
    run = run_of(torch.tensor([[1]]))
    found = Tally.empty(1)
    found.terms.count += 1
    seen = examine(run, found)
    assert seen.curve.error.isnan().all()
    assert len(seen.curve.error) == len(seen.curve.value) == BINS


@pytest.mark.parametrize(("draws", "limit"), [(1000, 20.0), (100, 10.0)])
def test_few_effective_draws_are_fewer_than_twenty_or_a_tenth(run, draws, limit):
    assert not said(run, replace(FINE, draws=draws, effective=limit + 0.1))
    assert said(run, replace(FINE, draws=draws, effective=limit - 0.1)) == [
        f"{draws} draws are worth {limit:.0f}: a few of them carry the integral, "
        "so that its error is not known"
    ]


def test_one_draw_is_large_above_a_tenth(run):
    assert not said(run, replace(FINE, largest=0.099))
    assert said(run, replace(FINE, largest=0.13)) == [
        "one draw of 1000 makes 13% of the diffusion term"
    ]


def reaching(run, heights, left=None):
    """A run whose pilot saw `left` by bin, and whose density has these heights."""
    left = torch.ones(8, dtype=torch.float64) if left is None else left
    run.fitted = PilotFit(
        run.plan,
        density=Binned(torch.tensor(heights, dtype=torch.float64)),
        left=left,
        evaluations=100,
    )
    return run


def test_a_part_that_the_density_hardly_visits_is_told_of(run):
    """Two of eight bins with a share of the draws below a twentieth of the eighth that they should
    have, and below 30 draws."""
    low = 6 * 0.005 / (1 - 2 * 0.005)  # the height that gets 0.005 of the draws
    thin = reaching(run, [1.0, 1, 1, 1, 1, low, low, 1])
    text = (
        "the density sends {} of {} draws to λ between -6.0 and -2.0, where the pilot found 25% "
        "of the variance: the bound may come out too good, and its error too small"
    )
    for draws in (1000, 5000):
        assert said(thin, replace(FINE, draws=draws)) == [text.format(round(0.01 * draws), draws)]
    assert not said(thin, replace(FINE, draws=10_000))  # 50 draws a bin
    assert not said(
        reaching(run, [1.0, 1, 1, 1, 1, 1.4 * low, 1.4 * low, 1])
    )  # 0.007 of them, more than 0.05/8


def test_a_part_below_a_hundredth_of_the_variance_may_be_missed(run):
    """By bin the best density is √ of the smoothed variance: √v at the last two of eight, and at
    the two before by the smoothing."""
    for share in (0.009, 0.011):
        root = (
            share * (4 + math.sqrt(0.75) + math.sqrt(0.25)) / (1 - 2 * share)
        )  # nearly, for a small v
        left = torch.tensor([1.0] * 4 + [root**2] * 4, dtype=torch.float64)
        seen = said(reaching(run, [1.0, 1, 1, 1, 1, 1, 1e-6, 1e-6], left))
        assert len(seen) == (share > 0.01)
        assert all(
            "to λ between -8.0 and -4.0, where the pilot found 2% of" in one for one in seen
        )


def test_nothing_is_said_of_the_reach_without_a_pilot_or_a_variance(run):
    thin = reaching(run, [1.0, 1, 1, 1, 1, 1, 1e-6, 1e-6])
    assert said(thin)
    thin.fitted = replace(
        thin.fitted, left=torch.ones(8, dtype=torch.float64) / 8
    )  # whatever their sum
    assert said(thin)
    thin.fitted = replace(thin.fitted, left=torch.zeros(8, dtype=torch.float64))
    assert not said(thin)
    thin.fitted = replace(thin.fitted, left=torch.ones(8, dtype=torch.float64), evaluations=0)
    assert not said(thin)


def test_levels_are_missed_below_the_middle_by_a_thousand_values():
    def told(top, values=1000):
        return said(
            run_of(
                torch.full((values // 4, 4), top),
                Categorical(256),
                lambda z, logsnr: Prediction(z, logsnr, 0 * z, X()),
            )
        )

    assert told(127) == [
        "the data has no level above 127 of 255: digits have 17 levels, "
        "bytes 256; is levels=256 right?"
    ]
    assert not told(128)
    assert not told(127, 996)


def test_images_run_from_minus_one_to_one():
    def told(low, high, shape=(2, 1, 2)):
        data = torch.zeros(shape)
        data.view(-1)[0], data.view(-1)[1] = low, high
        return said(run_of(data, Gaussian(), lambda z, logsnr: Prediction(z, logsnr, 0 * z, X())))

    assert not told(-1.0009, 1.0009)
    assert told(-1.002, 1.0) == [
        "the images run from -1.002 to 1, outside [−1, 1]: "
        "2 x/(levels − 1) − 1 brings levels there"
    ]
    assert told(-1.0, 1.002) == [
        "the images run from -1 to 1.002, outside [−1, 1]: "
        "2 x/(levels − 1) − 1 brings levels there"
    ]
    assert not told(-5.0, 5.0, (2, 2))  # points have no range


def test_a_total_above_uniform_noise_is_told_of():
    data = torch.tensor([[0, 1], [1, 3], [2, 2]])

    def told(bits, integrand):
        run = Evaluation(integrand, VarianceReduction.plain(), Budget(draws=2, replicates=2))
        found = Tally.empty(3)
        found.terms.mean[3] = (
            torch.tensor([0.5, 1.0, 1.5]) * bits * 2 * math.log(2)
        )  # nats of two dimensions
        return said(run, found=found)

    def model(z, logsnr):
        return Prediction(z, logsnr, 0 * z, X())

    def other(z, logsnr):
        return Prediction(z, logsnr, 0 * z, X())

    for decoder in (Categorical(4), DiscretizedGaussian(4)):
        assert not told(1.99, Integrand(model, data, ENDS, decoder))
        assert not told(2.0001, Integrand(model, data, ENDS, decoder))  # uniform, and its ends
        (text,) = told(2.01, Integrand(model, data, ENDS, decoder))
        assert text.startswith(
            "2.01 bits/dim is more than uniform noise over 4 levels has, 2: is the model trained, "
        )
    assert not told(2.01, Difference(model, other, data, ENDS, Categorical(4)))
    assert not told(2.01, Integrand(model, data.float() / 3, ENDS, Gaussian()))


def test_rounding_at_the_clean_end_is_told_of_each_model():
    """x̂ in float32 leaves ε̂ an error of 2⁻²³ e^{λ/2}, a thousandth at λ = 18.07."""

    def model(z, logsnr):
        return Prediction(z, logsnr, 0 * z, X())

    def told(top, **options):
        run = run_of(torch.tensor([[0], [1]]), model=model)
        run.integrand = Difference(
            model,
            lambda z, logsnr: model(z, logsnr),
            run.integrand.data,
            Linear(top, -8.0),
            Categorical(2),
        )
        run.integrand(torch.tensor([0]), torch.tensor([0.5]), torch.zeros(1, 1, **options))
        return said(run)

    assert not told(18.0)
    text = (
        "X() at λ = 18.2 leaves ε̂ with an error of 0.001 by rounding in float32: the bound comes "
        "out too large; predict v, or evaluate in float64"
    )
    assert told(18.2) == [text, text]


@pytest.mark.parametrize("grew", [1.9, 2.1])
def test_a_variance_that_doubles_after_the_first_stage_is_told_of(run, grew):
    """Four replicates of a first stage of three: by image, variances that sum to 2 at first and to
    2 · grew at the end."""
    found = Tally.empty(2)

    def tally(replicates, variances):
        spread = torch.zeros(4, 2, dtype=torch.float64)
        spread[:3], spread[3] = 7.0, torch.tensor(variances) * (replicates - 1)
        return RunningMoments(
            torch.full((1, 2), float(replicates), dtype=torch.float64),
            torch.zeros(4, 2, dtype=torch.float64),
            spread,
        )

    found.first, found.terms = tally(3, [0.5, 1.5]), tally(4, [1.5 * grew, 0.5 * grew])
    text = (
        f"the variance grew {grew:.1f} times after the first stage, on which the error rests: "
        "raise replicates"
    )
    assert said(run, found=found) == ([text] if grew > 2 else [])
    found.terms = tally(3, [1.5 * grew, 0.5 * grew])  # no second stage
    assert not said(run, found=found)
