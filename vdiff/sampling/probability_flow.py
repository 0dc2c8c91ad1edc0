"""The probability-flow ODE as a step, from noise to data or backwards. Needs the extra `ode`; the
solver is `vdiff.flow`'s."""

import functools
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.condition import Condition, conditions
from vdiff.denoiser import evaluation_mode
from vdiff.errors import check_data, check_finite, checking, must, names_arrays
from vdiff.flow import SolverError, State, solve
from vdiff.gaussian import at_least_float32, wide
from vdiff.loss import check_call
from vdiff.sampling.step import NOTHING, Counted, Memory, Model, Step
from vdiff.schedule import Schedule


@names_arrays
def ode(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Float[Tensor, " batch"],
    logsnr_s: Float[Tensor, " batch"],
    memory: Memory = NOTHING,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
    max_seconds: float | None = None,
    options: dict[str, Any] | None = None,
) -> Float[Tensor, "batch *dims"]:
    """z at λ_s, by one of torchdiffeq's solvers over the probability-flow ODE, in either
    direction.

    An adaptive method holds the worst sample of the batch to the tolerance in each of its steps,
    which the batch shares: what a sample is made with moves it as far as the solver's own error
    goes, on a mixture by 1e-5 as a rule and by 3e-3 once in 512 samples at the default tolerances.
    With a fixed-step method it does not. All samples of a batch move between the same two levels.

    Args:
        method: of torchdiffeq: "dopri5", "dopri8", "rk4", …
        rtol, atol: of an adaptive method.
        max_evaluations, max_seconds: where to give up.
        options: handed to torchdiffeq, for instance {"step_size": 0.1}, in radians, for a method
            with fixed steps (else one step).

    Raises:
        SolverError: when the step size underflows, a limit is reached, or v̂ is not finite.
        ImportError: without torchdiffeq.

    >>> from vdiff import GaussianMixture
    >>> oracle, level = GaussianMixture([1.0], [[0.0]], [[0.25]]), torch.full((1,), 10.0, dtype=torch.float64)
    >>> round(ode(oracle, torch.ones(1, 1), -level, level).item(), 3)                     # √(variance of z at λ = 10)
    0.5
    """
    ends = wide(logsnr_t)[0], wide(logsnr_s)[0]
    if checking() and not (
        (wide(logsnr_t) == ends[0]).all() and (wide(logsnr_s) == ends[1]).all()
    ):
        raise ValueError(
            must(
                "ode",
                "logsnr_t",
                "be the same for all samples, as logsnr_s",
                f"{logsnr_t.tolist()}",
                "the solver has one time",
            )
        )

    def field(level: Tensor, state: State) -> State:
        return (model(state[0], level.expand(len(state[0]))).v,)

    limits: dict[str, Any] = {"max_evaluations": max_evaluations, "max_seconds": max_seconds}
    return solve(
        "ode", field, (z,), *ends, method=method, rtol=rtol, atol=atol, options=options, **limits
    ).state[0]


def encode(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    *,
    schedule: Schedule,
    step: Step = ode,
    differentiable: bool = False,
    condition: Condition = None,
    **keywords: Any,
) -> Float[Tensor, "batch *dims"]:
    """The probability-flow ODE backwards: the noise at λ_min from which it leads to z at λ_max.
    Clean data x is z = α x there.

    `ode` from λ_min to λ_max returns to the start, within the tolerances: set them by
    `step=partial(ode, rtol=1e-8)`. With `differentiable`, gradients reach z, the model's
    parameters and the conditions, through every step of the solver, and memory grows with the
    number of evaluations.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle, schedule = GaussianMixture([1.0], [[0.0]], [[0.25]]), Linear(10.0, -10.0)
    >>> round(encode(oracle, torch.full((1, 1), 0.5), schedule=schedule).item(), 3)
    1.0
    """
    check_data("encode", z, "z")
    check_finite("encode", z, "z")
    if (step.func if isinstance(step, functools.partial) else step) is not ode:
        raise ValueError(
            must(
                "encode", "step", "be ode, which runs backwards", repr(step), "or partial(ode, …)"
            )
        )
    condition = conditions("encode", condition, keywords)
    check_call("encode", model, schedule, None)
    clean, noisy = (
        wide(torch.full((len(z),), end, dtype=torch.float64)).to(z.device)
        for end in (schedule.logsnr_max, schedule.logsnr_min)
    )
    with nullcontext() if differentiable else torch.no_grad(), evaluation_mode(model):
        return step(
            Counted(model, condition=condition),
            z.to(at_least_float32(z.dtype)),
            clean,
            noisy,
            NOTHING,
        )


__all__ = ["SolverError", "encode", "ode"]
