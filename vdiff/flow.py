"""The probability-flow ODE: its time, its vector field and its solver. Needs the extra `ode`
(torchdiffeq).

    dz/dφ = v̂(z, λ),    φ = arctan σ/α,    λ = −2 log tan φ

(Song et al., arXiv:2011.13456, section 4.3, in the angle between signal and noise.) In λ the right
side is −½ α σ v̂. It vanishes at both ends, so that a solver takes too long first steps. In t the
right side depends on the schedule. The solver's time is the angle in another unit u of the data,

    φ_u = arctan( σ/(α u) ),    dφ/dφ_u = u/(cos² φ_u + u² sin² φ_u)

It runs slower where the noise is as large as u, the size of the data's detail, because the field
turns there.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import as_float64, to_float64
from vdiff._validate import Count, Number, OneOf, Positive, validated
from vdiff.extras import extra

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
_DETAIL = "the size of the detail in the data, about a half for data in [−1, 1]"
Method = Annotated[str, OneOf((*ADAPTIVE, *FIXED))]
Unit = Annotated[float, Number(above=0.0, hint=_DETAIL)]
FIRST = 0.01  # first step, of the whole way: torchdiffeq's guess may lie beyond the other end

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]


class SolverError(RuntimeError):
    """A solver failed. The message names t and λ, the number of evaluations, the reason, the size
    of v̂ there, and what to try.

    >>> start = (torch.zeros(1, 1),)
    >>> solve(lambda logsnr, z: z, start, 0.0, -9.0, max_evaluations=3)
    Traceback (most recent call last):
        ...
    vdiff.flow.SolverError: dopri5 gave up at t = ... after 3 evaluations: reached max_eval...
    """


class Solution(NamedTuple):
    """The state at the other end, and the number of evaluations of the field."""

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


@validated
def solve(
    field: Field,
    state: State,
    logsnr_t: Tensor | float,
    logsnr_s: Tensor | float,
    *,
    unit: Unit = 0.5,
    method: Method = "dopri5",
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    max_evaluations: Count = 10_000,
    max_seconds: float | None = None,
    options: dict[str, Any] | None = None,
    examples: Tensor | None = None,
) -> Solution:
    """Solve for the state (z, …) at λ_s from that at λ_t, in either direction, by torchdiffeq.

    An adaptive method controls the root mean square error, over dimensions, of the worst example.
    All examples share their steps, so that the rest of a batch changes an example by the solver's
    error, up to ten times the tolerance.

    Args:
        field: (λ, state) → (v̂, …), the derivatives with respect to φ. The first dimension of each
            part of the state is the batch.
        unit: u, the size of the data's detail; 1 makes φ itself the solver's time. It changes the
            cost, not the answer.
        method: of torchdiffeq.
        rtol, atol: tolerances of an adaptive method.
        max_evaluations, max_seconds: limits of the cost.
        options: for torchdiffeq. A method with fixed steps takes one step, or steps of
            {"step_size": 0.1} radians.
        examples: the numbers by which errors name the examples; by default 0, 1, ….

    Raises:
        SolverError: if the step size underflows, a limit is reached, or the field is not finite.
        ImportError: without torchdiffeq.

    >>> start = (torch.zeros(1, 1),)
    >>> end = solve(lambda logsnr, z: (torch.ones_like(z[0]),), start, 0.0, -20.0)
    >>> round(end.state[0].item(), 3)  # a quarter of π
    0.785
    """
    with extra("ode"):
        from torchdiffeq import odeint
    ends = torch.stack([as_float64(level, state[0].device) for level in (logsnr_t, logsnr_s)])
    if ends[0] == ends[1]:
        return Solution(state, 0)
    velocity = _Velocity(
        field, ends, unit, method, rtol, atol, max_evaluations, max_seconds, examples
    )
    angles = velocity.angles
    if method in ADAPTIVE:  # neither its first step nor its last passes the end
        first_step = FIRST * (angles[1] - angles[0]).abs()
        steps = {"first_step": first_step, "step_t": angles[1:], "norm": _of_the_worst_example}
        options = steps | (options or {})
    try:
        tolerances = {"rtol": rtol, "atol": atol}
        states = odeint(velocity, state, angles, method=method, options=options, **tolerances)
    except AssertionError as error:  # torchdiffeq's own: underflow in dt
        raise velocity.failure(str(error).split(":")[0]) from None
    return Solution(tuple(part[1] for part in states), velocity.evaluations)


@dataclass
class _Velocity:
    """The field in the solver's time φ_u. It counts evaluations, and fails at a limit or where the
    field is not finite."""

    field: Field
    ends: Tensor
    unit: float
    method: str
    rtol: float
    atol: float
    max_evaluations: int
    max_seconds: float | None
    examples: Tensor | None
    evaluations: int = 0
    t: float = math.nan  # of the last evaluation, as are λ and the size of v̂
    logsnr: float = math.nan
    speed: float = math.nan

    def __post_init__(self) -> None:
        self.angles, self.started = angle(self.ends, self.unit), time.monotonic()

    def __call__(self, phi: Tensor, state: State) -> State:
        if self.evaluations >= self.max_evaluations:
            raise self.failure(f"reached max_evaluations = {self.max_evaluations}")
        if self.max_seconds is not None and time.monotonic() - self.started > self.max_seconds:
            raise self.failure(f"reached max_seconds = {self.max_seconds:g}")
        self.evaluations += 1
        phi, unit, (start, end) = to_float64(phi), self.unit, self.angles
        # at λ = −∞, float32 rounds φ to more than a right angle, whose tangent is negative
        low, high = self.ends.aminmax()
        level = torch.where(phi < self.angles.max(), logsnr_of(phi, unit).clamp(low, high), low)
        derivatives = self.field(level, state)
        self.t, self.logsnr = ((phi - start) / (end - start)).item(), level.item()
        self.speed = derivatives[0].square().mean().sqrt().item()
        for part in derivatives:
            self._check_finite(part)
        rate = unit / (torch.cos(phi) ** 2 + (unit * torch.sin(phi)) ** 2)  # dφ/dφ_u
        return tuple(rate.to(part.dtype) * part for part in derivatives)

    def _check_finite(self, part: Tensor) -> None:
        bad = ~torch.isfinite(part.flatten(1)).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            number = first if self.examples is None else int(self.examples[first])
            wrong = f"NaN or infinite for example {number}, the first of {int(bad.sum())}"
            raise self.failure(f"the field is {wrong} in its batch")

    def failure(self, why: str) -> SolverError:
        return SolverError(
            f"{self.method} gave up at t = {self.t:.4g} of the way (λ = {self.logsnr:.4g}) after "
            f"{self.evaluations} evaluations: {why}; |v̂| was {self.speed:.3g} there. Loosen "
            f"rtol = {self.rtol:g} and atol = {self.atol:g}, compute in float64, or bring the "
            "schedule's ends closer: a network is often unreliable beyond the levels it was "
            "trained on"
        )


def _of_the_worst_example(state: State) -> Tensor:
    return torch.stack([part.flatten(1).square().mean(1).max().sqrt() for part in state]).max()


__all__ = ["Solution", "SolverError", "angle", "logsnr_of", "solve"]
