"""From noise to data: ancestral sampling along any schedule."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vdiff.errors import check_data, check_positive_int
from vdiff.gaussian import Step
from vdiff.parameterization import Prediction
from vdiff.reverse import reverse_sample
from vdiff.schedule import Schedule


@torch.no_grad()
def trajectory(
    model: Callable[..., Prediction],
    z: Tensor,
    *,
    schedule: Schedule,
    steps: int,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Iterator[tuple[Tensor, Prediction]]:
    """Ancestral sampling from z at λ_min to λ_max in `steps` steps: every (z, prediction) on the way, `steps` + 1 of them.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> len(list(trajectory(oracle, torch.randn(4, 1), schedule=Linear(), steps=3)))
    4
    """
    check_data("sample", z, "z")
    check_positive_int("sample", "steps", steps)
    for i in range(steps, -1, -1):
        t = torch.full((z.shape[0],), i / steps, dtype=torch.float64, device=z.device)
        logsnr, _ = schedule.levels(t)
        prediction = model(z, logsnr, **condition)
        yield z, prediction
        if i > 0:
            noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
            z = reverse_sample(prediction, Step(logsnr, schedule.delta(t, steps)), noise)


def sample(
    model: Callable[..., Prediction],
    z: Tensor,
    *,
    schedule: Schedule,
    steps: int,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Tensor:
    """Data from noise: the x̂ at the end of an ancestral trajectory of `steps` steps from z ~ N(0, I) at λ_min.

    Takes `steps` + 1 evaluations of the model; a decoder's `decode` turns the result into levels.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[3.0]], [[0.01]])
    >>> sample(oracle, torch.randn(1000, 1), schedule=Linear(), steps=50).mean().round()
    tensor(3.)
    """
    x = z
    for _, prediction in trajectory(model, z, schedule=schedule, steps=steps, generator=generator, **condition):
        x = prediction.x
    return x
