"""All topics, in the order in which one would read them: importing this registers every
theorem."""

from types import ModuleType

from vdiff.theorems import (
    augmentation,
    bounds,
    chains,
    decoding,
    densities,
    estimators,
    forward,
    generation,
    information,
    invariance,
    limits,
    samplers,
    scores,
    training,
    variances,
    weightings,
)
from vdiff.theorems.theorem import THEOREMS, Theorem

TOPICS: tuple[ModuleType, ...] = (
    forward,
    chains,
    bounds,
    limits,
    invariance,
    weightings,
    augmentation,
    scores,
    information,
    estimators,
    densities,
    variances,
    decoding,
    training,
    generation,
    samplers,
)


def by_topic() -> dict[str, list[Theorem]]:
    """The theorems of each topic.

    >>> next(iter(by_topic()))
    'forward'
    """
    names = [topic.__name__.rpartition(".")[2] for topic in TOPICS]
    return {name: [t for t in THEOREMS.values() if t.topic == name] for name in names}


__all__ = ["TOPICS", "by_topic"]
