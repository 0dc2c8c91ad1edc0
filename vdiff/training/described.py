"""What an objective is, part by part, and whether it is the one that a config describes."""

import enum
import functools
import types

import torch
from torch import Tensor, nn

from vdiff._validate import require
from vdiff.likelihood.digest import data_hash
from vdiff.objective import Objective
from vdiff.schedule import Schedule
from vdiff.training.config import Config

Parts = dict[str, str]
SHOWN = 5  # differences in a message
OWN = " (your own)"
VALUES = " (values)"
# how a module computes, and what it has seen, not what it is
COMPUTED = ("training", "checkpoint", "inplace", "trained", "trained_on")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum)
NAMED = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def parts_of(objective: Objective) -> Parts:
    """The class and the settings of every part by its path, and the shapes of all weights.

    Weights do not count by their values, and learned ends are weights. The buffers of a fixed
    schedule count by their values, and so do those that no weights file holds.

    >>> from vdiff import Denoiser
    >>> from vdiff.parameterization import V
    >>> from vdiff.schedule import Cosine
    >>> model = Denoiser(torch.nn.Linear(2, 2), V())
    >>> parts = parts_of(Objective(model, schedule=Cosine(5.0, -5.0)))
    >>> [parts[name] for name in ("schedule.logsnr_max", "model.network.weight")]
    ['5.0', 'weights of shape (2, 2)']
    """
    found: Parts = {}
    _describe(found, "", objective, ())
    return {path or "objective": what for path, what in found.items()}


def differences(objective: Objective, config: Config) -> list[str]:
    """In which parts an objective is another than its config's, in words; none if the config
    describes it."""
    came, known = parts_of(objective), parts_of(config.objective(outline=True))
    unlike = [path for path in {**known, **came} if came.get(path) != known.get(path)]
    both = came.keys() & known.keys()  # an outline has no values
    unlike = [path for path in unlike if path in both or VALUES not in path]
    # where the class is another, what lies within it is not compared
    outer = [path for path in unlike if not any(path.startswith(f"{part}.") for part in unlike)]
    pairs = ((path, came.get(path, "nothing"), known.get(path, "nothing")) for path in outer)
    return [f"{path}: {here}, by the config {there}" for path, here, there in pairs]


def check_described(objective: Objective, config: Config) -> list[str]:
    """`differences` of an objective with parts of your own, which no config can name.

    Raises ValueError if all parts are the library's, but not the config's: an objective that is
    built from the config would be another one.
    """
    unlike = differences(objective, config)
    what = "be the one that the config of its run describes"
    hint = "load and `vdiff evaluate` build what the config says: config.objective() makes it"
    require(not unlike or has_own_parts(objective), "objective", what, shown(unlike), hint)
    return unlike


def has_own_parts(objective: Objective) -> bool:
    """Whether a class or a function in it is neither vdiff's nor torch's, so that no config can
    name it."""
    return any(text.endswith(OWN) for text in parts_of(objective).values())


def shown(wrong: list[str]) -> str:
    """Differences as one line, the first few of them.

    >>> shown(["a", "b", "c", "d", "e", "f", "g"])
    'a; b; c; d; e; and 2 more'
    """
    rest = len(wrong) - SHOWN
    return "; ".join(wrong[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _describe(found: Parts, path: str, value: object, outer: tuple[int, ...]) -> None:
    """Add a value at a path, and all within it; `outer` are the objects that hold it."""
    if id(value) in outer:
        return
    outer, inner = (*outer, id(value)), f"{path}." if path else ""
    if isinstance(value, PLAIN):
        found[path] = repr(value)
    elif isinstance(value, Tensor):
        found[path] = f"{tuple(value.shape)} {data_hash(value)}"
    elif isinstance(value, list | tuple | dict):
        found[path] = f"{type(value).__name__} of {len(value)}"
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _describe(found, f"{inner}{key}", item, outer)
    elif isinstance(value, functools.partial):
        found[path] = f"partial of {_name(value.func)}"
        _describe(found, f"{inner}arguments", (value.func, value.args, value.keywords), outer)
    elif isinstance(value, NAMED):
        found[path] = _name(value)
    else:
        found[path] = _name(type(value))
        skipped = (*COMPUTED, *getattr(value, "_local", ()))
        for name, item in getattr(value, "__dict__", {}).items():
            if not name.startswith("_") and name not in skipped:
                _describe(found, f"{inner}{name}", item, outer)
        if isinstance(value, nn.Module):
            _describe_module(found, inner, value, outer)


def _describe_module(found: Parts, inner: str, module: nn.Module, outer: tuple[int, ...]) -> None:
    fixed = isinstance(module, Schedule) and not module.learns_shape
    if isinstance(module, Schedule) and not module.learns_ends:
        found[f"{inner}logsnr_max"] = repr(module.logsnr_max)
        found[f"{inner}logsnr_min"] = repr(module.logsnr_min)
    for name, child in module._modules.items():
        _describe(found, f"{inner}{name}", child, outer)
    local = {name: getattr(module, name) for name in getattr(module, "_local", ())}
    for name, tensor in (module._parameters | module._buffers | local).items():
        if tensor is None:
            found[f"{inner}{name}"] = "None"
            continue
        kind = "complex weights" if tensor.is_complex() else "weights"
        found[f"{inner}{name}"] = f"{kind} of shape {tuple(tensor.shape)}"
        counts = name in module._buffers and (fixed or name in module._non_persistent_buffers_set)
        if counts and not tensor.is_meta:
            found[f"{inner}{name}{VALUES}"] = data_hash(tensor)


def _name(thing: object) -> str:
    """A class or a function by name, with its module if it is the user's own."""
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", type(thing).__name__)
    ours = module is None or module.split(".")[0] in ("vdiff", "torch")
    return name if ours else f"{module}.{name}{OWN}"


__all__ = ["check_described", "differences", "has_own_parts", "parts_of", "shown"]
