"""Models made of a model: guided by a condition, or with x̂ clipped. Each is a denoiser with a
bound of its own."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import Model, original
from vdiff._validate import Finite, Given, require, validated
from vdiff.errors import InvalidType, InvalidValue, validation_enabled
from vdiff.gaussian import per_example
from vdiff.parameterization import X
from vdiff.prediction import Prediction
from vdiff.sampling.step import predicted


def _interval(interval: Any, argument: str, given: Given) -> tuple[float, float]:
    """Two numbers that rise."""
    ends, what = (
        interval if isinstance(interval, tuple | list) else (),
        "be (lowest, highest) log-SNR",
    )
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends):
        raise InvalidType(argument, what, repr(interval), "an end may be ±math.inf")
    low, high = (float(end) for end in ends)
    hint = "noise has the lower λ; γ and σ run the other way"
    require(low < high, argument, what, repr(interval), hint)
    return low, high


Interval = Annotated[tuple[float, float], _interval]


class Wrapped(nn.Module):
    """A model around another. `protocol` says what it changes, beside what the inner one does;
    `evaluate` writes it down."""

    @validated
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = original(model)

    @property
    def protocol(self) -> dict[str, object]:
        """What was done to the model, by name."""
        return dict(getattr(self.model, "protocol", {}))

    def _predict(self, z: Tensor, logsnr: Tensor, condition: dict[str, Any]) -> Prediction:
        return predicted(self.model, z, logsnr, condition)

    def _after(self, name: str, what: str) -> dict[str, object]:
        """The inner protocol with this after it, or after what the same name says there."""
        inner = dict(getattr(self.model, "protocol", {}))
        return inner | {name: f"{inner[name]}, then {what}" if name in inner else what}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.protocol.items())


class Guided(Wrapped):
    """Classifier-free guidance: ô = ô_u + scale·(ô_c − ô_u), given the condition and given
    `unconditional` in its place.

    Every target is affine in ô with the same part of z, so that the samples are the same in each.
    A scale of 1 is the conditional model exactly, and costs one evaluation, as does a λ outside
    `interval` = (lowest, highest), where the scale is 1 (Kynkäänniemi et al., arXiv:2404.07724);
    elsewhere it is two. Guidance of Ho & Salimans (arXiv:2207.12598, eq. 6) by weight w is a scale
    of 1 + w.

    Args:
        scale: 1 is the condition alone, 0 is none, larger ones go beyond the condition.
        unconditional: for each name of the condition what replaces it: a number fills a tensor
            like the condition's (the null class of a label), a tensor stands for the batch, one
            row for all, or None.
        interval: in λ; either end may be infinite.

    Raises:
        TypeError, ValueError: for an empty `unconditional`, an interval that does not rise; and at
            a call without the condition that it replaces, with one that has not a row for each
            sample, or with a fraction in the place of an integer.

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
        scale: Finite,
        unconditional: Mapping[str, Any],
        interval: Interval | None = None,
    ) -> None:
        super().__init__(model)
        if not isinstance(unconditional, Mapping) or not unconditional:
            error = InvalidValue if isinstance(unconditional, Mapping) else InvalidType
            what, hint = "name what replaces the condition", "for instance {'label': null class}"
            raise error("unconditional", what, repr(unconditional), hint)
        largest, float32 = torch.finfo(torch.float32).max, "be a number of float32"
        require(abs(scale) <= largest, "scale", float32, f"{scale:g}", "2 is a common one")
        self.scale, self.unconditional, self.interval = scale, dict(unconditional), interval

    @property
    def protocol(self) -> dict[str, object]:
        where = "" if self.interval is None else " for λ in [{:g}, {:g}]".format(*self.interval)
        return self._after("guidance", f"scale {self.scale:g}{where}")

    @validated
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any
    ) -> Prediction:
        """The guided prediction, in the model's own units and with the conditional one's
        variance."""
        hint = "guidance goes from the unconditional prediction towards this one"
        for name in self.unconditional:
            given = condition.get(name) is not None
            require(given, name, "be given as a condition", None, hint)
        replaced = {
            name: _like(name, value, condition[name], len(z))
            for name, value in self.unconditional.items()
        }
        conditional = self._predict(z, logsnr, condition)
        inside = torch.ones_like(logsnr, dtype=torch.bool)
        if self.interval is not None:
            inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        if self.scale == 1.0 or (self.interval is not None and not inside.any()):
            return conditional
        without = self._predict(z, logsnr, condition | replaced)
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
        self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any
    ) -> Prediction:
        """The prediction with its x̂ clipped."""
        free = self._predict(z, logsnr, condition)
        return free.replace(output=free.x.clamp(self.low, self.high), parameterization=X())


def _like(name: str, value: Any, condition: Any, batch: int) -> Any:
    """What replaces a condition, with its batch."""
    if not isinstance(condition, Tensor) or value is None:
        return value
    rows, came = f"have a row for each of {batch} samples", f"shape {tuple(condition.shape)}"
    fits = not validation_enabled() or condition.ndim == 0 or len(condition) == batch
    require(fits, name, rows, came, "it would broadcast in silence")
    if not isinstance(value, Tensor | Real):
        what = "hold a number, a tensor or None in the place of a tensor"
        raise InvalidType("unconditional", what, repr(value))
    if not isinstance(value, Tensor):
        dtype = None if isinstance(value, Integral) else torch.float64
        value = torch.tensor(value, dtype=dtype, device="cpu")
    if value.is_floating_point() and not condition.is_floating_point():
        what = f"be integer for '{name}', as the condition is"
        hint = "a class is an integer; it would be cut off to one in silence"
        raise InvalidType("unconditional", what, f"{value.tolist()}", hint)
    try:
        return value.to(condition.dtype).to(condition.device).expand_as(condition)
    except RuntimeError:
        what = f"have the shape of the condition, {tuple(condition.shape)}"
        raise InvalidValue("unconditional", what, tuple(value.shape)) from None


__all__ = ["Clipped", "Guided"]
