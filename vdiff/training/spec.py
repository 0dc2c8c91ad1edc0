"""Specs: objects as plain data, a class by name with its arguments, which can be specs.

A name is a final class in a room's `__all__`, or a class method that returns one. The annotations
of the constructor say which arguments it takes. Nothing else can be called.
"""

import inspect
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, NoneType, UnionType
from typing import Any

from torch import nn

from vdiff import decoder, discrete, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff._validate import validated
from vdiff.decoder import Decoder
from vdiff.discrete import Process, TokenParameterization
from vdiff.discrete import parameterization as of_tokens
from vdiff.errors import InvalidValue, did_you_mean
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule, law
from vdiff.schedule.law import Law
from vdiff.training.safe_json import flaw, json_repr, printable_name
from vdiff.variance import ReverseVariance
from vdiff.weighting import Weighting

Spec = dict[str, Any]
Maker = Callable[..., Any]
Rooms = tuple[ModuleType, ...]
Form = Any  # a type of WORDS, a list of one of them, (type,), a Kind, or a text of a Literal
LARGEST = 1 << 20  # of a whole number in a spec: sizes of layers, levels, bins
RENAMED = {"clip": "posterior_variance", "closed": "levels_at_ends", "denoise": "uses_network"}
WORDS: dict[Form, str] = {bool: "true or false", int: "a Python int", float: "a finite number"}
WORDS |= {str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Kind:
    """What a spec can build: the public subclasses of `base` in a room that define `method`."""

    room: ModuleType
    base: type
    method: str

    def makes(self, made: object) -> bool:
        """Whether this is such a class. A network is a module whose forward takes (z, logsnr), or
        tokens z alone."""
        if not (isinstance(made, type) and issubclass(made, self.base)):
            return False
        method = getattr(made, self.method)
        if self.base is nn.Module:
            return list(inspect.signature(method).parameters)[1:3] in (["z", "logsnr"], ["z"])
        return method is not getattr(self.base, self.method)


_KINDS = (
    Kind(networks, nn.Module, "forward"),
    Kind(schedule, Schedule, "logsnr_at"),
    Kind(law, Law, "icdf_at"),
    Kind(parameterization, Parameterization, "row"),
    Kind(weighting, Weighting, "weight_at"),
    Kind(decoder, Decoder, "log_prob"),
    Kind(variance, ReverseVariance, "log_variance_ratio"),
    Kind(discrete, Process, "pi"),
    Kind(of_tokens, TokenParameterization, "posterior"),
)
KINDS = {kind.room: kind for kind in _KINDS}


def registry(*rooms: ModuleType) -> dict[str, Maker]:
    """What a spec may name in these rooms: public final classes, and class methods that return
    one. Classes that need an argument that is not plain data, such as a function, are left out."""
    makers: dict[str, Maker] = {}
    for room in rooms:
        for name in room.__all__:
            made = getattr(room, name)
            if KINDS[room].makes(made):
                others = [word for word in vars(made) if _makes_one(made, word)]
                makers |= {name: made} | {f"{name}.{word}": getattr(made, word) for word in others}
    return {name: made for name, made in makers.items() if not _needs_more(made)}


@validated
def build(room: ModuleType, spec: Spec) -> Any:
    """Call the class (or class method) `spec["name"]` of a room with the other items.

    Raises ValueError for an unknown name, with the nearest, and for arguments that do not fit.

    >>> build(schedule, {"name": "Cosine"})
    Cosine(logsnr_max=15.0, logsnr_min=-15.0)
    """
    if errors := spec_errors("", room, spec):
        raise ValueError("\n".join(f"build: {error}" for error in errors))
    return _construct((room,), spec)


def spec_of(room: ModuleType, made: object) -> Spec | None:
    """The spec with which `build` makes an object like this one, with all its arguments.

    None if there is none: its class is not in the room, or an argument is not plain data.

    >>> spec_of(schedule, schedule.Cosine(shift=1.0))
    {'name': 'Cosine', 'logsnr_max': 15.0, 'logsnr_min': -15.0, 'shift': 1.0, 'offset': 0.0}
    """
    method, built = getattr(made, "_built", ("", None))  # by a class method, of these arguments
    name = f"{type(made).__name__}.{method}".rstrip(".")
    maker = registry(room).get(name)
    if maker is None or not (method or maker is type(made)):
        return None
    forms = {name: forms for name, (forms, _) in _arguments(maker).items()}
    recorded = ((), built) if built else getattr(made, "_arguments", None)
    args, kwargs = recorded or ((), {name: getattr(made, name) for name in forms})
    bound = inspect.signature(maker).bind(*args, **kwargs)
    bound.apply_defaults()
    values = {name: _plain(forms[name], value) for name, value in bound.arguments.items()}
    spec = {"name": name, **values}
    return None if spec_errors("", room, spec) else spec


def _plain(forms: tuple[Form, ...], value: Any) -> Any:
    """The value of an argument as plain data; an object that has no spec stays."""
    if hasattr(value, "tolist"):  # a tensor or an array
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    specs = (spec_of(room, value) for room in _rooms(forms))
    return next((spec for spec in specs if spec is not None), value)


def spec_errors(argument: str, room: ModuleType, spec: object) -> list[InvalidValue]:
    """The errors of a spec, the value of `argument`: an unknown name, and arguments that are
    unknown, missing, or of another type.

    >>> print(*spec_errors("schedule", schedule, {"name": "Cosine", "shfit": 1.0}))
    argument 'schedule.shfit' must be an argument of Cosine; got 1.0 (did you mean 'shift'?)
    """
    if came := flaw(spec):
        return [InvalidValue(argument or "spec", "be plain data", came)]
    return list(_spec_errors(argument, (room,), spec))


def _spec_errors(argument: str, rooms: Rooms, spec: object) -> Iterator[InvalidValue]:
    prefix = f"{argument}." if argument else ""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        what = 'be a class with its arguments, {"name": …}'
        yield InvalidValue(argument or "spec", what, json_repr(spec))
        return
    name, makers = spec["name"], registry(*rooms)
    if name not in makers:
        hint = did_you_mean(name, makers) or f"there are {', '.join(makers)}"
        what = f"be a class of {rooms[0].__name__}"
        if any(name in room.__all__ and KINDS[room].makes(getattr(room, name)) for room in rooms):
            what = f"{what} whose arguments are plain data"
            hint = "make it in your own code: train(Objective(model, schedule=…), data, config)"
        yield InvalidValue(f"{prefix}name", what, json_repr(name), hint)
        return
    taken = _arguments(makers[name])
    for key, value in spec.items():
        if key in taken:
            yield from _argument_errors(f"{prefix}{key}", taken[key][0], value)
        elif key != "name":
            hint = f'all of it is replaced by {argument}={{"name": "{name}", …}}'
            hint = did_you_mean(key, taken) or hint
            if RENAMED.get(key) in taken:
                hint = f"it is called {RENAMED[key]!r} now"
            path, what = f"{prefix}{printable_name(key)}", f"be an argument of {name}"
            yield InvalidValue(path, what, json_repr(value), hint)
    for key, (_, required) in taken.items():
        if required and key not in spec:
            yield InvalidValue(f"{prefix}{key}", f"be given for {name}", None)


def _argument_errors(path: str, forms: tuple[Form, ...], value: object) -> Iterator[InvalidValue]:
    """The errors of the value of one argument."""
    rooms = _rooms(forms)
    leaves = {form[0] if isinstance(form, tuple) else form for form in forms}
    numbers = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, dict) and rooms:
        yield from _spec_errors(path, rooms, value)
    elif isinstance(value, dict):
        yield InvalidValue(path, "be a plain value", json_repr(value))
    elif not any(_fits(form, value) for form in forms):
        words = " or ".join(_words(form) for form in forms) or "left out of plain data"
        yield InvalidValue(path, f"be {words}", json_repr(value))
    elif float not in leaves and any(isinstance(n, int) and abs(n) > LARGEST for n in numbers):
        yield InvalidValue(path, f"be at most {LARGEST:,}", json_repr(value))


def _construct(rooms: Rooms, spec: Spec) -> Any:
    """The object that a spec without errors describes."""
    made = registry(*rooms)[spec["name"]]
    taken = _arguments(made)
    given = {key: value for key, value in spec.items() if key != "name"}
    for key, value in given.items():
        if isinstance(value, dict):
            given[key] = _construct(_rooms(taken[key][0]), value)
    try:
        return made(**given)
    except (TypeError, ValueError, OSError):  # the library's own errors, and the machine's
        raise
    except Exception as error:  # torch's: sizes that are negative or too large
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        what = "have arguments that it can be made of"
        raise InvalidValue(spec["name"], what, json_repr(given), reason) from error


def _arguments(made: Maker) -> dict[str, tuple[tuple[Form, ...], bool]]:
    """The arguments of a class or class method by name: the forms of plain data that its
    annotation allows, and whether it is required."""
    function = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    if function is object.__init__:
        return {}
    parameters = inspect.signature(function).parameters
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        p.name: (_forms(p.annotation), p.default is p.empty) for p in named if p.name != "self"
    }


def _needs_more(made: Maker) -> bool:
    """Whether a required argument has no form as plain data."""
    return any(required and not forms for forms, required in _arguments(made).values())


def _makes_one(made: type, word: str) -> bool:
    """Whether `word` is a public class method that returns an instance."""
    if word.startswith("_") or not isinstance(vars(made)[word], classmethod):
        return False
    returned = inspect.signature(getattr(made, word)).return_annotation
    return returned in (made, made.__name__, typing.Self)


def _forms(hint: Any) -> tuple[Form, ...]:
    """The forms of plain data that an annotation allows. The call itself checks constraints."""
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
    """Whether a value, which is no spec, has this form."""
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
