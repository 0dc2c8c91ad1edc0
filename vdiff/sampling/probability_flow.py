"""The probability-flow ODE as a step, from noise to data or backwards. Needs the extra `ode`; the
solver is `vdiff.flow`'s."""

import functools
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, dims_fit_z, finite_end, known_range, original
from vdiff._arguments import Model as AnyModel
from vdiff._inputs import FiniteData
from vdiff._network import evaluation_mode
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import Count, Positive, require, unchecked, validated
from vdiff.flow import Method, State, between, solve, solve_path
from vdiff.gaussian import Level, per_example
from vdiff.sampling.step import NO_HISTORY, Counted, History, Model, Step
from vdiff.schedule import Schedule


def one_pair_of_levels(logsnr_t: Tensor, logsnr_s: Tensor) -> None:
    """A rule: all samples move between the same two levels, if these are numbers."""
    same = logsnr_t.ndim > 1 or _one_pair(logsnr_t, logsnr_s)
    what = "be the same for all samples, as logsnr_s"
    require(same, "logsnr_t", what, f"{logsnr_t.tolist()}", "the solver has one time")


def _one_pair(logsnr_t: Tensor, logsnr_s: Tensor) -> bool:
    """Whether there is one λ for all samples and dimensions at both ends."""
    return all(bool((v == v.flatten()[0]).all()) for v in (logsnr_t, logsnr_s))


@validated(rules=[one_pair_of_levels])
def ode(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
    *,
    method: Method = "dopri5",
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    max_evaluations: Count = 10_000,
    max_seconds: float | None = None,
    options: dict[str, Any] | None = None,
) -> Float[Tensor, "batch *dims"]:
    """z at λ_s, by one of torchdiffeq's solvers of the probability-flow ODE, in either direction.
    All samples of a batch move between the same two levels. Between two fields of λ, the angle of
    each dimension moves evenly (`vdiff.flow.between`).

    The batch shares the steps of an adaptive method, whose tolerance its worst sample must meet.
    So a sample depends on its batch within the solver's error: on a mixture by 1e-5 usually, and
    by 3e-3 once in 512 samples at the default tolerances. A fixed-step method has no such effect.

    Args:
        method: of torchdiffeq: "dopri5", "dopri8", "rk4", …
        rtol, atol: tolerances of an adaptive method.
        max_evaluations, max_seconds: limits at which the solver gives up.
        options: of torchdiffeq, for instance {"step_size": 0.1}, in radians, for a method with
            fixed steps (one step otherwise).

    Raises:
        SolverError: if the step size underflows, a limit is reached, or v̂ is not finite.
        ImportError: without torchdiffeq.

    >>> from vdiff.oracle import GaussianMixture
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> level = torch.full((1,), 10.0, dtype=torch.float64)
    >>> round(ode(oracle, torch.ones(1, 1), -level, level).item(), 3)  # √(variance of z, λ = 10)
    0.5
    """

    given: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "options": options}
    given |= {"max_evaluations": max_evaluations, "max_seconds": max_seconds}

    def velocity(z: Tensor, level: Tensor) -> Tensor:
        prediction = model(z, level)
        if prediction.modelled is None:
            return prediction.v
        return torch.where(prediction.modelled, prediction.v, 0.0)

    if _one_pair(logsnr_t, logsnr_s):

        def field(level: Tensor, state: State) -> State:
            return (velocity(state[0], level.expand(len(state[0]))),)

        ends = to_float64(logsnr_t).flatten()[0], to_float64(logsnr_s).flatten()[0]
        return unchecked(solve)(field, (z,), *ends, **given).state[0]

    def along(level: Tensor, rate: Tensor, state: State) -> State:
        return (per_example(rate, z) * velocity(state[0], level),)

    made = solve_path(along, (z,), between(logsnr_t, logsnr_s), **given).state[0]
    return torch.where(logsnr_s == logsnr_t, z, made)  # the solver interpolates, which rounds


def _backwards(step: Any) -> None:
    """A rule: the step is `ode`."""
    is_ode = (step.func if isinstance(step, functools.partial) else step) is ode
    require(is_ode, "step", "be ode, which runs backwards", repr(step), "or partial(ode, …)")


@validated(rules=[_backwards, finite_end, known_range, dims_fit_z])
def invert(
    model: AnyModel,
    z: FiniteData,
    *,
    schedule: Schedule,
    step: Step = ode,
    differentiable: bool = False,
    condition: Condition = None,
) -> Float[Tensor, "batch *dims"]:
    """The probability-flow ODE backwards: the noise at λ_min that leads to z at λ_max. Data x is
    z = α x there. Along a schedule over dimensions, the angle of each moves evenly between its own
    two ends.

    `ode` from λ_min to λ_max returns to z within the tolerances, for instance
    `step=partial(ode, rtol=1e-8)`. With `differentiable`, gradients reach z, the model's
    parameters and the conditions through every step of the solver; memory grows with the number
    of evaluations.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle, schedule = GaussianMixture([1.0], [[0.0]], [[0.25]]), Linear(10.0, -10.0)
    >>> round(invert(oracle, torch.full((1, 1), 0.5), schedule=schedule).item(), 3)
    1.0
    """
    counted, z = Counted(original(model), condition=condition), z.to(at_least_float32(z.dtype))
    clean, noisy = (as_float64(end, z.device) for end in schedule.ends_of(z.ndim))
    clean, noisy = (v.expand(len(z), *v.shape[1:]).contiguous() for v in (clean, noisy))
    with nullcontext() if differentiable else torch.no_grad(), evaluation_mode(counted):
        return step(counted, z, clean, noisy, NO_HISTORY)
