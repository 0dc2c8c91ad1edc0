"""The checks of a weighting with the function's name in the error, for callers that do not declare
them yet."""

from collections.abc import Callable
from typing import Any

from vdiff._validate import Whole
from vdiff.errors import InvalidArgument
from vdiff.schedule import Schedule
from vdiff.weighting.base import (
    check_returned,
    check_values,
    divides_table,
    same_chain,
    sound,
    total,
)


def _named(name: str, check: Callable[..., object], *arguments: Any) -> None:
    try:
        check(*arguments)
    except InvalidArgument as error:
        error.function = error.function or name
        raise


def check_weight_function(name: str, weighting: object) -> None:
    """See `total`."""
    _named(name, total, weighting, "weighting", {})


def check_chain(name: str, weighting: object, schedule: Schedule, steps: int | None) -> None:
    """See `divides_table` and `same_chain`."""
    if steps is not None:
        _named(name, Whole(), steps, "steps", {})
    _named(name, divides_table, schedule, steps)
    _named(name, same_chain, weighting, steps)


def check_values_once(name: str, weighting: Any, schedule: Schedule) -> None:
    """See `sound`."""
    _named(name, sound, weighting, schedule)


def check_weighting(weighting: Any, low: float, high: float, name: str) -> None:
    """See `check_values`."""
    _named(name, total, weighting, "weighting", {})
    _named(name, check_values, weighting, low, high)


def check_weight(name: str, weight: object, logsnr: Any) -> None:
    """See `check_returned`."""
    _named(name, check_returned, weight, logsnr)


__all__: list[str] = []
