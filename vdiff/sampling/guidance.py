"""Models around a model: guided by a condition, with x̂ clipped, or with a temperature. Each has a
bound of its own."""

from numbers import Real
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from vdiff._arguments import Condition, Model, original, over_reals, over_tokens
from vdiff._validate import Finite, Given, NonNegative, Number, require, validated
from vdiff.discrete import Posterior
from vdiff.errors import InvalidType, InvalidValue, shown, validation_enabled
from vdiff.gaussian import Level
from vdiff.parameterization import X
from vdiff.prediction import ModelOutput, Prediction
from vdiff.sampling.step import predicted

_LARGEST = torch.finfo(torch.float32).max
_ENDS = "be (lowest, highest) log-SNR"


def _interval(interval: Any, argument: str, given: Given) -> tuple[float, float]:
    """Two numbers that rise."""
    ends = interval if isinstance(interval, tuple | list) else ()
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends):
        raise InvalidType(argument, _ENDS, shown(interval), "an end may be ±math.inf")
    low, high = (float(end) for end in ends)
    require(low < high, argument, _ENDS, repr(interval), "noise has the lower λ")
    return low, high


Interval = Annotated[tuple[float, float], _interval]
Share = Annotated[float, Number(above=0.0, at_most=1.0)]
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

    Over tokens log-probabilities take the place of ô (Schiff et al., arXiv:2412.10193), normalised
    for each token; they too are the same for both posteriors.

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
        self, z: Shaped[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> ModelOutput:
        """The guided prediction, in the model's own units and with the variance of the conditional
        one."""
        replaced = {
            name: _like(name, value, condition.get(name), len(z))
            for name, value in self.unconditional.items()
        }
        conditional: ModelOutput = predicted(self.model, z, logsnr, condition)
        inside = torch.ones_like(logsnr, dtype=torch.bool)
        if self.interval is not None:
            inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        if self.scale == 1.0 or (self.interval is not None and not inside.any()):
            return conditional
        without = predicted(self.model, z, logsnr, condition | replaced)
        scale = torch.where(inside, self.scale, torch.ones_like(logsnr))
        return conditional.guided(without, scale)


class Clipped(Wrapped):
    """x̂ clipped to the range of the data, at every level: `Clipped(model)` for data in [−1, 1].

    >>> from vdiff import Denoiser
    >>> from vdiff.parameterization import X
    >>> Clipped(Denoiser(lambda z, logsnr: 3 * z, X()))(torch.ones(1, 2), torch.zeros(1)).x
    tensor([[1., 1.]])
    """

    @validated(rules=[over_reals])
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
        free: Prediction = predicted(self.model, z, logsnr, condition)
        return free.replace(output=free.x.clamp(self.low, self.high), parameterization=X())


class Tempered(Wrapped):
    """p(x_i | z)^{1/temperature}, normalised, of the values that reach a probability `top_p`
    together, the likeliest first: for tokens. A temperature of 0 takes the likeliest value.

    `top_p` is nucleus sampling (Holtzman et al., arXiv:1904.09751), after the temperature.

    >>> from vdiff.discrete import Masked, TokenDenoiser
    >>> model = TokenDenoiser(lambda z: torch.tensor([[[0.6, 0.3, 0.1]]]).log(), Masked(3))
    >>> Tempered(model, top_p=0.7)(torch.tensor([[3]]), torch.zeros(1)).posterior.exp()
    tensor([[[0.6667, 0.3333, 0.0000]]])
    """

    @validated(rules=[over_tokens])
    def __init__(
        self, model: Model, temperature: NonNegative = 1.0, *, top_p: Share = 1.0
    ) -> None:
        super().__init__(model)
        self.temperature, self.top_p = temperature, top_p

    @property
    def protocol(self) -> dict[str, object]:
        nucleus = "" if self.top_p == 1 else f", top-p {self.top_p:g}"
        return self._after("temperature", f"{self.temperature:g}{nucleus}")

    @validated
    def forward(
        self, z: Int[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> ModelOutput:
        """The prediction with its posterior sharpened."""
        free = predicted(self.model, z, logsnr, condition)
        log_probs = free.posterior
        if self.temperature == 0:
            best = log_probs.argmax(-1, keepdim=True)
            log_probs = torch.full_like(log_probs, -torch.inf).scatter(-1, best, 0.0)
        else:
            log_probs = (log_probs / self.temperature).log_softmax(-1)
        if self.top_p < 1:
            ordered, order = log_probs.sort(-1, descending=True)
            before = ordered.exp().cumsum(-1) - ordered.exp()
            beyond = torch.zeros_like(before, dtype=torch.bool)
            beyond = beyond.scatter(-1, order, before >= self.top_p)
            log_probs = log_probs.masked_fill(beyond, -torch.inf)
        tempered: ModelOutput = free.replace(logits=log_probs, parameterization=Posterior())
        return tempered


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
