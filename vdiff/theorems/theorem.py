"""What a theorem is here: a statement, its source, and a function that computes both of its sides
by different routes.

A theorem is written as one function, whose name is the theorem's and whose docstring is the
statement:

    @theorem(source="VDM, arXiv:2107.00630, section 5.1", given="the ends are fixed")
    def schedule_invariance(subject):
        \"\"\"The expected loss depends on the ends of the schedule alone.\"\"\"
        return equal(left, right, rel=1e-7, why="quadrature")

    # the same sides where that hypothesis is dropped: they must differ
    @schedule_invariance.without("a continuum of times")
    def _(subject): ...
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vdiff.theorems.subject import Subject

EQUAL, AT_LEAST = "=", "≥"
ERRORS = 5.0  # standard errors that a sampled side may be away: one run in two million


@dataclass(frozen=True)
class Sides:
    """Both sides of an equation (or of left ≥ right), how far apart they may lie, and why so far.

    Sides are numbers or tensors of many cases at once; every case must hold. `allowed` is
    absolute.

    >>> Sides(1.0, 1.1, 0.05, "an example").holds, Sides(1.2, 1.1, 0.05, "an example", AT_LEAST).holds
    (False, True)
    """

    left: Tensor | float
    right: Tensor | float
    allowed: Tensor | float
    why: str
    relation: str = EQUAL

    @cached_property
    def cases(self) -> tuple[Tensor, Tensor, Tensor]:
        """(left, right, allowed) of every case, in float64."""
        wide = [
            torch.as_tensor(v, dtype=torch.float64).detach()
            for v in (self.left, self.right, self.allowed)
        ]
        every = sum((torch.zeros(v.shape) for v in wide), torch.zeros(()))
        left, right, allowed = (v.expand_as(every).flatten() for v in wide)
        return left, right, allowed

    @property
    def gap(self) -> Tensor:
        """How far each case is from holding, before what is allowed."""
        left, right, _ = self.cases
        return (left - right).abs() if self.relation == EQUAL else right - left

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return all(bool(torch.isfinite(v).all()) for v in self.cases)

    @property
    def holds(self) -> bool:
        """Whether every case holds."""
        return self.finite and bool((self.gap <= self.cases[2]).all())

    @property
    def worst(self) -> tuple[float, float, float]:
        """(left, right, allowed) of the case that is nearest to failing, or has failed by most, by
        its share of what is allowed.

        Where nothing is allowed every share is 0 or infinite, and the gap itself decides.

        >>> Sides(torch.tensor([1.0, 0.0, 1.5]), 2.0, 0.0, "an example", AT_LEAST).worst[0]
        0.0
        """
        gap = torch.where(self.gap.isnan(), torch.inf, self.gap)
        share = torch.where(gap == 0, 0.0, gap / self.cases[2])
        share = torch.where(share.isnan(), torch.inf, share)
        i = int(torch.where(share == share.max(), gap, -torch.inf).argmax())
        left, right, allowed = (v[i].item() for v in self.cases)
        return left, right, allowed


def equal(
    left: Tensor | float, right: Tensor | float, *, rel: float, why: str, atol: float = 0.0
) -> Sides:
    """Sides that must agree to a relative accuracy (and `atol`, where the right side may be zero).

    >>> equal(1.0, 1.0 + 1e-9, rel=1e-8, why="rounding").holds
    True
    """
    scale = torch.as_tensor(right, dtype=torch.float64).detach().abs()
    return Sides(left, right, rel * scale + atol, why)


def at_least(left: Tensor | float, right: Tensor | float, *, rel: float, why: str) -> Sides:
    """Sides of which the left must not be the smaller, to a relative accuracy.

    >>> at_least(1.0, 2.0, rel=1e-8, why="rounding").holds
    False
    """
    scale = torch.as_tensor(right, dtype=torch.float64).detach().abs()
    return Sides(left, right, rel * scale, why, AT_LEAST)


def sampled(draws: Tensor, right: Tensor | float) -> Sides:
    """The mean of independent draws (first dimension) against what it must be, in standard errors
    measured here.

    >>> sampled(torch.tensor([0.9, 1.1, 1.0]), 1.0).holds
    True
    """
    return Sides(
        draws.mean(0),
        right,
        ERRORS * draws.std(0) / len(draws) ** 0.5,
        f"{ERRORS:g} standard errors of {len(draws)} draws",
    )


def paired(left: Tensor, right: Tensor, group: int = 1) -> Sides:
    """The means of two estimates of one number from the same draws, in standard errors of their
    difference.

    So many draws in a row as `group` says belong together; their means are independent.

    >>> paired(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.5])).holds
    True
    """
    left, right = (v.view(-1, group).mean(1) for v in (left, right))
    difference = left - right
    error = difference.std(0) / len(difference) ** 0.5
    return Sides(
        left.mean(0),
        right.mean(0),
        ERRORS * error,
        f"{ERRORS:g} standard errors of {len(difference)} paired draws",
    )


Function = Callable[[Subject], Sides]


@dataclass(frozen=True)
class Counterexample:
    """The same two sides where a hypothesis is dropped: they must not agree.

    >>> Counterexample("the ends are fixed", lambda subject: equal(1.0, 2.0, rel=1e-9, why="")).dropped
    'the ends are fixed'
    """

    dropped: str
    sides: Function


@dataclass(frozen=True)
class Theorem:
    """A theorem: its name, what it says, where it stands, under which hypotheses, and both sides
    of it.

    `any_network` ones hold for every model on every data, and are what `verify(model, data)` runs.
    `topic` is the module that it is written in.

    >>> from vdiff.theorems import THEOREMS
    >>> THEOREMS["jensen"].statement
    'On average over the data the bound is never below their entropy: E[bound] ≥ H(x), whatever the denoiser.'
    """

    name: str
    statement: str
    source: str
    given: str
    topic: str
    any_network: bool
    sides: Function
    counterexamples: list[Counterexample] = field(default_factory=list)

    def without(self, hypothesis: str) -> Callable[[Function], Function]:
        """Register a function as the counterexample in which this hypothesis is dropped.

        >>> from vdiff.theorems import THEOREMS
        >>> [c.dropped for c in THEOREMS["refinement"].counterexamples]
        ['each step is divided', 'the denoiser is the exact one']
        """

        def register(function: Function) -> Function:
            self.counterexamples.append(Counterexample(hypothesis, function))
            return function

        return register


THEOREMS: dict[str, Theorem] = {}


def theorem(
    *, source: str, given: str = "", any_network: bool = False
) -> Callable[[Function], Theorem]:
    """Register a function of a `Subject` that returns `Sides` as a theorem: its docstring is what
    it says.

    >>> theorem(source="an example").__name__
    'register'
    """

    def register(function: Function) -> Theorem:
        name = function.__name__.replace("_", "-")
        statement = " ".join((function.__doc__ or "").split())
        topic = function.__module__.rpartition(".")[2]
        THEOREMS[name] = Theorem(name, statement, source, given, topic, any_network, function)
        return THEOREMS[name]

    return register


__all__ = [
    "AT_LEAST",
    "EQUAL",
    "THEOREMS",
    "Counterexample",
    "Sides",
    "Theorem",
    "at_least",
    "equal",
    "paired",
    "sampled",
    "theorem",
]
