"""The parts of an objective as plain data: a spec, null, or {"own": the name of your own part}."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from vdiff import decoder, denoiser, discrete, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep
from vdiff.errors import InvalidValue, did_you_mean
from vdiff.losses import VLB, Hybrid, Weighted
from vdiff.nn import LevelHead
from vdiff.resampling import LossSecondMoment
from vdiff.training.fields import target_room
from vdiff.training.outline import outline_of
from vdiff.training.safe_json import json_repr
from vdiff.training.spec import LARGEST, Spec, build, spec_errors, spec_of

Entry = Any
ROOMS = {"network": networks, "parameterization": parameterization, "variance": variance}
ROOMS |= {"schedule": schedule, "weighting": weighting, "decoder": decoder, "process": discrete}
FUNCTIONS = ("edm_time", "flow_time", "logsnr_time", "sigma_time")
# by part, what is made of attributes of these names
CLASSES: dict[str, dict[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "time": {
        "ScaledGamma": (ScaledGamma, ("logsnr_max", "logsnr_min")),
        "ScheduleTime": (ScheduleTime, ("schedule",)),
        "TableStep": (TableStep, ("schedule", "integer")),
    },
    "loss": {
        "Weighted": (Weighted, ("steps", "independent")),
        "VLB": (VLB, ("steps", "resampling")),
        "Hybrid": (Hybrid, ("steps", "bound_weight")),
    },
    "resampling": {"LossSecondMoment": (LossSecondMoment, ("steps", "memory", "uniform"))},
}
OPTIONAL = ("call", "output", "weighting", "decoder", "resampling")
UNLESS_EMPTY = ("independent",)  # lists that an entry holds only where they are not empty


def entry_of(part: str, value: object) -> Entry:
    """A part of an objective as plain data.

    >>> entry_of("time", ScaledGamma())
    {'name': 'ScaledGamma', 'logsnr_max': 13.3, 'logsnr_min': -5.0}
    >>> entry_of("output", len)
    {'own': 'builtins.len'}
    """
    entry = None if value is None else _spec(part, value)
    if value is None or entry is not None:
        return entry
    made = value if hasattr(value, "__qualname__") else type(value)
    module, name = getattr(made, "__module__", None), getattr(made, "__qualname__", "")
    return {"own": f"{module}.{name}" if module else name}


def _spec(part: str, value: Any) -> Spec | None:
    name = getattr(value, "__name__", type(value).__name__)
    if part == "time" and name in FUNCTIONS and value is getattr(denoiser, name):
        return {"name": name}
    if part in ROOMS:
        if type(value) is LevelHead:
            inner = _spec(part, value.network)
            return None if inner is None else {"name": "LevelHead", "network": inner}
        return spec_of(_room(part, {"name": type(value).__name__}), value)
    made, names = CLASSES.get(part, {}).get(name, (None, ()))
    if type(value) is not made:
        return None
    inner = {n: getattr(value, n) for n in names if n not in UNLESS_EMPTY or getattr(value, n)}
    inner |= {n: list(inner[n]) for n in UNLESS_EMPTY if n in inner}
    entries = {n: _spec(n, v) if _nested(n) and v is not None else v for n, v in inner.items()}
    lost = any(entries[n] is None and v is not None for n, v in inner.items())
    return None if lost else {"name": name, **entries}


def _room(part: str, entry: Entry) -> ModuleType:
    return target_room(entry) if part == "parameterization" else ROOMS[part]


def is_own(entry: Entry) -> bool:
    """Whether this names a part of the user's own."""
    return isinstance(entry, dict) and entry.keys() == {"own"} and isinstance(entry["own"], str)


def entry_errors(part: str, entry: Entry, path: str = "") -> Iterator[InvalidValue]:
    """The errors of an entry, which is not one of the user's own."""
    path = path or part
    if entry is None and part in OPTIONAL:
        return
    if part in ROOMS:
        if part == "network" and isinstance(entry, dict) and entry.get("name") == "LevelHead":
            entry, path = entry.get("network"), f"{path}.network"
        yield from spec_errors(path, _room(part, entry), entry)
        return
    name = entry.get("name") if isinstance(entry, dict) else None
    names = (*CLASSES.get(part, ()), *(FUNCTIONS if part == "time" else ()))
    if not isinstance(name, str) or name not in names:
        near = did_you_mean(name, names) if isinstance(name, str) else ""
        hint = near or f"there are {', '.join(names)}"
        what = "be a class with its arguments" if names else 'be null or {"own": a name}'
        yield InvalidValue(path, what, json_repr(entry), hint if names else "")
        return
    _, taken = CLASSES[part].get(name, (None, ()))
    if not {"name", *taken} - {*UNLESS_EMPTY} <= entry.keys() <= {"name", *taken}:
        what = f"have the arguments of {name}: {', '.join(taken) or 'none'}"
        yield InvalidValue(path, what, json_repr(entry))
        return
    for inner in (n for n in taken if n in entry):
        value = entry[inner]
        if inner in UNLESS_EMPTY:
            if not (isinstance(value, list) and value and all(type(n) is int for n in value)):
                yield InvalidValue(f"{path}.{inner}", "be a list of integers", json_repr(value))
        elif _nested(inner):
            yield from entry_errors(inner, value, f"{path}.{inner}")
        elif isinstance(value, dict | list) or (part == "resampling" and not _small(value)):
            yield InvalidValue(f"{path}.{inner}", "be a number within bounds", json_repr(value))


def _small(value: object) -> bool:
    return isinstance(value, int | float) and value <= LARGEST  # it remembers every step


def _nested(name: str) -> bool:
    return name in ROOMS or name in CLASSES


def make(part: str, entry: Entry, **more: Any) -> Any:
    """The part that an entry without errors describes, with `more` arguments that are made
    already."""
    if entry is None:
        return None
    name = entry["name"]
    if part in ROOMS:
        return build(_room(part, entry), entry)
    if name in FUNCTIONS:
        return getattr(denoiser, name)
    made, taken = CLASSES[part][name]
    given = [n for n in taken if n in entry]
    arguments = {n: make(n, entry[n]) if _nested(n) else entry[n] for n in given}
    return made(**arguments, **more)


def make_network(entry: Spec, levels: Any, *, outline: bool = False) -> nn.Module:
    """The network of an entry; with `outline`, without memory. `levels` is the decoder, for a
    `LevelHead`."""
    if entry["name"] == "LevelHead":
        inner = make_network(entry["network"], levels, outline=outline)
        return LevelHead(inner, levels)
    maker = partial(build, networks, entry)
    network: nn.Module = outline_of(maker)  # checks its size before it takes memory
    return network if outline else maker()
