"""What every estimator here returns: −log p of each example, several times over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from vdiff._validate import Whole
from vdiff.gaussian import bits_per_dim
from vdiff.likelihood.estimate import Estimate, mean_error

_SEVERAL = Whole(at_least=2, hint="one has no standard error")
Replicates = Annotated[int, _SEVERAL]


@dataclass(frozen=True)
class Replicated:
    """Independent estimates of −log p(x) of each example, nats: (replicates, batch) in float64.

    Means and errors come from these alone. A standard error here is Monte Carlo's, on the given
    examples; one replicate has none (NaN) unless the estimate is `exact`, then it is zero.
    `evaluations` counts those of the model, for each example, over all replicates; `protocol` is
    the record from which the number can be computed again.

    >>> estimate = Replicated(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), dims=2, evaluations=torch.tensor([8, 8]))
    >>> estimate.nats, estimate.standard_error
    (tensor([2., 4.]), tensor([1., 0.]))
    >>> estimate.mean, round(estimate.mean_error, 4)
    (3.0, 0.5)
    """

    replicates: Float[Tensor, "replicates batch"]
    dims: int
    evaluations: Tensor
    exact: bool = False
    protocol: dict[str, object] = field(default_factory=dict, kw_only=True)

    __example__: ClassVar[str] = "of dequantized_ode, ode_likelihood, path_importance or immse"
    label: ClassVar[str] = ""  # what must stand behind the number wherever it is printed

    @property
    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of each example: the mean of its replicates."""
        return self.replicates.mean(0)

    @property
    def bits_per_dim(self) -> Float[Tensor, " batch"]:
        """The same in bits per dimension."""
        return bits_per_dim(self.nats, self.dims)

    @property
    def standard_error(self) -> Float[Tensor, " batch"]:
        """Of `nats`, from the spread of an example's replicates."""
        if self.exact:
            return self.replicates.new_zeros(self.replicates.shape[1])
        if len(self.replicates) < 2:
            return self.replicates.new_full(self.replicates.shape[1:], math.nan)
        return self.replicates.std(0) / math.sqrt(len(self.replicates))

    @property
    def mean(self) -> float:
        """Over the examples, nats."""
        return self.nats.mean().item()

    @property
    def mean_error(self) -> float:
        """Its standard error on these examples, which are independent of each other."""
        return self.standard_error.square().sum().sqrt().item() / len(self.nats)

    @property
    def spread_error(self) -> float:
        """Its standard error over examples: what others would give. It contains `mean_error`
        already; NaN for one example."""
        n = len(self.nats)
        return self.nats.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan

    @property
    def estimate(self) -> Estimate:
        """The mean in bits per dimension, with both of its errors and their intervals.

        >>> Replicated(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), dims=2, evaluations=torch.tensor([8, 8])).estimate.freedom
        1.0
        """
        scale, n = 1 / (self.dims * math.log(2)), len(self.nats)
        error, freedom = self.mean_error, None
        if error > 0:
            count = len(self.replicates)
            freedom = mean_error(self.replicates.var(0), count, count)[1].item()
        spread = self.spread_error * scale if n > 1 else None
        return Estimate(self.mean * scale, error * scale, spread, freedom, n)

    def __str__(self) -> str:
        return "\n".join([f"{self.estimate} bits/dim{self.label}", *listed(self.protocol)])


def listed(protocol: Mapping[str, object]) -> list[str]:
    """A protocol as one line, or none.

    >>> listed({"draws": 8, "budget": None})
    ['draws 8']
    """
    known = ((word, v) for word, v in protocol.items() if v is not None)
    text = [f"{word} {f'{v:.4g}' if isinstance(v, float) else v}" for word, v in known]
    return [", ".join(text)] if text else []


__all__ = ["Replicated"]
