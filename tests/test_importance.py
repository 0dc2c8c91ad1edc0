"""Whole paths as importance weights: exact log p of a chain, bounds above it that tighten, errors
that hold."""

import itertools
import math

import pytest
import torch
from registry import ORACLES

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood.importance import (
    ImportanceBound,
    chain_log_prob,
    importance_weighted,
    path_importance,
)
from vdiff.likelihood.replicated import Replicated
from vdiff.schedule import Linear

MIXTURE = ORACLES["mixture"]()
CHAIN = {"schedule": Linear(6.0, -5.0), "decoder": GaussianDecoder()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_bound_falls_with_k_towards_the_exact_log_p_and_not_below():
    x = torch.tensor([[-0.9]], dtype=torch.float64).expand(400, 1)
    truth = -chain_log_prob(MIXTURE, x[:1], steps=8, **CHAIN).item()
    means = []
    for k in (1, 4, 64):
        found = path_importance(MIXTURE, x, steps=8, samples=k, seed=k, **CHAIN)
        assert found.mean > truth - 4 * found.mean_error
        assert found.samples == k
        assert found.evaluations.eq(2 * k * 8).all()
        means.append((found.mean, found.mean_error))
    for (first, error), (second, other) in itertools.pairwise(means):
        assert second < first - 4 * math.hypot(error, other)
    assert means[-1][0] < truth + 0.1


def test_one_sample_is_the_bound_itself():
    x = MIXTURE.sample(300, generator())
    found = path_importance(MIXTURE, x, steps=4, samples=1, seed=1, **CHAIN)
    path = path_bound(
        MIXTURE, x.repeat(20, 1), steps=4, generator=generator(2), **CHAIN
    ).log_ratio.view(20, 300)
    assert torch.equal(found.nats, found.elbo)
    assert abs(found.mean - path.mean()) < 4 * math.hypot(
        found.mean_error, (path.var(0).sum() / 20).sqrt().item() / 300
    )
    assert found.effective_sample_size.eq(1).all()
    assert found.dominated.all()


def test_examples_keep_their_weights_to_themselves_in_any_batch():
    x = torch.tensor([[-1.0], [0.5], [1.0]], dtype=torch.float64)
    truth = -chain_log_prob(MIXTURE, x, steps=4, **CHAIN)
    for batch in (999, 100_000):
        found = path_importance(
            MIXTURE, x, steps=4, samples=1000, replicates=4, batch=batch, seed=3, **CHAIN
        )
        assert ((found.nats - truth).abs() < 0.05 + 4 * found.standard_error).all()


def test_the_effective_sample_size_and_the_largest_weight():
    log_w = (
        torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
        .view(1, 4, 1)
        .expand(2, 4, 1)
    )
    found = ImportanceBound.of(log_w, 1, torch.tensor([8]))
    assert found.effective_sample_size.item() == pytest.approx(2.0)
    assert found.largest_weight.item() == pytest.approx(0.5)
    assert found.nats.item() == pytest.approx(math.log(2.0))
    assert torch.equal(found.replicates, -importance_weighted(log_w))
    assert found.samples == 4


def test_the_largest_weight_is_the_mean_over_replicates():
    log_w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(5.0), 0.0, 0.0, 0.0]])[
        ..., None
    ].double()
    found = ImportanceBound.of(log_w, 1, torch.tensor([8]))
    assert found.largest_weight.item() == pytest.approx((1 / 4 + 5 / 8) / 2)
    assert found.effective_sample_size.item() == pytest.approx((4 + 64 / 28) / 2)


def test_the_exact_log_p_is_normalised_and_needs_one_dimension():
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    for steps in (1, 4):
        assert chain_log_prob(
            MIXTURE, x, steps=steps, **CHAIN
        ).exp().sum().item() * 0.02 == pytest.approx(1.0, abs=2e-3)
    with pytest.raises(ValueError, match=r"argument 'x' must have shape \(n, 1\)"):
        chain_log_prob(MIXTURE, torch.zeros(2, 3), steps=2, **CHAIN)


def test_replicates_make_the_errors():
    values = (
        torch.randn(5, 4000, generator=generator(), dtype=torch.float64) + torch.arange(4000) % 7
    )
    estimate = Replicated(values, 3, torch.ones(4000))
    assert estimate.mean_error == pytest.approx(1 / 20_000**0.5, rel=0.05)  # of 20,000 draws
    assert estimate.spread_error == pytest.approx(math.sqrt((4 + 1 / 5) / 4000), rel=0.05)
    assert estimate.bits_per_dim.mean().item() == pytest.approx(estimate.mean / (3 * math.log(2)))
    one = Replicated(values[:1, :1], 3, torch.ones(1))
    assert math.isnan(one.mean_error)
    assert math.isnan(one.spread_error)
    assert Replicated(values[:1], 3, torch.ones(1), exact=True).mean_error == 0


def test_the_errors_of_two_examples_in_closed_form():
    """Means 2 and 5 of three replicates with variances 1 and 4, in three dimensions."""
    found = Replicated(
        torch.tensor([[1.0, 3.0], [2.0, 5.0], [3.0, 7.0]]).double(), 3, torch.ones(2)
    )
    assert found.standard_error.tolist() == pytest.approx([1 / 3**0.5, 2 / 3**0.5])
    assert found.mean == pytest.approx(3.5)
    assert found.mean_error == pytest.approx((5 / 3) ** 0.5 / 2)
    assert found.spread_error == pytest.approx(1.5)  # √(4.5/2)
    bits = 3 * math.log(2)
    assert found.estimate.value == pytest.approx(3.5 / bits)
    assert found.estimate.monte_carlo == pytest.approx((5 / 3) ** 0.5 / 2 / bits)
    assert found.estimate.images == pytest.approx(1.5 / bits)
    assert found.estimate.freedom == pytest.approx(2 * (1 + 4) ** 2 / (1 + 16))  # Satterthwaite's
    assert found.estimate.count == 2
    single = Replicated(found.replicates[:1], 3, torch.ones(2))
    assert single.standard_error.shape == (2,)
    assert single.standard_error.isnan().all()
    assert Replicated(found.replicates[:, :1], 3, torch.ones(1)).estimate.images is None
    exact = Replicated(found.replicates[:1], 3, torch.ones(2), exact=True)
    assert exact.standard_error.tolist() == [0.0, 0.0]
    assert exact.estimate.freedom is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"samples": 0}, "'samples' must be at least 1"),
        ({"replicates": 1}, "'replicates' must be at least 2"),
    ],
)
def test_bad_arguments_are_named(change, text):
    with pytest.raises(ValueError, match=text):
        path_importance(MIXTURE, torch.zeros(1, 1), steps=2, **({"samples": 2} | change), **CHAIN)
