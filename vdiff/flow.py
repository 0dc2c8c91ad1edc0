"""The probability-flow ODE: its time, its vector field and its solver. Needs the extra `ode`
(torchdiffeq).

    dz/dφ = v̂(z, λ),    φ = arctan σ/α,    λ = −2 log tan φ

(Song et al., arXiv:2011.13456, section 4.3, in the angle between signal and noise.) In λ the right
side is −½ α σ v̂, which vanishes at both ends: a solver that starts there takes steps that are too
long. In t it depends on the schedule. The solver's own time is the angle in another unit of the
data,

    φ_u = arctan( σ/(α u) ),    dφ/dφ_u = u/(cos² φ_u + u² sin² φ_u)

which runs slower where the noise is as large as u: detail finer than the data's own scale is where
the field turns.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import as_float64, to_float64
from vdiff._validate import Constraint, Number, OneOf, Whole
from vdiff.errors import InvalidArgument
from vdiff.extras import extra

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
_DETAIL = "the size of the detail in the data, about a half for data in [−1, 1]"
CONSTRAINTS: dict[str, Constraint] = {
    "method": OneOf((*ADAPTIVE, *FIXED)),
    "max_evaluations": Whole(),
    "rtol": Number(above=0.0),
    "atol": Number(above=0.0),
    "unit": Number(above=0.0, hint=_DETAIL),
}
FIRST = 0.01  # of the way: torchdiffeq's own guess may lie beyond the other end

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]


class SolverError(RuntimeError):
    """A solver failed: at which t and λ, after how many evaluations, the size of v̂ there, the
    reason, and what to try.

    >>> issubclass(SolverError, RuntimeError)
    True
    """


class Solution(NamedTuple):
    """The state at the other end, and the number of evaluations of the field.

    >>> Solution((torch.zeros(1, 1),), 8).evaluations
    8
    """

    state: State
    evaluations: int


def angle(logsnr: Float[Tensor, "*shape"], unit: float = 1.0) -> Float[Tensor, "*shape"]:
    """φ = arctan(e^{−λ/2}/unit): 0 at clean data, π/2 at pure noise.

    >>> angle(torch.tensor([0.0])) / torch.pi
    tensor([0.2500])
    """
    return torch.atan(torch.exp(-0.5 * logsnr) / unit)


def logsnr_of(angle: Float[Tensor, "*shape"], unit: float = 1.0) -> Float[Tensor, "*shape"]:
    """λ = −2 log(unit · tan φ).

    >>> logsnr_of(angle(torch.tensor([3.0]), unit=0.5), unit=0.5)
    tensor([3.])
    """
    return -2.0 * torch.log(unit * torch.tan(angle))


def solve(
    function: str,
    field: Field,
    state: State,
    logsnr_t: Tensor | float,
    logsnr_s: Tensor | float,
    *,
    unit: float = 0.5,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
    max_seconds: float | None = None,
    options: dict[str, Any] | None = None,
    examples: Tensor | None = None,
) -> Solution:
    """The state (z, …) at λ_s from that at λ_t, by one of torchdiffeq's solvers, in either
    direction.

    An adaptive method controls the error of the worst example of a batch, root mean square over
    its dimensions. The steps are common to the batch, so that an example's answer depends on the
    others within the solver's own error, up to ten times the tolerance.

    Args:
        function: the name in errors.
        field: (λ, state) → (v̂, …), the derivatives with respect to φ; the first dimension of each
            part of the state is the batch.
        unit: of the data, in which the solver's angle is measured; 1 for φ itself. It changes the
            cost, not the answer.
        method: of torchdiffeq.
        rtol, atol: of an adaptive method.
        max_evaluations, max_seconds: limits.
        options: for torchdiffeq, for instance {"step_size": 0.1}, in radians, for a method with
            fixed steps (else one step).
        examples: the numbers of the examples in errors; their places in the batch if left out.

    Raises:
        SolverError: when the step size underflows, a limit is reached, or the field is not finite.
        ImportError: without torchdiffeq.

    >>> start = (torch.zeros(1, 1),)
    >>> end = solve("example", lambda logsnr, z: (torch.ones_like(z[0]),), start, 0.0, -20.0)
    >>> round(end.state[0].item(), 3)  # a quarter of π
    0.785
    """
    values = method, max_evaluations, rtol, atol, unit
    for (argument, constraint), value in zip(CONSTRAINTS.items(), values, strict=True):
        try:
            constraint(value, argument, {})
        except InvalidArgument as error:
            error.function = function
            raise
    with extra("ode"):
        from torchdiffeq import odeint
    ends = torch.stack([as_float64(level, state[0].device) for level in (logsnr_t, logsnr_s)])
    if ends[0] == ends[1]:
        return Solution(state, 0)
    low, high = ends.aminmax()
    angles, started, evaluations = angle(ends, unit), time.monotonic(), 0
    last = {"t": math.nan, "logsnr": math.nan, "speed": math.nan}

    def gave_up(why: str) -> SolverError:
        return SolverError(
            f"{function}: {method} gave up at t = {last['t']:.4g} of the way "
            f"(λ = {last['logsnr']:.4g}) after {evaluations} evaluations: {why}; |v̂| was "
            f"{last['speed']:.3g} there. Loosen rtol = {rtol:g} and atol = {atol:g}, compute in "
            "float64, or bring the schedule's ends closer: a network is often unreliable beyond "
            "the levels it was trained on"
        )

    def velocity(place: Tensor, state: State) -> State:
        nonlocal evaluations
        if evaluations >= max_evaluations:
            raise gave_up(f"reached max_evaluations = {max_evaluations}")
        if max_seconds is not None and time.monotonic() - started > max_seconds:
            raise gave_up(f"reached max_seconds = {max_seconds:g}")
        evaluations += 1
        place = to_float64(place)
        # in float32 the right angle of λ = −∞ is rounded to more than one and has no tangent
        level = torch.where(place < angles.max(), logsnr_of(place, unit).clamp(low, high), low)
        moves = field(level, state)
        last["t"] = ((place - angles[0]) / (angles[1] - angles[0])).item()
        last["logsnr"] = level.item()
        last["speed"] = moves[0].square().mean().sqrt().item()
        for part in moves:
            bad = ~torch.isfinite(part.flatten(1)).all(1)
            if bad.any():
                first = int(bad.nonzero()[0])
                number = first if examples is None else int(examples[first])
                wrong = f"NaN or infinite for example {number}, the first of {int(bad.sum())}"
                raise gave_up(f"the field is {wrong} in its batch")
        turn = unit / (torch.cos(place) ** 2 + (unit * torch.sin(place)) ** 2)  # dφ/dφ_u
        return tuple(turn.to(part.dtype) * part for part in moves)

    if method in ADAPTIVE:  # neither its first step nor its last leads beyond the end
        first = FIRST * (angles[1] - angles[0]).abs()
        options = {"first_step": first, "step_t": angles[1:], "norm": _of_the_worst_example} | (
            options or {}
        )
    try:
        tolerances = {"rtol": rtol, "atol": atol}
        found = odeint(velocity, state, angles, method=method, options=options, **tolerances)
    except AssertionError as error:  # torchdiffeq's own: underflow in dt
        raise gave_up(str(error).split(":")[0]) from None
    return Solution(tuple(part[1] for part in found), evaluations)


def _of_the_worst_example(state: State) -> Tensor:
    return torch.stack([part.flatten(1).square().mean(1).max().sqrt() for part in state]).max()


__all__ = ["Solution", "SolverError", "angle", "logsnr_of", "solve"]
