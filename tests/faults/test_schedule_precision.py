"""Faults 18 to 21: far ends, numbers of steps, learned ends and precision of a schedule."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from registry import CLOSED_TARGETS
from torch import Tensor

from vdiff import Objective, elbo, weighted_elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.gaussian import alpha, sigma
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import Eps, V
from vdiff.schedule import (
    Karras,
    LearnedLinear,
    Linear,
    OptimalTransport,
    Schedule,
    Shifted,
    Tabulated,
)
from vdiff.weighting import ELBO, MSE, Debiased, MinSNR, Sigmoid

from .common import SCHEDULE, assert_refused, assert_refused_with, assert_same, batch, model


@pytest.mark.parametrize("logsnr", [-40.0, 40.0])
def test_fault_18_the_scales_at_the_far_ends(logsnr: float) -> None:
    for f, sign in ((alpha, 1), (sigma, -1)):
        value = f(torch.tensor([logsnr])).item()
        assert value == pytest.approx(1 / math.sqrt(1 + math.exp(-sign * logsnr)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("row", CLOSED_TARGETS.values(), ids=CLOSED_TARGETS)
@pytest.mark.parametrize(
    "weighting", [ELBO(), Sigmoid(2.0), ELBO() * MinSNR(), ELBO() * Debiased()], ids=repr
)
def test_fault_18_loss_and_gradients_at_the_far_ends(
    dtype: torch.dtype, t: float, row: object, weighting: Callable[[Tensor], Tensor]
) -> None:
    schedule = Linear(40.0, -40.0)
    x, _, eps = batch(16)
    x, at = x.to(dtype), torch.full((16,), t)
    net, exact = model(row), model(row).double()  # type: ignore[arg-type]
    loss = weighted_elbo(net, x, schedule=schedule, weighting=weighting, t=at, eps=eps).mean()
    reference = weighted_elbo(
        exact, x.double(), schedule=schedule, weighting=weighting, t=at.double(), eps=eps.double()
    ).mean()
    assert_same(loss, reference, rtol=1e-5)
    loss.backward(), reference.backward()
    for p, q in zip(net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad.double(), q.grad, rtol=1e-5, atol=1e-5 * q.grad.abs().max().item()
        )  # type: ignore[union-attr]


@pytest.mark.parametrize("steps", [1, 2, 10, 1_000_000])
@pytest.mark.parametrize("schedule", [Linear(), SCHEDULE, Karras()], ids=repr)
def test_fault_19_any_number_of_steps(steps: int, schedule: Schedule) -> None:
    """½ T expm1(λ_s − λ_t) ‖ε − ε̂‖² in Python floats."""
    x, _, eps = batch(4, dtype=torch.float64)
    net = model().double()
    i = torch.tensor([1, max(1, steps // 2), steps, max(1, steps - 1)])
    t = i.double() / steps
    loss = weighted_elbo(net, x, schedule=schedule, steps=steps, t=t, eps=eps)
    logsnr, before = schedule(t), schedule((i - 1).double() / steps)
    error = net(alpha(logsnr)[:, None] * x + sigma(logsnr)[:, None] * eps, logsnr).squared_error(
        x, eps
    )
    expected = [
        0.5 * steps * math.expm1(b - a) * e
        for a, b, e in zip(logsnr.tolist(), before.tolist(), error.tolist(), strict=True)
    ]
    assert_same(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9)
    drawn = weighted_elbo(
        net, x, schedule=schedule, steps=steps, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (4,)


@pytest.mark.parametrize(
    "schedule", [Linear(), SCHEDULE, Karras(), OptimalTransport(10.0, -10.0)], ids=repr
)
def test_fault_19_many_steps_are_continuous_time(schedule: Schedule) -> None:
    x, t, eps = batch(4, dtype=torch.float64)
    net = model().double()
    limit = weighted_elbo(net, x, schedule=schedule, t=t, eps=eps)
    gap = [
        (weighted_elbo(net, x, schedule=schedule, steps=steps, t=t, eps=eps) / limit - 1).abs()
        for steps in (10_000, 100_000, 1_000_000)
    ]
    assert_same(gap[0] / gap[1], torch.full((4,), 10.0), rtol=0.05)
    assert_same(gap[1] / gap[2], torch.full((4,), 10.0), rtol=0.05)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [(0, ValueError, "be at least 1 .. got 0"), (-3, ValueError, "be at least 1 .. got -3"),
    (10.0, TypeError, "be a Python int .. got 10.0 (write int(…))"),
     (True, TypeError, "be a Python int .. got True"), (np.int64(10), TypeError,
     "be a Python int .. got np.int64(10) (write int(…))"), ("10", TypeError,
     "be a Python int .. got '10'")],
)  # fmt: skip
def test_fault_19_what_is_no_number_of_steps(
    steps: object, error: type[Exception], words: str
) -> None:
    x = batch()[0]
    with assert_refused(error, "weighted_elbo", "steps", words):
        weighted_elbo(model(), x, schedule=SCHEDULE, steps=steps)  # type: ignore[arg-type]
    with assert_refused(error, "elbo", "steps", words):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), steps=steps)  # type: ignore[arg-type]
    with assert_refused(error, "Weighted", "steps", words):
        Objective(model(), schedule=SCHEDULE, loss=Weighted(steps=steps))  # type: ignore[arg-type]
    with assert_refused(error, "MSE", "steps", words):
        MSE(SCHEDULE, V(), steps=steps)  # type: ignore[arg-type]
    with assert_refused(error, "Cosine.delta", "steps", words):
        SCHEDULE.delta(torch.ones(1), steps)  # type: ignore[arg-type]


def test_fault_20_learned_ends_are_where_they_say_before_and_after_training() -> None:
    schedule = LearnedLinear(13.3, -5.0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_same(schedule(ends), torch.tensor([13.3, -5.0]), rtol=0, atol=1e-6)
    net, data = model(), torch.randint(0, 17, (64, 2), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([*net.parameters(), *schedule.parameters()], lr=0.1)
    for seed in range(30):
        optimizer.zero_grad()
        elbo(
            net,
            data,
            schedule=schedule,
            decoder=Categorical(17),
            generator=torch.Generator().manual_seed(seed),
        ).total.mean().backward()
        optimizer.step()
    assert abs(schedule.logsnr_max - 13.3) > 0.1
    assert abs(schedule.logsnr_min + 5.0) > 0.01
    assert_same(
        schedule(ends),
        torch.tensor([schedule.logsnr_max, schedule.logsnr_min], dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )
    assert schedule.check().logsnr_max > schedule.logsnr_min


def test_fault_20_the_diffusion_term_alone_does_not_move_learned_ends() -> None:
    schedule, (x, _, _) = LearnedLinear(), batch()
    weighted_elbo(model(), x, schedule=schedule).mean().backward()
    assert [p.grad for p in schedule.parameters()] == [None, None]
    with assert_refused_with(
        ValueError,
        "elbo: schedule must have fixed ends with a Gaussian decoder .. on continuous data the "
        "bound improves without limit as λ_max grows",
    ):
        elbo(model(), x, schedule=schedule, decoder=Gaussian())
    with assert_refused(
        ValueError, "Objective", "schedule", "have fixed ends with a Gaussian decoder"
    ):
        Objective(model(), schedule=schedule, loss=VLB(Gaussian()))
    with assert_refused(ValueError, "MSE", "schedule", "be fixed", "use a fixed w(λ)"):
        MSE(schedule, V())


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float"])
def test_fault_21_ends_and_tables_keep_their_precision(cast: str) -> None:
    for schedule in (
        LearnedLinear(),
        Tabulated.linear_betas(),
        Shifted(Tabulated.linear_betas(), 1.0),
        SCHEDULE,
    ):
        t = torch.linspace(0, 1, 7, dtype=torch.float64)
        before = schedule(t)
        objective = Objective(model(), schedule=schedule, loss=Weighted(Sigmoid()))
        getattr(objective, cast)()
        assert torch.equal(schedule(t), before)
        assert {v.dtype for v in [*schedule.parameters(), *schedule.buffers()]} <= {torch.float64}
    decoder = Categorical(17, prior=torch.arange(17.0))
    before = decoder.table(5.0)
    assert torch.equal(getattr(decoder, cast)().table(5.0), before)


def test_fault_21_no_autocast_for_logsnr() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for schedule in (LearnedLinear(), Tabulated.linear_betas(), SCHEDULE):
            logsnr, rate = schedule.at(torch.linspace(0.1, 0.9, 5))[:2]
            assert logsnr.dtype == rate.dtype == torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        t = torch.tensor([0.5], dtype=dtype)
        assert (
            SCHEDULE(t).dtype
            == SCHEDULE.rate(t).dtype
            == SCHEDULE.density(t).dtype
            == SCHEDULE.inverse(t).dtype
            == Sigmoid()(t).dtype
            == torch.float32
        )


def test_fault_19_chains_of_another_length() -> None:
    x, table = batch()[0], Tabulated.linear_betas()
    with assert_refused_with(
        ValueError,
        "weighted_elbo: steps must divide the 999 steps of the table; got 1000 (a "
        "table of 1000 log-SNRs has 999 steps",
    ):
        weighted_elbo(model(), x, schedule=table, steps=1000)
    with assert_refused_with(
        ValueError,
        "weighted_elbo: steps must be 999, as in MSE .. got None (it is the "
        "plain loss of that chain)",
    ):
        weighted_elbo(model(), x, schedule=table, weighting=MSE(table, Eps(), steps=999))
    with assert_refused_with(
        ValueError,
        "weighted_elbo: t must be at least 1/steps = 0.25 on a chain; got 0 (that "
        "step would begin before the data",
    ):
        weighted_elbo(model(), x, schedule=Linear(), steps=4, t=torch.zeros(len(x)))
