"""The dimensions that a bound is of: the others are given, clean, or absent, pure noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import PURE_NOISE, at_least_float32, to_float64
from vdiff.gaussian import per_example, sum_dims
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule

End = Tensor | float
Noise = Tensor | Callable[[End], Tensor]


@dataclass(frozen=True)
class Partial:
    """Which dimensions of each example are modelled. `modelled` and `absent` broadcast over x,
    with as many dimensions; None is all and none.

    At given dimensions the model gets z = x and λ_max, at absent ones z = ε and λ_min. Neither
    counts in a loss, so that it is of −log p(x_modelled | x_given).

    >>> part = Partial.of(torch.zeros(2, 3), torch.tensor([True, False, True]))
    >>> part.dims(torch.zeros(2, 3))
    tensor([2, 2])
    """

    modelled: Tensor | None = None
    absent: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None, absent: Tensor | None = None) -> "Partial":
        """From a mask and what is absent, each (batch, …), or of one example and shared."""
        mask, absent = (None if m is None else _by_example(m, x) for m in (mask, absent))
        if absent is not None:
            mask = ~absent if mask is None else mask & ~absent
        return cls(mask, absent)

    def rows(self, index: Tensor) -> "Partial":
        """The same of some examples."""
        masks = (self.modelled, self.absent)
        return Partial(*(None if m is None else m[index.to(m.device)] for m in masks))

    def clean(self, x: Tensor, blank: int = 0) -> Tensor:
        """x with `blank` for what is absent."""
        return x if self.absent is None else torch.where(self.absent, blank, x)

    def dims(self, x: Tensor) -> int | Tensor:
        """How many dimensions are modelled: a number, or (batch,) where there is a mask."""
        if self.modelled is None:
            return x[0].numel()
        return self.modelled.expand_as(x).flatten(1).sum(1)

    def where_any(self, nats: End) -> End:
        """Nats of each example, (batch,), and 0 where none of its dimensions is modelled."""
        if self.modelled is None or not isinstance(nats, Tensor):
            return nats
        return torch.where(self.modelled.flatten(1).any(1), nats, 0.0)

    def total(self, per_dim: End, x: Tensor) -> End:
        """The sum over the modelled dimensions of a number or tensor per dimension."""
        if not isinstance(per_dim, Tensor):
            return per_dim * self.dims(x)
        dtype = at_least_float32(torch.get_default_dtype())
        if per_dim.ndim == 0 and self.modelled is None:
            return (per_dim * x[0].numel()).to(dtype)
        return sum_dims(per_example(per_dim, to_float64(x)).expand_as(x), self.modelled).to(dtype)

    def model(
        self, model: Callable[..., Prediction], x: Tensor, noise: Noise, high: End, low: End
    ) -> Callable[..., Prediction]:
        """The model of the modelled dimensions, with the others as they are in x and in noise,
        a tensor or a function of λ. λ is `high` where they are given and `low` where they are
        absent."""
        if self.modelled is None:
            return model
        if self.absent is None:
            return _Rest(model, self.modelled, x, _field(high, x))
        fill = torch.where(self.absent, noise if isinstance(noise, Tensor) else noise(low), x)
        told = torch.where(self.absent, _field(low, x), _field(high, x))
        return _Rest(model, self.modelled, fill, told)

    def model_of(
        self, model: Callable[..., Prediction], x: Tensor, noise: Noise, schedule: Schedule
    ) -> Callable[..., Prediction]:
        """`model` between the ends of a schedule."""
        if self.modelled is None:
            return model
        return self.model(model, x, noise, *schedule.ends_of(x.ndim))


@dataclass(frozen=True)
class _Rest:
    """A model with z and λ replaced where a dimension is not modelled. It is called with the λ of
    the modelled dimensions, and its prediction is at this λ."""

    inner: Callable[..., Prediction]
    modelled: Tensor
    fill: Tensor
    told: Tensor

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Any:
        field = torch.where(self.modelled, per_example(logsnr, self.told), self.told)
        seen = torch.where(self.modelled, z, self.fill.to(z.dtype))
        prediction = self.inner(seen, field.to(logsnr.dtype), **condition)
        return prediction.replace(logsnr=logsnr, modelled=self.modelled)


def _by_example(mask: Tensor, x: Tensor) -> Tensor:
    mask = mask if mask.ndim == x.ndim else mask[None]
    return mask.expand(len(x), *mask.shape[1:])


def _field(level: End, x: Tensor) -> Tensor:
    """A level with as many dimensions as x, in float64."""
    v = to_float64(torch.as_tensor(level, device=x.device)).detach().clamp(min=PURE_NOISE)
    return v if v.ndim == x.ndim else v.view(-1, *[1] * (x.ndim - 1))
