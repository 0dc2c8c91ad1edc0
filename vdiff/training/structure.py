"""The parts of an objective, and how they differ from those that a config describes."""

import enum
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from vdiff._validate import require
from vdiff.likelihood.digest import data_hash
from vdiff.nn import LevelHead
from vdiff.objective import Objective
from vdiff.schedule import Schedule
from vdiff.training.config import Config

Parts = dict[str, str]
SHOWN = 5  # differences in a message
OWN = " (your own)"
VALUES = " (values)"
# how a module computes and what it was trained on, not what it is
IGNORED = ("training", "checkpoint", "inplace", "trained", "trained_on")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum)
NAMED = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def parts_of(objective: object) -> Parts:
    """The class and the settings of every part by its path, and the shapes of all weights.

    The values of weights (and of learned ends) do not count. The values of buffers count if the
    schedule is fixed, or if no weights file holds them.
    """
    parts: Parts = {}
    _describe(parts, "", objective, ())
    return {path or "objective": text for path, text in parts.items()}


def differences(objective: Objective, config: Config) -> list[str]:
    """The parts in which an objective differs from its config's, in words."""
    given = network_of(objective) if config.own_network else None
    own, meant = parts_of(objective), parts_of(config.objective(given, outline=True))
    unlike = [path for path in {**meant, **own} if own.get(path) != meant.get(path)]
    both = own.keys() & meant.keys()  # an outline has no values
    unlike = [path for path in unlike if path in both or VALUES not in path]
    # where the class differs, its parts are not compared
    outer = [path for path in unlike if not any(path.startswith(f"{part}.") for part in unlike)]
    pairs = ((path, own.get(path, "nothing"), meant.get(path, "nothing")) for path in outer)
    return [f"{path}: {here}, by the config {there}" for path, here, there in pairs]


def network_of(objective: Objective) -> nn.Module:
    """The network itself, without its parameterization and without a head for levels."""
    network: Any = getattr(objective.model, "network", objective.model)
    inner: Any = network.network if isinstance(network, LevelHead) else network
    module: nn.Module = inner
    return module


def check_structure(objective: Objective, config: Config) -> list[str]:
    """`differences` of an objective with custom parts.

    Raises ValueError if all parts are the library's and differ from the config's: an objective
    built from the config would be another one.
    """
    unlike = differences(objective, config)
    what = "be the one that the config of its run describes"
    hint = "load and `vdiff evaluate` build what the config says: config.objective() makes it"
    custom = config.own_network or has_custom_parts(objective)
    require(not unlike or custom, "objective", what, shortened(unlike), hint)
    return unlike


def has_custom_parts(objective: Objective) -> bool:
    """Whether a class or a function in it is of neither vdiff nor torch, so no config names it."""
    return any(text.endswith(OWN) for text in parts_of(objective).values())


def shortened(wrong: list[str]) -> str:
    """The first differences as one line."""
    rest = len(wrong) - SHOWN
    return "; ".join(wrong[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _describe(parts: Parts, path: str, value: object, outer: tuple[int, ...]) -> None:
    """Add a value and all its parts; `outer` are the ids of the objects that hold it."""
    if id(value) in outer:
        return
    outer, inner = (*outer, id(value)), f"{path}." if path else ""
    if isinstance(value, PLAIN):
        parts[path] = repr(value)
    elif isinstance(value, Tensor):
        parts[path] = f"{tuple(value.shape)} {data_hash(value)}"
    elif isinstance(value, list | tuple | dict):
        parts[path] = f"{type(value).__name__} of {len(value)}"
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _describe(parts, f"{inner}{key}", item, outer)
    elif isinstance(value, functools.partial):
        parts[path] = f"partial of {_name(value.func)}"
        _describe(parts, f"{inner}arguments", (value.func, value.args, value.keywords), outer)
    elif isinstance(value, NAMED):
        parts[path] = _name(value)
    else:
        parts[path] = _name(type(value))
        skipped = (*IGNORED, *getattr(value, "_local", ()))
        for name, item in getattr(value, "__dict__", {}).items():
            if not name.startswith("_") and name not in skipped:
                _describe(parts, f"{inner}{name}", item, outer)
        if isinstance(value, nn.Module):
            _describe_module(parts, inner, value, outer)


def _describe_module(parts: Parts, inner: str, module: nn.Module, outer: tuple[int, ...]) -> None:
    fixed = isinstance(module, Schedule) and not module.learns_shape
    if isinstance(module, Schedule) and not module.learns_ends:
        parts[f"{inner}logsnr_max"] = repr(module.logsnr_max)
        parts[f"{inner}logsnr_min"] = repr(module.logsnr_min)
    for name, child in module._modules.items():
        _describe(parts, f"{inner}{name}", child, outer)
    local = {name: getattr(module, name) for name in getattr(module, "_local", ())}
    for name, tensor in (module._parameters | module._buffers | local).items():
        if tensor is None:
            parts[f"{inner}{name}"] = "None"
            continue
        kind = "complex weights" if tensor.is_complex() else "weights"
        parts[f"{inner}{name}"] = f"{kind} of shape {tuple(tensor.shape)}"
        counts = name in module._buffers and (fixed or name in module._non_persistent_buffers_set)
        if counts and not tensor.is_meta:
            parts[f"{inner}{name}{VALUES}"] = data_hash(tensor)


def _name(thing: object) -> str:
    """The name of a class or a function, with its module if it is the user's own."""
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", type(thing).__name__)
    ours = module is None or module.split(".")[0] in ("vdiff", "torch")
    return name if ours else f"{module}.{name}{OWN}"
