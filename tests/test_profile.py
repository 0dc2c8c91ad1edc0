"""The running moments against NumPy's."""

import numpy as np
import pytest
import torch

from vdiff.gaussian import diffuse
from vdiff.oracle import Gaussian
from vdiff.profile import Profile
from vdiff.schedule import Cosine


def observations(n: int = 5000):
    generator = np.random.default_rng(0)
    lam = generator.normal(0, 3, n)
    return lam, generator.gamma(2.0, 1 + 1 / (1 + np.exp(-lam)))


def by_bin(lam, value, low, high, bins):
    index = np.clip(np.floor((lam - low) / (high - low) * bins).astype(int), 0, bins - 1)
    return [value[index == i] for i in range(bins)]


def test_moments_and_errors_are_numpys():
    lam, value = observations()
    profile = Profile(logsnr_max=4.0, logsnr_min=-5.0, bins=9)
    for part in np.array_split(np.arange(len(lam)), 7):
        profile.update(torch.from_numpy(lam[part]), torch.from_numpy(value[part]))
    groups = by_bin(lam, value, -5.0, 4.0, 9)
    np.testing.assert_array_equal(profile.count.numpy(), [len(g) for g in groups])
    np.testing.assert_allclose(profile.mean.numpy(), [g.mean() for g in groups], rtol=1e-12)
    np.testing.assert_allclose(
        profile.second_moment.numpy(), [(g**2).mean() for g in groups], rtol=1e-12
    )
    np.testing.assert_allclose(
        profile.standard_error.numpy(), [g.std(ddof=1) / len(g) ** 0.5 for g in groups], rtol=1e-10
    )
    np.testing.assert_allclose(profile.centers.numpy(), -4.5 + np.arange(9), rtol=1e-12)


def test_merging_is_seeing_both():
    lam, value = (torch.from_numpy(a) for a in observations())
    whole, left, right = (Profile(logsnr_max=6.0, logsnr_min=-6.0, bins=12) for _ in range(3))
    whole.update(lam, value)
    left.update(lam[:1000], value[:1000])
    right.update(lam[1000:], value[1000:])
    left.merge(right)
    torch.testing.assert_close(left.sums, whole.sums)
    with pytest.raises(
        ValueError, match=r"Profile\.merge: argument 'other' must have the same bins"
    ):
        left.merge(Profile(logsnr_max=6.0, logsnr_min=-6.0, bins=13))


def test_what_falls_outside_is_counted_at_the_ends():
    profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=4)
    profile.update(torch.tensor([-9.0, -1.2, 1.0, 50.0]), torch.tensor([1.0, 3.0, 5.0, 9.0]))
    assert profile.count.tolist() == [2, 0, 0, 2]
    assert profile.mean[[0, 3]].tolist() == [2.0, 7.0]
    assert torch.isnan(profile.mean[1])
    assert torch.isnan(profile.standard_error[1])


def test_a_state_dict_restores_it_and_gradients_do_not_follow():
    profile, value = (
        Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2),
        torch.tensor([2.0, 4.0], requires_grad=True),
    )
    profile.update(torch.tensor([-0.5, 0.5]), value)
    restored = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
    restored.load_state_dict(profile.state_dict())
    assert restored.mean.tolist() == [2.0, 4.0]
    assert not profile.sums.requires_grad


def test_it_measures_the_error_by_noise_level():
    oracle, generator = Gaussian([0.3, -0.2], [0.25, 4.0]), torch.Generator().manual_seed(0)
    profile, n = Profile(logsnr_max=8.0, logsnr_min=-8.0, bins=8), 40_000
    x, eps = (
        oracle.sample(n, generator),
        torch.randn(n, 2, dtype=torch.float64, generator=generator),
    )
    logsnr = Cosine(8.0, -8.0)(torch.rand(n, dtype=torch.float64, generator=generator))
    profile.update(logsnr, oracle(diffuse(x, eps, logsnr), logsnr).squared_error(x, eps))
    want = by_bin(logsnr.numpy(), oracle.mmse(logsnr).numpy(), -8.0, 8.0, 8)
    score = (profile.mean.numpy() - [w.mean() for w in want]) / profile.standard_error.numpy()
    assert np.abs(score).max() < 4


def test_the_standard_error_is_that_over_clusters_where_they_are_named():
    """Observations that repeat within a cluster say nothing new: the error is that of the cluster
    means."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(500, generator=generator, dtype=torch.float64)
    logsnr = torch.zeros(500 * 20)
    profile, naive = (
        Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1),
        Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1),
    )
    profile.update(logsnr, means.repeat_interleave(20), torch.arange(500).repeat_interleave(20))
    naive.update(logsnr, means.repeat_interleave(20))
    expected = means.std() / 500**0.5
    assert torch.allclose(profile.standard_error, expected[None], rtol=1e-9)
    assert torch.allclose(naive.standard_error * 20**0.5, expected[None], rtol=2e-3)
    assert torch.allclose(profile.mean, means.mean()[None])


@pytest.mark.parametrize("bins", [1, 2, 3, 5])
def test_between_the_centers_it_is_a_straight_line_and_beyond_them_it_is_constant(bins):
    profile = Profile(logsnr_max=3.0, logsnr_min=-1.0, bins=bins)
    values = np.array([4.0, 1.0, 7.0, 2.0, 11.0])[:bins]
    profile.update(profile.centers, torch.from_numpy(values))
    logsnr = np.linspace(-2.0, 4.0, 241)
    centers = -1.0 + 4.0 * (np.arange(bins) + 0.5) / bins
    np.testing.assert_allclose(
        profile.at(torch.from_numpy(logsnr)).numpy(),
        np.interp(logsnr, centers, values),
        rtol=1e-12,
    )


def test_what_has_faded_counts_as_so_many_observations_in_the_mean_and_its_error():
    """Of weights w: Σ w v/Σ w, and an error from Σ w² (v − mean)²/(Σ w)² as of (Σ w)²/Σ w²
    observations."""
    early, late = np.array([1.0, 4.0, 2.5]), np.array([3.0, 5.0])
    profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
    profile.update(torch.zeros(3), torch.from_numpy(early))
    before = profile.standard_error.item()
    profile.decay(0.25)
    assert profile.standard_error.item() == pytest.approx(
        before
    )  # of what is there nothing was lost
    profile.update(torch.zeros(2), torch.from_numpy(late))
    value, w = np.concatenate([early, late]), np.array([0.25, 0.25, 0.25, 1.0, 1.0])
    mean, number = (w * value).sum() / w.sum(), w.sum() ** 2 / (w**2).sum()
    assert profile.mean.item() == pytest.approx(mean)
    assert profile.second_moment.item() == pytest.approx((w * value**2).sum() / w.sum())
    error = ((w**2 * (value - mean) ** 2).sum() / w.sum() ** 2 * number / (number - 1)) ** 0.5
    assert profile.standard_error.item() == pytest.approx(error)
