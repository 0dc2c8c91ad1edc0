"""Models around a model: guided by a condition, or with x̂ clipped. Each has a bound of its own."""

from numbers import Real
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import Condition, Model, original
from vdiff._validate import Finite, Given, Number, require, validated
from vdiff.errors import InvalidType, InvalidValue, validation_enabled
from vdiff.gaussian import Level, per_example
from vdiff.parameterization import X
from vdiff.prediction import Prediction
from vdiff.sampling.step import predicted

_LARGEST = torch.finfo(torch.float32).max
_ENDS = "be (lowest, highest) log-SNR"


def _interval(interval: Any, argument: str, given: Given) -> tuple[float, float]:
    """Two numbers that rise."""
    ends = interval if isinstance(interval, tuple | list) else ()
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends):
        raise InvalidType(argument, _ENDS, repr(interval), "an end may be ±math.inf")
    low, high = (float(end) for end in ends)
    require(low < high, argument, _ENDS, repr(interval), "noise has the lower λ")
    return low, high


Interval = Annotated[tuple[float, float], _interval]
Scale = Annotated[float, Number(at_least=-_LARGEST, at_most=_LARGEST, hint="2 is a common one")]


class Wrapped(nn.Module):
    """A model around another. `evaluate` records its `protocol`, the changes of both by name."""

    @validated
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = original(model)

    @property
    def protocol(self) -> dict[str, object]:
        """The changes to the model, by name."""
        return dict(getattr(self.model, "protocol", {}))

    def _after(self, name: str, what: str) -> dict[str, object]:
        """The inner protocol and this change; a change of the same name comes after the inner."""
        inner = dict(getattr(self.model, "protocol", {}))
        return inner | {name: f"{inner[name]}, then {what}" if name in inner else what}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.protocol.items())


class Guided(Wrapped):
    """Classifier-free guidance: ô = ô_u + scale·(ô_c − ô_u), with the condition (c) and with
    `unconditional` in its place (u). Where λ is a field, each dimension has its own scale.

    The targets are affine in each other, so that the samples do not depend on the target. A scale
    of 1 is the conditional model exactly; so is every λ outside `interval` = (lowest, highest)
    (Kynkäänniemi et al., arXiv:2404.07724). Both cost one evaluation, all else two. The guidance
    weight w of Ho & Salimans (arXiv:2207.12598, eq. 6) is a scale of 1 + w.

    Args:
        scale: 1 is the condition alone, 0 is none, larger scales exaggerate the condition.
        unconditional: for each name of the condition its replacement: a number (the null class of
            a label), a tensor with one row for all or a row for each sample, or None.
        interval: in λ; either end may be infinite.

    Raises:
        TypeError, ValueError: for an empty `unconditional` and an interval that does not rise; at
            a call without the condition, with a condition that has not one row for each sample,
            and with a fraction that would replace an integer.

    >>> from vdiff import Denoiser
    >>> from vdiff.parameterization import Eps
    >>> model = Denoiser(lambda z, logsnr, label: label[:, None] * z, Eps())
    >>> guided = Guided(model, scale=3.0, unconditional={"label": 0})
    >>> guided(torch.ones(1, 2), torch.zeros(1), label=torch.tensor([2])).eps
    tensor([[6., 6.]])
    """

    @validated
    def __init__(
        self,
        model: Model,
        scale: Scale,
        unconditional: Condition,
        interval: Interval | None = None,
    ) -> None:
        super().__init__(model)
        self.scale, self.unconditional, self.interval = scale, dict(unconditional or {}), interval
        what, hint = "name what replaces the condition", "for instance {'label': null class}"
        require(bool(self.unconditional), "unconditional", what, repr(unconditional), hint)

    @property
    def protocol(self) -> dict[str, object]:
        where = "" if self.interval is None else " for λ in [{:g}, {:g}]".format(*self.interval)
        return self._after("guidance", f"scale {self.scale:g}{where}")

    @validated
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> Prediction:
        """The guided prediction, in the model's own units and with the variance of the conditional
        one."""
        replaced = {
            name: _like(name, value, condition.get(name), len(z))
            for name, value in self.unconditional.items()
        }
        conditional = predicted(self.model, z, logsnr, condition)
        inside = torch.ones_like(logsnr, dtype=torch.bool)
        if self.interval is not None:
            inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        if self.scale == 1.0 or (self.interval is not None and not inside.any()):
            return conditional
        without = predicted(self.model, z, logsnr, condition | replaced)
        scale = torch.where(inside, self.scale, torch.ones_like(logsnr))
        scale = torch.as_tensor(per_example(scale, z))
        return conditional.replace(output=torch.lerp(without.output, conditional.output, scale))


class Clipped(Wrapped):
    """x̂ clipped to the range of the data, at every level: `Clipped(model)` for data in [−1, 1].

    >>> from vdiff import Denoiser
    >>> from vdiff.parameterization import X
    >>> Clipped(Denoiser(lambda z, logsnr: 3 * z, X()))(torch.ones(1, 2), torch.zeros(1)).x
    tensor([[1., 1.]])
    """

    @validated
    def __init__(self, model: Model, low: Finite = -1.0, high: Finite = 1.0) -> None:
        super().__init__(model)
        require(low < high, "low", f"be below high = {high:g}", f"{low:g}")
        self.low, self.high = low, high

    @property
    def protocol(self) -> dict[str, object]:
        return self._after("x̂ clipped to", f"[{self.low:g}, {self.high:g}]")

    @validated
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> Prediction:
        """The prediction with its x̂ clipped."""
        free = predicted(self.model, z, logsnr, condition)
        return free.replace(output=free.x.clamp(self.low, self.high), parameterization=X())


def _like(name: str, value: Any, condition: Any, batch: int) -> Any:
    """What replaces a condition, with its shape and dtype."""
    hint = "guidance goes from the unconditional prediction towards this one"
    require(condition is not None, name, "be given as a condition", None, hint)
    if not isinstance(condition, Tensor) or value is None:
        return value
    rows, shape = f"have a row for each of {batch} samples", tuple(condition.shape)
    fits = not validation_enabled() or condition.ndim == 0 or len(condition) == batch
    require(fits, name, rows, f"shape {shape}", "it would broadcast in silence")
    if not isinstance(value, Tensor):
        dtype = torch.float64 if isinstance(value, float) else None
        value = torch.tensor(value, dtype=dtype, device="cpu")
    if value.is_floating_point() and not condition.is_floating_point():
        what, hint = f"be integer for '{name}', as the condition is", "it would be cut off"
        raise InvalidType("unconditional", what, f"{value.tolist()}", hint)
    try:
        return value.to(condition.dtype).to(condition.device).expand_as(condition)
    except RuntimeError:
        what = f"have the shape of the condition, {shape}"
        raise InvalidValue("unconditional", what, tuple(value.shape)) from None
