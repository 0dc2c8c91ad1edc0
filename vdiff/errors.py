"""One form for every error: which function, which argument, what must hold, what came, the likely mistake."""

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor


def checking() -> bool:
    """Whether arguments are checked: always, except while `torch.compile` traces the graph."""
    return not torch.compiler.is_compiling()


def must(function: str, argument: str, requirement: str, got: object, hint: str = "") -> str:
    """The text of an error: `<function>: argument '<name>' must …; got …`, and the likely mistake."""
    return f"{function}: argument '{argument}' must {requirement}; got {got}" + (f" ({hint})" if hint else "")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest known word as a question, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{nearest[0]}'?" if nearest else ""


def check_positive_int(function: str, argument: str, value: object) -> None:
    """Raise unless `value` is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(must(function, argument, "be an integer", f"{value!r}"))
    if value < 1:
        raise ValueError(must(function, argument, "be at least 1", value))


def check_data(function: str, x: Tensor, argument: str = "x") -> None:
    """Raise unless `x` is a dense, real, floating (batch, …) tensor with at least one example. Reads no value."""
    if not isinstance(x, Tensor):
        raise TypeError(must(function, argument, "be a torch.Tensor", type(x).__name__))
    if x.layout is not torch.strided:
        raise TypeError(must(function, argument, "be dense", x.layout, "call .to_dense() first"))
    if not x.is_floating_point():
        hint = "a decoder turns levels into the range of the network: x = decoder.encode(levels)"
        raise TypeError(must(function, argument, "be real and floating", x.dtype, hint))
    check_batch(function, x, argument)


def check_batch(function: str, x: Tensor, argument: str) -> None:
    """Raise unless `x` has a batch dimension, at least one more, and at least one example."""
    if x.ndim < 2:
        hint = "one example needs x[None], scalar examples need x[:, None]"
        raise ValueError(must(function, argument, "have shape (batch, …) with one dimension or more behind the batch", tuple(x.shape), hint))
    if x.numel() == 0:
        raise ValueError(must(function, argument, "hold at least one example", f"shape {tuple(x.shape)}", "an empty batch has no mean"))


def check_finite(function: str, x: Tensor, argument: str) -> None:
    """Raise where `x` holds NaN or infinity, with their number and the first index. Reads values."""
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(must(function, argument, "be finite", f"{int(bad.sum())} NaN or infinite values, the first at index {first}"))


def check_like(function: str, argument: str, value: Tensor, x: Tensor) -> None:
    """Raise unless `value` has the shape, a floating dtype and the device of `x`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(must(function, argument, "be a floating tensor", getattr(value, "dtype", type(value).__name__)))
    if value.shape != x.shape:
        raise ValueError(must(function, argument, f"have the shape of x, {tuple(x.shape)}", tuple(value.shape)))
    check_device(function, argument, value, x)


def check_device(function: str, argument: str, value: Tensor, x: Tensor) -> None:
    """Raise unless `value` and `x` are on one device."""
    if value.device != x.device:
        raise ValueError(must(function, argument, f"be on the device of x, {x.device}", value.device))


def check_times(function: str, t: Tensor, x: Tensor) -> None:
    """Raise unless given times are (batch,), floating, on the device of `x` and within [0, 1]. Reads values."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        hint = "times are fractions of the way to noise, not integer steps: t = step / steps"
        raise TypeError(must(function, "t", "be a floating tensor", getattr(t, "dtype", type(t).__name__), hint))
    if t.shape != x.shape[:1]:
        raise ValueError(must(function, "t", f"have shape (batch,) = ({x.shape[0]},)", tuple(t.shape)))
    check_device(function, "t", t, x)
    if not ((t >= 0) & (t <= 1)).all():
        low, high = t.min().item(), t.max().item()
        hint = "integer steps are divided by their number first" if high > 1 else ""
        raise ValueError(must(function, "t", "lie within [0, 1]", f"values from {low:g} to {high:g}", hint))
