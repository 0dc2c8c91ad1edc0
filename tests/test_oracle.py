"""Oracles: a diagonal covariance is a full one without correlations, and a fitted Gaussian has the
moments of its data."""

import torch

from vdiff.gaussian import prior_kl
from vdiff.oracle import Gaussian, GaussianMixture

MEANS, VARIANCES = [[-1.0, 0.5], [0.5, 0.0]], [[0.1, 0.4], [0.3, 0.05]]


def test_a_diagonal_covariance_and_the_same_written_out():
    diagonal = GaussianMixture([0.3, 0.7], MEANS, VARIANCES)
    full = GaussianMixture([0.3, 0.7], MEANS, torch.diag_embed(torch.tensor(VARIANCES)))
    x, logsnr = (
        torch.randn(50, 2, dtype=torch.float64),
        torch.linspace(-8, 8, 50, dtype=torch.float64),
    )
    torch.testing.assert_close(diagonal.log_prob(x), full.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(diagonal(x, logsnr).eps, full(x, logsnr).eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        diagonal.matched().log_prob(x), full.matched().log_prob(x), rtol=1e-6, atol=1e-6
    )
    assert diagonal.axes is None
    assert diagonal.state_dict().keys() == {"weights", "means", "variances"}
    drawn = diagonal.sample(40_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), diagonal.matched().means[0], atol=0.02)
    covariance = (
        diagonal.weights @ diagonal.variances
        + diagonal.weights @ (diagonal.means - drawn.mean(0)).square()
    )
    assert torch.allclose(drawn.var(0), covariance, rtol=0.05)


def test_a_fitted_gaussian_has_the_moments_of_its_data_drawn_towards_their_mean():
    x = (
        torch.randn(500, 1, 3, dtype=torch.float64)
        @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.1]]).double()
        + 2.0
    )
    covariance = x[:, 0].T.cov(correction=0)
    mean = covariance.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    for shrinkage in (0.0, 0.1):
        full, diagonal = (
            Gaussian.fit(x, shrinkage=shrinkage, diagonal=kind) for kind in (False, True)
        )
        target = (1 - shrinkage) * covariance + shrinkage * mean
        assert torch.allclose(full.means[0], x.mean((0, 1)))
        assert torch.allclose(
            full.axes[0] @ torch.diag(full.variances[0]) @ full.axes[0].T, target
        )
        assert torch.allclose(diagonal.variances[0], target.diagonal())
    white = Gaussian.fit(x, shrinkage=0.0).standardized(x[:, 0])
    assert torch.allclose(white.T.cov(correction=0), torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_the_prior_of_an_exact_bound_is_the_mean_of_that_of_its_data():
    oracle = Gaussian([0.5], [2.0])
    x = oracle.sample(200_000, torch.Generator().manual_seed(0))
    prior = prior_kl(x, -1.0)
    bound = oracle.bound(5.0, -1.0)
    assert (bound.prior - prior.mean()).abs() < 4 * prior.std() / len(x) ** 0.5
