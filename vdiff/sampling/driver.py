"""The loop over a grid: every state and prediction on the way from noise to data."""

import inspect
import itertools
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.condition import Condition, conditions
from vdiff.denoiser import evaluation_mode, warn_beyond_levels
from vdiff.errors import check_data, check_finite, did_you_mean, must
from vdiff.gaussian import at_least_float32
from vdiff.loss import check_call
from vdiff.parameterization import DIGITS, Prediction
from vdiff.sampling.grid import Grid, check_levels, few_steps, uniform
from vdiff.sampling.multistep import adams, dpmpp_2m
from vdiff.sampling.noise import Generators, check_generators
from vdiff.sampling.probability_flow import ode
from vdiff.sampling.step import Counted, Memory, Model, Step, ancestral, ddim, heun
from vdiff.schedule import Schedule

STEPS: dict[str, Step] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "adams": adams,
    "ode": ode,
}
WORDS = ("schedule", "steps", "levels", "step", "generator", "differentiable")
OPTIONS = {  # of the steps: words that no condition has
    option: name
    for name, step in STEPS.items()
    for option, parameter in inspect.signature(step).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


LARGE = 4.0  # root mean square: of noise, and of data in [−1, 1] with noise, it is about 1


def trajectory(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    *,
    schedule: Schedule | None = None,
    steps: int | None = None,
    levels: Grid | None = None,
    step: Step = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    condition: Condition = None,
    **keywords: Any,
) -> Iterator[tuple[Tensor, Prediction]]:
    """From z ~ N(0, I) at λ_min to λ_max: the state and the prediction at each of the levels
    visited, as it is made.

    Arguments, errors and warnings are those of `sample`. The model is in evaluation mode while a
    step is computed, not between them.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> [round(prediction.logsnr[0].item(), 1) for z, prediction in trajectory(oracle, torch.randn(4, 1), schedule=Linear(), steps=3)]
    [-5.0, 4.2, 13.3]
    """
    check_data("sample", z, "z")
    check_finite("sample", z, "z")
    _warn_of_scaled_noise(z)
    condition = _conditions(condition, keywords)
    grid = _grid(model, schedule, steps, levels)
    warn_beyond_levels("sample", model, grid)
    grid = grid.to(z.device)
    if not callable(step) or isinstance(step, type):
        near = did_you_mean(step, STEPS) if isinstance(step, str) else ""
        hint = (
            f"the function, without quotes: step={step}"
            if str(step) in STEPS
            else near or f"vdiff.sampling has {', '.join(STEPS)}"
        )
        raise TypeError(
            must(
                "sample",
                "step",
                "be a function (model, z, logsnr_t, logsnr_s, memory)",
                repr(step),
                hint,
            )
        )
    check_generators("sample", generator, z)
    z = (z if differentiable else z.detach()).to(at_least_float32(z.dtype), copy=True)
    watched, memory = _Watched(model, condition=condition), Memory((), generator)
    return _walk(watched, z, grid, step, memory, differentiable)


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
        t, s = (
            torch.full((len(z),), level, dtype=grid.dtype, device=z.device)
            for level in (logsnr_t, logsnr_s)
        )
        with graph(), evaluation_mode(model):
            there = step(model, z, t, s, memory)
        now = model.take_first()
        if now is None:
            raise ValueError(
                must(
                    "sample",
                    "step",
                    "evaluate the model it is given",
                    repr(step),
                    "first at (z, logsnr_t)",
                )
            )
        yield _to_keep(z, now)
        if not torch.isfinite(there).all():
            bad = int((~torch.isfinite(there)).flatten(1).any(1).sum())
            came = f"NaN or infinity in {bad} of {len(z)} samples after step {i + 1}, from λ = {logsnr_t:g} to {logsnr_s:g}"
            raise ValueError(
                must(
                    "sample",
                    "model",
                    "lead to finite states",
                    came,
                    "a network is unreliable beyond the levels it was trained on",
                )
            )
        z, memory = there, memory.after(now)
    with graph(), evaluation_mode(model):
        last = model(z, grid[-1:].expand(len(z)))
    if not torch.isfinite(last.out).all():
        came = f"NaN or infinity at the last level, λ = {grid[-1]:g}"
        raise ValueError(
            must(
                "sample",
                "model",
                "say something finite of data",
                came,
                "a network is unreliable beyond the levels it was trained on",
            )
        )
    yield _to_keep(z, last)


def _to_keep(z: Tensor, prediction: Prediction) -> tuple[Tensor, Prediction]:
    """Copies, for whoever changes them: the next steps look at these tensors, and a model may hand
    out its own."""
    return z.clone(), prediction.but(
        **{
            name: value.clone()
            for name, value in vars(prediction).items()
            if isinstance(value, Tensor)
        }
    )


def sample(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    *,
    schedule: Schedule | None = None,
    steps: int | None = None,
    levels: Grid | None = None,
    step: Step = ancestral,
    generator: Generators = None,
    differentiable: bool = False,
    condition: Condition = None,
    **keywords: Any,
) -> Float[Tensor, "batch *dims"]:
    """Data from noise: x̂ at the last of the noise levels visited, which is the exact step from
    there to λ = +∞.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), trained with
            whatever schedule. Its modules are in evaluation mode meanwhile, for every thread that
            uses them. Beside a training, sample from a copy.
        z: (batch, …) noise, N(0, I) at the first level; it is taken to float32 at least.
        schedule, steps: the levels are `uniform(schedule, steps)`: `steps` equidistant times from
            t = 1 to t = 0. `Karras()` with 18 steps is EDM's grid; a chain of T steps, whose bound
            is `elbo(..., steps=T)`, has T + 1 levels.
        levels: instead of these, the log-SNRs themselves, rising: `trailing(schedule, steps)`,
            `leading(…)`, an array of your own. The first may be −∞, pure noise, for a model that
            predicts x, v or the rectified flow, and any step but `heun`.
        step: from a level to the next, for instance `ancestral`, `heun`, `partial(ddim, eta=0.5)`,
            `adams`.
        generator: of the steps' noise: one for the batch, or one for each sample (`streams`).
        differentiable: whether gradients reach z, the model's parameters and the conditions. The
            graph of every evaluation is then kept, so that memory grows with their number;
            `torch.utils.checkpoint` in the network trades it for time. Otherwise nothing is
            recorded.
        condition: what the model is told beside z and λ, as in `weighted_elbo`.

    Returns:
        x̂, (batch, …). A decoder's `decode`, `to_levels` or `to_uint8` make data of it. A step of
        one evaluation takes `steps` of them altogether, `heun` 2·steps − 1; `Counted(model)`
        counts.

    Raises:
        TypeError, ValueError: for levels that do not rise, fewer than one step, a misspelt
            keyword, a state that is not finite (which step, which λ), and a first level of λ = −∞
            for a model that predicts ε, which says nothing of x there.

    Warns:
        UserWarning: where the first level is so extreme that x̂ or ε̂ has lost its digits by what
            the model predicts, and where z is far larger than such noise.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[3.0]], [[0.01]])
    >>> sample(oracle, torch.randn(1000, 1), schedule=Linear(), steps=50).mean().round()
    tensor(3.)
    """
    options: dict[str, Any] = {
        "schedule": schedule,
        "steps": steps,
        "levels": levels,
        "step": step,
    }
    options |= {"generator": generator, "differentiable": differentiable}
    path = trajectory(model, z, **options, condition=condition, **keywords)
    for _, prediction in path:
        last = prediction
    return last.x


def _conditions(condition: Condition, keywords: dict[str, Any]) -> dict[str, Any]:
    for word in keywords:
        if word in OPTIONS:
            raise TypeError(
                f"sample: argument '{word}' is an option of a step: step=partial({OPTIONS[word]}, {word}=…)"
            )
        if hint := did_you_mean(word, WORDS, cutoff=0.8):
            raise TypeError(f"sample: argument '{word}' is unknown; {hint}")
    return conditions("sample", condition, keywords)


def _grid(
    model: Model, schedule: Schedule | None, steps: int | None, levels: Grid | None
) -> Tensor:
    if levels is None:
        if schedule is None:
            hint = "sample(model, z, schedule=…, steps=…), or levels=…"
            raise TypeError(
                must("sample", "schedule", "be given, with steps; or levels instead", None, hint)
            )
        check_call("sample", model, schedule, steps, to_noise=True, watch=False)
        if steps is None:
            raise TypeError(
                must(
                    "sample",
                    "steps",
                    "be given with a schedule",
                    None,
                    "the number of noise levels visited, 18 in EDM",
                )
            )
        return check_levels("sample", uniform(schedule, steps))
    check_call("sample", model, few_steps(), None, watch=False)
    if schedule is not None or steps is not None:
        raise ValueError(
            must(
                "sample",
                "levels",
                "come without schedule and steps",
                "both",
                "for instance levels=trailing(schedule, steps)",
            )
        )
    return check_levels("sample", levels)


def _warn_of_scaled_noise(z: Tensor) -> None:
    size = z.square().mean().sqrt().item()
    if size > LARGE:
        hint = "noise is N(0, I) here, whatever σ its process starts from; EDM's z is σ times that"
        warnings.warn(f"sample: z has a root mean square of {size:.3g}: {hint}", stacklevel=3)


class _Watched(Counted):
    """A model whose first prediction of all is looked at before a step computes with it."""

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        prediction = super().forward(z, logsnr, **condition)
        if self.evaluations == 1:
            _check_conditioning(prediction)
        return prediction


def _check_conditioning(prediction: Prediction) -> None:
    """Raise where the network's output says nothing of x̂ or ε̂ at this level, warn where they
    have lost their digits."""
    level, what = prediction.logsnr[0].item(), prediction.source
    loss = max(what.rounding(prediction.logsnr[:1], prediction.out.dtype))
    hint = "predict v, or start at a level that has some signal"
    if not loss < 1.0:
        came = f"{what!r} at λ = {level:g}"
        raise ValueError(
            must(
                "sample", "levels", "start where the model's output determines x̂ and ε̂", came, hint
            )
        )
    if loss > DIGITS:
        warnings.warn(
            f"sample: {what!r} at λ = {level:g} leaves x̂ or ε̂ with an error of {loss:.1g} by rounding: {hint}",
            stacklevel=2,
        )


__all__ = ["STEPS", "sample", "trajectory"]
