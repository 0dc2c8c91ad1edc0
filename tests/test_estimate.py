"""Estimates: intervals, tallies, and how many replicates a tolerance takes."""

import math

import pytest
import torch
from scipy import stats

from vdiff.likelihood import Estimate
from vdiff.likelihood.estimate import RunningMoments, mean_error, replicates_for, student_t


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [1.0, 2.5, 7.0, 60.0, 199.0, 201.0, 1e5])
def test_student_t(confidence, freedom):
    assert student_t(confidence, freedom) == pytest.approx(
        stats.t.ppf(0.5 + confidence / 2, freedom), rel=2e-6
    )


def test_student_t_of_many_degrees_of_freedom_is_the_normals_with_two_corrections():
    """The next term of Cornish and Fisher's series, (3z⁷ + 19z⁵ + 17z³ − 15z)/(384 ν³), is 2.6e-9
    here."""
    assert student_t(0.95, 1000) == pytest.approx(stats.t.ppf(0.975, 1000), abs=5e-9)
    assert student_t(0.95, 200) == pytest.approx(stats.t.ppf(0.975, 200), abs=5e-7)
    assert student_t(0.95, 1000.0) - student_t(0.95, math.inf) == pytest.approx(
        stats.t.ppf(0.975, 1000) - stats.norm.ppf(0.975), abs=5e-9
    )


def test_student_t_of_a_confidence_below_the_grids_first_place():
    """The grid of angles has steps of 1/200,000 of a right angle: with one degree of freedom as
    much of the mass."""
    for share in (0.2, 0.9):
        assert student_t(share / 200_000, 1) == pytest.approx(
            math.tan(share / 200_000 * math.pi / 2), rel=1e-6
        )
        assert student_t(share / 200_000, 4) == pytest.approx(
            share / 200_000 / (2 * 3 / 8), rel=1e-6
        )  # the density at 0


def test_a_tally_is_the_mean_and_the_spread_of_what_was_added():
    values = (
        torch.randn(7, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    )
    tally = RunningMoments.empty(2, 5)
    for replicate in values:
        for rows in (torch.tensor([0, 3]), torch.tensor([1, 2, 4])):
            tally.add(rows, replicate[:, rows])
    torch.testing.assert_close(tally.mean, values.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(tally.variances(), values.var(0), rtol=1e-9, atol=0)
    first, second = tally.estimates(scale=2.0)
    assert second.value == pytest.approx(2 * values[:, 1].mean().item(), rel=1e-14)
    assert first.monte_carlo == pytest.approx(
        2 * math.sqrt(values[:, 0].var(0).sum() / 7) / 5, rel=1e-9
    )
    assert first.images == pytest.approx(
        2 * values[:, 0].mean(0).std().item() / math.sqrt(5), rel=1e-6
    )
    variances = values[:, 0].var(
        0
    )  # Satterthwaite's lies between one image's six and all images' thirty
    assert first.freedom == pytest.approx(
        6 * (variances.sum() ** 2 / variances.square().sum()).item(), rel=1e-6
    )
    assert 6 < first.freedom < 30


def test_a_constant_part_has_no_error_at_all():
    tally = RunningMoments.empty(1, 3)
    for _ in range(4):
        tally.add(torch.arange(3), torch.full((1, 3), 0.1, dtype=torch.float64))
    (part,) = tally.estimates(1.0)
    assert (part.monte_carlo, part.freedom) == (0.0, None)
    assert part.images == pytest.approx(0.0, abs=1e-16)
    assert part.interval() == (part.value, part.value)


def test_one_image_has_no_error_over_images():
    tally = RunningMoments.empty(1, 1)
    for value in (1.0, 2.0):
        tally.add(torch.tensor([0]), torch.tensor([[value]], dtype=torch.float64))
    (part,) = tally.estimates(1.0)
    assert part.images is None
    assert str(part) == "1.5000 ± 0.5000 (Monte Carlo), one image"
    with pytest.raises(ValueError, match="'over_images' must be False for a single image"):
        part.interval(over_images=True)


def test_intervals_by_either_error():
    estimate = Estimate(1.0, 0.1, 0.2, freedom=3, count=11)
    for over_images, error, freedom in ((False, 0.1, 3), (True, 0.2, 10)):
        low, high = estimate.interval(0.9, over_images=over_images)
        assert (
            high - 1 == pytest.approx(1 - low) == pytest.approx(error * stats.t.ppf(0.95, freedom))
        )
    with pytest.raises(
        ValueError, match=r"'confidence' must lie in \(0, 1\); got 95 \(0.95 for 95 %\)"
    ):
        estimate.interval(95)
    with pytest.raises(ValueError, match=r"got 1 \(0.95 for 95 %\)"):
        estimate.interval(1.0)
    for confidence in (0.0, -0.5):
        with pytest.raises(
            ValueError, match=rf"'confidence' must lie in \(0, 1\); got {confidence:g} "
        ):
            estimate.interval(confidence)


def test_an_error_with_no_degrees_of_freedom_has_the_normals_interval():
    known = Estimate(1.0, 0.1, 0.2)
    for over_images, error in ((False, 0.1), (True, 0.2)):
        assert known.interval(0.95, over_images=over_images)[1] - 1 == pytest.approx(
            error * stats.norm.ppf(0.975), rel=1e-9
        )


def test_after_a_second_stage_the_error_rests_on_the_firsts_variance():
    """Two images with variances 2 and 8 of the first stage's two replicates; four replicates in
    all, whatever their own spread."""
    first, whole = RunningMoments.empty(1, 2), RunningMoments.empty(1, 2)
    for i, (one, other) in enumerate(((1.0, 3.0), (3.0, 7.0), (2.0, 5.0), (2.0, 5.0))):
        for tally in (first, whole) if i < 2 else (whole,):
            tally.add(torch.arange(2), torch.tensor([[one, other]], dtype=torch.float64))
    (found,) = whole.estimates(10.0, first)
    assert found.value == pytest.approx(10 * (2 + 5) / 2)
    assert found.monte_carlo == pytest.approx(10 * math.sqrt((2 + 8) / 4) / 2)
    assert found.freedom == pytest.approx((2 + 8) ** 2 / (2**2 + 8**2))
    assert found.images == pytest.approx(10 * (5 - 2) / math.sqrt(2) / math.sqrt(2))
    assert found.count == 2
    (alone,) = whole.estimates(10.0)
    assert alone.monte_carlo == pytest.approx(10 * math.sqrt((2 + 8) / 3 / 4) / 2)
    assert alone.freedom == pytest.approx(3 * (2 + 8) ** 2 / (2**2 + 8**2))


def test_the_slowest_image_says_how_many_replicates_there_are():
    tally = RunningMoments.empty(2, 3)
    for rows in ([0, 1, 2], [0, 2], [0]):
        tally.add(torch.tensor(rows), torch.ones(2, len(rows), dtype=torch.float64))
    assert tally.replicates == 1


def test_replicates_for_a_tolerance_reach_it_and_one_less_does_not():
    variances = torch.tensor([3.0, 0.5, 1.7])
    for tolerance in (0.3, 0.05):
        n = int(replicates_for(tolerance, variances))
        assert mean_error(variances, n, 9)[0] <= tolerance < mean_error(variances, n - 1, 9)[0]
