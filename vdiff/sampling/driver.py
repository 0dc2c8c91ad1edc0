"""The loop over a grid: every state and prediction on the way from noise to data."""

import inspect
import itertools
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, Model, original
from vdiff._known_range import warn_beyond_levels
from vdiff._precision import at_least_float32
from vdiff._validate import Count, FiniteData, Given, require, unchecked, validated
from vdiff.denoiser import evaluation_mode
from vdiff.errors import InvalidArgument, InvalidType, InvalidValue, did_you_mean
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.sampling.grid import Grid, uniform
from vdiff.sampling.multistep import adams_bashforth, dpmpp_2m
from vdiff.sampling.noise import Generators
from vdiff.sampling.probability_flow import ode
from vdiff.sampling.step import Counted, Memory, Step, ancestral, ddim, heun
from vdiff.schedule import Schedule

STEPS: dict[str, Step] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "adams_bashforth": adams_bashforth,
    "ode": ode,
}
OPTIONS = {  # of the steps
    option: name
    for name, step in STEPS.items()
    for option, parameter in inspect.signature(step).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
LARGE = 4.0  # root mean square: of noise, and of data in [−1, 1] with noise, it is about 1
_UNRELIABLE = "a network is unreliable beyond the levels it was trained on"


def _a_step(step: object, argument: str, given: Given) -> object:
    if callable(step) and not isinstance(step, type):
        return step
    hint = did_you_mean(step, STEPS) if isinstance(step, str) else ""
    if str(step) in STEPS:
        hint = f"the function, without quotes: step={step}"
    what = "be a function (model, z, logsnr_t, logsnr_s, memory)"
    raise InvalidType(argument, what, repr(step), hint or f"vdiff.sampling has {', '.join(STEPS)}")


def _levels_or_schedule(
    schedule: Schedule | None, steps: int | None, levels: Tensor | None
) -> None:
    """A rule: the levels are given, or a schedule and their number."""
    if levels is not None:
        alone, hint = schedule is None and steps is None, "levels=trailing(schedule, steps)"
        require(alone, "levels", "come without schedule and steps", "both", hint)
    elif schedule is None:
        hint = "sample(model, z, schedule=…, steps=…), or levels=…"
        raise InvalidType("schedule", "be given, with steps; or levels instead", None, hint)
    elif steps is None:
        hint = "the number of noise levels visited, 18 in EDM"
        raise InvalidType("steps", "be given with a schedule", None, hint)


AnyStep = Annotated[Step, _a_step]
_checked = validated(
    rules=[_levels_or_schedule],
    elsewhere={o: f"it is an option: step=partial({name}, {o}=…)" for o, name in OPTIONS.items()},
)


@_checked
def trajectory(
    model: Model,
    z: FiniteData,
    *,
    schedule: Schedule | None = None,
    steps: Count | None = None,
    levels: Grid | None = None,
    step: AnyStep = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    condition: Condition = None,
) -> Iterator[tuple[Tensor, Prediction]]:
    """From z ~ N(0, I) at λ_min to λ_max: the state and the prediction at each of the levels
    visited, as it is made.

    Arguments, errors and warnings are those of `sample`. The model is in evaluation mode while a
    step is computed, not between them.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> path = trajectory(oracle, torch.randn(4, 1), schedule=Linear(), steps=3)
    >>> [round(prediction.logsnr[0].item(), 1) for z, prediction in path]
    [-5.0, 4.2, 13.3]
    """
    model = original(model)
    _warn_of_scaled_noise(z)
    if schedule is not None and steps is not None:
        levels = uniform(schedule, steps)
    grid = torch.as_tensor(levels)
    warn_beyond_levels(model, grid)
    z = (z if differentiable else z.detach()).to(at_least_float32(z.dtype), copy=True)
    watched, memory = _Watched(model, condition=condition), Memory((), generator)
    return _walk(watched, z, grid.to(z.device), step, memory, differentiable)


def _walk(
    model: Counted,
    z: Tensor,
    grid: Tensor,
    step: Step,
    memory: Memory,
    differentiable: bool,
) -> Iterator[tuple[Tensor, Prediction]]:
    graph = nullcontext if differentiable else torch.no_grad
    for i, (logsnr_t, logsnr_s) in enumerate(itertools.pairwise(grid.tolist())):
        t, s = (grid.new_full((len(z),), level) for level in (logsnr_t, logsnr_s))
        with graph(), evaluation_mode(model):
            there = step(model, z, t, s, memory)
        now = model.take_first()
        if now is None:
            evaluates, hint = "evaluate the model it is given", "first at (z, logsnr_t)"
            raise InvalidValue("step", evaluates, repr(step), hint)
        yield _to_keep(z, now)
        if not torch.isfinite(there).all():
            bad = int((~torch.isfinite(there)).flatten(1).any(1).sum())
            after = f"after step {i + 1}, from λ = {logsnr_t:g} to {logsnr_s:g}"
            came = f"NaN or infinity in {bad} of {len(z)} samples {after}"
            raise InvalidValue("model", "lead to finite states", came, _UNRELIABLE)
        z, memory = there, memory.after(now)
    with graph(), evaluation_mode(model):
        last = model(z, grid[-1:].expand(len(z)))
    came = f"NaN or infinity at the last level, λ = {grid[-1]:g}"
    finite = bool(torch.isfinite(last.out).all())
    require(finite, "model", "say something finite of data", came, _UNRELIABLE)
    yield _to_keep(z, last)


def _to_keep(z: Tensor, prediction: Prediction) -> tuple[Tensor, Prediction]:
    """Copies that the caller may change: the next steps read these tensors, and a model may return
    its own."""
    tensors = {name: v.clone() for name, v in vars(prediction).items() if isinstance(v, Tensor)}
    return z.clone(), prediction.replace(**tensors)


@_checked
def sample(
    model: Model,
    z: FiniteData,
    *,
    schedule: Schedule | None = None,
    steps: Count | None = None,
    levels: Grid | None = None,
    step: AnyStep = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    condition: Condition = None,
) -> Float[Tensor, "batch *dims"]:
    """Data from noise: x̂ at the last of the noise levels visited, which is the exact step from
    there to λ = +∞.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), trained with any
            schedule. Its modules are in evaluation mode meanwhile, for every thread that uses
            them. While a model trains, sample from a copy.
        z: (batch, …) noise, N(0, I) at the first level; it is taken to float32 at least.
        schedule, steps: the levels are `uniform(schedule, steps)`: `steps` equidistant times from
            t = 1 to t = 0. `Karras()` with 18 steps is EDM's grid; a chain of T steps, whose bound
            is `elbo(..., steps=T)`, has T + 1 levels.
        levels: instead of these, the log-SNRs themselves, rising: `trailing(schedule, steps)`,
            `leading(…)`, or an array. The first may be −∞, pure noise, for a model that predicts
            x, v or the rectified flow, and any step but `heun`.
        step: from a level to the next, for instance `ancestral`, `heun`, `partial(ddim, eta=0.5)`.
        generator: of the steps' noise: one for the batch, or one for each sample
            (`per_sample_generators`).
        differentiable: whether gradients reach z, the model's parameters and the conditions. The
            graph of every evaluation is then kept, so that memory grows with their number;
            `torch.utils.checkpoint` in the network trades it for time. Otherwise no graph is kept.
        condition: what the model is given beside z and λ, as in `weighted_elbo`.

    Returns:
        x̂, (batch, …). A decoder's `decode`, `to_levels` or `to_uint8` make data of it. A step of
        one evaluation takes `steps` of them altogether, `heun` 2·steps − 1; `Counted(model)`
        counts.

    Raises:
        TypeError, ValueError: for levels that do not rise, fewer than one step, an unknown
            keyword, a state that is not finite (which step, which λ), and a first level of λ = −∞
            for a model that predicts ε, which does not determine x there.

    Warns:
        UserWarning: where the first level is so extreme that x̂ or ε̂ has lost its digits, and
            where z is far larger than such noise.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[3.0]], [[0.01]])
    >>> sample(oracle, torch.randn(1000, 1), schedule=Linear(), steps=50).mean().round()
    tensor(3.)
    """
    grid: dict[str, Any] = {"schedule": schedule, "steps": steps, "levels": levels, "step": step}
    options: dict[str, Any] = {"generator": generator, "differentiable": differentiable}
    for _, prediction in unchecked(trajectory)(model, z, **grid, **options, condition=condition):
        last = prediction
    return last.x


def _warn_of_scaled_noise(z: Tensor) -> None:
    size = z.square().mean().sqrt().item()
    if size > LARGE:
        hint = "noise is N(0, I) here at any σ; EDM's z is σ times that"
        warnings.warn(f"sample: z has a root mean square of {size:.3g}: {hint}", stacklevel=3)


class _Watched(Counted):
    """A model whose very first prediction is checked before a step computes with it."""

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        try:
            prediction = super().forward(z, logsnr, **condition)
            if self.evaluations == 1:
                _check_conditioning(prediction)
        except InvalidArgument as error:
            error.function = error.function or "sample"  # rather than the step that asks
            raise
        return prediction


def _check_conditioning(prediction: Prediction) -> None:
    """Raise where the network's output does not determine x̂ or ε̂ at this level; warn where they
    have lost their digits."""
    level, what = prediction.logsnr[0].item(), prediction.source
    loss = max(what.rounding(prediction.logsnr[:1], prediction.out.dtype))
    came, hint = f"{what!r} at λ = {level:g}", "predict v, or start at a level with some signal"
    determined = "start where the model's output determines x̂ and ε̂"
    require(loss < 1.0, "levels", determined, came, hint)
    if loss > DIGITS:
        lost = f"leaves x̂ or ε̂ with an error of {loss:.1g} by rounding"
        warnings.warn(f"sample: {came} {lost}: {hint}", stacklevel=2)


__all__ = ["STEPS", "sample", "trajectory"]
