"""The probability-flow ODE by torchdiffeq's solvers: from noise to data, and backwards. Needs the extra `ode`.

    dz/dφ = v̂(z, λ),    φ = arctan σ/α,  λ = −2 log tan φ

(Song et al., arXiv:2011.13456, section 4.3, in the angle between signal and noise.) In λ the right side is −½ α σ v̂, which
vanishes at both ends: a solver that starts there believes in steps of any length, and skips the middle.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import check_data, check_positive_int, checking, did_you_mean, finite, must
from vdiff.gaussian import at_least_float32, wide
from vdiff.loss import check_call
from vdiff.sampling.step import NOTHING, Counted, Memory, Model, Step
from vdiff.schedule import Schedule

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
FIRST = 0.01  # of the way: torchdiffeq's own guess may lie beyond the other end


class SolverError(RuntimeError):
    """An adaptive solver gave up: where, after how many evaluations, the size of v̂ there, and what to try.

    >>> issubclass(SolverError, RuntimeError)
    True
    """


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
    options: dict[str, Any] | None = None,
) -> Float[Tensor, "batch *dims"]:
    """z at λ_s, by one of torchdiffeq's solvers over the probability-flow ODE, in either direction.

    The error of an adaptive method is controlled over the whole batch: a sample then depends, within the tolerance, on
    those it is made with. All samples of a batch move between the same two levels.

    Args:
        method: of torchdiffeq: "dopri5", "dopri8", "rk4", …
        rtol, atol: of an adaptive method.
        max_evaluations: where to give up.
        options: handed to torchdiffeq, for instance {"step_size": 0.1}, in radians, for a method with fixed steps (else one step).

    Raises:
        SolverError: when the step size underflows or `max_evaluations` is reached.
        ImportError: without torchdiffeq.

    >>> from vdiff import GaussianMixture
    >>> oracle, level = GaussianMixture([1.0], [[0.0]], [[0.25]]), torch.full((1,), 10.0, dtype=torch.float64)
    >>> round(ode(oracle, torch.ones(1, 1), -level, level).item(), 3)                     # √(variance of z at λ = 10)
    0.5
    """
    known = (*ADAPTIVE, *FIXED)
    if method not in known:
        raise ValueError(must("ode", "method", f"be one of {', '.join(known)}", repr(method), did_you_mean(str(method), known)))
    check_positive_int("ode", "max_evaluations", max_evaluations)
    rtol, atol = finite("ode", "rtol", rtol, above=0.0), finite("ode", "atol", atol, above=0.0)
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ImportError("ode: torchdiffeq is not installed: pip install 'vdiff-torch[ode]'") from None
    ends = torch.stack([wide(logsnr_t)[0], wide(logsnr_s)[0]])
    if checking() and not ((wide(logsnr_t) == ends[0]).all() and (wide(logsnr_s) == ends[1]).all()):
        raise ValueError(
            must("ode", "logsnr_t", "be the same for all samples, as logsnr_s", f"{logsnr_t.tolist()}", "the solver has one time")
        )
    if ends[0] == ends[1]:
        return z
    counted, last = Counted(model), {"logsnr": math.nan, "speed": math.nan}
    low, high = ends.aminmax()

    def velocity(angle: Tensor, state: Tensor) -> Tensor:
        level = (-2.0 * torch.log(torch.tan(wide(angle)))).clamp(low, high)
        v = counted(state, level.expand(len(state))).v
        last["logsnr"], last["speed"] = level.item(), v.detach().square().mean().sqrt().item()
        if counted.evaluations >= max_evaluations:
            raise SolverError(_gave_up(f"reached max_evaluations = {max_evaluations}", last, counted.evaluations, method, rtol, atol))
        return v

    angles = torch.atan(torch.exp(-0.5 * ends))
    if method in ADAPTIVE:  # neither its first step nor its last leads beyond the end
        options = {"first_step": FIRST * (angles[1] - angles[0]).abs(), "step_t": angles[1:]} | (options or {})
    try:
        found: Tensor = odeint(velocity, z, angles, method=method, rtol=rtol, atol=atol, options=options)[1]
    except AssertionError as error:  # torchdiffeq's own: underflow in dt, a state that is not finite
        raise SolverError(_gave_up(str(error).split(":")[0], last, counted.evaluations, method, rtol, atol)) from None
    return found


@torch.no_grad()
def encode(
    model: Model, z: Float[Tensor, "batch *dims"], *, schedule: Schedule, step: Step = ode, **condition: Any
) -> Float[Tensor, "batch *dims"]:
    """The probability-flow ODE backwards: the noise at λ_min from which it leads to z at λ_max. Clean data x is z = α x there.

    `ode` from λ_min to λ_max returns to the start, within the tolerances: set them by `step=partial(ode, rtol=1e-8)`.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle, schedule = GaussianMixture([1.0], [[0.0]], [[0.25]]), Linear(10.0, -10.0)
    >>> round(encode(oracle, torch.full((1, 1), 0.5), schedule=schedule).item(), 3)
    1.0
    """
    check_data("encode", z, "z")
    check_call("encode", model, schedule, None, condition)
    clean, noisy = (
        wide(torch.full((len(z),), end, dtype=torch.float64)).to(z.device) for end in (schedule.logsnr_max, schedule.logsnr_min)
    )
    return step(Counted(model, **condition), z.to(at_least_float32(z.dtype)), clean, noisy, NOTHING)


def _gave_up(why: str, last: dict[str, float], evaluations: int, method: str, rtol: float, atol: float) -> str:
    return (
        f"ode: {method} gave up at λ = {last['logsnr']:.4g} after {evaluations} evaluations ({why}); |v̂| was {last['speed']:.3g} there. "
        f"Loosen rtol = {rtol:g} and atol = {atol:g}, compute in float64, or bring the schedule's ends closer: "
        "a network is often unreliable beyond the levels it was trained on"
    )


__all__ = ["SolverError", "encode", "ode"]
