"""What an erratum is here: what a source prints, what is right, and a function that measures both
against the truth."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vdiff.theorems.subject import Subject
from vdiff.theorems.theorem import Sides, Theorem, at_least, equal

BLOG = "The Hidden Variance Reduction in Diffusion Loss"
SLIDES = "Slides on Understanding Diffusion Objectives as the ELBO with Data Augmentation"
CHAPTER = "DDPM from a Variational Derivation: Where Does the ELBO Come From?"
NOTE = "The DDPM Simple Loss Is a Weighted ELBO"
BOOK = "Foundations of Diffusion Models"
COMMON = "What is commonly added, in none of the sources"


@dataclass(frozen=True)
class Correction:
    """The printed form and the right one, each against the same truth: the first must fail, the
    second hold.

    >>> compared(1.0, 2.0, 2.0).printed.holds
    False
    """

    printed: Sides
    right: Sides


def compared(
    printed: Tensor | float,
    right: Tensor | float,
    truth: Tensor | float,
    *,
    rel: float = 1e-6,
    why: str = "rounding",
) -> Correction:
    """Two values for one truth, which is computed another way.

    >>> compared(1.0, 2.0, 2.0).right.holds
    True
    """
    return Correction(
        equal(printed, truth, rel=rel, why=why), equal(right, truth, rel=rel, why=why)
    )


def ordered(larger: Tensor | float, smaller: Tensor | float) -> Correction:
    """Two numbers that a source has in the wrong order: larger ≥ smaller is right.

    >>> ordered(2.0, 1.0).right.holds
    True
    """
    return Correction(
        at_least(smaller, larger, rel=1e-9, why="rounding"),
        at_least(larger, smaller, rel=1e-9, why="rounding"),
    )


@dataclass(frozen=True)
class Erratum:
    """Where a source is wrong: what it prints, what is right, and by how much.

    With `left_open` it is not wrong, but can be read in two ways: `printed` is a reading that does
    not hold.

    >>> from vdiff.theorems import ERRATA
    >>> ERRATA["kl-of-log-variances"].where
    'eq. 3.7, from eq. 3.5 and 3.6'
    """

    name: str
    source: str
    where: str
    printed: str
    right: str
    evidence: str
    correction: Callable[[], Correction]
    left_open: bool = False


ERRATA: dict[str, Erratum] = {}


def erratum(
    *, source: str, where: str, printed: str, right: str, left_open: bool = False
) -> Callable[[Callable[[], Correction]], Erratum]:
    """Register a function as an erratum: its docstring says what the numbers are.

    >>> erratum(source=BOOK, where="nowhere", printed="1", right="2").__name__
    'register'
    """

    def register(function: Callable[[], Correction]) -> Erratum:
        name = function.__name__.replace("_", "-")
        evidence = " ".join((function.__doc__ or "").split())
        ERRATA[name] = Erratum(name, source, where, printed, right, evidence, function, left_open)
        return ERRATA[name]

    return register


def by_theorem(theorem: Theorem, dropped: str) -> Correction:
    """The correction that a theorem is, with its counterexample as the printed form.

    >>> from vdiff.theorems import THEOREMS
    >>> by_theorem(THEOREMS["prior-term"], "the prior is N(0, I)").printed.holds
    False
    """
    return Correction(theorem.counterexamples[dropped](Subject()), theorem.sides(Subject()))


__all__ = [
    "BLOG",
    "BOOK",
    "CHAPTER",
    "COMMON",
    "ERRATA",
    "NOTE",
    "SLIDES",
    "Correction",
    "Erratum",
    "by_theorem",
    "compared",
    "erratum",
    "ordered",
]
