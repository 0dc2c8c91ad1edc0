"""One form for every error: which function, which argument, what must hold, what came, the likely
mistake."""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable
from numbers import Number
from types import UnionType
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
OLDEST_TORCH = (2, 10)
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Storage size calculation overflowed",
    "ALLOC_FAILED",
)
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


def checking() -> bool:
    """Whether arguments are checked: always, except while `torch.compile` traces the graph."""
    return not torch.compiler.is_compiling()


def has_values(*values: Tensor) -> bool:
    """Whether the values of tensors can be branched on: not on the meta device, and not under
    `torch.vmap`."""
    return all(v.device.type != "meta" and not _is_batched(v) for v in values)


def _is_batched(v: Tensor) -> bool:
    functorch = (
        torch._C._functorch
    )  # no public way to ask; under vmap, branching on a value raises
    while functorch.is_functorch_wrapped_tensor(v):
        if functorch.is_batchedtensor(v):
            return True
        v = functorch.get_unwrapped(v)
    return False


def under_functorch(v: Tensor) -> bool:
    """Whether a tensor lives under `torch.func` or `torch.vmap`, where no buffer can be
    written."""
    return checking() and torch._C._functorch.is_functorch_wrapped_tensor(v)


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


def must(function: str, argument: str, requirement: str, got: object, hint: str = "") -> str:
    """The text of an error, one line: `<function>: argument '<name>' must …; got … (likely
    mistake)`.

    What came is cut to 200 characters; a tensor or an array is told by its shape.

    >>> must("f", "t", "lie within [0, 1]", 3, "divide the step by their number")
    "f: argument 't' must lie within [0, 1]; got 3 (divide the step by their number)"
    """
    return f"{function}: {_sentence(argument, requirement, got, hint)}"


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
    return text(value)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
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
    nearest = nearest or difflib.get_close_matches(word, list(folded), n=1, cutoff=cutoff)
    names = " or ".join(repr(folded[name]) for name in nearest)
    return f"did you mean {names}?" if nearest else ""


def check_positive_int(function: str, argument: str, value: object) -> None:
    """Raise unless `value` is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(must(function, argument, "be a Python int", f"{value!r}", "write int(…)"))
    if value < 1:
        raise ValueError(must(function, argument, "be at least 1", value))


def check_steps(function: str, steps: object, argument: str = "steps") -> None:
    """Raise unless `steps` is a number of steps of a chain that t − 1/T can tell apart.

    >>> check_steps("elbo", 10**17)
    Traceback (most recent call last):
        ...
    ValueError: elbo: argument 'steps' must be at most 1,000,000,000; got 100,000,...
    """
    check_positive_int(function, argument, steps)
    if isinstance(steps, int) and steps > MOST_STEPS:
        hint = "beyond that rounding loses the difference of t and t − 1/T"
        what = f"be at most {MOST_STEPS:,}"
        raise ValueError(must(function, argument, what, f"{steps:,}", hint))


def finite(
    function: str,
    argument: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    hint: str = "",
) -> float:
    """`value` as a float; raises unless it is a finite number, greater than `above` and not less
    than `at_least`."""
    try:
        number = float("text" if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(must(function, argument, "be a number", repr(value))) from None
    if not math.isfinite(number) or number <= above or number < at_least:
        bounds = (
            f" and greater than {above:g}"
            if above > -math.inf
            else f" and at least {at_least:g}"
            if at_least > -math.inf
            else ""
        )
        raise ValueError(must(function, argument, f"be finite{bounds}", f"{number:g}", hint))
    return number


def check_total(function: str, weighting: object) -> None:
    """Raise where a weighting is a factor alone, or a product of factors, and no total; also where
    it is a method or a partial of one."""
    within = (getattr(weighting, name, None) for name in ("__self__", "func"))
    for one in (weighting, *within):
        if getattr(one, "is_factor", False):
            came = f"the factor {one!r}"
            hint = f"a factor multiplies a base: MSE(schedule, Eps()) * {one!r}"
            raise ValueError(must(function, "weighting", "be a total", came, hint))


def check_tensor(function: str, argument: str, value: object, hint: str = "") -> None:
    """Raise unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        if not hint and isinstance(value, np.ndarray | list | tuple | Number):
            hint = f"torch.as_tensor({argument})"
        raise TypeError(must(function, argument, "be a torch.Tensor", type(value).__name__, hint))


def names_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose error names the array, list or number that came in the place of a tensor.

    Arguments are looked at only after the function has failed, and not for an error that names one
    itself: what works goes through as it is.

    >>> @names_arrays
    ... def double(x: Tensor) -> Tensor:
    ...     return x.mul(2)
    >>> double([1.0])
    Traceback (most recent call last):
        ...
    TypeError: double: argument 'x' must be a torch.Tensor; got list (torch.as_tensor(x))
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        if not checking():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not re.match(r"[\w.]+: argument '", str(error)):
                _name_arrays(function, args, kwargs)
            raise

    return named


def _name_arrays(
    function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    parameters, name = inspect.signature(function).parameters, function.__name__
    if "self" in parameters:
        name = f"{type(args[0]).__name__}.{name}".removesuffix(".__call__").removesuffix(
            ".forward"
        )
    given = dict(zip(parameters, args, strict=False)) | kwargs
    for argument, parameter in parameters.items():
        if argument in given and _refuses(parameter.annotation, given[argument]):
            check_tensor(name, argument, given[argument])


def _refuses(annotation: object, value: object) -> bool:
    """Whether an annotation is a tensor, or a tensor or a number, and the value is neither of
    them."""
    kinds = set(get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)) - {
        type(None)
    }
    tensors = {
        kind for kind in kinds if kind is Tensor or getattr(kind, "array_type", None) is Tensor
    }
    number = float in kinds and isinstance(value, Number)
    return bool(tensors) and kinds - tensors <= {float} and value is not None and not number


def check_data(function: str, x: Tensor, argument: str = "x") -> None:
    """Raise unless `x` is a dense, real, floating (batch, …) tensor with at least one example.
    Reads no value."""
    check_tensor(function, argument, x)
    if x.layout is not torch.strided:
        raise TypeError(must(function, argument, "be dense", x.layout, "call .to_dense() first"))
    if not x.is_floating_point():
        raise TypeError(
            must(function, argument, "be real and floating", x.dtype, _dtype_hint(x.dtype))
        )
    check_batch(function, x, argument)


def _dtype_hint(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "real and imaginary parts are two dimensions: torch.view_as_real(x)"
    if dtype == torch.bool:
        return "binary data has two levels: Categorical(levels=2) takes x.long()"
    return (
        "encode first: a discrete decoder does it, for bytes Categorical(levels=256).encode(data)"
    )


def check_batch(function: str, x: Tensor, argument: str) -> None:
    """Raise unless `x` is a tensor with a batch dimension, at least one more, and at least one
    example."""
    many = (
        "one tensor of all examples: torch.stack(list), torch.cat([batch for batch, _ in loader])"
    )
    check_tensor(function, argument, x, "" if isinstance(x, np.ndarray) else many)
    if x.ndim < 2:
        hint = "one example needs x[None], scalar examples need x[:, None]"
        raise ValueError(
            must(
                function,
                argument,
                "have shape (batch, …) with one dimension or more behind the batch",
                tuple(x.shape),
                hint,
            )
        )
    if x.numel() == 0:
        raise ValueError(
            must(
                function,
                argument,
                "hold at least one example",
                f"shape {tuple(x.shape)}",
                "an empty batch has no mean",
            )
        )


def check_finite(function: str, x: Tensor, argument: str) -> None:
    """Raise where `x` holds NaN or infinity, with their number and the first index. Reads
    values."""
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            must(
                function,
                argument,
                "be finite",
                f"{int(bad.sum())} NaN or infinite values, the first at index {first}",
            )
        )


def check_like(function: str, argument: str, value: Tensor, x: Tensor) -> None:
    """Raise unless `value` has the shape, the device and the dtype of `x`, or float32 where x is
    narrower.

    Under a default dtype in half precision, noise of that dtype is taken: `torch.randn(x.shape)`
    makes it.
    """
    check_tensor(function, argument, value)
    if value.shape != x.shape:
        hint = "it would broadcast in silence" if value.numel() < x.numel() else ""
        raise ValueError(
            must(
                function,
                argument,
                f"have the shape of x, {tuple(x.shape)}",
                tuple(value.shape),
                hint,
            )
        )
    check_device(function, argument, value, x)
    default = torch.get_default_dtype()
    made = default if default.itemsize < 4 else x.dtype
    if value.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32), made):
        raise ValueError(
            must(
                function,
                argument,
                f"have the dtype of x, {x.dtype}",
                value.dtype,
                f"{argument} = {argument}.to(x.dtype), or torch.randn_like(x)",
            )
        )


def check_device(function: str, argument: str, value: Tensor | torch.Generator, x: Tensor) -> None:
    """Raise unless `value` and `x` are on one device."""
    if value.device != x.device:
        hint = (
            "torch.Generator(x.device)"
            if isinstance(value, torch.Generator)
            else f"{argument} = {argument}.to(x.device)"
        )
        raise ValueError(
            must(function, argument, f"be on the device of x, {x.device}", value.device, hint)
        )


def check_generator(function: str, generator: object, x: Tensor) -> None:
    """Raise unless `generator` is a `torch.Generator` of the device of `x`, or of the CPU for the
    meta device."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            must(
                function,
                "generator",
                "be a torch.Generator",
                repr(generator),
                "torch.Generator(x.device).manual_seed(seed)",
            )
        )
    if generator.device.type != x.device.type:
        check_device(function, "generator", generator, x)


def check_times(
    function: str, t: Tensor, x: Tensor, steps: int | None = None, first: int = 1
) -> None:
    """Raise unless given times are (batch,), floating, on the device of `x`, within [0, 1], and
    not before the first of a chain's `steps` ends (`first` = 0 allows 0 itself). Reads values
    where that costs no synchronisation (on a CPU), and always where no gradient is recorded."""
    hint = f"one time for all is torch.full((len(x),), {t})" if isinstance(t, float) else ""
    check_tensor(function, "t", t, hint)
    if not t.is_floating_point():
        hint = "times are fractions of the way to noise, not integer steps: t = step / steps"
        raise ValueError(must(function, "t", "be floating", t.dtype, hint))
    if t.shape != x.shape[:1]:
        hint = "t.flatten()" if t.numel() == x.shape[0] else "one time for each example"
        raise ValueError(
            must(function, "t", f"have shape (batch,) = ({x.shape[0]},)", tuple(t.shape), hint)
        )
    check_device(function, "t", t, x)
    if not has_values(t) or (t.device.type != "cpu" and torch.is_grad_enabled()):
        return
    bad = ~((t >= 0) & (t <= 1))
    if bad.any():
        low, high = t.min().item(), t.max().item()
        came = (
            f"{int(t.isnan().sum())} NaN"
            if t.isnan().any()
            else f"values from {low:g} to {high:g}"
        )
        hint = (
            "integer steps are divided by their number first: t = step / steps" if high > 1 else ""
        )
        raise ValueError(must(function, "t", "lie within [0, 1]", came, hint))
    if steps is not None:
        early = (t * steps < 1 - 1e-3) & ((t > 0) | (first > 0))
        if early.any():
            hint = f"the step that ends there would begin before the data; the first of {steps} ends at 1/{steps}"
            raise ValueError(
                must(
                    function,
                    "t",
                    f"be at least 1/steps = {1 / steps:g} on a chain",
                    f"{t[early][0].item():g}",
                    hint,
                )
            )


def check_on_chain(function: str, t: Tensor, steps: int) -> None:
    """Raise unless times are the ends i/steps of a chain's steps, i ≥ 1, to the rounding of their
    dtype. Reads values."""
    place = t.double() * steps
    off = (
        (place < 1 - 1e-3)
        | (place > steps + 1e-3)
        | ((place - place.round()).abs() > max(1e-3, 1e-6 * steps))
    )
    if off.any():
        raise ValueError(
            must(
                function,
                "t",
                f"be i/{steps} with i = 1 … {steps}",
                f"{t[off][0].item():g}",
                "the times of another chain?",
            )
        )


__all__ = ["check_torch", "did_you_mean", "must"]
