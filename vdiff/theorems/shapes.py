"""Every schedule of the library between the same two ends: fixed, learned in a state of no
learning, and of any shape."""

import math

import torch
from torch import Tensor

from vdiff import schedule as of
from vdiff.schedule import Schedule
from vdiff.theorems.subject import HIGH, LOW
from vdiff.times import generator_of

CORNERS = (6.0, 3.0, 1.0, -1.0, -2.0)  # of the table and of Laplace's law
FIXED: dict[str, Schedule] = {
    "linear": of.Linear(HIGH, LOW),
    "cosine": of.Cosine(HIGH, LOW),
    "cosine with an offset": of.Cosine(HIGH, LOW, offset=0.008),
    "optimal transport": of.OptimalTransport(HIGH, LOW),
    "normal": of.Normal(2.4, 2.4, HIGH, LOW),
    "laplace": of.Laplace(1.0, 3.0, HIGH, LOW),
    "linear beta": of.LinearBeta(HIGH, LOW),
    "karras": of.Karras(math.exp(-HIGH / 2), math.exp(-LOW / 2)),
    "signal power": of.SignalPower(HIGH, LOW),
    "spectral": of.Spectral([1.0, 0.25, 0.01], HIGH, LOW),
    "shifted": of.Shifted(of.Cosine(HIGH + 2, LOW + 2), -2.0),
    "histogram": of.Histogram([1.0 + (5 * i) % 7 for i in range(13)], HIGH, LOW),
    "table": of.Tabulated([HIGH, 6.0, 3.0, -1.0, -2.0, LOW]),
}


def bent(seed: int) -> Schedule:
    """A schedule of any shape: λ falls with a random smooth rate."""
    a, b = (
        0.9 * (2 * torch.rand((), generator=generator_of(seed, i), dtype=torch.float64) - 1)
        for i in (0, 1)
    )
    pi, span = torch.pi, HIGH - LOW

    def logsnr(t: Tensor) -> Tensor:
        wave = a * torch.sin(pi * t) / pi + b * torch.sin(2 * pi * t) / (2 * pi)
        return HIGH - span * (t + 0.5 * wave)

    def rate(t: Tensor) -> Tensor:
        return span * (1 + 0.5 * (a * torch.cos(pi * t) + b * torch.cos(2 * pi * t)))

    return of.Custom(logsnr, rate)


@torch.no_grad()
def learned() -> dict[str, Schedule]:
    """Learned and adaptive schedules in an arbitrary state, with corners at whole λ."""
    shapes: dict[str, Schedule] = {
        "spline": of.Spline(HIGH, LOW, knots=14, learn_ends=False),
        "monotone": of.Monotone(HIGH, LOW, hidden=8, sharpness=5.0, learn_ends=False),
    }
    for schedule in shapes.values():
        for p in schedule.parameters():
            p.add_(0.5 * torch.sin(2.0 * torch.arange(len(p), dtype=p.dtype)))
    adaptive = of.Adaptive(HIGH, LOW, bins=13, warmup=1)
    lam = torch.linspace(LOW, HIGH, 200, dtype=torch.float64)
    adaptive.observe(lam, 1.1 + torch.sin(2.0 * lam))
    adaptive.update()
    return {**shapes, "adaptive": adaptive}


LEARNED: dict[str, Schedule] = {"learned ends": of.LearnedLinear(HIGH, LOW), **learned()}
BENT: dict[str, Schedule] = {f"shape {i}": bent(i) for i in range(3)}
