"""What a public function accepts is declared in its signature and checked once, at the boundary.

    @validated
    def f(x: Data, *, scale: Positive = 1.0, eps: Noise | None = None): ...

A constraint is the metadata of an `Annotated` type. A class of ours is checked by `isinstance`,
and by its `__validate__` where it has one. A rule over several arguments is a function that names
them: `@validated(rules=[rule])`. An argument of a rule may have a default, for functions that lack
it. An error names the function that the user called.
"""

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, overload

import torch
from torch import Tensor

from vdiff.errors import InvalidArgument, InvalidType, InvalidValue, did_you_mean, shown

P = ParamSpec("P")
R = TypeVar("R")
Given = Mapping[str, Any]
Constraint = Callable[[Any, str, Given], Any]  # value, its argument's name, all arguments → value
Rule = Callable[..., None]


def require(holds: bool, argument: str, requirement: str, got: object, hint: str = "") -> None:
    """Raise `InvalidValue` unless `holds`.

    >>> require(False, "order", "be 1, 2 or 3", 4)
    Traceback (most recent call last):
    vdiff.errors.InvalidValue: argument 'order' must be 1, 2 or 3; got 4
    """
    if not holds:
        raise InvalidValue(argument, requirement, got, hint)


@dataclass(frozen=True)
class Number:
    """A finite number within bounds, as a float."""

    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    hint: str = ""

    def __call__(self, value: Any, argument: str, given: Given) -> float:
        try:
            number = float("text" if isinstance(value, str) else value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise InvalidType(argument, "be a number", shown(value)) from None
        inside = self.above < number < self.below and self.at_least <= number <= self.at_most
        finite = inside and math.isfinite(number)
        require(finite, argument, self.requirement, f"{number:g}", self.hint)
        return number

    @functools.cached_property
    def requirement(self) -> str:
        low, high = max(self.above, self.at_least), min(self.below, self.at_most)
        if high < math.inf:
            left, right = "(["[self.above == -math.inf], ")]"[self.below == math.inf]
            return f"lie in {left}{low:g}, {high:g}{right}"
        if self.above > -math.inf:
            return f"be finite and greater than {low:g}"
        return "be finite" + (f" and at least {low:g}" if low > -math.inf else "")


@dataclass(frozen=True)
class Whole:
    """A Python int within bounds."""

    at_least: int = 1
    hint: str = ""
    at_most: int | None = None

    def __call__(self, value: Any, argument: str, given: Given) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidType(argument, "be a Python int", shown(value), "write int(…)")
        least, hint = f"be at least {self.at_least}", "" if self.at_most else self.hint
        require(value >= self.at_least, argument, least, value, hint)
        if self.at_most is not None and value > self.at_most:
            most, got = f"be at most {self.at_most:,}", shown(value, "{:,}".format)
            raise InvalidValue(argument, most, got, self.hint)
        return value


@dataclass(frozen=True)
class Instance:
    """An instance of one of some classes."""

    classes: tuple[type, ...]
    hint: str = ""

    def __call__(self, value: Any, argument: str, given: Given) -> Any:
        if isinstance(value, self.classes):
            return value
        names = " or ".join(cls.__name__ for cls in self.classes)
        hint = self.hint or str(getattr(self.classes[0], "__example__", ""))
        if self.classes[0] is torch.Generator:
            names, hint = "torch.Generator", "torch.Generator(x.device).manual_seed(seed)"
        elif isinstance(value, type) and issubclass(value, self.classes) and _needs_nothing(value):
            hint = f"an instance: {value.__name__}()"
        article = "an" if names[0] in "AEIOU" else "a"
        raise InvalidType(argument, f"be {article} {names}", shown(value), hint)


def _needs_nothing(cls: type) -> bool:
    parameters = inspect.signature(cls).parameters.values()
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return all(p.default is not p.empty or p.kind in variable for p in parameters)


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def __call__(self, value: Any, argument: str, given: Given) -> Any:
        if value not in self.values:
            hint = did_you_mean(value, map(str, self.values)) if isinstance(value, str) else ""
            names = ", ".join(map(repr, self.values))
            raise InvalidValue(argument, f"be one of {names}", shown(value), hint)
        return value


@dataclass(frozen=True)
class Function:
    """A callable that is no class; None is left to the function."""

    hint: str = ""

    def __call__(self, value: Any, argument: str, given: Given) -> Any:
        if value is not None and (not callable(value) or isinstance(value, type)):
            came = value if isinstance(value, type) else type(value).__name__
            raise InvalidType(argument, "be a function", came, self.hint)
        return value


def tensor(value: Any, argument: str, given: Given) -> Any:
    """A tensor."""
    if not isinstance(value, Tensor):
        arrays = type(value).__module__ in ("builtins", "numpy")
        listed = arrays and not isinstance(value, str | type | None)
        hint = f"torch.as_tensor({argument})" if listed else ""
        raise InvalidType(argument, "be a torch.Tensor", type(value).__name__, hint)
    return value


def floating(value: Any, argument: str, given: Given) -> Any:
    """A floating tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        dtype = tensor(value, argument, given).dtype
        hint = encode_first(dtype) if argument == "x" else _FLOATING.get(argument, "")
        raise InvalidType(argument, "be a floating tensor", dtype, hint)
    return value


TIMES = "times are fractions of the way to noise, not integer steps: t = step / steps"
_FLOATING = {"t": TIMES, "logsnr": "of times or steps t, λ is schedule(t)"}


def encode_first(dtype: torch.dtype) -> str:
    """The hint for data that is not floating."""
    if dtype.is_complex:
        return "real and imaginary parts are two dimensions: torch.view_as_real(x)"
    if dtype == torch.bool:
        return "binary data has two levels: Categorical(levels=2) takes x.long()"
    return "encode first: a discrete decoder does it, as Categorical(levels=256).encode(data)"


Finite = Annotated[float, Number()]
Positive = Annotated[float, Number(above=0.0)]
NonNegative = Annotated[float, Number(at_least=0.0)]
Fraction = Annotated[float, Number(at_least=0.0, at_most=1.0)]
Count = Annotated[int, Whole()]
Floating = Annotated[Tensor, floating]


@overload
def validated(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def validated(
    *, rules: Iterable[Rule] = ..., elsewhere: Given = ...
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def validated(
    function: Any = None, /, *, rules: Iterable[Rule] = (), elsewhere: Given | None = None
) -> Any:
    """Check the arguments of a public function by its signature, then by `rules`, functions of
    some of them. `elsewhere` says of a word that is no argument where it belongs.

    Code of ours calls `unchecked(function)`. Nothing is checked while `torch.compile` traces.
    """
    if function is None:
        return functools.partial(validated, rules=rules, elsewhere=elsewhere)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        signature = _SIGNATURES.get(function)
        if signature is None:  # read at the first call, when its names are defined
            signature = _SIGNATURES[function] = _Signature(function, rules, elsewhere or {})
        try:
            args, kwargs = signature.check(args, kwargs)
            return function(*args, **kwargs)
        except InvalidArgument as error:
            error.function = error.function or signature.name(args)
            raise

    return checked


def unchecked(function: Callable[P, R]) -> Callable[P, R]:
    """A `@validated` function without its checks, for code that has made them."""
    return getattr(function, "__wrapped__", function)


class _Signature:
    """The constraints of a function's arguments."""

    def __init__(
        self, function: Callable[..., Any], rules: Iterable[Rule], elsewhere: Given
    ) -> None:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(function, include_extras=True)
        self.function, self.elsewhere, self.words = function, elsewhere, list(parameters)
        self.open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        checks = [(name, constraints(hints.get(name))) for name in parameters]
        self.checks = [(name, each) for name, each in checks if each]
        self.rules = [
            (rule, [word for word in inspect.signature(rule).parameters if word in parameters])
            for rule in rules
        ]
        variadic = {
            n for n, p in parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        self.required = parameters.keys() - self.defaults.keys() - variadic

    def check(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they are to be used; raises for the first that does not fit."""
        for word in kwargs:
            if word not in self.words and not self.open:
                raise TypeError(self._unknown(word, args))
        given = dict(zip(self.words, args, strict=False))
        given |= kwargs
        if not self.required <= given.keys():
            return args, kwargs  # the call itself fails
        everything = self.defaults | given
        for word, checks in self.checks:
            if word in given:
                for constraint in checks:
                    everything[word] = constraint(everything[word], word, everything)
        for rule, words in self.rules:
            rule(**{word: everything[word] for word in words})
        named = [everything[word] for word in self.words[: len(args)]]
        return (*named, *args[len(named) :]), {word: everything[word] for word in kwargs}

    def name(self, args: tuple[Any, ...]) -> str:
        """What the user called: a function, a class, or a class and its method."""
        name = self.function.__name__
        if self.words[:1] not in (["self"], ["cls"]) or not args:
            return name
        owner = args[0].__name__ if isinstance(args[0], type) else type(args[0]).__name__
        called = name in ("__call__", "forward") or name.startswith("_")
        return owner if called else f"{owner}.{name}"

    def _unknown(self, word: str, args: tuple[Any, ...]) -> str:
        near = [text for other, text in self.elsewhere.items() if did_you_mean(word, [other])]
        hint = self.elsewhere.get(word) or did_you_mean(word, self.words) or "".join(near[:1])
        if not hint and "condition" in self.words:
            hint = f"what the network is given goes into condition={{'{word}': …}}"
        return f"{self.name(args)}: argument '{word}' is unknown" + (f"; {hint}" if hint else "")


_SIGNATURES: dict[Callable[..., Any], _Signature] = {}  # in a closure, torch.compile would fail


def constraints(hint: Any) -> tuple[Constraint, ...]:
    """What a type asks of a value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return tuple(c for c in hint.__metadata__ if callable(c))
    if origin in (typing.Union, types.UnionType):
        checks = _of_union([option for option in arguments if option is not type(None)])
        if type(None) in arguments:
            return tuple(functools.partial(_unless_none, constraint) for constraint in checks)
        return checks
    if origin is Literal:
        return (OneOf(arguments),)
    if origin is collections.abc.Callable:
        return (Function(),)
    if hint is Tensor:
        return (tensor,)
    if getattr(hint, "array_type", None) is Tensor:  # a shape of jaxtyping
        return (floating if "Float" in hint.dtype.__name__ else tensor,)
    if isinstance(hint, type) and hint.__module__.split(".")[0] in ("vdiff", "torch"):
        own = getattr(hint, "__validate__", None)
        return (Instance((hint,)),) + ((own,) if own is not None else ())
    return ()


def of_type(hint: Any, value: Any, argument: str, given: Given) -> Any:
    """The value as an argument of this type is used; raises unless it is of the type."""
    for constraint in constraints(hint):
        value = constraint(value, argument, given)
    return value


def _of_union(options: Sequence[Any]) -> tuple[Constraint, ...]:
    if len(options) == 1:
        return constraints(options[0])
    checks = [constraint for option in options for constraint in constraints(option)]
    if (float in options or int in options) and (tensor in checks or floating in checks):
        return (_tensor_or_number,)
    classes = [cls for c in checks if isinstance(c, Instance) for cls in c.classes]
    return (Instance(tuple(classes)),) if len(classes) == len(options) else ()


def _tensor_or_number(value: Any, argument: str, given: Given) -> Any:
    return value if isinstance(value, float | int) else tensor(value, argument, given)


def _unless_none(constraint: Constraint, value: Any, argument: str, given: Given) -> Any:
    return None if value is None else constraint(value, argument, given)
