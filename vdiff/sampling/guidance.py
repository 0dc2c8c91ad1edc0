"""Models made of a model: guided by a condition, or with x̂ clipped. Each is a denoiser with a bound of its own."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import finite, must
from vdiff.gaussian import per_example
from vdiff.parameterization import Prediction, X
from vdiff.sampling.step import Model


class Wrapped(nn.Module):
    """A model around another. `protocol` says what it changes, beside what the inner one does; `evaluate` writes it down."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            came = f"the class {model.__name__}" if isinstance(model, type) else repr(model)
            raise TypeError(must(type(self).__name__, "model", "be called as model(z, logsnr) and return a Prediction", came))
        check_no_data_parallel(type(self).__name__, "model", model)
        self.model = model

    @property
    def protocol(self) -> dict[str, object]:
        """What was done to the model, by name."""
        return dict(getattr(self.model, "protocol", {}))

    def _after(self, name: str, what: str) -> dict[str, object]:
        """The inner protocol with this after it, or after what the same name says there."""
        inner = dict(getattr(self.model, "protocol", {}))
        return inner | {name: f"{inner[name]}, then {what}" if name in inner else what}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.protocol.items())


class Guided(Wrapped):
    """Classifier-free guidance: ô = ô_u + scale·(ô_c − ô_u), given the condition and given `unconditional` in its place.

    Every target is affine in ô with the same part of z, so that the samples are the same in each. A scale of 1 is the
    conditional model exactly, and costs one evaluation, as does a λ outside `interval` = (lowest, highest), where the
    scale is 1 (Kynkäänniemi et al., arXiv:2404.07724); elsewhere it is two. Guidance of Ho & Salimans
    (arXiv:2207.12598, eq. 6) by weight w is a scale of 1 + w.

    Args:
        scale: 1 is the condition alone, 0 is none, larger ones go beyond the condition.
        unconditional: for each keyword of the condition what replaces it: a number fills a tensor like the condition's (the
            null class of a label), a tensor stands for the batch, one row for all, or None.

    Raises:
        ValueError: for an empty `unconditional`, and at a call without the condition that it replaces.

    >>> from vdiff import Denoiser, Eps
    >>> model = Denoiser(lambda z, logsnr, label: label[:, None] * z, Eps())
    >>> guided = Guided(model, scale=3.0, unconditional={"label": 0})
    >>> guided(torch.ones(1, 2), torch.zeros(1), label=torch.tensor([2])).eps
    tensor([[6., 6.]])
    """

    def __init__(self, model: Model, scale: float, unconditional: Mapping[str, Any], interval: tuple[float, float] | None = None) -> None:
        super().__init__(model)
        self.scale, self.unconditional, self.interval = finite("Guided", "scale", scale), dict(unconditional), interval
        if not self.unconditional:
            raise ValueError(
                must("Guided", "unconditional", "name what replaces the condition", "nothing", "for instance {'label': null class}")
            )
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(
                must("Guided", "interval", "be (lowest, highest) log-SNR", interval, "noise has the lower λ; γ and σ run the other way")
            )

    @property
    def protocol(self) -> dict[str, object]:
        where = "" if self.interval is None else f" for λ in [{self.interval[0]:g}, {self.interval[1]:g}]"
        return self._after("guidance", f"scale {self.scale:g}{where}")

    def forward(self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any) -> Prediction:
        """The guided prediction, in the model's own units and with the conditional one's variance."""
        missing = self.unconditional.keys() - condition.keys()
        if missing:
            hint = "guidance goes from the unconditional prediction towards this one"
            raise ValueError(must("Guided", sorted(missing)[0], "be given as a condition", None, hint))
        given: Prediction = self.model(z, logsnr, **condition)
        inside = torch.ones_like(logsnr, dtype=torch.bool)
        if self.interval is not None:
            inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        if self.scale == 1.0 or (self.interval is not None and not inside.any()):
            return given
        replaced = {name: _like(value, condition[name]) for name, value in self.unconditional.items()}
        without: Prediction = self.model(z, logsnr, **condition | replaced)
        scale = torch.where(inside, self.scale, 1.0)
        out = torch.lerp(without.out, given.out, torch.as_tensor(per_example(scale, given.out)))
        return Prediction(z, logsnr, out, given.parameterization, given.variance, given.head)


class Clipped(Wrapped):
    """x̂ clipped to the range of the data, at every level: `Clipped(model)` for data in [−1, 1].

    >>> from vdiff import Denoiser, X
    >>> Clipped(Denoiser(lambda z, logsnr: 3 * z, X()))(torch.ones(1, 2), torch.zeros(1)).x
    tensor([[1., 1.]])
    """

    def __init__(self, model: Model, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(model)
        self.low, self.high = finite("Clipped", "low", low), finite("Clipped", "high", high)
        if not self.low < self.high:
            raise ValueError(must("Clipped", "low", f"be below high = {self.high:g}", f"{self.low:g}"))

    @property
    def protocol(self) -> dict[str, object]:
        return self._after("x̂ clipped to", f"[{self.low:g}, {self.high:g}]")

    def forward(self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any) -> Prediction:
        """The prediction with its x̂ clipped."""
        free: Prediction = self.model(z, logsnr, **condition)
        return Prediction(z, logsnr, free.x.clamp(self.low, self.high), X(), free.variance, free.head)


def _like(value: Any, condition: Any) -> Any:
    """What replaces a condition, with its batch."""
    if isinstance(value, Tensor) and isinstance(condition, Tensor):
        try:
            return value.to(condition.device).expand_as(condition)
        except RuntimeError:
            raise ValueError(
                must("Guided", "unconditional", f"have the shape of the condition, {tuple(condition.shape)}", tuple(value.shape))
            ) from None
    return torch.full_like(condition, value) if isinstance(condition, Tensor) and isinstance(value, int | float) else value


__all__ = ["Clipped", "Guided"]
