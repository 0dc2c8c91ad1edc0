"""Diffusion over tokens at independent numbers, pointwise: `discrete.json` has the bounds of every
value of two small distributions under masks, and of a third one under masks, uniform tokens and a
hybrid, for exact conditionals."""

import math

import pytest
import torch
from registry import PROCESSES
from tokens import (
    NUMBERS,
    Conditionals,
    distribution,
    every_z,
    expected_loss,
    gauss,
    pairs,
)

from vdiff.denoiser import logsnr_time
from vdiff.discrete import LeaveOneOut, Masked, Posterior, TokenDenoiser
from vdiff.schedule import Linear, Truncated
from vdiff.schedule.law import Logistic
from vdiff.weighting import Sigmoid

MASKED = {"masked_K3_L3": 3, "masked_K2_L5": 2}
FAR = 26.0  # (1 − α) is 5e-12 there


def exact(name):
    """The exact conditionals as a model, and every x."""
    log_p, x = distribution(name)
    process = Masked(MASKED[name])
    return TokenDenoiser(Conditionals(log_p, x, process), process), x


def numbers(name, key):
    return torch.tensor([record[key] for record in NUMBERS[name]], dtype=torch.float64)


def linear_alpha(high=FAR, low=-FAR):
    """α = 1 − t."""
    return Truncated(Logistic(scale=1.0), high, low)


@pytest.mark.parametrize("name", MASKED)
def test_masked_bound_in_continuous_time_is_minus_log_p(name):
    model, x = exact(name)
    bound = expected_loss(model, x, Linear(FAR, -FAR), *gauss(160))
    for key in "minus_log_p", "continuous", "any_order":
        torch.testing.assert_close(bound, numbers(name, key), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MASKED)
def test_masked_bound_that_is_cut_at_t_one_tenth_loses_nats(name):
    model, x = exact(name)
    cut = Linear(math.log(9.0), -FAR)
    bound = expected_loss(model, x, cut, *gauss(160))
    torch.testing.assert_close(bound, numbers(name, "truncated_t_from_0_1"), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MASKED)
def test_masked_loss_with_a_weighting(name):
    model, x = exact(name)
    loss = expected_loss(model, x, Linear(FAR, -FAR), *gauss(160), weighting=Sigmoid(2.0))
    torch.testing.assert_close(loss, numbers(name, "sigmoid_2"), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64, 1024])
def test_masked_chain(name, steps):
    model, x = exact(name)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    bound = expected_loss(
        model, x, linear_alpha(), t, t.new_full((steps,), 1 / steps), None, steps
    )
    expected = torch.tensor([r["L_T"][str(steps)] for r in NUMBERS[name]], dtype=torch.float64)
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MASKED)
def test_masked_terms_by_how_many_are_masked(name):
    model, x = exact(name)
    rows, z = every_z(model.process, x)
    at = Linear(FAR, -FAR).at(torch.full((len(z),), 0.5, dtype=torch.float64))
    terms = model(z, at.logsnr).loss(x[rows], None, at) / (at.logsnr.sigmoid() * at.rate)
    hidden = (z == model.process.mask).sum(1)
    any_order = torch.zeros(len(x), dtype=torch.float64)
    for k in range(1, x.shape[1] + 1):
        of_k = hidden == k
        sums = torch.zeros(len(x), dtype=torch.float64).index_add(0, rows[of_k], terms[of_k])
        means = sums / math.comb(x.shape[1], k)
        expected = [r["by_masked"][str(k)] for r in NUMBERS[name]]
        torch.testing.assert_close(means, torch.tensor(expected).double(), rtol=0, atol=1e-8)
        any_order += means / k
    torch.testing.assert_close(any_order, numbers(name, "any_order"), rtol=0, atol=1e-8)


def hybrid_record(kind, posterior):
    (found,) = (r for r in NUMBERS["hybrids"] if (r["kind"], r["posterior"]) == (kind, posterior))
    return torch.tensor(list(found["bound"].values()), dtype=torch.float64)


def of_pairs(kind, network_leaves_out, parameterization):
    log_p, x = pairs()
    process = PROCESSES[kind]()
    network = Conditionals(log_p, x, process, leave_one_out=network_leaves_out)
    return TokenDenoiser(network, process, parameterization, time=logsnr_time), x


BOUND = Linear(26.0, -18.0), *gauss(240)  # the ends of the records


@pytest.mark.parametrize("leaves_out", [True, False], ids=["leave-one-out", "posterior"])
@pytest.mark.parametrize("kind", ["uniform", "mask", "hybrid"])
def test_hybrid_bound_is_minus_log_p_from_either_posterior(kind, leaves_out):
    says = LeaveOneOut() if leaves_out else Posterior()
    model, x = of_pairs(kind, leaves_out, says)
    bound = expected_loss(model, x, *BOUND)
    torch.testing.assert_close(bound, hybrid_record(kind, "loo"), rtol=0, atol=1e-7)
    torch.testing.assert_close(bound, -pairs()[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["uniform", "mask", "hybrid"])
def test_ordinary_posterior_that_is_taken_for_leave_one_out(kind):
    model, x = of_pairs(kind, False, LeaveOneOut())
    bound = expected_loss(model, x, *BOUND)
    torch.testing.assert_close(bound, hybrid_record(kind, "ordinary"), rtol=0, atol=1e-7)
    excess = (pairs()[0].exp() * (bound + pairs()[0])).sum()
    expected = {"uniform": 0.95166, "mask": 0.0, "hybrid": 0.76738}[kind]
    torch.testing.assert_close(excess.item(), expected, rtol=0, atol=1e-5)
