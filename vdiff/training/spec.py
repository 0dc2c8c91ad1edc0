"""Objects as plain data: a class by name with its arguments, which can be specs again.

A name is that of a final class in a room's `__all__`, or of a class method that makes one of them.
The annotations of the constructors say which arguments they take. Nothing else can be reached.
"""

import inspect
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, NoneType, UnionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vdiff import decoder, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff._validate import require, validated
from vdiff.decoder import Decoder
from vdiff.errors import InvalidValue, did_you_mean
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule, law
from vdiff.schedule.law import Law
from vdiff.training.plain import flaw, shown, word
from vdiff.variance import ReverseVariance
from vdiff.weighting import Weighting

Spec = dict[str, Any]
Maker = Callable[..., Any]
Rooms = tuple[ModuleType, ...]
Form = Any  # a type of WORDS, a list of one of them, (type,), a Kind, or a text of a Literal
LARGEST = 1 << 20  # of a whole number in a spec: sizes of layers, levels, bins
TENSORS = 1 << 14  # of a network; the deepest published ones have 700
NUMBERS = 1 << 36  # in all of them
RENAMED = {"clip": "posterior_variance", "closed": "levels_at_ends", "denoise": "uses_network"}
WORDS: dict[Form, str] = {bool: "true or false", int: "a Python int", float: "a finite number"}
WORDS |= {str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Kind:
    """What a spec can make: the public classes of a room that are a `base` and define `method`."""

    room: ModuleType
    base: type
    method: str

    def makes(self, made: object) -> bool:
        """Whether this is such a class. A network is a module that is called with (z, logsnr)."""
        if not (isinstance(made, type) and issubclass(made, self.base)):
            return False
        method = getattr(made, self.method)
        if self.base is nn.Module:
            return list(inspect.signature(method).parameters)[1:3] == ["z", "logsnr"]
        return method is not getattr(self.base, self.method)


_KINDS = (
    Kind(networks, nn.Module, "forward"),
    Kind(schedule, Schedule, "logsnr_at"),
    Kind(law, Law, "icdf_at"),
    Kind(parameterization, Parameterization, "row"),
    Kind(weighting, Weighting, "weight_at"),
    Kind(decoder, Decoder, "log_prob"),
    Kind(variance, ReverseVariance, "log_variance_ratio"),
)
KINDS = {kind.room: kind for kind in _KINDS}


def registry(*rooms: ModuleType) -> dict[str, Maker]:
    """What a spec may name in these rooms: public final classes, and class methods that make one.
    Classes that need an argument that plain data cannot be, such as a function, are left out.

    >>> list(registry(variance))
    ['FixedLarge', 'FixedSmall', 'LearnedLogVariance', 'LearnedRange', 'LearnedVariance']
    """
    found: dict[str, Maker] = {}
    for room in rooms:
        for name in room.__all__:
            made = getattr(room, name)
            if KINDS[room].makes(made):
                others = [word for word in vars(made) if _makes_one(made, word)]
                found |= {name: made} | {f"{name}.{word}": getattr(made, word) for word in others}
    return {name: made for name, made in found.items() if not _needs_more(made)}


@validated
def build(room: ModuleType, spec: Spec) -> Any:
    """The class (or class method) `spec["name"]` of a room, called with the rest.

    Raises ValueError for a name that the room does not have, with the nearest, and for arguments
    that it does not take.

    >>> build(schedule, {"name": "Cosine"})
    Cosine(logsnr_max=15.0, logsnr_min=-15.0)
    """
    if wrong := faults("", room, spec):
        raise ValueError("\n".join(f"build: {one}" for one in wrong))
    return _made((room,), spec)


def faults(argument: str, room: ModuleType, spec: object) -> list[InvalidValue]:
    """What is wrong with a spec, the value of `argument`: an unknown name, arguments that are not
    taken, not given, or of another type.

    >>> print(*faults("schedule", schedule, {"name": "Cosine", "shfit": 1.0}))
    argument 'schedule.shfit' must be an argument of Cosine; got 1.0 (did you mean 'shift'?)
    """
    if came := flaw(spec):
        return [InvalidValue(argument or "spec", "be plain data", came)]
    return list(_faults(argument, (room,), spec))


def _faults(argument: str, rooms: Rooms, spec: object) -> Iterator[InvalidValue]:
    place = f"{argument}." if argument else ""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        form = 'be a class with its arguments, {"name": …}'
        yield InvalidValue(argument or "spec", form, shown(spec))
        return
    name, known = spec["name"], registry(*rooms)
    if name not in known:
        hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
        yield InvalidValue(f"{place}name", f"be a class of {rooms[0].__name__}", shown(name), hint)
        return
    taken = _arguments(known[name])
    for key, value in spec.items():
        if key in taken:
            yield from _misfits(f"{place}{key}", taken[key][0], value)
        elif key != "name":
            hint = f'all of it is replaced by {argument}={{"name": "{name}", …}}'
            hint = did_you_mean(key, taken) or hint
            if RENAMED.get(key) in taken:
                hint = f"it is called {RENAMED[key]!r} now"
            requirement = f"be an argument of {name}"
            yield InvalidValue(f"{place}{word(key)}", requirement, shown(value), hint)
    for key, (_, required) in taken.items():
        if required and key not in spec:
            yield InvalidValue(f"{place}{key}", f"be given for {name}", None)


def _misfits(place: str, forms: tuple[Form, ...], value: object) -> Iterator[InvalidValue]:
    """What is wrong with the value of one argument."""
    rooms = _rooms(forms)
    leaves = {form[0] if isinstance(form, tuple) else form for form in forms}
    numbers = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, dict) and rooms:
        yield from _faults(place, rooms, value)
    elif isinstance(value, dict):
        yield InvalidValue(place, "be a plain value", shown(value))
    elif not any(_fits(form, value) for form in forms):
        words = " or ".join(_words(form) for form in forms) or "left out of plain data"
        yield InvalidValue(place, f"be {words}", shown(value))
    elif float not in leaves and any(isinstance(n, int) and abs(n) > LARGEST for n in numbers):
        yield InvalidValue(place, f"be at most {LARGEST:,}", shown(value))


def _made(rooms: Rooms, spec: Spec) -> Any:
    """The object that a spec without faults describes."""
    made = registry(*rooms)[spec["name"]]
    taken = _arguments(made)
    given = {key: value for key, value in spec.items() if key != "name"}
    for key, value in given.items():
        if isinstance(value, dict):
            given[key] = _made(_rooms(taken[key][0]), value)
    try:
        return made(**given)
    except (TypeError, ValueError):  # the library's own words
        raise
    except Exception as error:  # torch's: sizes that are negative, or too large for it
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        requirement = "have arguments that it can be made of"
        raise InvalidValue(spec["name"], requirement, shown(given), reason) from error


def _arguments(made: Maker) -> dict[str, tuple[tuple[Form, ...], bool]]:
    """The arguments of a class or class method by name: the forms in which each can be plain data,
    from its annotation, and whether it must be given."""
    function = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    if function is object.__init__:
        return {}
    parameters = inspect.signature(function).parameters
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        p.name: (_forms(p.annotation), p.default is p.empty) for p in named if p.name != "self"
    }


def _needs_more(made: Maker) -> bool:
    """Whether an argument without a default has no form as plain data."""
    return any(required and not forms for forms, required in _arguments(made).values())


def _makes_one(made: type, word: str) -> bool:
    """Whether a name of a class is that of a public class method that returns one of it."""
    if word.startswith("_") or not isinstance(vars(made)[word], classmethod):
        return False
    returned = inspect.signature(getattr(made, word)).return_annotation
    return returned in (made, made.__name__, typing.Self)


def _forms(hint: Any) -> tuple[Form, ...]:
    """The forms that an annotation has as plain data; the call itself checks constraints."""
    if typing.get_origin(hint) is typing.Annotated:
        return _forms(hint.__origin__)
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return tuple(form for part in typing.get_args(hint) for form in _forms(part))
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if hint in WORDS:
        return (hint,)
    if typing.get_origin(hint) in (Sequence, list):
        return tuple((form,) for form in _forms(typing.get_args(hint)[0]) if form in WORDS)
    return tuple(kind for kind in KINDS.values() if kind.base is hint)


def _rooms(forms: tuple[Form, ...]) -> Rooms:
    return tuple(form.room for form in forms if isinstance(form, Kind))


def _fits(form: Form, value: object) -> bool:
    """Whether a value that is no spec has this form."""
    if isinstance(form, tuple):
        return isinstance(value, list | tuple) and all(_fits(form[0], one) for one in value)
    if not isinstance(form, type):  # a Kind, or a text of a Literal
        return not isinstance(form, Kind) and value == form
    if form is float:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))


def _words(form: Form) -> str:
    if isinstance(form, tuple):
        return f"a list, each {WORDS[form[0]]}"
    if isinstance(form, Kind):
        return f'a {form.base.__name__} with its arguments, {{"name": …}}'
    return WORDS.get(form) or repr(form)


def outline_of(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` returns, with weights on the meta device, where they take no memory.

    Raises ValueError beyond 2^14 tensors, or 2^36 numbers in them.

    >>> outline_of(lambda: nn.Linear(2, 10**9)).weight.shape
    torch.Size([1000000000, 2])
    """
    with _Outline():
        return make()


class _Outline(TorchFunctionMode):
    """New weights of this thread have no memory, and are counted.

    Under `torch.device("meta")` tables of numbers would have none either, and torch would load
    sympy for them, which takes seconds.
    """

    WEIGHTS = (torch.empty, torch.zeros, torch.ones)

    def __init__(self) -> None:
        super().__init__()
        self.tensors, self.numbers = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.WEIGHTS:
            return func(*args, **kwargs)
        made = func(*args, **kwargs | {"device": kwargs.get("device") or "meta"})
        self.tensors, self.numbers = self.tensors + 1, self.numbers + made.numel()
        within = self.tensors <= TENSORS and self.numbers <= NUMBERS
        limit = f"have at most {TENSORS:,} tensors and {NUMBERS:,} numbers"
        require(within, "network", limit, "more")
        return made


__all__ = ["Kind", "Spec", "build", "faults", "outline_of", "registry"]
