"""Samplers: the limit of each of the library's steps, the order of its error, and the conditions
for both."""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vdiff.gaussian import alpha
from vdiff.loss import Model
from vdiff.sampling import History, adams_bashforth, ddim, dpmpp_2m, heun, trajectory
from vdiff.schedule import Linear
from vdiff.theorems.subject import f64, line, scaled_x
from vdiff.theorems.theorem import Sides, equal, theorem

LINE = line()
HIGH, LOW = 4.0, -6.0
STEPPERS: dict[str, tuple[Callable[..., Tensor], int]] = {  # with the order of each
    "ddim": (ddim, 1),
    "heun": (heun, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "adams_bashforth of order 2": (partial(adams_bashforth, order=2), 2),
    "adams_bashforth of order 3": (partial(adams_bashforth, order=3), 3),
}


def quantiles(logsnr: Tensor) -> Tensor:
    """Quantiles of N(0.3, 0.25)'s noisy data, (3, 1): in one dimension the flow keeps their order,
    so it takes them to each other."""
    std = (torch.sigmoid(logsnr) * LINE.variances[0, 0] + torch.sigmoid(-logsnr)).sqrt()
    return (alpha(logsnr) * LINE.means[0, 0] + std * f64([-2.0, -0.5, 1.0]))[:, None]


@theorem(
    "DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364, algorithm 1; DPM-Solver++, arXiv:2211.01095; "
    "DEIS, arXiv:2204.13902",
    without={
        "the denoiser is the exact one": {"model": scaled_x(LINE, 0.98)},
        "the steps are many": {"counts": (10, 20)},
    },
)
def samplers_follow_the_flow(model: Model = LINE, counts: tuple[int, int] = (200, 400)) -> Sides:
    """With many steps ddim, heun, dpmpp_2m and adams_bashforth map the quantiles of noise to those
    of the data, as the exact flow does."""
    left = []
    for step, order in STEPPERS.values():
        ends = []
        for steps in counts:
            levels = Linear(HIGH, LOW)(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
            *_, (last, _) = trajectory(model, quantiles(levels[0]), levels=levels, step=step)
            ends.append(last)
        left.append(ends[1] + (ends[1] - ends[0]) / (2**order - 1))
    why = "the next order of each step, at 400 steps"
    return equal(torch.stack(left), quantiles(f64(HIGH)), rel=0.0, atol=3e-5, why=why)


def _error(step: Callable[..., Tensor], steps: int, remembers: bool) -> Tensor:
    """How far a sampler ends from the flow that it starts on, with the flow's past in history."""
    levels = LOW + (HIGH - LOW) * torch.arange(-2, steps + 1, dtype=torch.float64) / steps
    history = History()
    for level in levels[:2]:
        history = history.after(LINE(quantiles(level), level.expand(3)))
    z = quantiles(levels[2])
    for t, s in itertools.pairwise(levels[2:, None].expand(-1, 3)):
        after = step(LINE, z, t, s, history)
        history = history.after(LINE(z, t)) if remembers else History()
        z = after
    return (z - quantiles(levels[-1]))[:, 0].abs()


@theorem(
    (
        "EDM, arXiv:2206.00364, appendix D; DPM-Solver++, arXiv:2211.01095, theorem 1; Adams and "
        "Bashforth"
    ),
    without={
        "multistep methods have their past": {
            "names": ("dpmpp_2m", "adams_bashforth of order 2"),
            "remembers": False,
        }
    },
)
def order_of_the_samplers(
    names: tuple[str, ...] = tuple(STEPPERS), remembers: bool = True
) -> Sides:
    """The error falls as the steps' length to the power of the order: 1 for ddim, 2 for heun and
    dpmpp_2m, 2 and 3 for adams_bashforth."""
    found = []
    for name in names:
        errors = [_error(STEPPERS[name][0], steps, remembers) for steps in (120, 240, 480)]
        first, second = (torch.log2(a / b) for a, b in itertools.pairwise(errors))
        found.append(2 * second - first)  # extrapolated to no step at all
    order = f64([STEPPERS[name][1] for name in names])[:, None]
    why = "what is left of the next orders at 480 steps"
    return equal(torch.stack(found), order, rel=0.0, atol=0.05, why=why)
