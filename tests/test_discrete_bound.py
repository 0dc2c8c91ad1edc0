"""The bound of tokens: chains, their limit, its ends and ranges that are cut."""

import itertools
import math

import pytest
import torch
from processes import LEVELS, close, each_process, level, marginal, wrong
from registry import PROCESSES, SCHEDULES, corners
from tokens import (
    Conditionals,
    double_exponential,
    every_z,
    expected_loss,
    gauss,
    pairs,
    probability,
)

from vdiff.denoiser import logsnr_time
from vdiff.discrete import LeaveOneOut, Masked, TokenDenoiser
from vdiff.gaussian import Step
from vdiff.schedule import Linear
from vdiff.weighting import Sigmoid


def exact(process, parameterization=None):
    log_p, x = pairs()
    return TokenDenoiser(Conditionals(log_p, x, process), process, time=logsnr_time), x


@each_process
@pytest.mark.parametrize(("v", "delta"), [(-3.0, 1.0), (0.0, 0.3), (2.0, 5.0)])
def test_step_kl_is_that_of_the_posteriors(process, v, delta):
    rows, z = every_z(process, pairs()[1])
    x = pairs()[1][rows]
    possible = probability(process, z, x, level(v)) > 0
    z, x = z[possible], x[possible]
    step = Step(level(v).expand(len(z)), level(delta).expand(len(z)))
    prediction = wrong(process, LeaveOneOut())(z, step.logsnr_t)
    q = process.posterior(z, process.one_hot(x), step)
    p = prediction.reverse(step)
    kl = torch.where(q > -math.inf, q.exp() * (q - p), 0.0).sum(-1)
    close(process.step_kl(prediction.leave_one_out, z, x, step), kl, rtol=1e-9, atol=1e-12)


@each_process
def test_step_over_its_length_tends_to_the_integrand(process):
    z, x = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 1], [1, 2]])
    if isinstance(process, Masked):
        z = torch.tensor([[3, 1], [3, 2]])
    logsnr = torch.tensor([0.3, -1.2], dtype=torch.float64)
    prediction = wrong(process, LeaveOneOut())(z, logsnr)
    limit = process.integrand(prediction.leave_one_out, z, x, logsnr)
    step = Step(logsnr, torch.full_like(logsnr, 1e-6))
    close(
        process.step_kl(prediction.leave_one_out, z, x, step) / 1e-6, limit, rtol=1e-5, atol=1e-8
    )


@each_process
def test_chain_is_above_its_limit_and_tends_to_it(process):
    model, x = exact(process)
    ends = Linear(12.0, -12.0)
    limit = expected_loss(model, x, ends, *gauss(100))
    p = pairs()[0].exp()
    gaps = []
    for steps in 4, 32, 256:
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        chain = expected_loss(model, x, ends, t, torch.full((steps,), 1 / steps), steps=steps)
        gaps.append((p * (chain - limit)).sum().item())
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.02


INVARIANT = ["linear", "cosine", "ot", "sigmoid", "laplace", "table", "spline", "histogram"]


@each_process
@pytest.mark.parametrize("name", [n for n in INVARIANT if n in SCHEDULES])
def test_the_schedule_changes_nothing_but_its_ends(process, name):
    schedule = SCHEDULES[name](9.0, -9.0)
    at = [schedule.logsnr_min, *corners(schedule), schedule.logsnr_max]
    levels = torch.tensor(sorted({round(v, 9) for v in at}), dtype=torch.float64)
    times = schedule.inverse(levels, clamp=True).flip(0).detach().tolist()
    n = 120 if len(times) < 4 else 14
    panels = [double_exponential(a, b, n) for a, b in itertools.pairwise(times) if b > a]
    t, weights = (torch.cat(v) for v in zip(*panels, strict=True))
    model = wrong(process)
    x = pairs()[1][[0, 4, 5]]
    ends = Linear(schedule.logsnr_max, schedule.logsnr_min)
    for weighting in None, Sigmoid(2.0):
        expected = expected_loss(model, x, ends, *gauss(90), weighting=weighting)
        found = expected_loss(model, x, schedule, t, weights, weighting=weighting).detach()
        close(found, expected, rtol=2e-6, atol=0)


@each_process
@pytest.mark.parametrize("v", LEVELS)
def test_ends_in_closed_form(process, v):
    x, logsnr = torch.arange(3)[:, None], level(v)
    law = marginal(process, logsnr)
    start = logsnr.sigmoid() * torch.eye(process.states).double()[:3].mean(0)
    start = start + logsnr.neg().sigmoid() * process.pi(logsnr)[0]
    held = law > 0
    kl = torch.where(held, law * (law / start).log(), 0.0).nan_to_num().sum(1)
    close(process.prior(x, v), kl, rtol=1e-8, atol=1e-13)
    decoder = law / law.sum(0)
    nll = torch.where(held, -law * decoder.log(), 0.0).nan_to_num().sum(1)
    close(process.reconstruction(x, v), nll)


def test_ends_are_sums_over_modelled_tokens():
    x, mask = torch.tensor([[0, 1, 2], [1, 1, 1]]), torch.tensor([[True, False, True]] * 2)
    for process in (make() for make in PROCESSES.values()):
        close(process.prior(x, -2.0, mask), process.prior(x[:, ::2], -2.0))
        close(process.reconstruction(x, 2.0, mask), process.reconstruction(x[:, ::2], 2.0))


@each_process
@pytest.mark.parametrize(("high", "low"), [(2.0, -2.0), (6.0, -1.0), (0.5, -8.0)])
@pytest.mark.parametrize(
    "make", [wrong, lambda process: exact(process)[0]], ids=["wrong", "exact"]
)
def test_a_range_that_is_cut_still_bounds_the_entropy_with_both_ends(process, high, low, make):
    log_p, x = pairs()
    p, entropy = log_p.exp(), -(log_p.exp() * log_p).sum()
    model = make(process)
    between = expected_loss(model, x, Linear(high, low), *gauss(40))
    ends = process.prior(x, low) + process.reconstruction(x, high)
    assert (p * (between + ends)).sum() > entropy
    if make is not wrong:
        assert (p * between).sum() < entropy - 0.01
        rows, z = every_z(process, x)
        prediction = model(z, torch.full((len(z),), high, dtype=torch.float64))
        q = probability(process, z, x[rows], level(high))
        decoded = torch.where(q > 0, -q * prediction.log_prob(x[rows]), 0.0)
        network = torch.zeros(len(x)).double().index_add(0, rows, decoded)
        total = (p * (between + process.prior(x, low) + network)).sum()
        assert entropy < total < (p * (between + ends)).sum() + 1e-12
