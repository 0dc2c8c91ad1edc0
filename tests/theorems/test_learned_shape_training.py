"""Trainings of a learned schedule: its shape finds the least variance, its ends the best bound."""

import math

import pytest
import torch
from torch import Tensor

from vdiff import Denoiser, Objective, Prediction, elbo, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.groups import parameter_groups
from vdiff.objective import VLB
from vdiff.oracle import Lattice
from vdiff.parameterization import Eps, V
from vdiff.schedule import Adaptive, Linear, Monotone, Schedule, Spline
from vdiff.schedule.learned import Learned
from vdiff.times import generator_of

from .learned_objectives import LEVELS, SHAPES, Net, draws
from .reference import gmm1d, line_nodes, posterior_moments


def above_the_best(schedule: Schedule) -> float:
    """The variance of one draw on the one-dimensional mixture under a schedule, over the least of
    any."""
    lam = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 601, dtype=torch.float64)
    m, v2 = (torch.from_numpy(a) for a in posterior_moments(lam.numpy()))
    # given z, ε − ε̂ is close to Gaussian only where one component rules: its fourth moment is the
    # mixture's own
    x, eps, weight = line_nodes(lam)
    each = len(weight) // len(lam)
    level = lam.repeat_interleave(each)
    z = level.sigmoid().sqrt()[:, None] * x + level.neg().sigmoid().sqrt()[:, None] * eps
    q = (weight * (eps - gmm1d()(z, level).eps)[:, 0] ** 4).view(len(lam), each).sum(1)
    assert (q >= v2 * 0.999).all()
    loss = 0.5 * torch.trapezoid(m, lam)
    best = 0.25 * torch.trapezoid(q.sqrt(), lam) ** 2 - loss**2
    got = 0.25 * torch.trapezoid(q / schedule.density(lam).detach(), lam) - loss**2
    return (got / best).item()


def learn(schedule: Schedule, steps: int, batch: int, lr: float = 0.02) -> Schedule:
    oracle, optimizer = (
        gmm1d(),
        torch.optim.Adam([{"params": list(schedule.parameters()), "lr": lr}]),
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        generator = generator_of(0, step)
        optimizer.zero_grad()
        weighted_elbo(
            oracle, oracle.sample(batch, generator), schedule=schedule, generator=generator
        ).mean().backward()
        optimizer.step()
        schedule.update()
    return schedule


@pytest.mark.parametrize(
    ("schedule", "steps", "batch", "within"),
    [
        (Spline(13.3, -5.0, learn_ends=False), 1500, 512, 1.03),
        (Monotone(13.3, -5.0, learn_ends=False), 500, 128, 1.25),
    ],
    ids=["spline", "monotone"],
)
def test_the_shape_finds_the_least_variance(schedule, steps, batch, within):
    assert above_the_best(schedule) == pytest.approx(above_the_best(Linear(13.3, -5.0)), rel=1e-3)
    assert above_the_best(Linear(13.3, -5.0)) == pytest.approx(1.492, abs=0.003)
    assert above_the_best(learn(schedule, steps, batch)) < within


class Scaled:
    """Four fifths of the perfect ε̂: an error that stays at both ends, so that a finite range is
    the best."""

    def __init__(self, oracle: Lattice) -> None:
        self.oracle = oracle

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, 0.8 * self.oracle(z, logsnr).eps, Eps())


def scaled_error(oracle: Lattice, logsnr: Tensor) -> Tensor:
    """E(ε − 0.8 ε̂*)² = m + 0.04 (1 − m)."""
    mmse = oracle.mmse(logsnr)
    return mmse + 0.04 * (1 - mmse)


def test_ends_from_wrong_starts_reach_the_best_bound():
    """Each end stands where its gradient of the bound vanishes: half the error there against the
    decoder and the prior."""
    pmf, decoder = (
        torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64),
        Categorical(LEVELS),
    )
    grid = decoder.encode(torch.arange(LEVELS)[:, None])[:, 0].double()
    oracle = Lattice(grid, pmf)

    def by_low(low: float) -> float:
        lam = torch.tensor([low], dtype=torch.float64)
        signal = lam.sigmoid()
        prior = 0.5 * signal * (1 - signal) * (pmf @ grid**2 - 1) + 0.5 * signal
        return (prior - 0.5 * scaled_error(oracle, lam)).item()

    def by_high(high: float) -> float:
        lam, h = torch.tensor([high], dtype=torch.float64), 1e-4
        up, down = (oracle.bound(high + s, -5.0, decoder).reconstruction for s in (h, -h))
        return ((up - down) / (2 * h) + 0.5 * scaled_error(oracle, lam)).item()

    low, high = root(by_low, -12.0, 2.0), root(by_high, 2.0, 9.0)
    for start in ((8.0, -9.0), (3.0, 0.5)):
        schedule, lr = Spline(*start, knots=16), 0.1
        optimizer = torch.optim.Adam(schedule.parameters())
        for step in range(500):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / 500))
            generator = generator_of(3, step)
            data = torch.multinomial(pmf, 1024, True, generator=generator)[:, None]
            optimizer.zero_grad()
            elbo(
                Scaled(oracle), data, schedule=schedule, decoder=decoder, generator=generator
            ).total.mean().backward()
            optimizer.step()
            schedule.update()
        assert (schedule.logsnr_min, schedule.logsnr_max) == pytest.approx(
            (low, high), abs=0.4
        )  # the bound is flat there: 0.001 nats at that distance


def root(slope, below: float, above: float) -> float:
    """Where a slope turns from negative to positive."""
    assert slope(below) < 0 < slope(above)
    for _ in range(40):
        middle = 0.5 * (below + above)
        below, above = (middle, above) if slope(middle) < 0 else (below, middle)
    return below


@pytest.mark.parametrize(
    "make",
    [
        lambda: Monotone(6.0, -4.0, hidden=64, learn_ends=False),
        lambda: Spline(6.0, -4.0, learn_ends=False),
    ],
)
def test_long_training_leaves_the_ends_and_the_order(make):
    """Under AdamW with decay on all else, autocast on, and a rate at which every shape runs
    wild."""
    one = Objective(Denoiser(Net().float(), V()), schedule=make())
    optimizer = torch.optim.AdamW(
        parameter_groups(one, lr=1e-3, weight_decay=0.1, schedule_lr=0.3)
    )
    x = torch.randn(16, 2)
    for step in range(400):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = one(x, generator=generator_of(2, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.schedule.update()
    assert_ordered(one.schedule)


def assert_ordered(schedule: Learned) -> None:
    with torch.no_grad():
        u = torch.cat(
            [
                schedule.cdf_and_pdf(t)[0]
                for t in torch.linspace(0, 1, 1_000_001, dtype=torch.float64).split(100_000)
            ]
        )
        assert (u[0], u[-1]) == (0.0, 1.0)
        logsnr = schedule.logsnr_max - (schedule.logsnr_max - schedule.logsnr_min) * u
    assert (logsnr.diff() < 0).all()
    assert [logsnr[0].item(), logsnr[-1].item()] == pytest.approx([6.0, -4.0], abs=1e-12)


@pytest.mark.parametrize(
    "make",
    [*SHAPES.values(), lambda: Adaptive(6.0, -4.0, bins=10, warmup=1)],
    ids=[*SHAPES, "adaptive"],
)
def test_a_run_that_is_killed_resumes_bit_for_bit(make, tmp_path):
    def fresh():
        torch.manual_seed(0)
        one = Objective(
            Denoiser(Net().float(), V()), schedule=make(), loss=VLB(Categorical(LEVELS))
        )
        return one, torch.optim.AdamW(parameter_groups(one, lr=1e-3, weight_decay=0.01))

    def run(one, optimizer, first, last):
        data, _ = draws()
        for step in range(first, last):
            for part in (data[:10], data[10:]):
                one(part, generator=generator_of(3, step, len(part))).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            one.schedule.update()

    straight, optimizer = fresh()
    run(straight, optimizer, 0, 12)
    killed, optimizer = fresh()
    run(killed, optimizer, 0, 5)
    torch.save(
        {"objective": killed.state_dict(), "optimizer": optimizer.state_dict()},
        tmp_path / "checkpoint.pt",
    )
    resumed, optimizer = fresh()
    state = torch.load(tmp_path / "checkpoint.pt")
    resumed.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    run(resumed, optimizer, 5, 12)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert any(
        not torch.equal(value, fresh()[0].schedule.state_dict()[k])
        for k, value in straight.schedule.state_dict().items()
    )
