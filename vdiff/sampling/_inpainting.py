"""What a sampler keeps as it is: given dimensions, clean, and absent ones, noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._partial import End, Partial
from vdiff.errors import InvalidType
from vdiff.prediction import Prediction


def given_with_mask(
    model: Any, mask: Tensor | None, given: Tensor | None, absent: Tensor | None
) -> None:
    """Rule: data are given where a mask says so, and sound there."""
    if mask is not None and given is None:
        hint = "mask=mask, given=x: where the mask is False, the samples are x"
        raise InvalidType("given", "come with a mask", None, hint)
    if given is None:
        return
    hint = "mask=mask, True where a dimension is sampled"
    if mask is None:
        raise InvalidType("mask", "come with what is given", None, hint)
    diffusion_of(model).check_given(given, _read(Partial.of(given, mask, absent)))


def _read(part: Partial) -> Tensor:
    """Where what is given is read: where it is neither sampled nor absent."""
    assert part.modelled is not None
    return ~(part.modelled if part.absent is None else part.modelled | part.absent)


@dataclass(frozen=True)
class Kept:
    """The dimensions of a batch that are not modelled: data where they are given and noise where
    they are absent.

    >>> z, x = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, torch.nan]])
    >>> kept = Kept.of(z, torch.tensor([True, False, True]), x, torch.tensor([False, False, True]))
    >>> kept.in_state(z + 5), kept.in_data(z + 6)
    (tensor([[5., 2., 0.]]), tensor([[6., 2., 0.]]))
    """

    part: Partial
    x: Tensor
    noise: Tensor

    @classmethod
    def of(
        cls, z: Tensor, mask: Tensor | None, given: Tensor | None, absent: Tensor | None
    ) -> "Kept":
        """`z` is the noise from which a sampler starts."""
        part = Partial.of(z, mask, absent)
        x = torch.zeros_like(z)
        if given is not None:
            x = torch.where(_read(part), given.to(z.dtype), x)
        return cls(part, x, z)

    def in_state(self, z: Tensor) -> Tensor:
        """A state with what is kept in its place: x where it is given, noise where absent."""
        fill = self.x
        if self.part.absent is not None:
            fill = torch.where(self.part.absent, self.noise, fill)
        return self._beside(z, fill)

    def in_data(self, x: Tensor) -> Tensor:
        """Data with what is given in its place, and 0 where it is absent."""
        return self._beside(x, self.x)

    def _beside(self, modelled: Tensor, fill: Tensor) -> Tensor:
        if self.part.modelled is None:
            return modelled
        return torch.where(self.part.modelled, modelled, fill)

    def completed(self, prediction: Any) -> Any:
        """The prediction beside what is kept: x̂ is data where they are given, and 0 where they
        are absent."""
        if self.part.modelled is None:
            return prediction
        return prediction.beside(self.x, self.part.modelled)

    def model(
        self, model: Callable[..., Prediction], high: End, low: End
    ) -> Callable[..., Prediction]:
        """The model of the modelled dimensions. It gets λ `high` where they are given and
        `low` where they are absent."""
        return self.part.model(model, self.x, self.noise, high, low)
