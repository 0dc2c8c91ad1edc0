"""One form for every error: which function, which argument, what must hold, what came, the likely mistake."""

import difflib
import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

OLDEST_TORCH = (2, 10)


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
        raise ImportError(f"vdiff needs torch {oldest} or newer; found {version} (pip install --upgrade torch)")


check_torch(torch.__version__)


def checking() -> bool:
    """Whether arguments are checked: always, except while `torch.compile` traces the graph."""
    return not torch.compiler.is_compiling()


def readable(*values: Tensor) -> bool:
    """Whether the values of tensors can be branched on: not on the meta device, and not under `torch.vmap`."""
    return all(v.device.type != "meta" and not _is_batched(v) for v in values)


def _is_batched(v: Tensor) -> bool:
    functorch = torch._C._functorch  # no public way to ask; under vmap, branching on a value raises
    while functorch.is_functorch_wrapped_tensor(v):
        if functorch.is_batchedtensor(v):
            return True
        v = functorch.get_unwrapped(v)
    return False


def transformed(v: Tensor) -> bool:
    """Whether a tensor lives under `torch.func` or `torch.vmap`, where no buffer can be written."""
    return checking() and torch._C._functorch.is_functorch_wrapped_tensor(v)


def must(function: str, argument: str, requirement: str, got: object, hint: str = "") -> str:
    """The text of an error: `<function>: argument '<name>' must …; got …`, and the likely mistake.

    >>> must("f", "t", "lie within [0, 1]", 3, "divide the step by their number")
    "f: argument 't' must lie within [0, 1]; got 3 (divide the step by their number)"
    """
    return f"{function}: argument '{argument}' must {requirement}; got {got}" + (f" ({hint})" if hint else "")


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


def finite(function: str, argument: str, value: object, *, above: float = -math.inf, at_least: float = -math.inf, hint: str = "") -> float:
    """`value` as a float; raises unless it is a finite number, greater than `above` and not less than `at_least`."""
    try:
        number = float("text" if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(must(function, argument, "be a number", repr(value))) from None
    if not math.isfinite(number) or number <= above or number < at_least:
        bounds = f" and greater than {above:g}" if above > -math.inf else f" and at least {at_least:g}" if at_least > -math.inf else ""
        raise ValueError(must(function, argument, f"be finite{bounds}", f"{number:g}", hint))
    return number


def check_total(function: str, weighting: object) -> None:
    """Raise where a weighting is a factor alone, or a product of factors, and no total."""
    if getattr(weighting, "is_factor", False):
        came = f"the factor {weighting!r}"
        hint = f"a factor multiplies a base: MSE(schedule, Eps()) * {weighting!r}"
        raise ValueError(must(function, "weighting", "be a total", came, hint))


def check_data(function: str, x: Tensor, argument: str = "x") -> None:
    """Raise unless `x` is a dense, real, floating (batch, …) tensor with at least one example. Reads no value."""
    if not isinstance(x, Tensor):
        raise TypeError(must(function, argument, "be a torch.Tensor", type(x).__name__))
    if x.layout is not torch.strided:
        raise TypeError(must(function, argument, "be dense", x.layout, "call .to_dense() first"))
    if not x.is_floating_point():
        raise TypeError(must(function, argument, "be real and floating", x.dtype, _dtype_hint(x.dtype)))
    check_batch(function, x, argument)


def _dtype_hint(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "real and imaginary parts are two dimensions: torch.view_as_real(x)"
    if dtype == torch.bool:
        return "binary data has two levels: Categorical(levels=2) takes x.long()"
    return "encode first: a discrete decoder does it, for bytes Categorical(levels=256).encode(data)"


def check_batch(function: str, x: Tensor, argument: str) -> None:
    """Raise unless `x` is a tensor with a batch dimension, at least one more, and at least one example."""
    if not isinstance(x, Tensor):
        hint = "one tensor of all examples: torch.stack(list), torch.cat([batch for batch, _ in loader])"
        raise TypeError(must(function, argument, "be a torch.Tensor", type(x).__name__, hint))
    if x.ndim < 2:
        hint = "one example needs x[None], scalar examples need x[:, None]"
        raise ValueError(
            must(function, argument, "have shape (batch, …) with one dimension or more behind the batch", tuple(x.shape), hint)
        )
    if x.numel() == 0:
        raise ValueError(must(function, argument, "hold at least one example", f"shape {tuple(x.shape)}", "an empty batch has no mean"))


def check_finite(function: str, x: Tensor, argument: str) -> None:
    """Raise where `x` holds NaN or infinity, with their number and the first index. Reads values."""
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(must(function, argument, "be finite", f"{int(bad.sum())} NaN or infinite values, the first at index {first}"))


def check_like(function: str, argument: str, value: Tensor, x: Tensor) -> None:
    """Raise unless `value` has the shape, the device and the dtype of `x` (or float32 where that is narrower)."""
    if not isinstance(value, Tensor):
        raise TypeError(must(function, argument, "be a torch.Tensor", type(value).__name__))
    if value.shape != x.shape:
        hint = "it would broadcast in silence" if value.numel() < x.numel() else ""
        raise ValueError(must(function, argument, f"have the shape of x, {tuple(x.shape)}", tuple(value.shape), hint))
    check_device(function, argument, value, x)
    if value.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
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
        hint = "torch.Generator(x.device)" if isinstance(value, torch.Generator) else f"{argument} = {argument}.to(x.device)"
        raise ValueError(must(function, argument, f"be on the device of x, {x.device}", value.device, hint))


def check_generator(function: str, generator: object, x: Tensor) -> None:
    """Raise unless `generator` is a `torch.Generator` of the device of `x`, or of the CPU for the meta device."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(must(function, "generator", "be a torch.Generator", repr(generator), "torch.Generator(x.device).manual_seed(seed)"))
    if generator.device.type != x.device.type:
        check_device(function, "generator", generator, x)


def check_times(function: str, t: Tensor, x: Tensor, steps: int | None = None, first: int = 1) -> None:
    """Raise unless given times are (batch,), floating, on the device of `x`, within [0, 1], and not before the first of a
    chain's `steps` ends (`first` = 0 allows 0 itself). Reads values where that costs no synchronisation (on a CPU), and always
    where no gradient is recorded."""
    if not isinstance(t, Tensor):
        hint = f"one time for all is torch.full((len(x),), {t})" if isinstance(t, float) else ""
        raise TypeError(must(function, "t", "be a torch.Tensor", type(t).__name__, hint))
    if not t.is_floating_point():
        hint = "times are fractions of the way to noise, not integer steps: t = step / steps"
        raise ValueError(must(function, "t", "be floating", t.dtype, hint))
    if t.shape != x.shape[:1]:
        hint = "t.flatten()" if t.numel() == x.shape[0] else "one time for each example"
        raise ValueError(must(function, "t", f"have shape (batch,) = ({x.shape[0]},)", tuple(t.shape), hint))
    check_device(function, "t", t, x)
    if not readable(t) or (t.device.type != "cpu" and torch.is_grad_enabled()):
        return
    bad = ~((t >= 0) & (t <= 1))
    if bad.any():
        low, high = t.min().item(), t.max().item()
        came = f"{int(t.isnan().sum())} NaN" if t.isnan().any() else f"values from {low:g} to {high:g}"
        hint = "integer steps are divided by their number first: t = step / steps" if high > 1 else ""
        raise ValueError(must(function, "t", "lie within [0, 1]", came, hint))
    if steps is not None:
        early = (t * steps < 1 - 1e-3) & ((t > 0) | (first > 0))
        if early.any():
            hint = f"the step that ends there would begin before the data; the first of {steps} ends at 1/{steps}"
            raise ValueError(must(function, "t", f"be at least 1/steps = {1 / steps:g} on a chain", f"{t[early][0].item():g}", hint))


def check_on_chain(function: str, t: Tensor, steps: int) -> None:
    """Raise unless times are the ends i/steps of a chain's steps, i ≥ 1, to the rounding of their dtype. Reads values."""
    place = t.double() * steps
    off = (place < 1 - 1e-3) | (place > steps + 1e-3) | ((place - place.round()).abs() > max(1e-3, 1e-6 * steps))
    if off.any():
        raise ValueError(must(function, "t", f"be i/{steps} with i = 1 … {steps}", f"{t[off][0].item():g}", "the times of another chain?"))


__all__ = ["check_torch", "did_you_mean", "must"]
