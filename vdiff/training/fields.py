"""What each field of a config may be."""

import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vdiff import decoder, discrete, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff.data.augment import KINDS
from vdiff.data.load import OPTIONS, is_path
from vdiff.data.registry import DATASETS
from vdiff.discrete import parameterization as of_tokens
from vdiff.errors import MOST_STEPS, InvalidValue, did_you_mean
from vdiff.training.safe_json import json_repr
from vdiff.training.spec import spec_errors

DECAYS = ("cosine", "constant")
Check = Callable[[str, Any], list[InvalidValue]]  # name, value → what is wrong


def is_number(value: object) -> bool:
    """Whether a value is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _that(holds: Callable[[Any], bool], requirement: str, names: tuple[str, ...] = ()) -> Check:
    """A check of a value, with the nearest of `names` as a hint."""

    def _check(name: str, value: Any) -> list[InvalidValue]:
        hint = did_you_mean(str(value), names)
        return [] if holds(value) else [InvalidValue(name, requirement, json_repr(value), hint)]

    return _check


def _one_of(names: tuple[str, ...]) -> Check:
    return _that(lambda v: v in names, f"be one of {', '.join(names)}", names)


def _spec(room: ModuleType) -> Check:
    """A check that a spec names a class of a room and its arguments."""
    return lambda name, value: spec_errors(name, room, value)


def _optional(check: Check) -> Check:
    return lambda name, value: [] if value is None else check(name, value)


def _list(holds: Callable[[Any], bool], requirement: str, length: int | None = None) -> Check:
    """A check of a list and each value in it."""
    right = range(1, 1 << 20) if length is None else (length,)
    return _that(
        lambda v: isinstance(v, list) and len(v) in right and all(map(holds, v)), requirement
    )


def _decay(value: object) -> bool:
    return is_number(value) and 0 <= value < 1  # type: ignore[operator]


_flag = _that(lambda v: isinstance(v, bool), "be true or false")
_count = _that(lambda v: _whole(v) and v >= 1, "be a whole number of at least 1")
_steps = _that(
    lambda v: _whole(v) and 1 <= v <= MOST_STEPS, f"be a whole number from 1 to {MOST_STEPS:,}"
)
_from_zero = _that(lambda v: _whole(v) and v >= 0, "be a whole number of at least 0")
_positive = _that(lambda v: is_number(v) and 0 < v < math.inf, "be a finite number greater than 0")
_from_0 = _that(lambda v: is_number(v) and 0 <= v < math.inf, "be a finite number of at least 0")
_text = _that(lambda v: isinstance(v, str) and v != "", "be text")


def _data(name: str, value: Any) -> list[InvalidValue]:
    """Check that a value names a data set or is a path."""
    if isinstance(value, str) and (value in DATASETS or is_path(value)):
        return []
    hint = did_you_mean(str(value), DATASETS) or "a path has a separator, as in photos/"
    what = f"be one of {', '.join(DATASETS)}, or a path"
    return [InvalidValue(name, what, json_repr(value), hint)]


def _options(name: str, value: Any) -> list[InvalidValue]:
    """Check that a value holds options of `vdiff.data.load`, which checks them itself."""
    if not isinstance(value, dict):
        return [InvalidValue(name, 'be options, such as {"size": 64}', json_repr(value))]
    unknown = [str(key) for key in value if key not in OPTIONS]
    what = f"be options of vdiff.data.load: {', '.join(OPTIONS)}"
    return [InvalidValue(name, what, repr(k), did_you_mean(k, OPTIONS)) for k in unknown]


def _total(name: str, spec: Any) -> list[InvalidValue]:
    """Check that a spec names a weighting, not a factor or a product of factors."""
    wrong = spec_errors(name, weighting, spec)
    if not wrong and _is_factor(spec):
        base, factor = '"base": {"name": "MSE", …}', f'"factor": {json.dumps(spec)}'
        hint = f'a factor multiplies a base: {{"name": "Product", {base}, {factor}}}'
        return [InvalidValue(name, "be a total", f"the factor {spec}", hint)]
    return wrong


def _is_factor(spec: Any) -> bool:
    if spec["name"] == "Product":
        return _is_factor(spec["base"]) and _is_factor(spec["factor"])
    made = getattr(weighting, spec["name"], None)
    return isinstance(made, type) and issubclass(made, weighting.Factor)


def target_room(spec: Any) -> ModuleType:
    """The room of a parameterization: that of tokens, or the Gaussian one."""
    tokens = isinstance(spec, dict) and spec.get("name") in of_tokens.__all__
    return of_tokens if tokens else parameterization


def is_own(spec: object) -> bool:
    """Whether a spec of a network names a builder, FILE.py:NAME."""
    return isinstance(spec, dict) and ":" in str(spec.get("name"))


def _network(name: str, spec: Any) -> list[InvalidValue]:
    """Check a spec of a network, which may be one of the user's own."""
    if not is_own(spec):
        return spec_errors(name, networks, spec)
    wrong = _text(f"{name}.name", spec["name"])
    wrong += _optional(_count)(f"{name}.labels", spec.get("labels"))
    hint = "the builder says everything else"
    unknown = (key for key in spec if key not in ("name", "labels"))
    what = "be left out for a network of your own"
    return wrong + [InvalidValue(f"{name}.{k}", what, json_repr(spec[k]), hint) for k in unknown]


CHECKS: dict[str, Check] = {
    "network": _network,
    "network_source": _optional(_text),
    "process": _optional(_spec(discrete)),
    "data": _data,
    "folder": _text,
    "data_options": _options,
    "shape": _list(lambda n: _whole(n) and n >= 1, "be a list of sizes, such as [3, 32, 32]"),
    "parameterization": lambda name, spec: spec_errors(name, target_room(spec), spec),
    "schedule": _spec(schedule),
    "weighting": _optional(_total),
    "decoder": _optional(_spec(decoder)),
    "variance": _optional(_spec(variance)),
    "chain": _optional(_steps),
    "bound_weight": _optional(_from_0),
    "resampling": _flag,
    "level_head": _flag,
    "conditional": _flag,
    "label_dropout": _that(_decay, "be a probability in [0, 1)"),
    "augment": _one_of(KINDS),
    "steps": _count,
    "batch": _count,
    "accumulate": _count,
    "lr": _positive,
    "schedule_lr": _positive,
    "warmup": _from_zero,
    "decay": _one_of(DECAYS),
    "weight_decay": _from_0,
    "betas": _list(_decay, "be two numbers in [0, 1)", 2),
    "clip": _optional(_positive),
    "ema": _list(_decay, "be decays in [0, 1), the evaluated one first"),
    "seed": _from_zero,
    "autocast": _flag,
    "compile": _flag,
    "channels_last": _flag,
}
