"""Faults 16, 24 and 25: schedules of one's own, and their inverses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vdiff import Objective, weighted_elbo
from vdiff.describe import describe
from vdiff.schedule import Custom, LearnedLinear, Linear, Schedule, Shifted, Tabulated

from .common import SCHEDULE, assert_refused, assert_refused_with, assert_same, batch, model
from .own_schedules import Own, falls, twenty


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


def test_what_is_no_recipe() -> None:
    with assert_refused_with(
        TypeError,
        "describe: objective must be a Recipe or the name of one .. "
        "got 3 .. Recipe(name, schedule",
    ):
        describe(3)  # type: ignore[arg-type]
