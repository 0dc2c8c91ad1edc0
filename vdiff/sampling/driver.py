"""The loop over a grid: the states and predictions on the way from noise to data."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from vdiff._arguments import Condition, Model, dims_fit_z, original
from vdiff._diffusion import diffusion_of
from vdiff._inputs import Mask, SameShape, Steps
from vdiff._known_range import warn_beyond_grid
from vdiff._network import evaluation_mode
from vdiff._validate import require, unchecked, validated
from vdiff.errors import InvalidValue
from vdiff.objective import Objective
from vdiff.sampling._inpainting import Kept, given_with_mask
from vdiff.sampling._rules import (
    OPTIONS,
    AnyStep,
    State,
    default_schedule,
    fixed_noise,
    gradients_reach,
    levels_or_schedule,
    step_of_process,
)
from vdiff.sampling._watched import Watched
from vdiff.sampling.grid import Grid, Levels, in_words
from vdiff.sampling.noise import Generators
from vdiff.sampling.step import History, Step, ancestral
from vdiff.schedule import Schedule

LARGE = 4.0  # root mean square of z; it is about 1 for noise
_UNRELIABLE = "a network is unreliable beyond the levels it was trained on"


_checked = validated(
    rules=[
        levels_or_schedule,
        step_of_process,
        gradients_reach,
        given_with_mask,
        fixed_noise,
        dims_fit_z,
    ],
    elsewhere={o: f"it is an option: step=partial({name}, {o}=…)" for o, name in OPTIONS.items()},
)


@_checked
def trajectory(
    model: Model,
    z: State,
    *,
    schedule: Schedule | None = None,
    steps: Steps | None = None,
    levels: Grid | None = None,
    step: AnyStep = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    mask: Mask | None = None,
    given: SameShape | None = None,
    absent: Mask | None = None,
    condition: Condition = None,
) -> Iterator[tuple[Tensor, Any]]:
    """From noise z at λ_min to λ_max: yields the state and the prediction at each level.

    Arguments, errors and warnings are those of `sample`. The model is in evaluation mode while a
    step is computed, and back in its own mode between the steps.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> path = trajectory(oracle, torch.randn(4, 1), schedule=Linear(), steps=2)
    >>> [round(prediction.logsnr[0].item(), 1) for z, prediction in path]
    [-5.0, 4.2, 13.3]
    """
    assert isinstance(z, Tensor)  # of a shape it is made by `State`
    if levels is None:
        schedule = schedule or default_schedule(model)
    model, process = original(model), diffusion_of(model)
    model = model.model if isinstance(model, Objective) else model
    if process.continuous:
        _warn_of_scaled_noise(z)
    if schedule is not None and steps is not None:
        path = Levels.of_chain(schedule, steps, z, generator)
    else:
        path = Levels.of_row(torch.as_tensor(levels), z)
    warn_beyond_grid(model, path.some)
    with nullcontext() if differentiable else torch.no_grad():
        z = process.start(z if differentiable else z.detach(), path.at(0), generator)
        kept = Kept.of(z, mask, given, absent)
        z = kept.in_state(z)
    watched = Watched(model, condition, kept, path.ends)
    return _walk(watched, z, path, kept, step, History((), generator), differentiable)


def _walk(
    model: Watched, z: Tensor, path: Levels, kept: Kept, step: Step, history: History,
    differentiable: bool,
) -> Iterator[tuple[Tensor, Any]]:  # fmt: skip
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
        if not z.is_floating_point():
            came = f"NaN or infinity in step {i + 1}, at λ = {in_words(t)}"
            require(prediction.finite, "model", "predict a distribution", came, _UNRELIABLE)
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
    require(prediction.finite, "model", "predict finite data", came, _UNRELIABLE)
    yield _copies(z, kept.completed(prediction))


def _copies(z: Tensor, prediction: Any) -> tuple[Tensor, Any]:
    """Copies that the caller may change: the next steps read these tensors, and a model may return
    its own."""
    tensors = {name: v.clone() for name, v in vars(prediction).items() if isinstance(v, Tensor)}
    return z.clone(), prediction.replace(**tensors)


@_checked
def sample(
    model: Model,
    z: State,
    *,
    schedule: Schedule | None = None,
    steps: Steps | None = None,
    levels: Grid | None = None,
    step: AnyStep = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    mask: Mask | None = None,
    given: SameShape | None = None,
    absent: Mask | None = None,
    condition: Condition = None,
) -> Shaped[Tensor, "batch *dims"]:
    """Data from noise: x̂ at the last noise level, which is the exact step from there to λ = +∞.
    Over tokens, x drawn from the network's p(x_i | z₀) there: no mask is left.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), trained with any
            schedule. Its modules are in evaluation mode meanwhile, for every thread that uses
            them: sample from a copy of a model that trains.
        z: (batch, …) noise, N(0, I) at the first level, in float32 at least (cast otherwise). For
            a model over tokens (`vdiff.discrete.TokenDenoiser`) a shape, (8, 256): the first state
            is drawn from the process, masks for `Masked`. Or tokens, integers.
        schedule, steps: the levels are `uniform(schedule, steps)`, those of the chain whose bound
            is `elbo(..., steps=T)`: T + 1, from t = 1 to t = 0. EDM's 18 steps are `Karras()` with
            steps=17, since it counts the step to data too. Left out, the schedule is that of an
            `Objective`, which may be the model; over tokens α = 1 − t, `LogLinear()`.
        levels: instead of these, the log-SNRs themselves, rising: `trailing(schedule, steps)`,
            `leading(…)`, or an array. The first may be −∞, pure noise, for a model that predicts
            x, v or the rectified flow, and any step but `heun`. Or fields, (levels, 1 or batch,
            …), which broadcast over z behind the first dimension.
        step: from a level to the next, for instance `ancestral`, `heun`, `partial(ddim, eta=0.5)`;
            over tokens `ancestral`, `confidence` or `tau_leaping`.
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
        x̂, (batch, …), or tokens. A decoder's `decode`, `to_levels` or `to_uint8` make data of x̂.
        The model is evaluated `steps` + 1 times, by `heun` 2·`steps` + 1 times; `Counted(model)`
        counts.

    Raises:
        TypeError, ValueError: for levels that do not rise, an unknown keyword, a state that is not
            finite (which step, which λ), and a first level λ = −∞ with a model that predicts ε,
            which does not determine x there.

    Warns:
        UserWarning: if x̂ or ε̂ has lost its digits at the first level, if z is far larger than
            noise, and if the levels leave the λ of the training or of `time=`.

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
        x = diffusion_of(last).data(last, generator)
        return Kept.of(last.z, mask, given, absent).in_data(x)


def _warn_of_scaled_noise(z: Tensor) -> None:
    size = z.square().mean().sqrt().item()
    if size > LARGE:
        hint = "noise is N(0, I) here at any σ; EDM's z is σ times that"
        warnings.warn(f"sample: z has a root mean square of {size:.3g}: {hint}", stacklevel=3)
