"""The steps by name, and what the arguments of `sample` and `trajectory` must be."""

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor

from vdiff._arguments import original
from vdiff._diffusion import diffusion_of
from vdiff._precision import device_of
from vdiff._validate import Given, require
from vdiff.errors import InvalidType, did_you_mean, shown
from vdiff.objective import Objective
from vdiff.sampling.multistep import adams_bashforth, dpmpp_2m
from vdiff.sampling.noise import Generators
from vdiff.sampling.probability_flow import ode
from vdiff.sampling.step import Step, ancestral, ddim, heun
from vdiff.sampling.token_steps import confidence, tau_leaping
from vdiff.schedule import Schedule

STEPS: dict[str, Step] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "adams_bashforth": adams_bashforth,
    "ode": ode,
}
TOKEN_STEPS: dict[str, Step] = {
    "ancestral": ancestral,
    "confidence": confidence,
    "tau_leaping": tau_leaping,
}
OPTIONS = {  # of the steps: the name of each option's step
    option: name
    for name, step in (STEPS | TOKEN_STEPS).items()
    for option, parameter in inspect.signature(step).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _a_step(step: object, argument: str, given: Given) -> object:
    if callable(step) and not isinstance(step, type):
        return step
    own = _steps_of(given["model"])[0]
    near = did_you_mean(step, own) if isinstance(step, str) else ""
    named = isinstance(step, str) and step in own
    hint = f"the function, without quotes: step={step}" if named else near
    what = "be a function (model, z, logsnr_t, logsnr_s, history)"
    raise InvalidType(argument, what, shown(step), hint or f"vdiff.sampling has {', '.join(own)}")


def _steps_of(model: Any) -> tuple[dict[str, Step], dict[str, Step]]:
    """The steps of the model's process, and those of others."""
    return (STEPS, TOKEN_STEPS) if diffusion_of(model).continuous else (TOKEN_STEPS, STEPS)


def _state(z: Any, argument: str, given: Given) -> Tensor:
    """A state of the model's process to start from."""
    model = original(given["model"])
    return diffusion_of(model).check_state(z, argument, device_of(model))


def default_schedule(model: Any) -> Schedule | None:
    """The schedule to sample along if none is given: of an Objective its own, or that of the
    process."""
    model = original(model)
    return model.schedule if isinstance(model, Objective) else diffusion_of(model).schedule


def levels_or_schedule(
    model: Any, schedule: Schedule | None, steps: int | None, levels: Tensor | None
) -> None:
    """A rule: the levels are given, or a schedule and steps."""
    if levels is not None:
        alone, hint = schedule is None and steps is None, "levels=trailing(schedule, steps)"
        require(alone, "levels", "come without schedule and steps", "both", hint)
        return
    schedule = schedule or default_schedule(model)
    if schedule is None or steps is None:
        missing, hint = "steps" if schedule else "schedule", "schedule=Cosine(), steps=100"
        raise InvalidType(missing, "be given, schedule and steps; or levels instead", None, hint)


def fixed_noise(schedule: Schedule | None, generator: Generators) -> None:
    """A rule: a schedule that depends on the data draws its latents from one generator."""
    several = isinstance(generator, Sequence) and schedule and schedule.depends_on_data
    hint = "schedule=schedule.for_samples(len(z)) draws the latents before"
    require(not several, "generator", "be one generator for such a schedule", "several", hint)


def step_of_process(model: Any, step: Any) -> None:
    """A rule: a step of ours is one of the model's process."""
    own, others = _steps_of(model)
    function = getattr(step, "func", step)
    fits = function in own.values() or function not in others.values()
    what = f"be one of the model's process: {', '.join(own)}"
    require(fits, "step", what, getattr(function, "__name__", function))


def gradients_reach(model: Any, differentiable: bool) -> None:
    """A rule: tokens are not differentiable."""
    fits = diffusion_of(model).continuous or not differentiable
    require(fits, "differentiable", "be False for tokens", differentiable)


State = Annotated[Tensor | Sequence[int], _state]
AnyStep = Annotated[Step, _a_step]
