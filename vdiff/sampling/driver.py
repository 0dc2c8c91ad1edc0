"""The loop over a grid: the states and predictions on the way from noise to data."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, Model, dims_fit_z, original
from vdiff._inputs import FiniteData, Mask
from vdiff._known_range import warn_beyond_grid
from vdiff._network import evaluation_mode
from vdiff._precision import at_least_float32
from vdiff._validate import Count, Given, require, unchecked, validated
from vdiff.errors import InvalidArgument, InvalidType, InvalidValue, did_you_mean
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.sampling._inpainting import GivenData, Kept, given_with_mask
from vdiff.sampling.grid import Grid, Levels, in_words
from vdiff.sampling.multistep import adams_bashforth, dpmpp_2m
from vdiff.sampling.noise import Generators
from vdiff.sampling.probability_flow import ode
from vdiff.sampling.step import Counted, History, Step, ancestral, ddim, heun
from vdiff.schedule import Schedule

STEPS: dict[str, Step] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "adams_bashforth": adams_bashforth,
    "ode": ode,
}
OPTIONS = {  # of the steps: the name of each option's step
    option: name
    for name, step in STEPS.items()
    for option, parameter in inspect.signature(step).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
LARGE = 4.0  # root mean square of z; it is about 1 for noise
_UNRELIABLE = "a network is unreliable beyond the levels it was trained on"


def _a_step(step: object, argument: str, given: Given) -> object:
    if callable(step) and not isinstance(step, type):
        return step
    near = did_you_mean(step, STEPS) if isinstance(step, str) else ""
    hint = f"the function, without quotes: step={step}" if str(step) in STEPS else near
    what = "be a function (model, z, logsnr_t, logsnr_s, history)"
    raise InvalidType(argument, what, repr(step), hint or f"vdiff.sampling has {', '.join(STEPS)}")


def _levels_or_schedule(
    schedule: Schedule | None, steps: int | None, levels: Tensor | None
) -> None:
    """A rule: the levels are given, or a schedule and steps."""
    if levels is not None:
        alone, hint = schedule is None and steps is None, "levels=trailing(schedule, steps)"
        require(alone, "levels", "come without schedule and steps", "both", hint)
    elif schedule is None or steps is None:
        missing, hint = "steps" if schedule else "schedule", "schedule=Cosine(), steps=100"
        raise InvalidType(missing, "be given, schedule and steps; or levels instead", None, hint)


def _fixed_noise(schedule: Schedule | None, generator: Generators) -> None:
    """A rule: a schedule that depends on the data draws its latents from one generator."""
    several = isinstance(generator, Sequence) and schedule and schedule.depends_on_data
    hint = "schedule=schedule.for_samples(len(z)) draws the latents before"
    require(not several, "generator", "be one generator for such a schedule", "several", hint)


class _Watched(Counted):
    """A model whose very first prediction is checked before a step computes with it. `first` holds
    the first prediction of a step; the loop clears it. Where a dimension is `kept`, the model sees
    data or noise."""

    def __init__(self, model: Model, condition: Condition, kept: Kept, ends: Any) -> None:
        super().__init__(model, condition=condition)
        self.first: list[Prediction] = []
        self.predict = kept.model(super().forward, *ends)

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        try:
            prediction = self.predict(z, logsnr, **condition)
            if self.evaluations == 1:
                _check_conditioning(prediction)
        except InvalidArgument as error:
            error.function = error.function or "sample"  # not the step that evaluates it
            raise
        if not self.first:
            self.first.append(prediction)
        return prediction


def _check_conditioning(prediction: Prediction) -> None:
    """Raise if the network's output does not determine x̂ or ε̂ at this level; warn if they have
    lost their digits."""
    ends, target = prediction.logsnr.aminmax(), prediction.source
    dtype = prediction.output.dtype
    error = max(max(target.rounding(end.view(1), dtype)) for end in ends)
    came = f"{target!r} at λ = {in_words(prediction.logsnr)}"
    hint = "predict v, or start at a level with some signal"
    determined = "start where the model's output determines x̂ and ε̂"
    require(error < 1.0, "levels", determined, came, hint)
    if error > DIGITS:
        lost = f"leaves x̂ or ε̂ with an error of {error:.1g} by rounding"
        warnings.warn(f"sample: {came} {lost}: {hint}", stacklevel=2)


AnyStep = Annotated[Step, _a_step]
_checked = validated(
    rules=[_levels_or_schedule, given_with_mask, _fixed_noise, dims_fit_z],
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
    mask: Mask | None = None,
    given: GivenData | None = None,
    absent: Mask | None = None,
    condition: Condition = None,
) -> Iterator[tuple[Tensor, Prediction]]:
    """From z ~ N(0, I) at λ_min to λ_max: yields the state and the prediction at each level.

    Arguments, errors and warnings are those of `sample`. The model is in evaluation mode while a
    step is computed, and back in its own mode between the steps.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> path = trajectory(oracle, torch.randn(4, 1), schedule=Linear(), steps=2)
    >>> [round(prediction.logsnr[0].item(), 1) for z, prediction in path]
    [-5.0, 4.2, 13.3]
    """
    model = original(model)
    _warn_of_scaled_noise(z)
    z = (z if differentiable else z.detach()).to(at_least_float32(z.dtype), copy=True)
    if schedule is not None and steps is not None:
        path = Levels.of_chain(schedule, steps, z, generator)
    else:
        path = Levels.of_row(torch.as_tensor(levels), z)
    warn_beyond_grid(model, path.some)
    with nullcontext() if differentiable else torch.no_grad():
        kept = Kept.of(z, mask, given, absent)
        z = kept.in_state(z)
    watched = _Watched(model, condition, kept, path.ends)
    return _walk(watched, z, path, kept, step, History((), generator), differentiable)


def _walk(
    model: _Watched, z: Tensor, path: Levels, kept: Kept, step: Step, history: History,
    differentiable: bool,
) -> Iterator[tuple[Tensor, Prediction]]:  # fmt: skip
    graph = nullcontext if differentiable else torch.no_grad
    for i in range(path.count - 1):
        t, s = path.at(i), path.at(i + 1)
        model.first.clear()
        with graph(), evaluation_mode(model):
            z_s = step(model, z, t, s, history)
            if t.ndim > 1:
                z_s = torch.where(s > t, z_s, z)
            z_s = kept.in_state(z_s)
        evaluates, hint = "evaluate the model it is given", "first at (z, logsnr_t)"
        require(bool(model.first), "step", evaluates, repr(step), hint)
        [prediction] = model.first
        yield _copies(z, kept.completed(prediction))
        if not torch.isfinite(z_s).all():
            bad = int((~torch.isfinite(z_s)).flatten(1).any(1).sum())
            to = " to " if t.ndim == 1 else " to the field "
            after = f"after step {i + 1}, from λ = {in_words(t)}{to}{in_words(s)}"
            came = f"NaN or infinity in {bad} of {len(z)} samples {after}"
            raise InvalidValue("model", "lead to finite states", came, _UNRELIABLE)
        z, history = z_s, history.after(prediction)
    with graph(), evaluation_mode(model):
        prediction = model(z, path.at(path.count - 1))
    came = f"NaN or infinity at the last level, λ = {in_words(prediction.logsnr)}"
    finite = bool(torch.isfinite(prediction.output).all())
    require(finite, "model", "predict finite data", came, _UNRELIABLE)
    yield _copies(z, kept.completed(prediction))


def _copies(z: Tensor, prediction: Prediction) -> tuple[Tensor, Prediction]:
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
    mask: Mask | None = None,
    given: GivenData | None = None,
    absent: Mask | None = None,
    condition: Condition = None,
) -> Float[Tensor, "batch *dims"]:
    """Data from noise: x̂ at the last noise level, which is the exact step from there to λ = +∞.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), trained with any
            schedule. Its modules are in evaluation mode meanwhile, for every thread that uses
            them: sample from a copy of a model that trains.
        z: (batch, …) noise, N(0, I) at the first level, in float32 at least (cast otherwise).
        schedule, steps: the levels are `uniform(schedule, steps)`, those of the chain whose bound
            is `elbo(..., steps=T)`: T + 1, from t = 1 to t = 0. EDM's 18 steps are `Karras()` with
            steps=17, since it counts the step to data too.
        levels: instead of these, the log-SNRs themselves, rising: `trailing(schedule, steps)`,
            `leading(…)`, or an array. The first may be −∞, pure noise, for a model that predicts
            x, v or the rectified flow, and any step but `heun`. Or fields, (levels, 1 or batch,
            …), which broadcast over z behind the first dimension.
        step: from a level to the next, for instance `ancestral`, `heun`, `partial(ddim, eta=0.5)`.
        generator: of the steps' noise: one for the batch, or one for each sample
            (`per_sample_generators`).
        differentiable: whether gradients reach z, the model's parameters and the conditions. The
            graph of every evaluation is then kept; `torch.utils.checkpoint` in the network saves
            that memory.
        mask, given: to sample a part given the rest. `mask` is bool, True where a dimension is
            sampled; it broadcasts over z, or over one sample. Elsewhere the samples are `given`,
            of the shape of z, exactly, and so is every state. The model sees it clean, at the
            schedule's λ_max or the last level. It must take a field of λ (`Denoiser`).
        absent: bool, True where a value is missing or padded, which the model sees as noise at the
            schedule's λ_min or the first level: z there, unchanged. The result is 0 there. `given`
            is read neither there nor where it is sampled, and may be NaN: missing values are
            imputed by mask=x.isnan(), given=x.
        condition: as in `weighted_elbo`.

    Returns:
        x̂, (batch, …). A decoder's `decode`, `to_levels` or `to_uint8` make data of it. The model
        is evaluated `steps` + 1 times, by `heun` 2·`steps` + 1 times; `Counted(model)` counts.

    Raises:
        TypeError, ValueError: for levels that do not rise, an unknown keyword, a state that is not
            finite (which step, which λ), and a first level λ = −∞ with a model that predicts ε,
            which does not determine x there.

    Warns:
        UserWarning: if x̂ or ε̂ has lost its digits at the first level, and if z is far larger than
            noise.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[3.0]], [[0.01]])
    >>> sample(oracle, torch.randn(1000, 1), schedule=Linear(), steps=49).mean().round()
    tensor(3.)
    """
    path = unchecked(trajectory)(
        model, z, schedule=schedule, steps=steps, levels=levels, step=step,
        generator=generator, differentiable=differentiable, mask=mask, given=given, absent=absent,
        condition=condition,
    )  # fmt: skip
    for _, prediction in path:
        last = prediction
    with nullcontext() if differentiable else torch.no_grad():
        return Kept.of(last.z, mask, given, absent).in_data(last.x)


def _warn_of_scaled_noise(z: Tensor) -> None:
    size = z.square().mean().sqrt().item()
    if size > LARGE:
        hint = "noise is N(0, I) here at any σ; EDM's z is σ times that"
        warnings.warn(f"sample: z has a root mean square of {size:.3g}: {hint}", stacklevel=3)
