"""What a sampler keeps as it is: given dimensions, clean, and absent ones, noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._inputs import finite_values
from vdiff._partial import End, Partial
from vdiff._precision import to_float64
from vdiff._validate import Given, floating, require
from vdiff.errors import InvalidType
from vdiff.gaussian import per_example, scales
from vdiff.prediction import Prediction


def _like_z(value: Any, argument: str, given: Given) -> Any:
    """A floating tensor of the shape and the device of `z`."""
    z = given["z"]
    floating(value, argument, given)
    hint = "it would broadcast in silence" if value.numel() < z.numel() else ""
    require(
        value.shape == z.shape, argument, f"have the shape of z, {tuple(z.shape)}",
        tuple(value.shape), hint,
    )  # fmt: skip
    same = f"be on the device of z, {z.device}"
    require(value.device == z.device, argument, same, value.device, f"{argument}.to(z.device)")
    return value


GivenData = Annotated[Tensor, _like_z]


def given_with_mask(mask: Tensor | None, given: Tensor | None, absent: Tensor | None) -> None:
    """Rule: data are given where a mask says so, and finite there."""
    if mask is not None and given is None:
        hint = "mask=mask, given=x: where the mask is False, the samples are x"
        raise InvalidType("given", "come with a mask", None, hint)
    if given is None:
        return
    hint = "mask=mask, True where a dimension is sampled"
    if mask is None:
        raise InvalidType("mask", "come with what is given", None, hint)
    finite_values(_read(given, Partial.of(given, mask, absent)), "given", {})


def _read(given: Tensor, part: Partial) -> Tensor:
    """What is given, and 0 where it is not: where it is sampled or absent."""
    assert part.modelled is not None
    unread = part.modelled if part.absent is None else part.modelled | part.absent
    return torch.where(unread, torch.zeros_like(given), given)


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
        x = torch.zeros_like(z) if given is None else _read(given.to(z.dtype), part)
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

    def completed(self, prediction: Prediction) -> Prediction:
        """The prediction with the output that stands for what is kept: x̂ is data where they are
        given, and 0 where they are absent."""
        if self.part.modelled is None:
            return prediction
        a, s = scales(to_float64(prediction.logsnr)).to(self.x.dtype)
        z = prediction.z
        eps = (z - per_example(a, z) * self.x) / per_example(s, z)
        output = prediction.parameterization.combination(self.x, eps, prediction.logsnr)
        return prediction.replace(output=self._beside(prediction.output, output))

    def model(
        self, model: Callable[..., Prediction], high: End, low: End
    ) -> Callable[..., Prediction]:
        """The model of the modelled dimensions. It gets λ `high` where they are given and
        `low` where they are absent."""
        return self.part.model(model, self.x, self.noise, high, low)
