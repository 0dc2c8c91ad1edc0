"""Learned schedules over tokens: the gradient is that of the exact variance, and the learned
density reaches the least variance."""

import itertools

import pytest
import torch
from registry import PROCESSES
from tokens import Conditionals, distribution, gauss, pairs

from vdiff import Objective, elbo, weighted_elbo
from vdiff.denoiser import logsnr_time
from vdiff.diagnosis import diagnose
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.profile import Profile
from vdiff.schedule import Adaptive, Linear, Monotone, Spline
from vdiff.times import stratified

HIGH, LOW = 8.0, -8.0
LEARNED = {
    "spline": lambda: Spline(HIGH, LOW, knots=5, learn_ends=False),
    "monotone": lambda: Monotone(HIGH, LOW, hidden=6, sharpness=5.0, learn_ends=False),
}


def three():
    log_p, x = distribution("masked_K3_L3")
    return TokenDenoiser(Conditionals(log_p, x, Masked(3)), Masked(3)), x, log_p.exp()


def losses_of_all(model, x, schedule, t, **options):
    """The losses of every x at every t, for every choice of masks: with its probability."""
    lost = schedule(t.double()).detach().neg().sigmoid()
    for hidden in itertools.product([False, True], repeat=x.shape[1]):
        hidden = torch.tensor(hidden)
        p = torch.where(hidden, lost[:, None], 1 - lost[:, None]).prod(1)
        eps = torch.where(hidden, 0.0, 1.0).double().expand(len(t) * len(x), -1)
        rows, times = x.repeat(len(t), 1), t.repeat_interleave(len(x))
        loss = weighted_elbo(model, rows, schedule=schedule, t=times, eps=eps, **options)
        yield p, loss.view(len(t), len(x))


def grid(cells, n):
    """Nodes and weights in λ, exact for smooth functions within each cell."""
    edges = torch.linspace(LOW, HIGH, cells + 1, dtype=torch.float64).tolist()
    parts = [gauss(n, a, b) for a, b in itertools.pairwise(edges)]
    return (torch.cat(columns) for columns in zip(*parts, strict=True))


def second_moment(model, x, p_x, logsnr):
    """E f² at λ, where the loss is f/p."""
    linear = Linear(HIGH, LOW)
    t = linear.inverse(logsnr)
    total = torch.zeros_like(logsnr)
    with torch.no_grad():
        for p, loss in losses_of_all(model, x, linear, t):
            total += p * (loss.double().square() * p_x).sum(1)
    return total / (HIGH - LOW) ** 2


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_is_that_of_the_exact_variance(name):
    model, x, p_x = three()
    schedule = LEARNED[name]()
    with torch.no_grad():
        for p in schedule.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double()
    nodes, weights = grid(4, 40)
    square = second_moment(model, x, p_x, nodes)
    mean = 1.7
    schedule.mean_loss.fill_(mean)

    def variance():
        with torch.no_grad():
            return (weights * square / schedule.density(nodes)).sum().item()

    with torch.no_grad():
        t, share = schedule.inverse(nodes), weights * schedule.density(nodes)
    total = sum(
        ((share * p)[:, None] * p_x * loss).sum()
        for p, loss in losses_of_all(model, x, schedule, t)
    )
    total.backward()
    for parameter in schedule.parameters():
        for i in range(len(parameter)):
            step = torch.zeros_like(parameter)
            step[i] = 1e-4
            with torch.no_grad():
                parameter += step
                above = variance()
                parameter -= 2 * step
                below = variance()
                parameter += step
            expected = (above - below) / 2e-4
            assert abs(mean * parameter.grad[i].item() - expected) < 1e-5 * abs(variance())
    assert parameter.grad.abs().max() > 1e-3


def test_the_learned_density_reaches_the_least_variance():
    model, x, p_x = three()
    nodes, weights = grid(31, 8)
    square = second_moment(model, x, p_x, nodes)
    least = (weights * square.sqrt()).sum().square().item()

    def moment(schedule):
        with torch.no_grad():
            return (weights * square / schedule.density(nodes)).sum().item()

    schedule = Spline(HIGH, LOW, knots=32, learn_ends=False)
    objective = Objective(model, schedule=schedule)
    optimizer = torch.optim.Adam(schedule.parameters(), 0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        rows = torch.multinomial(p_x, 256, replacement=True, generator=generator)
        loss = objective(x[rows], generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        objective.update()
    assert moment(Linear(HIGH, LOW)) > 1.6 * least
    found = moment(schedule)
    assert least * (1 - 1e-6) < found < 1.02 * least


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_network_gets_the_gradient_of_a_fixed_schedule(kind):
    x = pairs()[1]
    process = PROCESSES[kind]()
    torch.manual_seed(0)
    network = torch.nn.Embedding(process.states, process.vocabulary)
    model = TokenDenoiser(lambda z, level: network(z) * level[:, None, None], process,
                          time=logsnr_time)  # fmt: skip
    schedule = Spline(HIGH, LOW, learn_ends=False)
    t, eps = torch.rand(9), torch.rand(9, 2, dtype=torch.float64)
    found = []
    for one in schedule, Linear(HIGH, LOW):  # a new spline is linear
        network.zero_grad()
        loss = weighted_elbo(model, x, schedule=one, t=t, eps=eps)
        loss.sum().backward()
        bound = elbo(model, x, schedule=one, t=t, eps=eps).diffusion
        torch.testing.assert_close(bound, loss)
        found.append((loss.detach(), network.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    assert schedule.log_density.grad.isfinite().all()
    assert schedule.log_density.grad.abs().sum() > 0


def test_the_hint_for_learned_ends_names_the_schedule():
    model = TokenDenoiser(torch.nn.Embedding(4, 3), Masked(3))
    hint = r"Monotone\(learn_ends=False\)"
    with pytest.raises(ValueError, match=hint):
        weighted_elbo(model, torch.tensor([[0, 1]]), schedule=Monotone(HIGH, LOW))


def test_adaptive_learns_the_second_moment():
    model, x, p_x = three()
    adaptive = Adaptive(HIGH, LOW, bins=8, warmup=1, decay=1.0)
    objective = Objective(TokenDenoiser(torch.nn.Embedding(4, 3), Masked(3)), schedule=adaptive)
    objective.model = model.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        rows = torch.multinomial(p_x, 20_000, replacement=True, generator=generator)
        objective(x[rows], generator=generator)
    objective.update()
    nodes, weights = grid(8, 8)
    size = (weights * second_moment(model, x, p_x, nodes)).view(8, 8).sum(1).sqrt()
    torch.testing.assert_close(adaptive.mass, size / size.sum(), rtol=0.05, atol=2e-3)


def test_a_diagnosis_of_token_losses():
    """A profile holds 2 ℓ/rate, as ‖ε − ε̂‖² is; its variance of a draw is the exact one."""
    model, x, p_x = three()
    nodes, weights = grid(31, 8)
    square = second_moment(model, x, p_x, nodes)
    schedule, generator = Linear(HIGH, LOW), torch.Generator().manual_seed(0)
    profile = Profile(logsnr_max=HIGH, logsnr_min=LOW, bins=40)
    for _ in range(4):
        rows = torch.multinomial(p_x, 40_000, replacement=True, generator=generator)
        t = stratified(len(rows), generator=generator)
        loss = weighted_elbo(model, x[rows], schedule=schedule, t=t, generator=generator)
        at = schedule.at(t)
        profile.update(at.logsnr, 2 * loss.double() / at.rate)
    found = diagnose(profile, schedule)
    entropy = -(p_x * p_x.log()).sum().item()  # the ends cost next to nothing
    moment = (weights * square / schedule.density(nodes)).sum().item()
    least = (weights * square.sqrt()).sum().square().item()
    assert found.loss == pytest.approx(entropy, rel=0.02)
    assert found.variance == pytest.approx(moment - entropy**2, rel=0.03)
    assert found.effective == pytest.approx(least / moment, rel=0.03)
