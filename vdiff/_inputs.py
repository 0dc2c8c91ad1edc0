"""What arguments of a diffusion are: data, noise, times and generators that fit each other, ends
of a schedule, weightings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vdiff._validate import TIMES, Given, Instance, Number, Whole, encode_first, require, tensor
from vdiff.errors import MOST_STEPS, InvalidType, InvalidValue, has_values, shown


def batch(value: Any, argument: str, given: Given) -> Any:
    """A tensor (batch, …) of at least one example with at least one dimension."""
    if hasattr(value, "__iter__") and not hasattr(value, "__array__"):  # a DataLoader too
        hint = "one tensor of all examples: torch.stack(list), torch.cat([x for x, _ in loader])"
        raise InvalidType(argument, "be a torch.Tensor", type(value).__name__, hint)
    shape = tensor(value, argument, given).shape
    requirement = "have shape (batch, …) with one dimension or more behind the batch"
    hint = "one example needs x[None], scalar examples need x[:, None]"
    require(len(shape) > 1, argument, requirement, tuple(shape), hint)
    if 0 in shape:
        hint = "an empty batch has no mean"
        raise InvalidValue(argument, "hold at least one example", f"shape {tuple(shape)}", hint)
    return value


def dense(value: Any, argument: str, given: Given) -> Any:
    """A tensor that is not sparse."""
    if tensor(value, argument, given).layout is not torch.strided:
        raise InvalidType(argument, "be dense", value.layout, "call .to_dense() first")
    return value


def data(value: Any, argument: str, given: Given) -> Any:
    """A dense, real, floating tensor (batch, …) with at least one example. Reads no value."""
    if not dense(value, argument, given).is_floating_point():
        hint = encode_first(value.dtype)
        raise InvalidType(argument, "be real and floating", value.dtype, hint)
    return batch(value, argument, given)


def is_integer(v: Tensor) -> bool:
    """Whether a tensor holds integers; bools are none."""
    return not (v.is_floating_point() or v.is_complex() or v.dtype == torch.bool)


def cheap_to_read(v: Tensor) -> bool:
    """Whether values may be read: on a CPU, and elsewhere where no gradient is recorded."""
    return has_values(v) and (v.device.type == "cpu" or not torch.is_grad_enabled())


def finite_values(value: Tensor, argument: str, given: Given) -> Tensor:
    """A tensor without NaN or infinity. Reads values."""
    bad = ~torch.isfinite(value)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        got = f"{int(bad.sum())} NaN or infinite values, the first at index {first}"
        missing = argument in ("x", "data") and bool(value.isnan().any())
        hint = f"of missing values: absent={argument}.isnan()" if missing else ""
        raise InvalidValue(argument, "be finite", got, hint)
    return value


def same_shape(value: Any, argument: str, given: Given) -> Any:
    """A tensor of the shape and on the device of `x` (or `data`, or `z`)."""
    other, x = _examples(given)
    shape = tensor(value, argument, given).shape
    hint = "it would broadcast in silence" if value.numel() < x.numel() else ""
    same = f"have the shape of {other}, {tuple(x.shape)}"
    require(shape == x.shape, argument, same, tuple(shape), hint)
    _on_device(value, argument, x, other)
    return value


def noise(value: Any, argument: str, given: Given) -> Any:
    """A tensor of the shape, device and dtype of `x` (or `data`), or float32 where that is
    narrower. A default dtype in half precision is taken too: `torch.randn(x.shape)` has it."""
    same_shape(value, argument, given)
    other, x = _examples(given)
    dtype, wider = torch.float32, torch.float64  # a decoder may encode integers so
    same, hint = f"have dtype {dtype}", f"{argument} = {argument}.to({dtype})"
    if x.is_floating_point():
        dtype, wider = x.dtype, torch.promote_types(x.dtype, torch.float32)
        same = f"have the dtype of {other}, {dtype}"
        hint = f"{argument} = {argument}.to({other}.dtype), or torch.randn_like({other})"
    default = torch.get_default_dtype()
    fits = value.dtype in (dtype, wider) or (value.dtype == default and default.itemsize < 4)
    require(fits, argument, same, value.dtype, hint)
    return value


def random(value: Any, argument: str, given: Given) -> Any:
    """A `torch.Generator` on the device of `x` (or `data`); any for the meta device."""
    Instance((torch.Generator,))(value, argument, given)
    other, x = _examples(given)
    if isinstance(x, Tensor) and value.device.type != x.device.type:
        _on_device(value, argument, x, other)
    return value


def _examples(given: Given) -> tuple[str, Any]:
    other = next(name for name in ("x", "data", "z") if name in given)
    return other, given[other]


def _on_device(v: Tensor | torch.Generator, argument: str, x: Tensor, other: str) -> None:
    if v.device != x.device:
        hint = f"{argument} = {argument}.to({other}.device)"
        if isinstance(v, torch.Generator):
            hint = f"torch.Generator({other}.device)"
        raise InvalidValue(argument, f"be on the device of {other}, {x.device}", v.device, hint)


@dataclass(frozen=True)
class Ends:
    """A time in [0, 1] for each example of `x` (or `data`), or a field of them, that broadcasts
    over x with as many dimensions, if `field`; with `steps` among the arguments, none before the
    chain's first end 1/steps, but for 0 itself where `zero` is allowed.

    Values are read on a CPU, and elsewhere where no gradient is recorded.
    """

    zero: bool = False
    field: bool = False

    def __call__(self, value: Any, argument: str, given: Given) -> Any:
        other, x = _examples(given)
        if isinstance(value, float):
            hint = f"one time for all is torch.full((len({other}),), {value})"
            raise InvalidType(argument, "be a torch.Tensor", "float", hint)
        t: Tensor = tensor(value, argument, given)
        require(t.is_floating_point(), argument, "be floating", t.dtype, TIMES)
        hint = "t.flatten()" if t.numel() == x.shape[0] else "one time for each example"
        shape = f"have shape (batch,) = ({x.shape[0]},)"
        field = t.shape[:1] == x.shape[:1] and broadcasts(t, x)
        if field and t.numel() > len(t):
            hint = "independent times lie on no path, and bound nothing: weighted_elbo takes them"
        fits = t.shape == x.shape[:1] or (self.field and field)
        require(fits, argument, shape, tuple(t.shape), hint)
        _on_device(t, argument, x, other)
        if cheap_to_read(t):
            self._check_values(t, argument, given.get("steps"))
        return value

    def _check_values(self, t: Tensor, argument: str, steps: int | None) -> None:
        low, high = t.min().item(), t.max().item()
        nan = f"{int(t.isnan().sum())} NaN" if low != low else f"values from {low:g} to {high:g}"
        hint = "integer steps are divided by their number first: t = step / steps"
        inside = 0 <= low <= high <= 1
        require(inside, argument, "lie within [0, 1]", nan, hint if high > 1 else "")
        if steps is None:
            return
        early = t[(t * steps < 1 - 1e-3) & ((t > 0) | (not self.zero))]
        if len(early):
            hint = f"that step would begin before the data; the first of {steps} ends at 1/{steps}"
            least = f"be at least 1/steps = {1 / steps:g} on a chain"
            raise InvalidValue(argument, least, f"{early[0].item():g}", hint)


def broadcasts(v: Tensor, x: Tensor) -> bool:
    """Whether v has as many dimensions as x, each of size 1 or of x's size."""
    pairs = zip(v.shape, x.shape, strict=False)
    return v.ndim == x.ndim and all(size in (1, own) for size, own in pairs)


def mask_shape(value: Any, argument: str, given: Given) -> Any:
    """A bool tensor that broadcasts over `x` (or `data`, or `z`), or over one of its examples.
    Reads no value."""
    other, x = _examples(given)
    if tensor(value, argument, given).dtype != torch.bool:
        hint = f"True where {other} is {'absent' if argument == 'absent' else 'modelled'}"
        raise InvalidType(argument, "be a bool tensor", value.dtype, hint)
    fits = broadcasts(value if value.ndim == x.ndim else value[None], x)
    shape = f"broadcast over {other}, {tuple(x.shape)}, with as many dimensions, or one example"
    require(fits, argument, shape, tuple(value.shape))
    _on_device(value, argument, x, other)
    return value


def mask(value: Any, argument: str, given: Given) -> Any:
    """`mask_shape`, where `x` (or `data`) is finite outside of what is absent. Reads values."""
    mask_shape(value, argument, given)
    other, x = _examples(given)
    if x.is_floating_point() and cheap_to_read(x):
        absent = value if argument == "absent" else given.get("absent")
        read = x if absent is None else torch.where(absent, torch.zeros_like(x), x)
        finite_values(read, other, given)
    return value


def ordered_ends(logsnr_max: float, logsnr_min: float) -> None:
    """Rule: λ_max is greater than λ_min."""
    hint = "equal ends leave nothing between"
    if logsnr_max < logsnr_min:
        swapped = f"logsnr_max={-logsnr_max:g}, logsnr_min={-logsnr_min:g}"
        hint = f"t = 0 is data and has the larger λ; if these are γ = −λ, write {swapped}"
    greater = f"be greater than logsnr_min = {logsnr_min:g}"
    require(logsnr_min < logsnr_max, "logsnr_max", greater, f"{logsnr_max:g}", hint)


def on_chain(t: Tensor, steps: int) -> None:
    """Rule: times are the ends i/steps of a chain's steps, i ≥ 1, to the rounding of their dtype.
    Reads values."""
    place = t.double() * steps
    near = (place - place.round()).abs() <= max(1e-3, 1e-6 * steps)
    off = t[~(near & (place >= 1 - 1e-3) & (place <= steps + 1e-3))]
    if len(off):
        got, hint = f"{off[0].item():g}", "the times of another chain?"
        raise InvalidValue("t", f"be i/{steps} with i = 1 … {steps}", got, hint)


def total(value: Any, argument: str, given: Given) -> Any:
    """A weighting by itself: a function of λ that is neither a class nor a factor."""
    if isinstance(value, type) or not callable(value):
        named = isinstance(value, type)
        hint = f"an instance: {value.__name__}()" if named else "for instance Sigmoid(2.0)"
        raise InvalidType(argument, "be a Weighting or a function of logsnr", shown(value), hint)
    if isinstance(value, nn.Module) and "_modules" not in vars(value):
        hint = "its __init__ must call super().__init__()"
        raise InvalidType(argument, "be initialised", type(value).__name__, hint)
    part = value
    while part is not None:
        if getattr(part, "is_factor", False):
            hint = f"a factor multiplies a base: MSE(schedule, Eps()) * {part!r}"
            raise InvalidValue(argument, "be a total", f"the factor {part!r}", hint)
        # of methods and partials, what is within
        within = getattr(part, "__self__", None) or getattr(part, "func", None)
        part = None if isinstance(part, nn.Module) else within
    return value


_CLEAN = "λ = +∞ is data without noise, where nothing is left to predict: stop at about 15"
_NOISE = "λ = −∞ is zero terminal SNR: a bound needs some signal left, so stop at about −15"
_UNRESOLVED = "beyond that rounding loses the difference of t and t − 1/T"
CleanEnd = Annotated[float, Number(hint=_CLEAN)]
NoisyEnd = Annotated[float, Number(hint=_NOISE)]
WeightFunction = Annotated[Callable[[Tensor], Tensor], total]
Steps = Annotated[int, Whole(at_most=MOST_STEPS, hint=_UNRESOLVED)]
Data = Annotated[Tensor, data]
FiniteData = Annotated[Tensor, data, finite_values]
Batch = Annotated[Tensor, batch]
SameShape = Annotated[Tensor, same_shape]
Noise = Annotated[Tensor, noise]
Times = Annotated[Tensor, Ends(field=True)]
OneTime = Annotated[Tensor, Ends()]
Mask = Annotated[Tensor, mask]
MaskShape = Annotated[Tensor, mask_shape]
Random = Annotated[torch.Generator, random]
