"""Every schedule of the library between the same two ends: fixed, learned in a state of no
learning, and of any shape."""

import math

import torch
from torch import Tensor

from vdiff.schedule import (
    Adaptive,
    Cosine,
    Custom,
    Histogram,
    Karras,
    Laplace,
    LearnedLinear,
    Linear,
    LinearBeta,
    Monotone,
    Normal,
    OptimalTransport,
    Schedule,
    Shifted,
    SignalPower,
    Spectral,
    Spline,
    Tabulated,
)
from vdiff.theorems.subject import HIGH, LOW
from vdiff.times import generator_of

CORNERS = (6.0, 3.0, 1.0, -1.0, -2.0)  # of the table and of Laplace's law
FIXED: dict[str, Schedule] = {
    "linear": Linear(HIGH, LOW),
    "cosine": Cosine(HIGH, LOW),
    "cosine with an offset": Cosine(HIGH, LOW, offset=0.008),
    "optimal transport": OptimalTransport(HIGH, LOW),
    "normal": Normal(2.4, 2.4, HIGH, LOW),
    "laplace": Laplace(1.0, 3.0, HIGH, LOW),
    "linear beta": LinearBeta(HIGH, LOW),
    "karras": Karras(math.exp(-HIGH / 2), math.exp(-LOW / 2)),
    "signal power": SignalPower(HIGH, LOW),
    "spectral": Spectral([1.0, 0.25, 0.01], HIGH, LOW),
    "shifted": Shifted(Cosine(HIGH + 2, LOW + 2), -2.0),
    "histogram": Histogram([1.0 + (5 * i) % 7 for i in range(13)], HIGH, LOW),
    "table": Tabulated([HIGH, 6.0, 3.0, -1.0, -2.0, LOW]),
}


def bent(seed: int) -> Schedule:
    """A schedule of any shape: λ falls with a random smooth rate.

    >>> bent(0).logsnr_max
    8.0
    """
    a, b = (
        0.9 * (2 * torch.rand((), generator=generator_of(seed, i), dtype=torch.float64) - 1)
        for i in (0, 1)
    )

    span = HIGH - LOW

    def logsnr(t: Tensor) -> Tensor:
        wave = a * torch.sin(torch.pi * t) / torch.pi + b * torch.sin(2 * torch.pi * t) / (
            2 * torch.pi
        )
        return HIGH - span * (t + 0.5 * wave)

    return Custom(
        logsnr,
        lambda t: (
            span * (1 + 0.5 * (a * torch.cos(torch.pi * t) + b * torch.cos(2 * torch.pi * t)))
        ),
    )


@torch.no_grad()
def learned() -> dict[str, Schedule]:
    """Learned and adaptive schedules in a state that no learning would leave them in, with corners
    at whole λ.

    >>> list(learned())
    ['spline', 'monotone', 'adaptive']
    """
    shapes: dict[str, Schedule] = {
        "spline": Spline(HIGH, LOW, knots=14, learn_ends=False),
        "monotone": Monotone(HIGH, LOW, hidden=8, sharpness=5.0, learn_ends=False),
    }
    for schedule in shapes.values():
        for p in schedule.parameters():
            p.add_(0.5 * torch.sin(2.0 * torch.arange(len(p), dtype=p.dtype)))
    adaptive = Adaptive(HIGH, LOW, bins=13, warmup=1)
    lam = torch.linspace(LOW, HIGH, 200, dtype=torch.float64)
    adaptive.observe(lam, 1.1 + torch.sin(2.0 * lam))
    adaptive.update()
    return {**shapes, "adaptive": adaptive}


LEARNED: dict[str, Schedule] = {"learned ends": LearnedLinear(HIGH, LOW), **learned()}
BENT: dict[str, Schedule] = {f"shape {i}": bent(i) for i in range(3)}

__all__ = ["BENT", "CORNERS", "FIXED", "LEARNED", "bent", "learned"]
