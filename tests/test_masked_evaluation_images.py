"""Images without a modelled dimension, and the error of a ratio of sums."""

import math

import numpy as np
import pytest
import torch
from masked_laws import NORMAL, PLAIN, SETTING, SMALL
from scipy import stats

from vdiff.likelihood import evaluate
from vdiff.likelihood.estimate import RunningMoments, spread_error

# a few draws of a density of its own, in small tests
pytestmark = pytest.mark.filterwarnings("ignore:(evaluate|compare). .*draws?")


def test_the_total_is_a_ratio_of_sums_with_the_error_of_a_ratio():
    x = NORMAL.sample(12, 6)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    report = evaluate(NORMAL, x, **SETTING, draws=8, plan=SMALL, mask=mask)
    dims = mask.sum(1).double()
    bits, counted = report.by_image * dims, int((dims > 0).sum())
    ratio = bits.sum() / dims.sum()
    assert report.total.value == pytest.approx(ratio.item(), rel=1e-12)
    residuals = bits - ratio * dims
    error = (residuals.square().sum() * counted / (counted - 1)).sqrt() / dims.sum()
    assert report.total.images == pytest.approx(error.item(), rel=1e-12)
    assert report.total.count == counted
    of_sums = bits.std() / math.sqrt(len(x)) / dims.mean()  # as if all had the same number
    assert abs(error / of_sums - 1) > 0.05
    curve = report.diagnostics.curve
    parts = report.prior, report.diffusion, report.reconstruction
    assert sum(part.value for part in parts) == pytest.approx(report.total.value, rel=1e-9)
    assert curve.value.sum().item() == pytest.approx(report.diffusion.value, rel=1e-9)


def test_the_error_of_a_ratio_is_the_spread_of_ratios_over_sets_of_images():
    """Values that grow with the number of dimensions, which varies by a factor of ten."""
    generator = np.random.default_rng(0)
    sets, n = 2000, 80
    dims = generator.integers(1, 11, (sets, n))
    values = 3.0 * dims + dims * generator.normal(size=(sets, n))
    ratios, errors = [], []
    for d, v in zip(torch.tensor(dims), torch.tensor(values), strict=True):
        moments = RunningMoments.empty(1, n)
        for _ in range(2):
            moments.add(torch.arange(n), v[None])
        (estimate,) = moments.estimates(1 / d.double().mean().item(), dims=d)
        ratios.append(estimate.value)
        errors.append(estimate.images)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.06)
    held = np.abs(np.array(ratios) - 3) < stats.t.ppf(0.975, n - 1) * np.array(errors)
    assert 0.93 < held.mean() < 0.97


def test_an_image_without_a_modelled_dimension_counts_nothing():
    x = NORMAL.sample(9, 7)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[-1] = False
    setting = SETTING | {"draws": 8, "plan": PLAIN}
    found = evaluate(NORMAL, x, **setting, mask=mask)
    fewer = evaluate(NORMAL, x[:-1], **setting, mask=mask[:-1])
    assert found.by_image[-1] == 0
    for name in ("value", "monte_carlo", "images", "freedom", "count"):
        one, other = (getattr(report.total, name) for report in (found, fewer))
        assert one == pytest.approx(other, rel=1e-12)


def test_the_draws_of_an_image_without_a_modelled_dimension_are_zero():
    """Its part of the pilot's baseline too."""
    x, states = NORMAL.sample(5, 16), []
    mask = torch.tensor([True, True, True, False, True])[:, None]
    evaluate(NORMAL, x, **SETTING, draws=4, plan=SMALL, mask=mask, checkpoint=states.append)
    assert not states[-1]["mean"][:, 3].any()
    assert not states[-1]["curve"][3].any()
    assert states[-1]["mean"][1].count_nonzero() == 4


def test_images_without_a_modelled_dimension_cost_nothing_and_spoil_no_fit():
    """The pilot, the density and the controls are those of the other images."""
    x = torch.cat([NORMAL.sample(20, 17), 50.0 + torch.zeros(80, 3, dtype=torch.float64)])
    mask, calls = torch.zeros(100, 3, dtype=torch.bool), []
    mask[:20, :2] = True

    def counting(z, logsnr):
        calls.append(len(z))
        return NORMAL(z, logsnr)

    setting = SETTING | {"draws": 8, "plan": SMALL}
    found, steps = [], []
    for rows in (slice(20), slice(100)):
        calls.clear()
        options = {"mask": mask[rows], "progress": lambda done, total: steps.append((done, total))}
        found.append(evaluate(counting, x[rows], **setting, **options))
        assert steps[-1] == (sum(calls), sum(calls))
    alone, among = found
    assert among.total.value == pytest.approx(alone.total.value, rel=1e-12)
    assert among.total.monte_carlo == pytest.approx(alone.total.monte_carlo, rel=1e-9)
    assert among.protocol["evaluations"] == alone.protocol["evaluations"] == sum(calls)
    assert among.diagnostics.draws == alone.diagnostics.draws
    assert among.diagnostics.effective == pytest.approx(alone.diagnostics.effective, rel=1e-9)


def test_the_error_over_images_does_not_divide_by_images_that_count_nothing():
    nats, dims = torch.tensor([2.0, 5.0, 0.0, 0.0]), torch.tensor([1, 2, 0, 0])
    few = spread_error(nats[:2], dims[:2]) / dims[:2].double().mean()
    assert torch.allclose(spread_error(nats, dims) / dims.double().mean(), few)
