"""Faults 16 to 25: schedules and weightings. (An adaptive density, in 23, comes with the adaptive
schedule.)"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from registry import CLOSED_TARGETS
from torch import Tensor

from vdiff import Objective, elbo, weighted_elbo
from vdiff.augmentation import augmented_elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.describe import describe
from vdiff.diagnosis import diagnose
from vdiff.gaussian import alpha, sigma
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.profile import Profile
from vdiff.recipes import Recipe
from vdiff.schedule import (
    Cosine,
    Custom,
    Histogram,
    Karras,
    Laplace,
    LearnedLinear,
    Linear,
    LinearBeta,
    Normal,
    OptimalTransport,
    Schedule,
    Shifted,
    Tabulated,
)
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Debiased,
    Factor,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    loss_factor,
)
from vdiff.weighting import Custom as CustomWeighting

from .common import SCHEDULE, assert_refused, assert_refused_with, assert_same, batch, model

INF, NAN = math.inf, math.nan


class Own(Schedule):
    """A user's schedule from two functions."""

    def __init__(
        self,
        logsnr: Callable[[Tensor], object],
        rate: Callable[[Tensor], object],
        high: float = 10.0,
        low: float = -10.0,
    ) -> None:
        super().__init__(high, low)
        self.functions = logsnr, rate

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.functions[0](t)  # type: ignore[return-value]

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self.functions[1](t)  # type: ignore[return-value]


def falls(t: Tensor) -> Tensor:
    return 10 - 20 * t


def twenty(t: Tensor) -> Tensor:
    return torch.full_like(t, 20.0)


def test_fault_16_a_schedule_that_rises_somewhere_names_the_place() -> None:
    def bump(
        t: Tensor,
    ) -> Tensor:  # λ' = −20 + 30 cos 12t > 0 first where cos 12t > 2/3 again: t = (2π − acos ⅔)/12
        return 10 - 20 * (t - 0.1) - 2.5 * torch.sin(12 * t)

    def rise(t: Tensor) -> Tensor:
        return -20 - 30 * torch.cos(12 * t)

    first = math.acos(-2 / 3) / 12  # λ' = −20 − 30 cos 12t turns positive
    with assert_refused(
        ValueError,
        "Custom",
        "schedule",
        "be strictly decreasing in t",
        "got λ =",
        f"at t = {math.floor(first * 1e4) / 1e4:g} and",
        "(the first of them that do not fall)",
    ):
        Custom(bump)
    start, stop = (bump(torch.tensor([t], dtype=torch.float64)).item() for t in (0.0, 1.0))
    for build in (lambda s: s.check(), lambda s: Objective(model(), schedule=s)):
        with assert_refused(
            ValueError,
            ("Own.check", "Objective"),
            "schedule",
            "be strictly decreasing in t",
            f"at t = {math.floor(first * 1e4) / 1e4:g} and",
        ):
            build(Own(bump, lambda t: -rise(t), start, stop))


def test_fault_16_gamma_handed_over_for_logsnr() -> None:
    with assert_refused_with(
        ValueError,
        "Custom: logsnr must fall from data (t = 0) to noise (t = 1) .. λ = -10 at t = 0 and λ "
        "= 10 at t = 1 (γ = −λ rises: pass −γ)",
    ):
        Custom(lambda t: 20 * t - 10)
    with assert_refused_with(
        ValueError,
        "Own.check: schedule must be strictly decreasing in t .. λ = -10 at t = 0 and -9.998 "
        "at t = 0.0001 (γ = −λ rises: pass −γ)",
    ):
        Own(lambda t: 20 * t - 10, twenty).check()
    with assert_refused_with(
        ValueError,
        "Tabulated: logsnr must be strictly decreasing .. 1 at level 1 of 3 and 2 at "
        "level 2 of 3 (γ = −λ rises: pass −γ)",
    ):
        Tabulated([1.0, 2.0, 3.0])
    with assert_refused_with(
        ValueError,
        "Linear: logsnr_max must be greater than logsnr_min = 5 .. got -13.3 .. if these are γ = "
        "−λ, write logsnr_max=13.3, logsnr_min=-5",
    ):
        Linear(-13.3, 5.0)


def test_fault_16_a_rate_that_is_not_the_derivative() -> None:
    with assert_refused_with(
        ValueError,
        "Own.check: schedule must have rate_at(t, logsnr) = −dλ/dt > 0 .. got a "
        "rate of -20 at t = 0 .. return −dλ/dt",
    ):
        Own(falls, lambda t: -twenty(t)).check()
    with assert_refused_with(
        ValueError,
        "Custom: schedule must have rate_at equal to the derivative of −logsnr_at .. got a "
        "rate of 10 at t = 0 and 10 at t = 0.0001",
    ):
        Custom(falls, rate=lambda t: 0.5 * twenty(t))
    with assert_refused_with(
        ValueError,
        "Own.check: schedule must have logsnr_at(t) run from logsnr_max = 12 to "
        "logsnr_min = -10 .. got λ(0) = 10, λ(1) = -10",
    ):
        Own(falls, twenty, 12.0).check()
    with assert_refused(
        ValueError, "Own.check", "schedule", "have finite logsnr_at(t)", "got λ = inf at t = 0"
    ):
        Own(lambda t: -2 * torch.log(t), lambda t: 2 / t).check()
    assert Custom(falls, rate=twenty).check().logsnr_max == 10


@pytest.mark.parametrize(
    ("name", "build"),
    [*((build.__name__, build) for build in (Linear, Cosine, LinearBeta, OptimalTransport,
    LearnedLinear)), ("Normal", lambda a, b: Normal(0.0, 3.0, a, b)),
     ("Laplace", lambda a, b: Laplace(0.0, 1.0, a, b)), ("Own", lambda a, b: Own(falls, twenty, a,
     b))],
)  # fmt: skip
@pytest.mark.parametrize(
    ("high", "low", "argument", "words"),
    [
        (
            -5.0,
            5.0,
            "logsnr_max",
            "be greater than logsnr_min = 5 .. got -5 (t = 0 is data and has the larger λ; if "
            "these are γ = −λ, write logsnr_max=5, logsnr_min=-5)",
        ),
        (
            5.0,
            5.0,
            "logsnr_max",
            "be greater than logsnr_min = 5 .. got 5 (equal ends leave nothing between)",
        ),
        (
            5.0,
            -INF,
            "logsnr_min",
            "be finite .. got -inf (λ = −∞ is zero terminal SNR .. stop at about −15",
        ),
        (
            INF,
            -5.0,
            "logsnr_max",
            "be finite .. got inf (λ = +∞ is data without noise .. stop at about 15",
        ),
        (5.0, NAN, "logsnr_min", "be finite .. got nan"),
        ("13.3", -5.0, "logsnr_max", "be a number .. got '13.3'"),
        (5.0, torch.zeros(2), "logsnr_min", "be a number .. got a tensor of shape (2,)"),
    ],
    ids=["reversed", "equal", "zero terminal SNR", "no noise", "nan", "text", "vector"],
)
def test_fault_17_ends(
    name: str, build: Callable[..., Schedule], high: object, low: object, argument: str, words: str
) -> None:
    with assert_refused(
        TypeError if words.startswith("be a number") else ValueError, name, argument, words
    ):
        build(high, low)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normal(0.0, 0.0), "Normal: std must be finite and greater than 0 .. got 0"),
        (lambda: Normal(NAN, 1.0), "Normal: mean must be finite .. got nan"),
        (lambda: Laplace(0.0, -1.0), "Laplace: scale must be finite and greater than 0 .. got -1"),
        (
            lambda: LinearBeta(beta_min=-0.1),
            "LinearBeta: beta_min must be finite and greater than 0 .. got -0.1",
        ),
        (
            lambda: LinearBeta(beta_min=20.0, beta_max=0.1),
            "LinearBeta: beta_max must be at least beta_min = 20 .. got 0.1 (swapped?)",
        ),
        (lambda: Cosine(shift=INF), "Cosine: shift must be finite .. got inf"),
        (
            lambda: Cosine(offset=-0.008),
            "Cosine: offset must be finite and at least 0 .. got -0.008",
        ),
        (
            lambda: Cosine(shift=1.0, offset=0.008),
            "Cosine: offset must be zero where shift is given .. Shifted(",
        ),
        (
            lambda: Karras(80.0, 0.002),
            "Karras: sigma_min must be below sigma_max = 0.002 .. got 80 (swapped?)",
        ),
        (
            lambda: Karras(0.0, 80.0),
            "Karras: sigma_min must be finite and greater than 0 .. got 0 (σ = 0 is λ = +∞",
        ),
        (lambda: Karras(rho=0.0), "Karras: rho must be finite and greater than 0 .. got 0"),
        (lambda: Shifted(SCHEDULE, NAN), "Shifted: shift must be finite .. got nan"),
        (
            lambda: Shifted(LearnedLinear(), 1.0),
            "Shifted: schedule must have fixed ends .. LearnedLinear(",
        ),
        (
            lambda: Tabulated([1.0]),
            "Tabulated: logsnr must be one row of at least two levels .. shape (1,)",
        ),
        (
            lambda: Tabulated(np.zeros((2, 3))),
            "Tabulated: logsnr must be one row of at least two levels .. shape (2, 3)",
        ),
        (
            lambda: Tabulated([3.0, -INF, -INF]),
            "Tabulated: logsnr must be finite, or −∞ at the last level .. -inf at level 2 of 3",
        ),
        (
            lambda: Tabulated([3.0, 2.0, 2.0]),
            "Tabulated: logsnr must be strictly decreasing .. 2 at level 2 of 3 and "
            "2 at level 3 of 3",
        ),
        (
            lambda: Tabulated.from_betas([0.1, 1.0, 0.2]),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. 1 at step 2 of "
            "3 (β = 1 leaves pure noise: it is the last",
        ),
        (
            lambda: Tabulated.from_betas([0.0, 0.1]),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. 0 at "
            "step 1 of 2 (β = 0 adds no noise",
        ),
        (
            lambda: Tabulated.linear_betas(1e-2, 2.0, 10),
            "Tabulated.from_betas: betas must lie strictly between 0 and 1 .. "
            "1.1 .. rescaled to few steps",
        ),
        (
            lambda: Tabulated.from_betas(torch.full((2, 5), 0.1)),
            "Tabulated.from_betas: betas must be one row .. shape (2, 5)",
        ),
        (
            lambda: V(0.0),
            "V: sigma_data must be finite and greater than 0 .. got 0 (the "
            "standard deviation of the data",
        ),
    ],
)
def test_fault_17_what_a_schedule_is_made_of(build: Callable[[], object], message: str) -> None:
    with assert_refused_with(ValueError, message):
        build()


@pytest.mark.parametrize("schedule", [Cosine, "cosine", None, lambda t: 10 - 20 * t])
def test_fault_17_what_is_no_schedule(schedule: object) -> None:
    words = (
        ("got the class Cosine (an instance: Cosine())",)
        if schedule is Cosine
        else ("got", "for instance Cosine(); schedule.Custom takes a function of t")
    )
    x = batch()[0]
    with assert_refused(TypeError, "weighted_elbo", "schedule", "be a Schedule", *words):
        weighted_elbo(model(), x, schedule=schedule)  # type: ignore[arg-type]
    with assert_refused(TypeError, "elbo", "schedule", "be a Schedule", *words):
        elbo(model(), x, schedule=schedule, decoder=Gaussian())  # type: ignore[arg-type]
    with assert_refused(TypeError, "Objective", "schedule", "be a Schedule", *words):
        Objective(model(), schedule=schedule)  # type: ignore[arg-type]
    with assert_refused(TypeError, "Shifted", "schedule", "be a Schedule", *words):
        Shifted(schedule, 1.0)  # type: ignore[arg-type]
    with assert_refused(TypeError, "MSE", "schedule", "be a Schedule", *words):
        MSE(schedule, V())  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        (lambda logsnr: -torch.ones_like(logsnr), "be finite and at least 0 .. got -1 at λ = -10"),
        (lambda logsnr: logsnr, "be finite and at least 0 .. got -10 at λ = -10"),
        (lambda logsnr: logsnr.log(), "be finite and at least 0 .. got nan at λ = -10"),
        (lambda logsnr: 1 / (logsnr - 10), "be finite and at least 0 .. got -0.05 at λ = -10"),
        (lambda logsnr: 1 / (10 - logsnr), "be finite and at least 0 .. got inf at λ = 10"),
        (
            lambda logsnr: logsnr[:, None].exp(),
            "return the shape and device of logsnr .. (1001, 1), cpu "
            "(it would broadcast in silence)",
        ),
        (
            lambda logsnr: logsnr.exp().mean(),
            "return the shape and device of logsnr .. (), cpu (it would broadcast in silence)",
        ),
        (
            lambda logsnr: 1.0,
            "return the shape and device of logsnr .. got float "
            "(torch.full_like(logsnr, value) for a constant)",
        ),
        (
            lambda logsnr: logsnr.exp().to("meta"),
            "return the shape and device of logsnr .. meta",
        ),
    ],
    ids=[
        "negative",
        "negative somewhere",
        "nan",
        "pole",
        "inf",
        "column",
        "mean",
        "number",
        "device",
    ],
)
def test_fault_22_weightings(weighting: Callable[[Tensor], Tensor], words: str) -> None:
    with assert_refused(ValueError, "Objective", "weighting", words):
        Objective(model(), schedule=SCHEDULE, loss=Weighted(weighting))
    with assert_refused(ValueError, "Custom", "weighting", words):
        CustomWeighting(weighting, logsnr_max=10.0, logsnr_min=-10.0)
    if words.startswith("return"):
        first = words.split(" .. ")[0]
        with assert_refused(ValueError, "weighted_elbo", "weighting", first):
            weighted_elbo(model(), batch()[0], schedule=SCHEDULE, weighting=weighting)


def test_fault_22_a_weighting_for_part_of_the_line() -> None:
    def tent(logsnr: Tensor) -> Tensor:
        return 1 - logsnr.abs() / 20

    with assert_refused_with(
        ValueError,
        "Custom: weighting must be finite and at least 0 .. got -1 at λ = -40 (give the range it "
        "is meant for: Custom(…, logsnr_max=…, logsnr_min=…))",
    ):
        CustomWeighting(tent)
    w = CustomWeighting(tent, logsnr_min=-20.0, logsnr_max=20.0)
    assert w(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0.5, 1.0, 0.5]
    assert not w.monotone  # no fault: the reading as an ELBO does not hold
    assert Objective(model(), schedule=SCHEDULE, loss=Weighted(w)).loss.weighting is w


@pytest.mark.parametrize("weighting", [Sigmoid, "sigmoid", 2.0])
def test_fault_22_what_is_no_weighting(weighting: object) -> None:
    words = (
        ("got the class Sigmoid (an instance: Sigmoid())",)
        if weighting is Sigmoid
        else (f"got {weighting!r} (for instance Sigmoid(2.0))",)
    )
    with assert_refused(
        TypeError, "weighted_elbo", "weighting", "be a Weighting or a function of logsnr", *words
    ):
        weighted_elbo(model(), batch()[0], schedule=SCHEDULE, weighting=weighting)  # type: ignore[arg-type]
    with assert_refused(
        TypeError, "Weighted", "weighting", "be a Weighting or a function of logsnr", *words
    ):
        Objective(model(), schedule=SCHEDULE, loss=Weighted(weighting))  # type: ignore[arg-type]


def test_fault_22_what_is_no_law_of_noise() -> None:
    """A weighting is not one: its law is."""
    words = "be an Augmentation", "got Sigmoid(bias=2.0) (for instance describe("
    with assert_refused(TypeError, "augmented_elbo", "augmentation", *words):
        augmented_elbo(model(), batch()[0], augmentation=Sigmoid(2.0), schedule=SCHEDULE)  # type: ignore[arg-type]


class Halves(Factor):
    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.full_like(logsnr, 0.5)


@pytest.mark.parametrize(
    "factor",
    [
        P2(),
        MinSNR(5.0),
        SoftMinSNR(),
        TruncatedSNR(),
        Debiased(),
        Halves(),
        MinSNR(5.0) * P2(),
        (Debiased() * P2()) * MinSNR(),
    ],
    ids=repr,
)
def test_fault_22_a_factor_alone_is_no_weighting(factor: Weighting) -> None:
    """Wherever a weighting is taken; the hint is the product to write, which is taken."""
    x, profile = batch()[0], Profile(logsnr_max=10.0, logsnr_min=-10.0, bins=2)
    profile.update(torch.tensor([-5.0, 5.0]), torch.ones(2))
    takes: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
        "weighted_elbo": lambda w: weighted_elbo(model(), x, schedule=SCHEDULE, weighting=w),
        "Weighted": lambda w: Objective(model(), schedule=SCHEDULE, loss=Weighted(w)),
        "loss_factor": lambda w: loss_factor(w, SCHEDULE, Eps()),
        "Recipe": lambda w: describe(Recipe("mine", SCHEDULE, Eps(), w)),  # type: ignore[arg-type]
        "diagnose": lambda w: diagnose(profile, SCHEDULE, w),
        "Histogram.optimal": lambda w: Histogram.optimal(profile, w),
    }
    words = "be a total", f"got the factor {factor!r}", f"MSE(schedule, Eps()) * {factor!r}"
    for name, take in takes.items():
        partials = partial(factor), partial(factor.weight_at), partial(partial(factor))
        for alone in (factor, factor.forward, factor.weight_at, *partials):
            with assert_refused(ValueError, name, "weighting", *words):
                take(alone)
        for whole in (MSE(SCHEDULE, Eps()) * factor, factor * ELBO(), lambda v: factor(v)):
            take(whole)
    with assert_refused(ValueError, "Custom", "weighting", "be a total"):
        CustomWeighting(factor)
    assert (
        CustomWeighting(lambda logsnr: factor(logsnr), logsnr_max=10.0, logsnr_min=-10.0).is_factor
        is False
    )
    assert factor.check() is factor  # by itself it is looked at, plotted and multiplied as before


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: ELBO() * 2,
            TypeError,
            "Product: factor must be a Weighting .. got 2 (a constant "
            "changes only the learning rate",
        ),
        (
            lambda: ELBO() * MinSNR,
            TypeError,
            "Product: factor must be a Weighting .. (an instance: MinSNR())",
        ),
        (
            lambda: MSE(SCHEDULE, V),
            TypeError,
            "MSE: parameterization must be a Parameterization .. got the class V (an instance",
        ),
        (
            lambda: MSE(OptimalTransport().law, Flow(), steps=10),
            TypeError,
            "MSE: schedule must be a Schedule where steps are given .. Logistic(",
        ),
        (
            lambda: MinSNR(0.0),
            ValueError,
            "MinSNR: gamma must be finite and greater than 0 .. got 0",
        ),
        (
            lambda: SoftMinSNR(-1.0),
            ValueError,
            "SoftMinSNR: gamma must be finite and greater than 0 .. got -1",
        ),
        (lambda: P2(gamma=NAN), ValueError, "P2: gamma must be finite .. got nan"),
        (lambda: P2(k=0.0), ValueError, "P2: k must be finite and greater than 0 .. got 0"),
        (lambda: Sigmoid(INF), ValueError, "Sigmoid: bias must be finite .. got inf"),
        (lambda: Sigmoid("2+"), TypeError, "Sigmoid: bias must be a number .. got '2+'"),
        (lambda: EDM(std=0.0), ValueError, "EDM: std must be finite and greater than 0 .. got 0"),
        (
            lambda: EDM(sigma_data=0.0),
            ValueError,
            "EDM: sigma_data must be finite and greater than 0 .. got 0",
        ),
    ],
)
def test_fault_22_what_a_weighting_is_made_of(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with assert_refused_with(error, message):
        build()


def test_fault_22_a_weighted_loss_of_levels_is_that_of_the_encoded_data_and_no_bound() -> None:
    decoder, levels = Categorical(17), torch.randint(0, 17, (4, 2))
    objective = Objective(model(), schedule=SCHEDULE, loss=Weighted(Sigmoid(), decoder=decoder))
    t, eps = torch.linspace(0.1, 0.9, 4), torch.ones(4, 2)
    known = weighted_elbo(
        objective.model,
        decoder.encode(levels),
        schedule=SCHEDULE,
        weighting=Sigmoid(),
        t=t,
        eps=eps,
    )
    assert_same(objective(levels, t=t, eps=eps), known)
    whole = Objective(objective.model, schedule=SCHEDULE, loss=VLB(decoder))
    assert_same(whole(levels, t=t, eps=eps), objective.bound(levels, t=t, eps=eps).total)


def test_fault_22_every_weighting_passes_its_own_check() -> None:
    for w in (
        ELBO(),
        Sigmoid(),
        EDM(),
        EDM(monotone=True),
        InDI(),
        MSE(SCHEDULE, V()),
        MSE(Tabulated.linear_betas(), Eps(), steps=999),
        MSE(SCHEDULE, X()) * TruncatedSNR() * P2(),
    ):
        assert w.check() is w


def test_fault_23_a_density_that_is_zero_inside_the_ends() -> None:
    """The schedule is the density of the times: where it never looks, no weight can be trained."""
    with assert_refused_with(
        ValueError,
        "Normal: logsnr_max must lie where Gaussian(mean=0.0, std=1.0) has mass in float64 .. got "
        "[-5, 60], of which it reaches [-5, inf] (the end is too far out",
    ):
        Normal(0.0, 1.0, logsnr_max=60.0)
    with assert_refused_with(
        ValueError,
        "Normal: logsnr_min must lie where Gaussian(mean=0.0, std=1.0) has "
        "mass in float64 .. got [-60, 5]",
    ):
        Normal(0.0, 1.0, logsnr_min=-60.0)
    factor = loss_factor(ELBO(), SCHEDULE, V())
    assert (
        factor(torch.tensor([20.0])).item() == INF
    )  # no finite factor makes up for a λ that is never drawn
    assert 0 < factor(torch.tensor([9.9])).item() < INF


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(3.0, -8.0),
        Cosine(5.0, -2.0, offset=0.008),
        LinearBeta(5.0, -5.0),
        OptimalTransport(4.0, -9.0),
        Normal(2.4, 2.4, 3.0, -4.0),
        Laplace(0.0, 0.5, 2.0, -1.0),
        Karras(),
        Tabulated([5.0, 4.0, 0.0, -3.0]),
        Shifted(SCHEDULE, 2.0),
        LearnedLinear(),
    ],
    ids=repr,
)
def test_fault_23_densities_are_normalized_between_the_ends(schedule: Schedule) -> None:
    edges = schedule(
        torch.linspace(1, 0, 3001, dtype=torch.float64)
    )  # cells end where a table has its levels
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(4))
    half, middle = 0.5 * edges.diff()[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    assert (
        half * weights * schedule.density(middle + half * nodes)
    ).sum().item() == pytest.approx(1.0, abs=1e-6)
    beyond = torch.tensor([schedule.logsnr_max + 1, schedule.logsnr_min - 1])
    assert schedule.density(beyond).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("logsnr", "words"),
    [
        (
            lambda t: falls(t)[:, None],
            "(10001, 1), torch.float64, cpu (it would broadcast in silence)",
        ),
        (lambda t: falls(t).mean(), "(), torch.float64, cpu (it would broadcast in silence)"),
        (lambda t: falls(t).float(), "(10001,), torch.float32, cpu"),
        (lambda t: falls(t).to("meta"), "(10001,), torch.float64, meta"),
        (lambda t: falls(t).tolist(), "list"),
        (lambda t: 3.0, "float (torch.full_like(t, value) for a constant)"),
    ],
    ids=["column", "scalar", "dtype", "device", "list", "number"],
)
def test_fault_24_what_a_schedule_returns(logsnr: Callable[[Tensor], object], words: str) -> None:
    x = batch()[0]
    alike = "return the shape, dtype and device of t: (10001,), torch.float64, cpu"
    must = (f"have Own.logsnr_at {alike}", words)
    with assert_refused(ValueError, "weighted_elbo", "schedule", *must):
        weighted_elbo(model(), x, schedule=Own(logsnr, twenty))
    must = (f"have Own.rate_at {alike}", words)
    with assert_refused(ValueError, "weighted_elbo", "schedule", *must):
        weighted_elbo(model(), x, schedule=Own(falls, logsnr))
    for wrong, method in ((Own(logsnr, twenty), "logsnr_at"), (Own(falls, logsnr), "rate_at")):
        with assert_refused(ValueError, "Objective", "schedule", f"have Own.{method} {alike}"):
            Objective(model(), schedule=wrong)
    with assert_refused_with(
        ValueError,
        "Custom: logsnr must return the shape, dtype and device of t: (2,), torch.float64, cpu",
    ):
        Custom(logsnr)  # type: ignore[arg-type]
    with assert_refused(ValueError, "Custom", "schedule", f"have Custom.rate_at {alike}"):
        Custom(falls, rate=logsnr)  # type: ignore[arg-type]


def test_fault_24_a_schedule_without_its_methods() -> None:
    class Half(Schedule):
        def logsnr_at(self, t: Tensor) -> Tensor:
            return falls(t)

    with pytest.raises(TypeError, match=r"abstract methods? '?logsnr_at'?, '?rate_at"):
        Schedule(1.0, 0.0)  # type: ignore[abstract]
    with pytest.raises(TypeError, match=r"class Half .* abstract method '?rate_at"):
        Half(10.0, -10.0)  # type: ignore[abstract]


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULE,
        Linear(10.0, -10.0),
        Tabulated([10.0, 3.0, -10.0]),
        Custom(falls),
        Shifted(SCHEDULE, 0.0),
        LearnedLinear(10.0, -10.0),
    ],
    ids=repr,
)
def test_fault_25_an_inverse_beyond_the_ends(schedule: Schedule) -> None:
    name, logsnr = type(schedule).__name__, torch.tensor([0.0, 20.0, -30.0])
    with assert_refused(
        ValueError,
        f"{name}.inverse",
        "logsnr",
        "lie within the ends [-10, 10]",
        "values from -30 to 20 (clamp=True returns the nearest end)",
    ):
        schedule.inverse(logsnr)
    with assert_refused(
        ValueError,
        f"{name}.inverse",
        "logsnr",
        "lie within the ends [-10, 10]",
        "values from nan to nan",
    ):
        schedule.inverse(torch.tensor([torch.nan]))
    assert_same(
        schedule.inverse(logsnr, clamp=True)[1:], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-15
    )
    rounded = torch.tensor([10.0, -10.0], dtype=torch.float64) * (
        1 + 1e-8
    )  # what float32 makes of an end
    assert_same(schedule.inverse(rounded), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-12)
    with assert_refused(
        TypeError, f"{name}.inverse", "logsnr", "be a floating tensor", "torch.int64"
    ):
        schedule.inverse(torch.tensor([3]))


class Drifting(Linear):
    """Parameters that it does not tell of."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))


def test_fault_16_a_schedule_is_checked_at_its_first_use() -> None:
    x = batch()[0]
    with assert_refused_with(
        ValueError,
        "weighted_elbo: schedule must say what its parameters are .. got Drifting with parameters "
        "and learns_ends = False (λ_max and λ_min would move",
    ):
        weighted_elbo(model(), x, schedule=Drifting())
    rising = Own(lambda t: -falls(t), twenty)
    with pytest.raises(ValueError, match="strictly decreasing"):
        weighted_elbo(model(), x, schedule=rising)


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


def test_fault_17_a_table_of_signal_taken_for_one_of_logsnr() -> None:
    with assert_refused_with(
        ValueError,
        "Tabulated: logsnr must be log α²/σ²; got values from 0.1 to 0.9 alone (these look "
        "like ᾱ: Tabulated.from_alphas_cumprod",
    ):
        Tabulated([0.9, 0.5, 0.1])
    with assert_refused_with(
        ValueError,
        "Tabulated.from_alphas_cumprod: alphas_cumprod must lie strictly between 0 and 1; got 0 "
        "at level 2 of 3 (ᾱ = 0 is pure noise: it is the last",
    ):
        Tabulated.from_alphas_cumprod([0.9, 0.0, 0.0])


def test_what_is_no_recipe() -> None:
    with assert_refused_with(
        TypeError,
        "describe: objective must be a Recipe or the name of one .. "
        "got 3 .. Recipe(name, schedule",
    ):
        describe(3)  # type: ignore[arg-type]
