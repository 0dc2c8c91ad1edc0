"""What many tests are made of."""

from typing import Any

from vdiff import Objective
from vdiff.objective import VLB, Hybrid, Loss, Weighted
from vdiff.weighting import ELBO


def loss_of(
    weighting: Any = None,
    decoder: Any = None,
    steps: int | None = None,
    bound_weight: float | None = None,
    resampling: Any = None,
) -> Loss:
    """The loss that these parts make."""
    if bound_weight is not None:
        return Hybrid(steps, bound_weight=bound_weight, decoder=decoder)
    if decoder is not None and isinstance(weighting or ELBO(), ELBO):
        return VLB(decoder, steps=steps, resampling=resampling)
    return Weighted(weighting or ELBO(), steps=steps, decoder=decoder)


def objective_of(model: Any, *, schedule: Any, **parts: Any) -> Objective:
    """The objective that these parts make."""
    return Objective(model, schedule=schedule, loss=loss_of(**parts))
