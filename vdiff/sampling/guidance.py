"""Models made of a model: guided by a condition, or with x̂ clipped. Each is a denoiser with a
bound of its own."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import checking, finite, must, names_arrays, shown
from vdiff.gaussian import per_example
from vdiff.parameterization import Prediction, X
from vdiff.sampling.step import Model, predicted


class Wrapped(nn.Module):
    """A model around another. `protocol` says what it changes, beside what the inner one does;
    `evaluate` writes it down."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise TypeError(
                must(
                    type(self).__name__,
                    "model",
                    "be called as model(z, logsnr) and return a Prediction",
                    shown(model),
                )
            )
        check_no_data_parallel(type(self).__name__, "model", model)
        self.model = model

    @property
    def protocol(self) -> dict[str, object]:
        """What was done to the model, by name."""
        return dict(getattr(self.model, "protocol", {}))

    def _predict(self, z: Tensor, logsnr: Tensor, condition: dict[str, Any]) -> Prediction:
        return predicted(type(self).__name__, self.model, z, logsnr, condition)

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
        unconditional: for each keyword of the condition what replaces it: a number fills a tensor
            like the condition's (the null class of a label), a tensor stands for the batch, one
            row for all, or None.
        interval: in λ; either end may be infinite.

    Raises:
        TypeError, ValueError: for an empty `unconditional`, an interval that is none; and at a
            call without the condition that it replaces, with one that has not a row for each
            sample, or with a fraction in the place of an integer.

    >>> from vdiff import Denoiser, Eps
    >>> model = Denoiser(lambda z, logsnr, label: label[:, None] * z, Eps())
    >>> guided = Guided(model, scale=3.0, unconditional={"label": 0})
    >>> guided(torch.ones(1, 2), torch.zeros(1), label=torch.tensor([2])).eps
    tensor([[6., 6.]])
    """

    def __init__(
        self,
        model: Model,
        scale: float,
        unconditional: Mapping[str, Any],
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(model)
        if not isinstance(unconditional, Mapping) or not unconditional:
            error = ValueError if isinstance(unconditional, Mapping) else TypeError
            hint = "for instance {'label': null class}"
            raise error(
                must(
                    "Guided",
                    "unconditional",
                    "name what replaces the condition",
                    repr(unconditional),
                    hint,
                )
            )
        if abs(finite("Guided", "scale", scale)) > torch.finfo(torch.float32).max:
            hint = "2 is a common one"
            raise ValueError(must("Guided", "scale", "be a number of float32", f"{scale:g}", hint))
        self.scale, self.unconditional = float(scale), dict(unconditional)
        self.interval = None if interval is None else _interval(interval)

    @property
    def protocol(self) -> dict[str, object]:
        where = (
            ""
            if self.interval is None
            else f" for λ in [{self.interval[0]:g}, {self.interval[1]:g}]"
        )
        return self._after("guidance", f"scale {self.scale:g}{where}")

    @names_arrays
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any
    ) -> Prediction:
        """The guided prediction, in the model's own units and with the conditional one's
        variance."""
        for name in self.unconditional:
            if condition.get(name) is None:
                hint = "guidance goes from the unconditional prediction towards this one"
                raise ValueError(must("Guided", name, "be given as a condition", None, hint))
        replaced = {
            name: _like(name, value, condition[name], len(z))
            for name, value in self.unconditional.items()
        }
        given = self._predict(z, logsnr, condition)
        inside = torch.ones_like(logsnr, dtype=torch.bool)
        if self.interval is not None:
            inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        if self.scale == 1.0 or (self.interval is not None and not inside.any()):
            return given
        without = self._predict(z, logsnr, condition | replaced)
        scale = torch.where(inside, self.scale, torch.ones_like(logsnr))
        out = torch.lerp(without.out, given.out, torch.as_tensor(per_example(scale, given.out)))
        return given.but(out=out)


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
            raise ValueError(
                must("Clipped", "low", f"be below high = {self.high:g}", f"{self.low:g}")
            )

    @property
    def protocol(self) -> dict[str, object]:
        return self._after("x̂ clipped to", f"[{self.low:g}, {self.high:g}]")

    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any
    ) -> Prediction:
        """The prediction with its x̂ clipped."""
        free = self._predict(z, logsnr, condition)
        return free.but(out=free.x.clamp(self.low, self.high), parameterization=X())


def _interval(interval: object) -> tuple[float, float]:
    """Two numbers that rise; raises for anything else."""
    ends = tuple(interval) if isinstance(interval, tuple | list) else ()
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends):
        raise TypeError(
            must(
                "Guided",
                "interval",
                "be (lowest, highest) log-SNR",
                repr(interval),
                "an end may be ±math.inf",
            )
        )
    low, high = (float(end) for end in ends)
    if not low < high:
        hint = "noise has the lower λ; γ and σ run the other way"
        raise ValueError(
            must("Guided", "interval", "be (lowest, highest) log-SNR", repr(interval), hint)
        )
    return low, high


def _like(name: str, value: Any, condition: Any, batch: int) -> Any:
    """What replaces a condition, with its batch."""
    if not isinstance(condition, Tensor) or value is None:
        return value
    if checking() and condition.ndim > 0 and len(condition) != batch:
        hint = "it would broadcast in silence"
        raise ValueError(
            must(
                "Guided",
                name,
                f"have a row for each of {batch} samples",
                f"shape {tuple(condition.shape)}",
                hint,
            )
        )
    if not isinstance(value, Tensor) and not isinstance(value, Real):
        raise TypeError(
            must(
                "Guided",
                "unconditional",
                "hold a number, a tensor or None in the place of a tensor",
                repr(value),
            )
        )
    if not isinstance(value, Tensor):
        value = torch.tensor(
            value, dtype=None if isinstance(value, Integral) else torch.float64, device="cpu"
        )
    if value.is_floating_point() and not condition.is_floating_point():
        hint = "a class is an integer; it would be cut off to one in silence"
        raise TypeError(
            must(
                "Guided",
                "unconditional",
                f"be integer for '{name}', as the condition is",
                f"{value.tolist()}",
                hint,
            )
        )
    try:
        return value.to(condition.dtype).to(condition.device).expand_as(condition)
    except RuntimeError:
        raise ValueError(
            must(
                "Guided",
                "unconditional",
                f"have the shape of the condition, {tuple(condition.shape)}",
                tuple(value.shape),
            )
        ) from None


__all__ = ["Clipped", "Guided"]
