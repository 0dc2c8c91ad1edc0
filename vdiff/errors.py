"""One form for every error: which function, which argument, what must hold, what came, the likely
mistake."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
OLDEST_TORCH = (2, 10)
_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "Storage size calculation overflowed", "ALLOC_FAILED",
)  # fmt: skip
LONGEST = 200  # characters of what came, in an error
# steps of a chain: λ at t and at t − 1/T, each rounded to float64, tell by how much it falls to
# about 2e-16 T of that, which is float32's own rounding here (measured 1e-8 of the bound at 10⁹,
# 1e-5 at 10¹², 8 % at 10¹⁶)
MOST_STEPS = 10**9


def check_torch(version: str) -> None:
    """Raise unless this is a version of torch that vdiff works with.

    >>> check_torch("2.13.0+cpu")
    >>> check_torch("1.13.1")
    Traceback (most recent call last):
    ImportError: vdiff needs torch 2.10 or newer; found 1.13.1 (pip install --upgrade torch)
    """
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"vdiff needs torch {oldest} or newer; found {version} (pip install --upgrade torch)"
        )


check_torch(torch.__version__)


def validation_enabled() -> bool:
    """Whether arguments are checked: always, except while `torch.compile` traces the graph."""
    return not torch.compiler.is_compiling()


def has_values(*values: Tensor) -> bool:
    """Whether the values of tensors can be branched on: not on the meta device, and not under
    `torch.vmap`."""
    return all(v.device.type != "meta" and not _is_batched(v) for v in values)


def _is_batched(v: Tensor) -> bool:
    functorch = torch._C._functorch  # no public way to ask; under vmap, branching raises
    while functorch.is_functorch_wrapped_tensor(v):
        if functorch.is_batchedtensor(v):
            return True
        v = functorch.get_unwrapped(v)
    return False


def under_functorch(v: Tensor) -> bool:
    """Whether a tensor lives under `torch.func` or `torch.vmap`, where no buffer can be
    written."""
    return validation_enabled() and torch._C._functorch.is_functorch_wrapped_tensor(v)


class InvalidArgument(Exception):
    """An argument that a function does not accept: `function`, `argument`, `requirement`, `got`
    and `hint` are fields. See `InvalidValue` and `InvalidType`."""

    def __init__(self, argument: str, requirement: str, got: object, hint: str = "") -> None:
        super().__init__(argument, requirement, got, hint)
        self.function: str | None = None  # the function that the user called fills it in
        self.argument, self.requirement, self.got, self.hint = argument, requirement, got, hint

    def __str__(self) -> str:
        text = _sentence(self.argument, self.requirement, self.got, self.hint)
        return f"{self.function}: {text}" if self.function else text


class InvalidValue(InvalidArgument, ValueError):
    """An argument of the right type whose value or shape does not fit."""


class InvalidType(InvalidArgument, TypeError):
    """An argument of another type than the function takes."""


def _sentence(argument: str, requirement: str, got: object, hint: str) -> str:
    came = got if isinstance(got, str) else shown(got, str)
    came = came if len(came) <= LONGEST else f"{' '.join(came[:LONGEST].split())} …"
    text = f"argument '{argument}' must {requirement}; got {came}"
    return printable(f"{text} ({hint})" if hint else text)


def printable(text: str) -> str:
    """Text with control characters escaped: a name from a file must not color or rewrite a
    terminal.

    >>> print(printable("a red \\x1b[31mname"))
    a red \\x1b[31mname
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of this machine.

    >>> out_of_memory(MemoryError()), out_of_memory(ValueError("a wrong shape"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def shown(value: object, text: Callable[[object], str] = repr) -> str:
    """A value in an error's words: a class by name, a tensor or an array by shape, all else by
    repr.

    >>> shown(torch.zeros(2, 3)), shown(Tensor), shown("vdm")
    ('a tensor of shape (2, 3), torch.float32, cpu', 'the class Tensor', "'vdm'")
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor) and value.ndim > 0:
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, {value.device}"
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return f"an array of shape {value.shape}, {value.dtype}"
    try:
        return text(value)
    except Exception:  # an int of 4,301 digits has no text, nor has a half-built object
        return f"a value of type {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a question, or those of which it is the first part; an empty
    string where none is near.

    >>> did_you_mean("scheduel", ["schedule", "steps"])
    "did you mean 'schedule'?"
    >>> did_you_mean("vdm++", ["vdm", "vdmpp-sigmoid", "vdmpp-edm-monotone"])
    "did you mean 'vdmpp-sigmoid' or 'vdmpp-edm-monotone'?"
    """
    folded = {name.casefold(): name for name in known}
    word = word.casefold().replace("+", "p")
    nearest = [name for name in folded if name.startswith(f"{word}-")]
    nearest = nearest or difflib.get_close_matches(word, list(folded), n=1)
    names = " or ".join(repr(folded[name]) for name in nearest)
    return f"did you mean {names}?" if nearest else ""


__all__ = ["InvalidArgument", "InvalidType", "InvalidValue", "check_torch", "did_you_mean"]
