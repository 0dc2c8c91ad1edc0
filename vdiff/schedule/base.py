"""A noise schedule: t ↦ λ, the quantile function of a distribution over log-SNR."""

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import check_steps, checking, finite, must, names_arrays, readable, shown
from vdiff.gaussian import PreciseModule, at_least_float32, wide

BISECTIONS = 64
RESTS = 1e-9  # of the range: a rate at an end that is 0, to rounding
LEAST = 1e-6  # of the range: stands for a rate of 0, so that p(λ) · rate is 1, not 0 · ∞
EDGE = 1e-5  # how far beyond an end a rounded float32 λ may lie and still count as inside

UNREAD = 500  # losses without an update, after which a schedule that learns by it says so

AnySchedule = TypeVar("AnySchedule", bound="Schedule")
Follow = Callable[[Tensor, int], Tensor]
Merge = Callable[[Tensor], Tensor]


class Schedule(PreciseModule):
    """t ∈ [0, 1] ↦ λ, from λ_max at t = 0 (data) down to λ_min at t = 1 (noise).

    Two methods make a schedule, written in float64 without a care for shapes or dtypes:

        logsnr_at(t)           λ(t), strictly decreasing
        rate_at(t, logsnr)     −dλ/dt > 0, at the same t and λ; at t = 0 and at t = 1 it may be 0

    and, where they have closed forms, `time_at(logsnr)` (else by bisection) and
    `density_at(logsnr)` (else one over the rate). The public methods compute in float64 on the
    (batch,) vector and round once to the dtype they were given. End points are finite, but for the
    last level of a table: λ = ±∞ has no bound and no rate.

    A schedule moves only the variance of a loss: E[L] depends on the end points alone (VDM,
    arXiv:2107.00630, sec. 5.1).

    >>> class Quadratic(Schedule):
    ...     def logsnr_at(self, t): return 10 - 5 * (t + t**2)
    ...     def rate_at(self, t, logsnr): return 5 * (1 + 2 * t)
    >>> schedule = Quadratic(logsnr_max=10.0, logsnr_min=0.0).check()
    >>> schedule(torch.tensor([0.0, 0.5, 1.0]))
    tensor([10.0000,  6.2500,  0.0000])
    """

    def __init__(self, logsnr_max: float, logsnr_min: float) -> None:
        super().__init__()
        self._ends = check_ends(type(self).__name__, logsnr_max, logsnr_min)
        self._checked = False
        self._least_rate = 0.0  # what a loss takes for a rate of 0
        self._unread = 0  # losses since the last update

    @property
    def logsnr_max(self) -> float:
        """λ at t = 0, the data end."""
        return float(self.ends()[0])

    @property
    def logsnr_min(self) -> float:
        """λ at t = 1, the noise end."""
        return float(self.ends()[1])

    @property
    def reaches_noise(self) -> bool:
        """Whether λ_min is −∞, as the last level of a table may be: `logsnr_at` then has −600 for
        it.

        >>> from vdiff import Tabulated
        >>> Tabulated([3.0, 0.0, -math.inf]).reaches_noise
        True
        """
        return not self.learns_ends and self.logsnr_min == -math.inf

    def logsnr_at(self, t: Tensor) -> Tensor:
        """λ(t) in the dtype of t."""
        raise NotImplementedError(f"{type(self).__name__} must define logsnr_at(t)")

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        """−dλ/dt at t, where λ(t) = logsnr."""
        raise NotImplementedError(f"{type(self).__name__} must define rate_at(t, logsnr)")

    def time_at(self, logsnr: Tensor) -> Tensor:
        """t with λ(t) = logsnr, by bisection to float64 accuracy."""
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            noisier = self.logsnr_at(middle) < logsnr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return 0.5 * (low + high)

    def density_at(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ inside the ends."""
        return self.rate_at(self.time_at(logsnr), logsnr).reciprocal()

    def ends(self, pin: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """(λ_max, λ_min); numbers where they are fixed, tensors where they are learned, without
        gradient if pinned."""
        return self._ends

    @property
    def learns_ends(self) -> bool:
        """Whether λ_max and λ_min are parameters."""
        return False

    @property
    def learns_shape(self) -> bool:
        """Whether training moves λ(t) between the ends."""
        return False

    @names_arrays
    def look(
        self, t: Float[Tensor, " batch"], steps: int | None = None, *, pin: bool = True
    ) -> tuple[Tensor, Tensor, Follow]:
        """`levels` for a loss to be taken there, and a function through which that loss, (batch,)
        nats of examples with so many dimensions, is passed before it is handed out: by it a
        schedule learns. Most return the loss as it is.
        """
        return *self.levels(t, steps, pin=pin), _as_it_is

    def update(self, merge: Merge | None = None) -> None:
        """Take in what the losses since the last call have shown: to be called once after each
        optimizer step.

        `merge` sums a tensor of statistics over ranks (`vdiff.training.over_ranks`). Most
        schedules have nothing to take in.
        """

    def _count_loss(self) -> None:
        """Warn, once, where loss after loss is taken and `update` never called."""
        if checking():
            self._unread += 1
            if self._unread == UNREAD:
                what = f"{type(self).__name__}: {UNREAD} losses, and none was taken in"
                warnings.warn(
                    f"{what}: call update() of the schedule, or of the Objective, after each optimizer step",
                    stacklevel=2,
                )

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """λ(t), in the dtype of t (float32 where t is narrower).

        >>> from vdiff import Cosine
        >>> Cosine()(torch.tensor(0.5))
        tensor(0.)
        """
        self._check_argument("forward", "t", t)
        t64 = wide(t)
        logsnr = self.logsnr_at(t64)
        if self.reaches_noise:
            logsnr = logsnr.masked_fill(t64 >= 1, -math.inf)
        return logsnr.to(at_least_float32(t.dtype))

    def rate(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """−dλ/dt at t: positive.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).rate(torch.tensor(0.5))
        tensor(18.3000)
        """
        self._check_argument("rate", "t", t)
        t64 = wide(t)
        return self.rate_at(t64, self.logsnr_at(t64)).to(at_least_float32(t.dtype))

    def inverse(
        self, logsnr: Float[Tensor, "*shape"], *, clamp: bool = False
    ) -> Float[Tensor, "*shape"]:
        """The time at which the schedule passes λ.

        Raises ValueError where λ lies beyond the ends, unless `clamp`, which returns 0 or 1 there.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).inverse(torch.tensor(4.15))
        tensor(0.5000)
        """
        self._check_argument("inverse", "logsnr", logsnr)
        wide_logsnr = wide(logsnr)
        if not clamp and checking() and readable(logsnr) and not self._inside(wide_logsnr).all():
            low, high = logsnr.min().item(), logsnr.max().item()
            came = f"values from {low:g} to {high:g}"
            raise ValueError(
                must(
                    f"{type(self).__name__}.inverse",
                    "logsnr",
                    f"lie within the ends [{self.logsnr_min:g}, {self.logsnr_max:g}]",
                    came,
                    "clamp=True returns the nearest end",
                )
            )
        return self.time_at(wide_logsnr).clamp(0.0, 1.0).to(at_least_float32(logsnr.dtype))

    def density(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """p(λ) = −dt/dλ, normalised over [λ_min, λ_max] and zero outside. At an end where the rate
        is 0 it is infinite; 10⁶/(λ_max − λ_min) stands for that.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).density(torch.tensor([0.0, 20.0]))
        tensor([0.0546, 0.0000])
        """
        self._check_argument("density", "logsnr", logsnr)
        if checking():
            self.check_once()
        wide_logsnr = wide(logsnr)
        density = self.density_at(wide_logsnr)
        if self._least_rate:
            density = density.abs().clamp(max=1 / self._least_rate)  # a rate may be −0
        return (density * self._inside(wide_logsnr)).to(at_least_float32(logsnr.dtype))

    def delta(self, t: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "*shape"]:
        """λ_s − λ_t over the step that ends at t, s = t − 1/T, in float64.

        >>> from vdiff import Linear
        >>> Linear(13.3, -5.0).delta(torch.tensor(1.0), steps=10)
        tensor(1.8300, dtype=torch.float64)
        """
        self._check_argument("delta", "t", t)
        t64 = wide(t)
        return self.logsnr_at(self._step_before("delta", t64, steps)) - self.logsnr_at(t64)

    @names_arrays
    def levels(
        self, t: Float[Tensor, " batch"], steps: int | None = None, *, pin: bool = True
    ) -> tuple[Tensor, Tensor]:
        """λ_t and the measure of a uniform draw of t: −dλ/dt, or T·expm1(λ_s − λ_t) on a chain; in
        float64.

        With `pin`, learned end points get no gradient from either.
        """
        t64 = wide(t)
        logsnr = self.logsnr_at(t64)
        if checking():
            check_returned(f"{type(self).__name__}.logsnr_at", logsnr, t64)
        if steps is None:
            rate = self.rate_at(t64, logsnr)
            if checking():
                check_returned(f"{type(self).__name__}.rate_at", rate, t64)
            return logsnr, rate.clamp(min=self._least_rate) if self._least_rate else rate
        return logsnr, steps * torch.expm1(self.delta(t64, steps))

    def check(self: AnySchedule, points: int = 10_001) -> AnySchedule:
        """Verify on a dense float64 grid that λ is finite, strictly decreasing, ends where it
        says, that `rate_at` is its derivative, positive but for the two ends, and `time_at` and
        `density_at`, where a class has its own, its inverse and one over the rate. Returns self;
        raises ValueError at the first t that fails.

        >>> from vdiff import Cosine
        >>> Cosine().check()
        Cosine(logsnr_max=15.0, logsnr_min=-15.0)
        """
        name = type(self).__name__
        if not (self.learns_ends or self.learns_shape) and any(True for _ in self.parameters()):
            hint = "λ_max and λ_min would move with them: see Learned, which keeps ends and shape apart"
            raise ValueError(
                must(name, "schedule", "say what its parameters are", "learns_ends = False", hint)
            )
        place = home(self)
        if place.type == "meta":
            return self  # parameters without values, to be filled later
        with torch.no_grad():
            t = self.times_to_check(points).to(place)
            logsnr = self.logsnr_at(t)
            check_returned(f"{name}.logsnr_at", logsnr, t)
            rate = self.rate_at(t, logsnr)
            check_returned(f"{name}.rate_at", rate, t)
            drop = logsnr[:-1] - logsnr[1:]
            between = 0.5 * (t[:-1] + t[1:])  # a density may jump at the times themselves
            level = self.logsnr_at(between)
            off, times_rate = torch.zeros_like(level), torch.ones_like(level)
            if type(self).time_at is not Schedule.time_at:
                off = (self.logsnr_at(self.time_at(level)) - level).abs()
            if type(self).density_at is not Schedule.density_at:
                times_rate = self.density_at(level) * self.rate_at(between, level)
            low = logsnr[-1].item() if self.reaches_noise else self.logsnr_min
            ends = torch.tensor([self.logsnr_max, low], dtype=torch.float64, device=place)
        _fail_at(name, "have finite logsnr_at(t)", ~torch.isfinite(logsnr), t, logsnr, "λ = ")
        hint = (
            "γ = −λ rises: hand over −γ"
            if logsnr[-1] > logsnr[0]
            else "the first of them that do not fall"
        )
        _fail_at(
            name,
            "be strictly decreasing in t (λ falls from data to noise)",
            drop <= 0,
            t,
            logsnr,
            "λ = ",
            hint,
        )
        span = (ends[0] - ends[1]).item()
        resting = rate[[0, -1]].abs() <= RESTS * span
        self._least_rate = LEAST * span if resting.any() else 0.0
        stuck = ~(rate > 0)
        stuck[[0, -1]] &= ~resting
        _fail_at(
            name,
            "have rate_at(t, logsnr) = −dλ/dt > 0",
            stuck,
            t,
            rate,
            "a rate of ",
            "dλ/dt itself is negative: hand over −dλ/dt" if (rate < 0).all() else "",
        )
        if not torch.allclose(logsnr[[0, -1]], ends, rtol=1e-6, atol=1e-6):
            came = f"λ(0) = {logsnr[0]:g}, λ(1) = {logsnr[-1]:g}"
            raise ValueError(
                must(
                    name,
                    "logsnr_at",
                    f"run from logsnr_max = {ends[0]:g} to logsnr_min = {ends[1]:g}",
                    came,
                )
            )
        area = 0.5 * (rate[:-1] + rate[1:]) * t.diff()
        change = (
            rate[:-1] - rate[1:]
        ).abs()  # of a cell or its neighbors: how far it leaves the trapezoid undecided, at a corner too
        width = t.diff() * torch.nn.functional.max_pool1d(change[None], 3, stride=1, padding=1)[0]
        hint = "λ falls there by another amount than the rates between say"
        _fail_at(
            name,
            "have rate_at equal to the derivative of −logsnr_at",
            (area - drop).abs() > width + 1e-6 * drop.abs() + 1e-9,
            t,
            rate,
            "a rate of ",
            hint,
        )
        hint = "λ(time_at(λ)) is not λ"
        _fail_at(
            name,
            "have time_at(logsnr) the inverse of logsnr_at",
            ~(off <= 1e-6 * span),
            between,
            off,
            "off by ",
            hint,
        )
        hint = "the product is not 1; p(λ) = −dt/dλ is normalised between the ends"
        _fail_at(
            name,
            "have density_at(logsnr) one over rate_at",
            ~((times_rate - 1).abs() <= 1e-5),
            between,
            times_rate,
            "p(λ) · rate = ",
            hint,
        )
        return self

    def times_to_check(self, points: int) -> Tensor:
        """The times at which `check` looks, from 0 to 1: evenly, and wherever else the rate is
        another over a short time."""
        return torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")

    def check_once(self) -> None:
        """`check`, the first time this schedule is used."""
        if not self._checked:
            self.check()
            self._checked = True

    def _step_before(self, method: str, t: Tensor, steps: int) -> Tensor:
        """s = t − 1/T, where the chain's step that ends at t begins."""
        if checking():
            check_steps(f"{type(self).__name__}.{method}", steps)
        return (t - 1 / steps).clamp(min=0.0)

    def _check_argument(self, method: str, argument: str, value: Tensor) -> None:
        if checking() and not (isinstance(value, Tensor) and value.is_floating_point()):
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            hint = (
                "times are fractions of the way to noise, not integer steps: t = step / steps"
                if argument == "t"
                else "torch.tensor(…)"
            )
            raise TypeError(
                must(
                    type(self).__name__
                    if method == "forward"
                    else f"{type(self).__name__}.{method}",
                    argument,
                    "be a floating tensor",
                    came,
                    hint,
                )
            )

    def _inside(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (logsnr <= high + EDGE) & (logsnr >= low - EDGE)

    def own_ends(self) -> tuple[float, float] | None:
        return None if self.learns_ends else self._ends

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._checked = False

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._checked = False

    def extra_repr(self) -> str:
        return f"logsnr_max={self.logsnr_max}, logsnr_min={self.logsnr_min}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _as_it_is(loss: Tensor, dims: int) -> Tensor:
    return loss


def check_ends(name: str, logsnr_max: float, logsnr_min: float) -> tuple[float, float]:
    """(λ_max, λ_min) as floats; raises unless λ_max > λ_min and both are finite."""
    noise = "λ = −∞ is zero terminal SNR: the bound's prior term needs some signal left, so stop at about −15"
    clean = "λ = +∞ is data without noise, where nothing is left to predict: stop at about 15"
    hints = {-math.inf: noise, math.inf: clean}
    high = finite(name, "logsnr_max", logsnr_max, hint=hints.get(logsnr_max, ""))
    low = finite(name, "logsnr_min", logsnr_min, hint=hints.get(logsnr_min, ""))
    if not low < high:
        hint = (
            f"t = 0 is data and has the larger λ; if these are γ = −λ, write logsnr_max={-high:g}, logsnr_min={-low:g}"
            if low > high
            else "equal ends leave nothing between"
        )
        raise ValueError(
            must(name, "logsnr_max", f"be greater than logsnr_min = {low:g}", f"{high:g}", hint)
        )
    return high, low


def check_schedule(name: str, schedule: object) -> None:
    """Raise unless `schedule` is a Schedule; its class is the likely mistake."""
    if not isinstance(schedule, Schedule):
        if isinstance(schedule, type):
            raise TypeError(
                must(
                    name,
                    "schedule",
                    "be a Schedule",
                    f"the class {schedule.__name__}",
                    f"an instance: {schedule.__name__}()",
                )
            )
        raise TypeError(
            must(
                name,
                "schedule",
                "be a Schedule",
                shown(schedule),
                "for instance Cosine(); schedule.Custom takes a function of t",
            )
        )
    if "_ends" not in vars(schedule):
        hint = "its __init__ must call super().__init__(logsnr_max, logsnr_min)"
        raise TypeError(must(name, "schedule", "be initialised", type(schedule).__name__, hint))
    if checking():
        schedule.check_once()


def check_returned(function: str, value: object, t: Tensor) -> None:
    """Raise unless what a schedule's own method returned has the shape, dtype and device of t."""
    if (
        not isinstance(value, Tensor)
        or value.shape != t.shape
        or value.dtype != t.dtype
        or value.device != t.device
    ):
        came, hint = (
            (f"{tuple(value.shape)}, {value.dtype}, {value.device}", "")
            if isinstance(value, Tensor)
            else (type(value).__name__, "torch.full_like(t, value) for a constant")
        )
        if isinstance(value, Tensor) and value.shape != t.shape:
            hint = "it would broadcast in silence"
        raise ValueError(
            must(
                function,
                "return value",
                f"have the shape, dtype and device of t: {tuple(t.shape)}, {t.dtype}, {t.device}",
                came,
                hint,
            )
        )


def home(module: object) -> torch.device:
    """Where a module keeps its parameters and buffers; the CPU if it has none."""
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _fail_at(
    name: str, requirement: str, bad: Tensor, t: Tensor, value: Tensor, what: str, hint: str = ""
) -> None:
    if bad.any():
        i = int(bad.nonzero()[0])
        came = f"{what}{value[i]:g} at t = {t[i]:g}"
        if len(bad) < len(t):  # a fault between two times
            came += f" and {value[i + 1]:g} at t = {t[i + 1]:g}"
        raise ValueError(must(name, "schedule", requirement, came, hint))


__all__ = ["Schedule"]
