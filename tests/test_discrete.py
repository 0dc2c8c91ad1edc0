"""Diffusion over tokens: forward draws, posteriors, the bound's integrand, chains and ends, for
masks, uniform tokens and hybrids."""

import copy
import io
import itertools
import math
from functools import partial

import pytest
import torch
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
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vdiff import weighted_elbo
from vdiff.denoiser import logsnr_time
from vdiff.discrete import (
    Hybrid,
    LeaveOneOut,
    Masked,
    Posterior,
    TokenDenoiser,
    TokenPrediction,
    Uniform,
)
from vdiff.errors import InvalidType, InvalidValue
from vdiff.gaussian import Step
from vdiff.schedule import Linear, LogLinear
from vdiff.weighting import Sigmoid

LEVELS = [-12.0, -3.0, 0.0, 2.0, 9.0]
each_process = pytest.mark.parametrize(
    "process", [make() for make in PROCESSES.values()], ids=list(PROCESSES)
)


def level(v):
    return torch.tensor([v], dtype=torch.float64)


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-10, "atol": 1e-13}))


def wrong_logits(z, logsnr, vocabulary=3):
    """An arbitrary network: it looks at all tokens and at λ."""
    values = torch.arange(vocabulary, dtype=torch.float64)
    rest = (z * torch.tensor([1.3, -0.7])).sum(1)[:, None, None]
    lean = 0.1 * logsnr.double()[:, None, None]
    return torch.sin(rest + values * (1 + z[..., None]) + lean)


def wrong(process, parameterization=None):
    logits = partial(wrong_logits, vocabulary=process.vocabulary)
    return TokenDenoiser(logits, process, parameterization, time=logsnr_time)


def exact(process, parameterization=None):
    log_p, x = pairs()
    return TokenDenoiser(Conditionals(log_p, x, process), process, time=logsnr_time), x


@each_process
@pytest.mark.parametrize("v", LEVELS)
def test_forward_draws_have_the_law_of_the_process(process, v):
    """Exactly: noise on an even grid of cells is in proportion to probabilities."""
    n = 40_000
    noise = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    logsnr = level(v)
    for x in range(3):
        z = process.corrupt(torch.full((1, n), x), noise[None], logsnr)
        share = torch.bincount(z[0], minlength=process.states) / n
        states = torch.arange(process.states)[:, None]
        law = probability(process, states, torch.full_like(states, x), logsnr)
        close(share.double(), law, rtol=0, atol=1.01 / n)


@each_process
def test_a_field_of_levels_draws_each_token_at_its_own(process):
    x, noise = torch.randint(0, 3, (4, 50)), torch.rand(4, 50, dtype=torch.float64)
    field = torch.linspace(-4, 4, 200, dtype=torch.float64).view(4, 50)
    z = process.corrupt(x, noise, field)
    single = [
        process.corrupt(x[i, j].view(1, 1), noise[i, j].view(1, 1), field[i, j].view(1))
        for i in range(4) for j in range(50)
    ]  # fmt: skip
    assert torch.equal(z.flatten(), torch.cat(single).flatten())
    number = torch.linspace(-4, 4, 4, dtype=torch.float64)
    by_number = process.corrupt(x, noise, number)
    assert torch.equal(process.corrupt(x, noise, number[:, None]), by_number)
    assert torch.equal(process.corrupt(x, noise, number[:, None].expand(4, 50)), by_number)


@each_process
@pytest.mark.parametrize("v", LEVELS)
def test_log_likelihood(process, v):
    z = torch.arange(process.states)[None]
    found = process.log_likelihood(z, level(v)).exp()[0]
    for x in range(3):
        states = z.T
        close(found[:, x], probability(process, states, torch.full_like(states, x), level(v)))


def transition(process, low, high):
    """q(z_t | z_s), (s, t), by hand: what is kept, and what is lost is drawn anew."""
    alpha = high.sigmoid(), low.sigmoid()
    pi = process.pi(high)[0], process.pi(low)[0]
    kept = alpha[1] / alpha[0]
    drawn = (1 - alpha[1]) * pi[1] - kept * (1 - alpha[0]) * pi[0]
    return kept * torch.eye(process.states) + drawn


def marginal(process, logsnr):
    """q(z | x), (3, states)."""
    kept = torch.eye(process.states)[:3]
    return logsnr.sigmoid() * kept + logsnr.neg().sigmoid() * process.pi(logsnr)


@each_process
@pytest.mark.parametrize(("v", "delta"), [(-3.0, 1.0), (0.0, 0.3), (2.0, 5.0)])
def test_posterior_is_bayes_rule_of_the_transition(process, v, delta):
    low, high = level(v), level(v + delta)
    step = Step(low, level(delta))
    forward = transition(process, low, high)
    close(forward.sum(1), torch.ones(process.states).double())
    assert (forward > -1e-15).all()
    close(marginal(process, high) @ forward, marginal(process, low))
    for x in range(3):
        joint = marginal(process, high)[x, :, None] * forward  # s, t
        for t in range(process.states):
            if joint[:, t].sum() > 0:
                one_hot = process.one_hot(torch.tensor([[x]]))
                found = process.posterior(torch.tensor([[t]]), one_hot, step).exp()[0, 0]
                close(found, joint[:, t] / joint[:, t].sum())


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


@each_process
@pytest.mark.parametrize("v", LEVELS)
def test_the_two_posteriors_are_one_model(process, v):
    log_p, x = pairs()
    z = torch.tensor(list(itertools.product(range(process.states), repeat=2)))
    logsnr = level(v).expand(len(z))
    left_out = Conditionals(log_p, x, process, leave_one_out=True)(z, logsnr)
    ordinary = Conditionals(log_p, x, process)(z, logsnr)
    a = TokenPrediction(z, logsnr, left_out, process, LeaveOneOut())
    b = TokenPrediction(z, logsnr, ordinary, process, Posterior())
    close(a.posterior.exp(), ordinary.exp(), rtol=1e-8, atol=1e-12)
    close(b.posterior.exp(), ordinary.exp(), rtol=1e-8, atol=1e-12)
    open_ = (process.pi(logsnr)[:, None].expand(*z.shape, -1).gather(-1, z[..., None]) > 0)[..., 0]
    close(b.leave_one_out[open_].exp(), left_out[open_].exp(), rtol=1e-6, atol=1e-9)


def test_masks_carry_over_what_is_unmasked():
    prediction = wrong(Masked(3))(torch.tensor([[3, 1]]), torch.zeros(1))
    close(prediction.posterior[0, 1].exp(), torch.tensor([0.0, 1.0, 0.0]).double())
    assert (prediction.posterior[0, 0] > -math.inf).all()
    p = prediction.reverse(Step(torch.zeros(1), torch.ones(1))).exp()
    close(p[0, 1], torch.tensor([0.0, 1.0, 0.0, 0.0]).double())
    close(p[0, 0, 3].item(), (math.exp(-1) + 1) ** -1 * math.exp(-1) * 2, rtol=1e-6, atol=0)


def test_masks_are_the_hybrid_whose_pi_is_on_the_mask():
    hybrid = Hybrid(3, lambda v: torch.cat([0 * v[..., None].expand(*v.shape, 3),
                                            0 * v[..., None] + 1], -1))  # fmt: skip
    masked, z = Masked(3), torch.tensor([[3, 1], [3, 3], [0, 2]])
    x = torch.tensor([[0, 1], [1, 2], [0, 2]])
    logsnr = torch.tensor([-20.0, 0.5, 12.0], dtype=torch.float64)
    step = Step(logsnr, torch.full_like(logsnr, 0.7))
    for says in Posterior(), LeaveOneOut():
        a, b = wrong(masked, says)(z, logsnr), wrong(hybrid, says)(z, logsnr)
        close(masked.integrand(a.log_probs, z, x, logsnr),
              hybrid.integrand(b.leave_one_out, z, x, logsnr))  # fmt: skip
        close(masked.step_kl(a.log_probs, z, x, step), hybrid.step_kl(b.leave_one_out, z, x, step))
        close(a.reverse(step).exp(), b.reverse(step).exp())
    close(masked.prior(x, -1.0), hybrid.prior(x, -1.0))
    noise = torch.rand(3, 2).double()
    assert torch.equal(masked.corrupt(x, noise, logsnr), hybrid.corrupt(x, noise, logsnr))


@pytest.mark.parametrize("given", [{"uniform": 1.0}, {"vocabulary": 1}])
def test_a_wrong_argument_of_gidd_is_named_as_it_is_called(given):
    with pytest.raises(InvalidValue, match=r"^Hybrid\.gidd: argument "):
        Hybrid.gidd(**{"vocabulary": 3} | given)


def test_gidd_is_the_published_process():
    """arXiv:2503.04482, section 3: α = (1 − t)/C, mask t/C, each of N tokens c/C, c = B √(t(1−t)),
    C = 1 + N c, B = 2 p/(N (1 − p))."""
    n, p = 5, 0.2
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    c = 2 * p / (n * (1 - p)) * (t * (1 - t)).sqrt()
    total = 1 + n * c
    alpha = (1 - t) / total
    found = Hybrid.gidd(n, uniform=p).pi(torch.logit(alpha)) * (1 - alpha)[:, None]
    close(found[:, -1], t / total)
    close(found[:, 0], c / total)


@each_process
@pytest.mark.parametrize("v", [-40.0, -20.0, 20.0, 40.0])
def test_float32_has_no_nan_and_little_error_at_both_ends(process, v):
    rows, z = every_z(process, pairs()[1])
    x, logsnr = pairs()[1][rows], level(v).expand(len(z))
    possible = probability(process, z, x, logsnr) > 0
    x, z, logsnr = x[possible], z[possible], logsnr[possible]
    logits = wrong_logits(z, logsnr)
    results = []
    for dtype in torch.float32, torch.float64:
        own = logits.to(dtype).requires_grad_()
        prediction = TokenPrediction(z, logsnr, own, process, Posterior())
        at = Linear(v + 1, v - 1).at(torch.full((len(z),), 0.5, dtype=torch.float64))
        loss = prediction.loss(x, None, at)
        (gradient,) = torch.autograd.grad(loss.sum(), own)
        assert loss.dtype == dtype
        results.append((loss.detach().double(), gradient.double()))
    for single, double in zip(*results, strict=True):
        assert torch.isfinite(torch.cat([single, double])).all()
        close(single, double, rtol=2e-4, atol=2e-6)
        assert (results[1][0] > -1e-14).all()


def test_zero_probabilities_have_finite_gradients():
    logits = torch.tensor([[[0.0, -math.inf, 1.0], [0.0, 1.0, 2.0]]], dtype=torch.float64)
    for make in PROCESSES.values():
        process, own = make(), logits.clone().requires_grad_()
        z = torch.tensor([[0, 1]]) if process.mask is None else torch.tensor([[3, 1]])
        prediction = TokenPrediction(z, torch.zeros(1), own, process, LeaveOneOut())
        loss = prediction.loss(torch.tensor([[0, 1]]), None, Linear().at(torch.full((1,), 0.5)))
        loss.sum().backward()
        assert torch.isfinite(own.grad[0, 1]).all()
        assert torch.isfinite(loss).all()


@pytest.mark.parametrize(
    ("pi", "words"),
    [
        (lambda v: torch.stack([(2 * v).sigmoid(), (-2 * v).sigmoid()], -1), "derivative"),
        (lambda v: torch.stack([0 * v + 0.6, 0 * v + 0.6], -1), "probability"),
        (lambda v: torch.stack([0 * v - 0.5, 0 * v + 1.5], -1), "probability"),
        (lambda v: torch.stack([v.sigmoid()] * 4, -1), "return"),
        (lambda v: torch.stack([(v - 1).clamp(0, 1), 1 - (v - 1).clamp(0, 1)], -1), "at none"),
    ],
)
def test_what_is_no_process_is_refused(pi, words):
    with pytest.raises(InvalidValue, match=words):
        Hybrid(2, pi)


def test_bad_tokens_and_logits_are_refused():
    process, noise = Masked(3), torch.rand(1, 2)
    with pytest.raises(InvalidValue, match="the mask is no value of the data"):
        process.corrupt(torch.tensor([[0, 3]]), noise, torch.zeros(1))
    with pytest.raises(InvalidValue, match="lie in 0 … 2"):
        process.prior(torch.tensor([[0, -1]]), 0.0)
    with pytest.raises(InvalidType, match="integer tokens"):
        process.corrupt(torch.tensor([[0.0, 1.0]]), noise, torch.zeros(1))
    with pytest.raises(InvalidValue, match="shape of x"):
        process.corrupt(torch.tensor([[0, 1]]), noise[0], torch.zeros(1))
    z = torch.tensor([[0, 1]])
    for width, process in (5, Masked(3)), (2, Masked(3)), (4, Uniform(3)):
        with pytest.raises(InvalidValue, match="return logits"):
            TokenDenoiser(nn.Embedding(4, width), process)(z, torch.zeros(1))
    with pytest.raises(InvalidType, match="return a tensor"):
        TokenDenoiser(lambda z: (z,), process)(z, torch.zeros(1))
    with pytest.raises(InvalidType, match="Process"):
        TokenDenoiser(nn.Embedding(4, 3), "masked")


class Output(dict):
    """As a network of Hugging Face returns it."""

    logits = torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("returned", "hint"),
    [((0,), r"out\[0\]"), (Output(logits=0), r"out\.logits"), ({"l": 0}, r"out\['l'\]")],
)
def test_the_hint_says_where_the_logits_lie(returned, hint):
    with pytest.raises(InvalidType, match=rf"network that returns {hint}"):
        TokenDenoiser(lambda z: returned, Masked(3))(torch.tensor([[0, 1]]), torch.zeros(1))


def test_the_order_of_logits_is_named():
    z, model = torch.tensor([[0, 1]]), TokenDenoiser(lambda z: torch.zeros(1, 3, 2), Masked(3))
    with pytest.raises(InvalidValue, match=r"vocabulary\), as .* logits.movedim\(1, -1\)"):
        model(z, torch.zeros(1))
    with pytest.raises(InvalidValue, match=r"order \(batch, length, vocabulary\); the mask's is"):
        TokenDenoiser(nn.Embedding(4, 9), Masked(3))(z, torch.zeros(1))


def test_an_embedding_without_a_row_for_the_mask_is_named():
    model, z = TokenDenoiser(nn.Embedding(3, 3), Masked(3)), torch.tensor([[0, 3]])
    with pytest.raises(IndexError) as caught:
        model(z, torch.zeros(1))
    assert "has 3 rows: it needs 4, one for the mask" in caught.value.__notes__[-1]


def test_a_prompt_for_a_network_with_a_time_needs_a_field():
    seen = []
    network = lambda z, t: (seen.append(t), torch.zeros(*z.shape, 3))[1]  # noqa: E731
    prompt, x = torch.tensor([True, False]), torch.tensor([[0, 1]])
    given = {"schedule": LogLinear(9.0, -9.0), "mask": ~prompt}
    with pytest.raises(InvalidValue, match=r"which says what is given: TokenDenoiser\(…, field"):
        weighted_elbo(TokenDenoiser(network, Uniform(3), time=logsnr_time), x, **given)
    model = TokenDenoiser(network, Uniform(3), time=logsnr_time, field=True)
    weighted_elbo(model, x, **given)
    assert seen[-1].shape == (1, 2)
    assert abs(seen[-1][0, 0] - 9) < 1e-4  # it is given
    assert seen[-1][0, 1] < 8.9


def test_an_ordinary_posterior_that_is_said_to_leave_out_is_found_on_request():
    log_p, x = pairs()
    process, logsnr = Uniform(3), torch.zeros(9)
    for leaves_out in True, False:
        network = Conditionals(log_p, x, process, leave_one_out=leaves_out)
        model = TokenDenoiser(network, process, LeaveOneOut(), time=logsnr_time)
        if leaves_out:
            assert model.check_leave_one_out(x, logsnr) is model
        else:
            with pytest.raises(InvalidValue, match="token 0"):
                model.check_leave_one_out(x, logsnr)


def test_the_mask_s_logit_is_ignored():
    z, wide = torch.tensor([[3, 1]]), torch.randn(1, 2, 4)
    with_mask = TokenDenoiser(lambda z: wide, Masked(3))(z, torch.zeros(1))
    without = TokenDenoiser(lambda z: wide[..., :3], Masked(3))(z, torch.zeros(1))
    assert torch.equal(with_mask.posterior, without.posterior)


def test_a_network_is_told_time_or_none_or_a_field():
    told = []

    def network(z, time=None):
        told.append(time)
        return torch.zeros(*z.shape, 3)

    z, logsnr = torch.tensor([[3, 1]] * 2), torch.tensor([1.0, 2.0], dtype=torch.float64)
    TokenDenoiser(network, Masked(3))(z, logsnr)
    TokenDenoiser(network, Masked(3), time=logsnr_time)(z, logsnr[:, None])
    TokenDenoiser(network, Masked(3), time=logsnr_time, field=True)(z, logsnr)
    assert told[0] is None
    assert [v.shape for v in told[1:]] == [(2,), (2, 1)]
    with pytest.raises(InvalidValue, match="one number per example"):
        TokenDenoiser(network, Masked(3), time=logsnr_time)(z, torch.tensor([[1.0, 2.0]] * 2))


def test_a_field_of_one_number_per_example_is_that_number():
    for make in PROCESSES.values():
        process = make()
        x = pairs()[1]
        z = process.corrupt(x, torch.rand(9, 2, dtype=torch.float64), torch.zeros(9))
        t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        for steps in None, 10:
            t = t if steps is None else (t * 10).ceil() / 10
            number, field = (Linear().at(v, steps) for v in (t, t[:, None]))
            of_number = wrong(process)(z, number.logsnr).loss(x, None, number)
            of_field = (
                wrong(process)(z, number.logsnr).replace(logsnr=field.logsnr).loss(x, None, field)
            )
            assert torch.equal(of_number, of_field)


def test_predictions_are_cut_and_copied():
    at = Linear().at(torch.full((2,), 0.5))
    prediction = wrong(Uniform(3))(torch.tensor([[0, 1], [2, 1]]), at.logsnr)
    part = prediction.rows(torch.tensor([1]))
    close(part.posterior, prediction.posterior[1:])
    close(copy.deepcopy(prediction).posterior, prediction.posterior)
    modelled = torch.tensor([[True, False], [True, True]])
    masked = prediction.replace(modelled=modelled)
    x = torch.tensor([[0, 1], [1, 1]])
    terms = prediction.process.integrand(prediction.leave_one_out, prediction.z, x, at.logsnr)
    close(
        masked.loss(x, None, at),
        (terms * modelled * at.rate[:, None]).sum(1),
        rtol=1e-6,
        atol=1e-9,
    )
    close(masked.log_prob(x)[0], prediction.posterior[0, 0, 0])


@each_process
def test_a_prediction_is_a_pytree_of_its_tensors(process):
    torch.manual_seed(0)
    model = TokenDenoiser(nn.Embedding(process.states, process.vocabulary), process)
    z, t = torch.tensor([[0, 1], [2, 2]]), torch.zeros(2, dtype=torch.float64)
    prediction = model(z, t)
    leaves, spec = tree_flatten(prediction)
    assert [leaf.shape for leaf in leaves] == [(2, 2), (2,), (2, 2, process.vocabulary)]
    assert vars(tree_unflatten(leaves, spec)) == vars(prediction)
    apart = torch.vmap(model)(z[:, None], t[:, None])
    torch.testing.assert_close(apart.logits[:, 0], prediction.logits)
    assert apart.process is process


def test_a_model_over_tokens_is_exported():
    model = TokenDenoiser(nn.Embedding(4, 3), Masked(3), LeaveOneOut())
    given, file = (torch.tensor([[0, 3], [3, 2]]), torch.zeros(2)), io.BytesIO()
    torch.export.save(torch.export.export(model, given), file)
    file.seek(0)
    loaded = torch.export.load(file).module()(*given)
    assert (loaded.process.vocabulary, repr(loaded.parameterization)) == (3, "LeaveOneOut()")
    torch.testing.assert_close(loaded.posterior, model(*given).posterior)


@pytest.mark.parametrize("process", [Masked(3), Uniform(3), Hybrid.gidd(3)])
def test_pure_noise_of_the_largest_number_is_a_state(process):
    """The opposite of noise 0 is 1."""
    x = torch.zeros(1, 2, dtype=torch.long)
    z = process.pure(x, process.opposite(torch.zeros(1, 2)), -15.0)
    assert z.max() < process.states
