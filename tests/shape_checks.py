"""The shape checks of the test run: jaxtyping with beartype, once for each kind of call.

A check asks for no more than the kinds of the arguments and of the answer: types, dtypes, shapes
and texts. A call whose kinds have passed is not checked again, which would take most of the time
of the tests. The import puts this in place of jaxtyping's own decorator.
"""

import functools
import inspect
import random
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator

# an int is accepted where a float is asked for, as Python does
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
check_every_call = _decorator.jaxtyped
known = threading.local()  # the answer whose kind is checked
# of each function, the kinds of its arguments, and of its answers to them
passed: dict[Hashable, dict[Hashable, set[Hashable]]] = defaultdict(dict)
PLAIN, ARRAYS = {float, int, bool, type(None)}, (torch.Tensor, np.ndarray)
CONTAINERS, FIRST = {tuple, list, set, dict}, 16


def kind(value: Any, depth: int = 3) -> Hashable:
    """All that an annotation can ask of a value; of a container by its first items."""
    of = type(value)
    if of in PLAIN:
        return of
    if isinstance(value, ARRAYS):
        return of, value.dtype, value.shape
    if of is str or isinstance(value, type):
        return of, value
    if of not in CONTAINERS or depth == 0:
        return of
    items = islice(value.items() if of is dict else value, FIRST)
    return of, *[kind(item, depth - 1) for item in items]


def made_as(fn: Callable[..., Any], body: Callable[..., Any]) -> Callable[..., Any]:
    """`body` with the signature of `fn` and the names of its module. In a traceback it is a frame
    of jaxtyping's, and so of no code of the user."""
    code = body.__code__.replace(co_filename=_decorator.__file__)
    made = types.FunctionType(code, fn.__globals__, fn.__name__, None, body.__closure__)
    return functools.update_wrapper(made, fn)


def answering(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature of `fn` that returns the known answer."""
    store = known  # a closure: the names in the annotations are those of the module of `fn`

    def answer(*args: Any, **kwargs: Any) -> Any:
        return store.answer

    return made_as(fn, answer)


def with_own_chance(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` in the state of `random` before the check, which draws from it; keeps that after."""
    store, rng = known, random

    def call(*args: Any, **kwargs: Any) -> Any:
        rng.setstate(store.chance)
        out = fn(*args, **kwargs)
        store.chance = rng.getstate()
        return out

    return made_as(fn, call)


def check_each_kind(fn: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    """`fn`, checked where the kinds of its arguments or of its answer are new."""
    check = functools.partial(check_every_call, typechecker=typechecker)
    whole = functools.cache(lambda: check(with_own_chance(fn)))
    answer = functools.cache(lambda: check(answering(fn)))
    seen = passed[fn.__module__, fn.__code__]  # also for an inner function, made in each call

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if torch.compiler.is_compiling() or jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        call = (*map(kind, args), *((name, kind(value)) for name, value in kwargs.items()))
        if call not in seen:
            known.chance = random.getstate()
            out = whole()(*args, **kwargs)
            random.setstate(known.chance)
            seen.setdefault(call, set()).add(kind(out))
            return out
        known_kinds, out = seen[call], fn(*args, **kwargs)
        if (kind_of_out := kind(out)) not in known_kinds:
            known.answer, chance = out, random.getstate()
            answer()(*args, **kwargs)
            random.setstate(chance)
            del known.answer
            known_kinds.add(kind_of_out)
        return out

    wrapper.__code__ = wrapper.__code__.replace(co_filename=_decorator.__file__)
    return wrapper


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """jaxtyping's decorator, which calls itself for the functions of a class or a property."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(fn):
        return check_each_kind(fn, typechecker)
    return check_every_call(fn, typechecker=typechecker)


jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
