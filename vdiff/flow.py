"""The probability-flow ODE: its time, its vector field and its solver. Needs the extra `ode`
(torchdiffeq).

    dz/dφ = v̂(z, λ),    φ = arctan σ/α,    λ = −2 log tan φ

(Song et al., arXiv:2011.13456, section 4.3, in the angle between signal and noise.) In λ the right
side is −½ α σ v̂. It vanishes at both ends, so that a solver takes too long first steps. In t the
right side depends on the schedule. The solver's time is the angle in another unit u of the data,

    φ_u = arctan( σ/(α u) ),    dφ/dφ_u = u/(cos² φ_u + u² sin² φ_u)

It runs slower where the noise is as large as u, the size of the data's detail, because the field
turns there.

Where each dimension has its own λ, each has its own angle along a path, and

    dz_i/dt = v̂_i(z, λ) dφ_i/dt,    dφ_i/dλ_i = −½ α_i σ_i
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import as_float64, to_float64
from vdiff._validate import Count, Number, OneOf, Positive, validated
from vdiff.extras import extra
from vdiff.gaussian import alpha, sigma
from vdiff.schedule import Schedule

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
_DETAIL = "the size of the detail in the data, about a half for data in [−1, 1]"
Method = Annotated[str, OneOf((*ADAPTIVE, *FIXED))]
Unit = Annotated[float, Number(above=0.0, hint=_DETAIL)]
FIRST = 0.01  # first step, of the whole way: torchdiffeq's guess may lie beyond the other end

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]
LevelPath = Callable[[Tensor], tuple[Tensor, Tensor]]
PathField = Callable[[Tensor, Tensor, State], State]
# (time, state) → λ, the derivatives, and the rate that multiplies them, if any
Velocity = Callable[[Tensor, State], tuple[Tensor, State, Tensor | None]]


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
    modelled: Tensor | None = None,
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
        modelled: a mask of the dimensions of z over which its error is measured; by default all.

    Raises:
        SolverError: if the step size underflows, a limit is reached, or the field is not finite.
        ImportError: without torchdiffeq.

    >>> start = (torch.zeros(1, 1),)
    >>> end = solve(lambda logsnr, z: (torch.ones_like(z[0]),), start, 0.0, -20.0)
    >>> round(end.state[0].item(), 3)  # a quarter of π
    0.785
    """
    ends = torch.stack([as_float64(level, state[0].device) for level in (logsnr_t, logsnr_s)])
    if ends[0] == ends[1]:
        return Solution(state, 0)
    angles = angle(ends, unit)

    def velocity(phi: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        # at λ = −∞, float32 rounds φ to more than a right angle, whose tangent is negative
        low, high = ends.aminmax()
        level = torch.where(phi < angles.max(), logsnr_of(phi, unit).clamp(low, high), low)
        return level, field(level, state), angle_rate(phi, unit)

    limits = _Limits(method, rtol, atol, max_evaluations, max_seconds, examples)
    return _solve(velocity, state, angles, limits, modelled, options)


def solve_path(
    field: PathField,
    state: State,
    path: LevelPath,
    *,
    backwards: bool = False,
    method: Method = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
    max_seconds: float | None = None,
    options: dict[str, Any] | None = None,
    examples: Tensor | None = None,
    modelled: Tensor | None = None,
) -> Solution:
    """`solve` along a path from t = 0 to t = 1, where each dimension has its own λ.

    Args:
        field: (λ, dφ/dt, state) → the derivatives of the state with respect to t.
        path: t → (λ, dφ/dt), fields that broadcast over z.
        backwards: from t = 1 to t = 0.
        state, method, rtol, atol, max_evaluations, max_seconds, options, examples, modelled: as in
            `solve`.

    >>> zero = torch.zeros(1, 2, dtype=torch.float64)
    >>> path = between(zero, zero - torch.tensor([20.0, 0.0]), unit=1.0)
    >>> solve_path(lambda logsnr, rate, state: (rate,), (zero,), path).state[0] / torch.pi
    tensor([[0.2500, 0.0000]], dtype=torch.float64)
    """

    def velocity(t: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        level, rate = path(t)
        return level, field(level, rate, state), None

    ends = to_float64(torch.tensor([1.0, 0.0] if backwards else [0.0, 1.0]))
    limits = _Limits(method, rtol, atol, max_evaluations, max_seconds, examples)
    return _solve(velocity, state, ends.to(state[0].device), limits, modelled, options)


def between(logsnr_t: Tensor, logsnr_s: Tensor, unit: float = 0.5) -> LevelPath:
    """The path between two fields of λ on which each dimension's angle φ_u moves evenly."""
    ends = torch.stack([to_float64(logsnr_t), to_float64(logsnr_s)])
    (start, end), low, high = angle(ends, unit), ends.amin(0), ends.amax(0)

    def path(t: Tensor) -> tuple[Tensor, Tensor]:
        phi = torch.lerp(start, end, t)
        level = torch.where(start == end, low, logsnr_of(phi, unit).clamp(low, high))
        return level, angle_rate(phi, unit) * (end - start)

    return path


def along(schedule: Schedule, batch: int, ndim: int) -> LevelPath:
    """The path of a schedule, for a batch with `ndim` dimensions."""

    def path(t: Tensor) -> tuple[Tensor, Tensor]:
        at = schedule.at(t.detach().expand(batch), ndim=ndim)
        return at.logsnr, 0.5 * alpha(at.logsnr) * sigma(at.logsnr) * at.rate

    return path


def angle_rate(phi: Tensor, unit: float) -> Tensor:
    """dφ/dφ_u at φ_u."""
    return unit / (torch.cos(phi) ** 2 + (unit * torch.sin(phi)) ** 2)


@dataclass(frozen=True)
class _Limits:
    method: str
    rtol: float
    atol: float
    max_evaluations: int
    max_seconds: float | None
    examples: Tensor | None


def _solve(
    velocity: Velocity,
    state: State,
    times: Tensor,
    limits: _Limits,
    modelled: Tensor | None,
    options: dict[str, Any] | None,
) -> Solution:
    with extra("ode"):
        from torchdiffeq import odeint
    watched, method = _Watched(velocity, times, limits), limits.method
    if method in ADAPTIVE:  # neither its first step nor its last passes the end
        first_step = FIRST * (times[1] - times[0]).abs()
        norm = partial(_of_the_worst_example, modelled=modelled)
        options = {"first_step": first_step, "step_t": times[1:], "norm": norm} | (options or {})
    try:
        tolerances = {"rtol": limits.rtol, "atol": limits.atol}
        states = odeint(watched, state, times, method=method, options=options, **tolerances)
    except AssertionError as error:  # torchdiffeq's own: underflow in dt
        raise watched.failure(str(error).split(":")[0]) from None
    return Solution(tuple(part[1] for part in states), watched.evaluations)


@dataclass
class _Watched:
    """The derivatives in the solver's time. It counts evaluations, and fails at a limit or where
    the field is not finite."""

    velocity: Velocity
    times: Tensor
    limits: _Limits
    evaluations: int = 0
    t: float = math.nan  # of the last evaluation, as are λ and the size of v̂
    logsnr: Tensor | None = None
    speed: float = math.nan

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, now: Tensor, state: State) -> State:
        most, seconds = self.limits.max_evaluations, self.limits.max_seconds
        if self.evaluations >= most:
            raise self.failure(f"reached max_evaluations = {most}")
        if seconds is not None and time.monotonic() - self.started > seconds:
            raise self.failure(f"reached max_seconds = {seconds:g}")
        self.evaluations += 1
        now, (start, end) = to_float64(now), self.times
        self.logsnr, derivatives, rate = self.velocity(now, state)
        self.t = ((now - start) / (end - start)).item()
        self.speed = derivatives[0].square().mean().sqrt().item()
        for part in derivatives:
            self._check_finite(part)
        return derivatives if rate is None else tuple(rate.to(v.dtype) * v for v in derivatives)

    def _check_finite(self, part: Tensor) -> None:
        bad = ~torch.isfinite(part.flatten(1)).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            examples = self.limits.examples
            number = first if examples is None else int(examples[first])
            wrong = f"NaN or infinite for example {number}, the first of {int(bad.sum())}"
            raise self.failure(f"the field is {wrong} in its batch")

    def failure(self, why: str) -> SolverError:
        limits, logsnr = (
            self.limits,
            torch.tensor(math.nan) if self.logsnr is None else self.logsnr,
        )
        level = " to ".join(dict.fromkeys(f"{v.item():.4g}" for v in logsnr.aminmax()))
        return SolverError(
            f"{limits.method} gave up at t = {self.t:.4g} of the way (λ = {level}) after "
            f"{self.evaluations} evaluations: {why}; |v̂| was {self.speed:.3g} there. Loosen "
            f"rtol = {limits.rtol:g} and atol = {limits.atol:g}, compute in float64, or bring the "
            "schedule's ends closer: a network is often unreliable beyond the levels it was "
            "trained on"
        )


def _of_the_worst_example(state: State, modelled: Tensor | None = None) -> Tensor:
    """The largest root mean square over examples and parts; of z, over the modelled dimensions."""
    squares = [part.flatten(1).square().mean(1) for part in state]
    if modelled is not None:
        dims = modelled.expand_as(state[0]).flatten(1).sum(1)
        squares[0] = squares[0] * (state[0][0].numel() / dims.clamp(min=1))
    return torch.stack([square.max().sqrt() for square in squares]).max()


__all__ = [
    "Solution", "SolverError", "along", "angle", "between", "logsnr_of", "solve", "solve_path",
]  # fmt: skip
