"""Samplers: where each of the library's steps takes noise, how fast that becomes exact, and what a
sampler needs for it."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vdiff.gaussian import alpha
from vdiff.loss import Model
from vdiff.sampling import Memory, adams, ddim, dpmpp_2m, heun, trajectory
from vdiff.schedule import Linear
from vdiff.theorems.subject import Subject, line, scaled_x
from vdiff.theorems.theorem import Sides, equal, theorem

Stepper = Callable[..., Tensor]
HIGH, LOW = 4.0, -6.0
SCORES = torch.tensor([-2.0, -0.5, 1.0], dtype=torch.float64)
STEPPERS: dict[str, tuple[Stepper, int]] = {
    "ddim": (ddim, 1),
    "heun": (heun, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "adams of order 2": (partial(adams, order=2), 2),
    "adams of order 3": (partial(adams, order=3), 3),
}


def quantiles(logsnr: Tensor) -> Tensor:
    """The quantiles of `line`'s noisy data at one λ, a row each: in one dimension the flow keeps
    order, so it takes them to each other.

    >>> quantiles(torch.tensor(0.0, dtype=torch.float64)).shape
    torch.Size([3, 1])
    """
    oracle = line()
    std = (torch.sigmoid(logsnr) * oracle.variances[0, 0] + torch.sigmoid(-logsnr)).sqrt()
    return (alpha(logsnr) * oracle.means[0, 0] + std * SCORES)[:, None]


def grid(steps: int, before: int = 0) -> Tensor:
    """Levels of so many equal steps in λ, with some before the first.

    >>> grid(2)
    tensor([-6., -1.,  4.], dtype=torch.float64)
    """
    found: Tensor = (
        LOW + (HIGH - LOW) * torch.arange(-before, steps + 1, dtype=torch.float64) / steps
    )
    return found


def _carried(step: Stepper, steps: int, model: Model) -> Tensor:
    """Where a sampler takes the quantiles of the noisy end: through `trajectory`, its last
    state."""
    levels = Linear(HIGH, LOW)(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    *_, (last, _) = trajectory(model, quantiles(levels[0]), levels=levels, step=step)
    return last[:, 0]


def _taken(altered: Callable[[Model], Model]) -> Sides:
    """The sampled quantiles, extrapolated by the order of each step from two numbers of steps,
    against the data end's."""
    left = []
    for step, order in STEPPERS.values():
        coarse, fine = (_carried(step, steps, altered(line())) for steps in (200, 400))
        left.append(fine + (fine - coarse) / (2**order - 1))
    right = quantiles(torch.tensor(HIGH, dtype=torch.float64))[:, 0].expand(len(left), -1)
    return equal(
        torch.stack(left),
        right,
        rel=0.0,
        atol=3e-5,
        why="the next order of each step, at 400 steps",
    )


@theorem(
    source="DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364, algorithm 1; DPM-Solver++, arXiv:2211.01095; DEIS, arXiv:2204.13902",
    given="the denoiser is the exact one",
)
def samplers_follow_the_flow(subject: Subject) -> Sides:
    """As steps grow many, ddim, heun, dpmpp_2m and adams take the quantiles of noise to those of
    the data, as the exact flow does."""
    return _taken(lambda model: model)


@samplers_follow_the_flow.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _taken(lambda model: scaled_x(model, 0.98))


def _past(levels: Tensor) -> Memory:
    """The memory of a sampler that came along the exact flow: the predictions at these levels."""
    memory = Memory()
    for level in levels:
        memory = memory.after(line()(quantiles(level), level.expand(len(SCORES))))
    return memory


def _error(step: Stepper, steps: int, remembers: bool) -> Tensor:
    """How far a sampler that starts on the flow ends away from it."""
    levels = grid(steps, before=2)
    memory, z = _past(levels[:2]), quantiles(levels[2])
    for now, after in itertools.pairwise(levels[2:]):
        t, s = now.expand(len(z)), after.expand(len(z))
        there = step(line(), z, t, s, memory)
        memory = memory.after(line()(z, t)) if remembers else Memory()
        z = there
    return (z - quantiles(levels[-1]))[:, 0]


def _orders(steppers: list[tuple[Stepper, int]], remembers: bool) -> Sides:
    """log₂ of how much the error falls when the steps are halved, extrapolated to no step at
    all."""
    found = []
    for step, _ in steppers:
        errors = torch.stack([_error(step, steps, remembers).abs() for steps in (120, 240, 480)])
        first, second = (errors[:-1] / errors[1:]).log() / math.log(2.0)
        found.append(2 * second - first)
    order = torch.tensor([order for _, order in steppers], dtype=torch.float64)[:, None]
    return equal(
        torch.stack(found),
        order.expand(-1, len(SCORES)),
        rel=0.0,
        atol=0.05,
        why="what is left of the next orders at 480 steps",
    )


@theorem(
    source="EDM, arXiv:2206.00364, appendix D; DPM-Solver++, arXiv:2211.01095, theorem 1; Adams and Bashforth",
    given="multistep methods have their past",
)
def order_of_the_samplers(subject: Subject) -> Sides:
    """The error falls as the steps' length to the power of the order: 1 for ddim, 2 for heun and
    dpmpp_2m, 2 and 3 for adams."""
    return _orders(list(STEPPERS.values()), remembers=True)


@order_of_the_samplers.without("multistep methods have their past")
def _(subject: Subject) -> Sides:
    return _orders([STEPPERS["dpmpp_2m"], STEPPERS["adams of order 2"]], remembers=False)


__all__ = ["STEPPERS", "grid", "quantiles"]
