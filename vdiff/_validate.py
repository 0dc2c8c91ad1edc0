"""What a public function accepts is declared in its signature and checked once, at the boundary.

    @validated
    def f(x: Data, *, scale: Positive = 1.0, eps: Annotated[Tensor, Like("x")] | None = None): ...

A constraint is the metadata of an `Annotated` type. A class of ours says itself what an instance must be
(`__validate__`). A rule over several arguments is a function that names them, `@validated(rule)`. An error has
fields (function, argument, requirement, got, hint); its function is the one that the user called.
"""

import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Given = Mapping[str, Any]
LONGEST = 300  # characters of what came that an error repeats


class InvalidArgument(Exception):
    """An argument that a function does not accept; see `InvalidValue` and `InvalidType`."""

    def __init__(self, argument: str, requirement: str, got: object, hint: str = "") -> None:
        super().__init__(argument, requirement, got, hint)
        self.function: str | None = None  # the boundary fills it in
        self.argument, self.requirement, self.got, self.hint = argument, requirement, got, hint

    def __str__(self) -> str:
        where = f"{self.function}: " if self.function else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}argument '{self.argument}' must {self.requirement}; got {shown(self.got)}{hint}"


class InvalidValue(InvalidArgument, ValueError):
    """An argument of the right type whose value or shape does not fit."""


class InvalidType(InvalidArgument, TypeError):
    """An argument of another type than the function takes."""


def require(
    holds: bool,
    argument: str,
    requirement: str,
    got: object,
    hint: str = "",
    error: type[InvalidArgument] = InvalidValue,
) -> None:
    """Raise `error` unless `holds`.

    >>> require(False, "order", "be 1, 2 or 3", 4)
    Traceback (most recent call last):
    vdiff._validate.InvalidValue: argument 'order' must be 1, 2 or 3; got 4
    """
    if not holds:
        raise error(argument, requirement, got, hint)


def shown(value: object) -> str:
    """A value as an error shows it: a tensor by its shape, a class by its name, a long text cut.

    >>> shown(torch.zeros(3, 2)), shown(dict)
    ('a tensor of shape (3, 2), torch.float32', 'the class dict')
    """
    if isinstance(value, Tensor) and value.ndim:
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    text = f"the class {value.__name__}" if isinstance(value, type) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest known word as a question, or an empty string.

    >>> did_you_mean("scheduel", ["schedule", "steps"])
    "did you mean 'schedule'?"
    """
    folded = {name.casefold(): name for name in known}
    nearest = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=cutoff)
    return f"did you mean '{folded[nearest[0]]}'?" if nearest else ""


# Constraints: called with the value, the argument's name and all arguments, they return the value to use.


@dataclass(frozen=True)
class Number:
    """A finite number within bounds; comes back as a float."""

    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf
    hint: str = ""

    def __call__(self, value: object, argument: str, given: Given) -> float:
        try:
            number = float("text" if isinstance(value, str) else value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(argument, "be a number", repr(value)) from None
        inside = number > self.above and self.at_least <= number <= self.at_most
        require(math.isfinite(number) and inside, argument, self.requirement, f"{number:g}", self.hint)
        return number

    @property
    def requirement(self) -> str:
        if self.at_most < math.inf:
            return f"lie in {'(' if self.above > -math.inf else '['}{max(self.above, self.at_least):g}, {self.at_most:g}]"
        if self.above > -math.inf:
            return f"be finite and greater than {self.above:g}"
        return "be finite" + (f" and at least {self.at_least:g}" if self.at_least > -math.inf else "")


@dataclass(frozen=True)
class Whole:
    """A Python int of at least `at_least`."""

    at_least: int = 1
    hint: str = ""

    def __call__(self, value: object, argument: str, given: Given) -> object:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidType(argument, "be a Python int", repr(value), "write int(…)")
        require(value >= self.at_least, argument, f"be at least {self.at_least}", value, self.hint)
        return value


Finite = Annotated[float, Number()]
Positive = Annotated[float, Number(above=0.0)]
NonNegative = Annotated[float, Number(at_least=0.0)]
Fraction = Annotated[float, Number(at_least=0.0, at_most=1.0)]
Count = Annotated[int, Whole()]


Rule = Callable[..., None]


@overload
def validated(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def validated(
    *, rules: Iterable[Rule] = ..., elsewhere: Mapping[str, str] = ...
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def validated(function: Any = None, /, *, rules: Iterable[Rule] = (), elsewhere: Any = None) -> Any:
    """Check the arguments of a public function by its signature, then by `rules`, functions of some of them.

    Code of ours calls `function.__wrapped__`, which checks nothing. `elsewhere` says of a word that is no
    argument where it belongs. Nothing is checked while `torch.compile` traces.
    """
    if function is None:
        return functools.partial(_validated, rules=tuple(rules), elsewhere=elsewhere or {})
    return _validated(function, (), {})


def _validated(function: Callable[P, R], rules: tuple[Rule, ...], elsewhere: Mapping[str, str]) -> Callable[P, R]:
    signature: _Signature | None = None  # read at the first call, when every name in it is defined

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        nonlocal signature
        signature = signature or _Signature(function, rules, elsewhere)
        try:
            positional, keywords = signature.check(args, kwargs)
            return function(*positional, **keywords)  # type: ignore[arg-type]
        except InvalidArgument as error:
            error.function = error.function or signature.name(args)
            raise

    return checked


class _Signature:
    """The constraints of a function's arguments."""

    def __init__(self, function: Callable[..., Any], rules: tuple[Rule, ...], elsewhere: Mapping[str, str]) -> None:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(function, include_extras=True)
        self.function, self.elsewhere = function, elsewhere
        self.words = list(parameters)
        self.open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        self.constraints = {n: found for n in parameters if (found := _constraints(hints.get(n)))}
        self.rules = [(rule, tuple(inspect.signature(rule).parameters)) for rule in rules]

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as they are to be used; raises for the first that does not fit."""
        given = dict(zip(self.words, args, strict=False)) | kwargs
        for word in kwargs:
            if word not in self.words and not self.open:
                raise TypeError(self._unknown(word, args))
        everything = self.defaults | given
        for word, constraints in self.constraints.items():
            if word in given:
                for constraint in constraints:
                    everything[word] = constraint(everything[word], word, everything)
        for rule, words in self.rules:
            rule(*(everything[word] for word in words if word in everything))
        return (
            [everything[word] for word, _ in zip(self.words, args, strict=False)] + list(args[len(self.words) :]),
            {word: everything[word] for word in kwargs},
        )

    def name(self, args: tuple[Any, ...]) -> str:
        """What the user called: a function, a class, or a class and its method."""
        name = self.function.__name__
        if self.words[:1] not in (["self"], ["cls"]) or not args:
            return name
        owner = args[0].__name__ if isinstance(args[0], type) else type(args[0]).__name__
        return owner if name in ("__init__", "__call__", "forward") else f"{owner}.{name}"

    def _unknown(self, word: str, args: tuple[Any, ...]) -> str:
        hint = self.elsewhere.get(word) or did_you_mean(word, self.words)
        return f"{self.name(args)}: argument '{word}' is unknown" + (f"; {hint}" if hint else "")


def _constraints(hint: Any) -> tuple[Callable[[Any, str, Given], Any], ...]:
    """What a type asks of a value: the constraints of an `Annotated`, a class's own `__validate__`."""
    if typing.get_origin(hint) is Annotated:
        return tuple(c for c in hint.__metadata__ if callable(c))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(options) != 1 or len(options) == len(typing.get_args(hint)):
            return ()
        return tuple(functools.partial(_unless_none, constraint) for constraint in _constraints(options[0]))
    own = getattr(hint, "__validate__", None)
    return (own,) if own is not None else ()


def _unless_none(constraint: Callable[[Any, str, Given], Any], value: Any, argument: str, given: Given) -> Any:
    return None if value is None else constraint(value, argument, given)
