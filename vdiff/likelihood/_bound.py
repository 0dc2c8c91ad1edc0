"""Which bound an evaluation is of: what was given, and what the model itself says."""

from typing import Any, NamedTuple

from torch import Tensor

from vdiff._arguments import (
    Model,
    checked_model,
    decoder_factorises,
    original,
    synchronised,
)
from vdiff._diffusion import diffusion_of
from vdiff.decoder import Decoder
from vdiff.errors import InvalidType
from vdiff.likelihood._rules import schedule_fits
from vdiff.objective import Objective
from vdiff.schedule import Schedule


class BoundOf(NamedTuple):
    """A model, and what its bound depends on."""

    model: Model
    schedule: Schedule
    decoder: Decoder | None
    steps: int | None


def bound_of(
    model: Model,
    schedule: Schedule | None,
    decoder: Decoder | None,
    steps: int | None,
    data: Tensor,
    **masks: Tensor | None,
) -> BoundOf:
    """The parts of a bound. What is not given is that of an `Objective`, or the schedule of the
    process of tokens. Raises where something is missing or does not fit."""
    owner: Any = original(model)
    if isinstance(owner, Objective):
        model = checked_model(owner.model)
        schedule = owner.schedule if schedule is None else schedule
        decoder = owner.decoder if decoder is None else decoder
        steps = owner.steps if steps is None else steps
    process = diffusion_of(model)
    schedule = process.schedule if schedule is None else schedule
    if schedule is None:
        hint = "for instance Cosine(); over tokens, where none is needed, a model is a "
        raise InvalidType("schedule", "be a Schedule", None, hint + "TokenDenoiser")
    process.check_decoder(decoder)
    synchronised(model, schedule)
    schedule_fits(schedule, data)
    decoder_factorises(decoder, masks["mask"], masks["absent"])
    return BoundOf(model, schedule, decoder, steps)


__all__ = ["BoundOf", "bound_of"]
