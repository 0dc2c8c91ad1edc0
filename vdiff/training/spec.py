"""Objects as plain data: a class by name with its arguments, which can be specs again."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vdiff import parameterization, schedule, weighting
from vdiff.errors import did_you_mean, must
from vdiff.schedule import law

Spec = dict[str, Any]
Homes = tuple[ModuleType, ...]
NESTED: dict[str, Homes] = {
    "schedule": (schedule, law),
    "parameterization": (parameterization,),
    "base": (weighting,),
    "factor": (weighting,),
}


def build(homes: ModuleType | Homes, spec: Spec) -> Any:
    """The class (or class method) `spec["name"]` of a module, or of one of several, called with the rest, whose specs are built
    first; an unknown name is answered with the nearest.

    >>> from vdiff import schedule, weighting
    >>> build(schedule, {"name": "Cosine"})
    Cosine(logsnr_max=15.0, logsnr_min=-15.0)
    >>> build(weighting, {"name": "MSE", "schedule": {"name": "Cosine"}, "parameterization": {"name": "V"}}).monotone
    True
    """
    arguments = dict(spec)
    made = _find(homes, arguments.pop("name"))
    return made(**{key: build(NESTED[key], value) if isinstance(value, dict) else value for key, value in arguments.items()})


def faults(function: str, argument: str, homes: Homes, spec: object) -> list[str]:
    """What is wrong with a spec, as messages of `function` about its `argument`: a name there is not, arguments not taken or not given.

    >>> from vdiff import schedule
    >>> faults("Config", "schedule", (schedule,), {"name": "Cosine", "shfit": 1.0})
    ["Config: argument 'schedule.shfit' must be an argument of Cosine; got 1.0 (did you mean 'shift'?)"]
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return [must(function, argument, 'be a class with its arguments, {"name": …}', repr(spec))]
    try:
        made = _find(homes, spec["name"])
    except ValueError as error:
        return [str(error).replace("build: argument 'name'", f"{function}: argument '{argument}.name'")]
    parameters = inspect.signature(made).parameters.values()
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # nn.Module's own
    taken = {one.name: one for one in parameters if one.name != "self" and one.kind not in rest}
    wrong = []
    for key, value in spec.items():
        place = f"{argument}.{key}"
        if key != "name" and key not in taken:
            hint = did_you_mean(key, taken) or f'all of it is replaced by {argument}={{"name": "{spec["name"]}", …}}'
            wrong.append(must(function, place, f"be an argument of {spec['name']}", repr(value), hint))
        elif isinstance(value, dict):
            wrong += (
                faults(function, place, NESTED[key], value) if key in NESTED else [must(function, place, "be a plain value", repr(value))]
            )
    missing = [key for key, one in taken.items() if one.default is one.empty and key not in spec]
    return wrong + [must(function, f"{argument}.{key}", f"be given for {spec['name']}", None) for key in missing]


def _find(homes: ModuleType | Homes, name: str) -> Callable[..., Any]:
    homes = homes if isinstance(homes, tuple) else (homes,)
    known: dict[str, Any] = {word: value for home in reversed(homes) for word, value in vars(home).items() if isinstance(value, type)}
    first, _, method = name.partition(".")
    if method and first in known:
        made = known[first]
        known = {f"{first}.{word}": getattr(made, word) for word in dir(made) if inspect.ismethod(getattr(made, word))}
    if name not in known:
        raise ValueError(must("build", "name", f"be a class of {homes[0].__name__}", repr(name), did_you_mean(name, known)))
    found: Callable[..., Any] = known[name]
    return found


__all__ = ["Spec", "build", "faults"]
