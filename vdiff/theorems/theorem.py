"""A theorem: a statement, its source, and one function that computes both of its sides by
different routes.

    @theorem("VDM, arXiv:2107.00630, section 5.1", without={"time is continuous": dict(steps=4)})
    def schedule_invariance(steps=None):
        \"\"\"The expected loss depends on the ends of the schedule alone.\"\"\"
        return equal(left, right, rel=1e-7, why="quadrature")

The name of the function is the theorem's, the docstring the statement. Each key of `without` is a
hypothesis. Its keywords, given to the same function, drop it: the sides must then differ. A
function that takes a `subject` is a theorem about any network; the others are about exact
denoisers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vdiff.theorems.subject import Subject

EQUAL, AT_LEAST = "=", "≥"
ERRORS = 5.0  # standard errors that a sampled side may be away: one run in two million
Value = Tensor | float


@dataclass(frozen=True)
class Sides:
    """Both sides of an equation (or of left ≥ right), how far apart they may lie, and why.

    Sides are numbers or tensors of many cases; every case must hold. `allowed` is absolute.

    >>> Sides(1.0, 1.1, 0.05, "an example").holds
    False
    >>> Sides(1.2, 1.1, 0.05, "an example", AT_LEAST).holds
    True
    """

    left: Value
    right: Value
    allowed: Value
    why: str
    relation: str = EQUAL

    @cached_property
    def cases(self) -> tuple[Tensor, ...]:
        """(left, right, allowed) of every case, in float64."""
        parts = (
            torch.as_tensor(value, dtype=torch.float64).detach()
            for value in (self.left, self.right, self.allowed)
        )
        cases = torch.broadcast_tensors(*parts)  # type: ignore[no-untyped-call]
        return tuple(value.flatten() for value in cases)

    @property
    def gap(self) -> Tensor:
        """How far each case is from holding, before what is allowed."""
        left, right, _ = self.cases
        return (left - right).abs() if self.relation == EQUAL else right - left

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(torch.isfinite(value).all()) for value in self.cases)

    @property
    def holds(self) -> bool:
        """Whether every case holds."""
        return self.finite and bool((self.gap <= self.cases[2]).all())

    @property
    def worst(self) -> tuple[float, ...]:
        """(left, right, allowed) of the case with the largest gap relative to what is allowed.

        Where nothing is allowed this ratio is 0 or infinite, and the gap itself decides.

        >>> Sides(torch.tensor([1.0, 0.0, 1.5]), 2.0, 0.0, "an example", AT_LEAST).worst[0]
        0.0
        """
        gap = torch.where(self.gap.isnan(), torch.inf, self.gap)
        share = torch.where(gap == 0, 0.0, gap / self.cases[2])
        share = torch.where(share.isnan(), torch.inf, share)
        i = int(torch.where(share == share.max(), gap, -torch.inf).argmax())
        return tuple(value[i].item() for value in self.cases)


def equal(
    left: Value,
    right: Value,
    *,
    rel: float,
    why: str = "float64 rounding",
    atol: float = 0.0,
    relation: str = EQUAL,
) -> Sides:
    """Sides that must agree to a relative accuracy (and `atol`, where the right side may be zero).

    >>> equal(1.0, 1.0 + 1e-9, rel=1e-8).holds
    True
    """
    scale = torch.as_tensor(right, dtype=torch.float64).detach().abs()
    return Sides(left, right, rel * scale + atol, why, relation)


at_least = partial(equal, relation=AT_LEAST)  # left ≥ right, to a relative accuracy


def sampled(draws: Tensor, right: Value) -> Sides:
    """The mean of independent draws (first dimension) against what it must be, in standard errors.

    >>> sampled(torch.tensor([0.9, 1.1, 1.0]), 1.0).holds
    True
    """
    error = draws.std(0) / len(draws) ** 0.5
    return Sides(draws.mean(0), right, ERRORS * error, f"{ERRORS:g} standard errors")


def paired(left: Tensor, right: Tensor, group: int = 1) -> Sides:
    """The means of two estimates of one number from the same draws, in standard errors of their
    difference. The means of `group` draws in a row are independent.

    >>> paired(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.5])).holds
    True
    """
    left, right = (value.view(-1, group).mean(1) for value in (left, right))
    error = (left - right).std(0) / len(left) ** 0.5
    return Sides(left.mean(0), right.mean(0), ERRORS * error, f"{ERRORS:g} standard errors")


Function = Callable[[Subject], Sides]


@dataclass(frozen=True)
class Theorem:
    """A theorem and, by hypothesis, the same sides where it is dropped. `topic` is its module.

    Those of `any_network` hold for every model on every data: `verify(model, data)` runs them.

    >>> from vdiff.theorems import THEOREMS
    >>> THEOREMS["i-mmse"].statement
    'dI(x; z)/dλ = ½ E‖ε − ε̂‖² of the exact denoiser.'
    >>> list(THEOREMS["refinement"].counterexamples)
    ['each step is divided', 'the denoiser is the exact one']
    """

    name: str
    statement: str
    source: str
    topic: str
    any_network: bool
    sides: Function
    counterexamples: dict[str, Function]


THEOREMS: dict[str, Theorem] = {}


def theorem(
    source: str, *, without: dict[str, dict[str, Any]] | None = None
) -> Callable[[Callable[..., Sides]], Theorem]:
    """Register a function as a theorem, with the keywords that drop each of its hypotheses."""

    def register(function: Callable[..., Sides]) -> Theorem:
        any_network = "subject" in inspect.signature(function).parameters

        def sides(subject: Subject, **keywords: Any) -> Sides:
            return function(*([subject] if any_network else []), **keywords)

        name = function.__name__.replace("_", "-")
        statement = " ".join((function.__doc__ or "").split())
        topic = function.__module__.rpartition(".")[2]
        dropped: dict[str, Function] = {
            hypothesis: partial(sides, **keywords)
            for hypothesis, keywords in (without or {}).items()
        }
        THEOREMS[name] = Theorem(name, statement, source, topic, any_network, sides, dropped)
        return THEOREMS[name]

    return register
