"""A reader of pickles that knows data only and runs nothing: what Python 2 wrote, CIFAR-10's batches among it."""

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdiff.errors import must

OPCODES = 200_000  # a batch of CIFAR-10 has about 50,000; each may cost some 100 bytes
NUMBERS_AND_STRINGS = {"BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NAMES = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


@dataclass
class _Name:
    """One of `NAMES`, inert."""

    name: str


@dataclass
class _Made:
    """What a pickle says is made by calling a name: kept as it stands, never called."""

    name: str
    arguments: tuple[Any, ...]
    state: tuple[Any, ...] = ()


class _Mark:
    pass


def read_plain(raw: bytes) -> Any:
    """Dictionaries with string keys, lists, tuples, integers, strings (bytes as Latin-1) and arrays of bytes.

    The machine of pickle's protocol 2 without its two dangerous parts, to import a name and to call it: the three names of
    numpy with which an array is written are understood, every other is refused. Memory is bounded by the input's size.

    >>> import pickle
    >>> read_plain(pickle.dumps({"labels": [3, 8]}, protocol=2))
    {'labels': [3, 8]}
    >>> read_plain(pickle.dumps(print, protocol=2))
    Traceback (most recent call last):
    ValueError: read_plain: argument 'raw' must hold data alone; got a reference to __builtin__ print (it could run code; ...)
    """
    try:
        return _run(raw)
    except _Refused as error:
        raise ValueError(must("read_plain", "raw", *error.args)) from None
    except Exception as error:  # whatever the scanner or the stack breaks on
        raise ValueError(
            must("read_plain", "raw", "be a whole pickle of protocol 2", f"{len(raw):,} bytes that end or break: {error}")
        ) from error


class _Refused(Exception):
    pass


def _run(raw: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    given: Any
    for count, (opcode, given, _) in enumerate(pickletools.genops(raw)):
        if count == OPCODES:
            raise _Refused("be a batch of data", f"more than {OPCODES:,} instructions")
        name = opcode.name
        if name in NUMBERS_AND_STRINGS:
            stack.append(given)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("APPEND", "APPENDS"):
            values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
            _top(stack, list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):  # hashing deep tuples could overflow C's stack
                raise _Refused("have strings as keys", "something else")
            _top(stack, dict).update(zip(values[::2], values[1::2], strict=True))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            values = _since_mark(stack) if name == "TUPLE" else [stack.pop() for _ in range(int(name[-1]))][::-1]
            stack.append(tuple(values))
        elif name == "GLOBAL":
            if given not in NAMES:
                hint = "it could run code; CIFAR-10's own batches hold arrays, lists and strings"
                raise _Refused("hold data alone", f"a reference to {given[:100]}", hint)
            stack.append(_Name(given))
        elif name == "REDUCE":
            arguments, called = _pop(stack, tuple), _pop(stack, _Name)
            stack.append(_Made(called.name, arguments))
        elif name == "BUILD":
            state = _pop(stack, tuple)
            made = _top(stack, _Made)
            made.state = state
            if made.name != "numpy dtype":
                stack[-1] = _array(made)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO" or given != 2:
            raise _Refused("be a pickle of data in protocol 2", f"the instruction {name}" + (f" {given}" if name == "PROTO" else ""))
    raise ValueError("no end")


def _since_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while stack[start] is not _Mark:  # raises where there is none, at start = −len − 1
        start -= 1
    values = stack[start + 1 :]
    del stack[start:]
    return values


def _pop(stack: list[Any], kind: type) -> Any:
    value = _top(stack, kind)
    stack.pop()
    return value


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise _Refused(
            "hold data alone", f"an instruction on a {type(stack[-1]).__name__.strip('_')} that is for a {kind.__name__.strip('_')}"
        )
    return stack[-1]


def _array(made: _Made) -> np.ndarray:
    """The bytes of an array, from how numpy pickles one: (version, shape, dtype, Fortran's order, data)."""
    _, shape, dtype, fortran, data = made.state
    if not (isinstance(dtype, _Made) and dtype.name == "numpy dtype" and dtype.arguments[:1] in (("u1",), ("uint8",))):
        raise _Refused("hold arrays of bytes", "an array of something else")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape) and isinstance(data, str) and not fortran):
        raise _Refused("hold arrays in C's order", "another kind of array")
    return np.frombuffer(data.encode("latin-1"), np.uint8).reshape(shape)


__all__ = ["read_plain"]
