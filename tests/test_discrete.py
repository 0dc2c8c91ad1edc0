"""Processes over tokens: forward draws, posteriors and precision, for masks, uniform tokens and
hybrids."""

import itertools
import math

import pytest
import torch
from processes import LEVELS, close, each_process, level, marginal, wrong, wrong_logits
from registry import PROCESSES
from tokens import Conditionals, every_z, pairs, probability

from vdiff.discrete import Hybrid, LeaveOneOut, Masked, Posterior, TokenPrediction, Uniform
from vdiff.errors import InvalidValue
from vdiff.gaussian import Step
from vdiff.schedule import Linear


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


@pytest.mark.parametrize("process", [Masked(3), Uniform(3), Hybrid.gidd(3)])
def test_pure_noise_of_the_largest_number_is_a_state(process):
    """The opposite of noise 0 is 1."""
    x = torch.zeros(1, 2, dtype=torch.long)
    z = process.pure(x, process.opposite(torch.zeros(1, 2)), -15.0)
    assert z.max() < process.states
