"""A schedule at times: λ, the rate, and on a chain the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from vdiff._modules import copy_values
from vdiff.gaussian import Step

AllReduce = Callable[[Tensor], Tensor]
Learn = Callable[[Tensor, int], Tensor]


def unchanged(loss: Tensor, dims: int) -> Tensor:
    """The loss: nothing is learned from it."""
    return loss


class NoiseLevels(NamedTuple):
    """A schedule at times t, in float64: λ, the rate −dλ/dt or T·expm1(Δ) that multiplies the loss
    of a uniform t, and on a chain the step Δ = λ_s − λ_t, s = t − 1/T.

    `learn(loss, dims)` takes the loss at these times, (batch,) nats over `dims` dimensions, and
    returns it with the same value. A schedule that learns from losses does it there.

    >>> from vdiff.schedule import Linear
    >>> Linear(13.3, -5.0).at(torch.ones(1), steps=10).delta
    tensor([1.8300], dtype=torch.float64)
    """

    logsnr: Tensor
    rate: Tensor
    delta: Tensor | None = None
    learn: Learn = unchanged

    @property
    def step(self) -> Step:
        """The chain's step that ends at t."""
        assert self.delta is not None, "a step is a chain's: schedule.at(t, steps)"
        return Step(self.logsnr, self.delta)

    def __deepcopy__(self, memo: dict[Any, Any]) -> "NoiseLevels":
        return NoiseLevels(*copy_values(self[:3], memo))  # no graph: nothing is learned from it
