"""Which code a model has: its process says it."""

from typing import Any

import torch

from vdiff._arguments import Model, decoder_fits, finite_end, original
from vdiff._diffusion import diffusion_of, takes_time
from vdiff._precision import device_of
from vdiff._validate import require
from vdiff.codec.batches import BitsBack
from vdiff.codec.code import Code
from vdiff.codec.container import MOST_STEPS, Facts
from vdiff.codec.latents import TOLERANCE, Latents
from vdiff.codec.tokens import MaskCode
from vdiff.decoder import Decoder, Levels
from vdiff.errors import InvalidType, InvalidValue
from vdiff.likelihood._bytes import bytes_of_texts
from vdiff.schedule import Schedule
from vdiff.weighting._check import divides_table

_REPLACED = "a token that may be another one needs bits-back, which codes no tokens"
_WITH_TIME = "a network that gets no time codes one token in each step"


def has_code(model: Model, schedule: Schedule | None, decoder: Decoder | None) -> None:
    """Rule: the process has a code, and the schedule and the decoder are those that it needs."""
    process = diffusion_of(model)
    process.check_decoder(decoder)
    masks = process.any_order() is not None
    has = process.continuous or masks
    require(has, "model", "have masks if it is over tokens", process, _REPLACED)
    if schedule is None:
        if not masks:
            raise InvalidType("schedule", "be a Schedule", None, "that of the model's training")
        return
    finite_end(schedule)
    decoder_fits(decoder, schedule)
    what, hint = "have one λ for all dimensions", "a step in which one rests has no noise to code"
    shared = schedule.shared and not schedule.depends_on_data
    require(shared, "schedule", what, type(schedule).__name__, hint)


def counted_of_texts(model: Model, bytes: Any) -> None:
    """Rule: bytes are those of texts, and positive."""
    bytes_of_texts(model, torch.empty(0), bytes, None, None)  # data matter to masks alone


def has_steps(model: Model, schedule: Schedule | None, steps: int | None) -> None:
    """Rule: the number of steps is given for a chain, and only for one."""
    process, timed = diffusion_of(model), takes_time(original(model))
    order = process.any_order()
    if order is process:
        hint = "Masked has a chain"
        require(steps is None, "steps", "be None for AnyOrder", steps, hint)
        require(not timed, "model", "get no time with AnyOrder", "a time", hint)
    elif steps is None:
        hint = _WITH_TIME if order is not None else "T of the chain"
        require(order is not None and not timed, "steps", "be given", None, hint)
    if schedule is not None:
        divides_table(schedule, steps)


def code_of(
    model: Model,
    schedule: Schedule | None,
    decoder: Levels | None,
    steps: int | None,
    dims: int,
    *,
    seed: int = 0,
    spacing: float | None = None,
    tolerance: float = TOLERANCE,
) -> Code:
    """The code of a model for examples of so many dimensions."""
    process, device = diffusion_of(model), device_of(original(model))
    schedule = process.schedule if schedule is None else schedule
    masked = process.any_order()
    assert schedule is not None
    if masked is None:
        assert decoder is not None
        assert steps is not None
        return BitsBack(Latents(model, schedule, decoder, steps, device, spacing, tolerance))
    if steps is None:
        what = f"have at most {MOST_STEPS:,} tokens a text"
        require(dims <= MOST_STEPS, "data", what, f"{dims:,}", "or give steps")
        return MaskCode(model, process, None, dims, seed, device)
    return MaskCode.of_chain(model, process, schedule, steps, seed, device)


def code_in(
    facts: Facts, model: Model, schedule: Schedule | None, decoder: Levels | None, dims: int
) -> Code:
    """The code of a file. Raises unless the model has it."""
    steps = None if facts.kind == "any order" else facts.steps
    masks = diffusion_of(model).any_order() is not None
    fits = masks == (facts.kind != "latents")
    held, own = ("images", "tokens") if masks else ("tokens", "images")
    require(fits, "path", f"hold {own}, as the model does", held)
    dims_fit = facts.kind != "any order" or facts.steps == dims
    require(dims_fit, "path", "have a step for each token", f"{facts.steps:,} for {dims:,}")
    try:
        has_steps(model, schedule, steps)
    except InvalidValue as error:
        got = f"{facts.kind}, T = {facts.steps}: {error}"
        raise InvalidValue("path", "hold a code that the model has", got) from None
    chain = model, schedule, decoder, steps
    return code_of(*chain, dims, seed=facts.seed, spacing=facts.spacing)
