"""What every estimator here returns: −log p of each example, several times over."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vdiff.gaussian import bits_per_dim


@dataclass(frozen=True)
class Replicated:
    """Independent estimates of −log p(x) of each example, nats: (replicates, batch) in float64.

    Means and errors come from these alone. A standard error here is Monte Carlo's, on the given examples; one replicate
    has none (NaN) unless the estimate is `exact`, then it is zero. `evaluations` counts those of the model, for each
    example, over all replicates.

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
        """Its standard error over examples: what others would give. It contains `mean_error` already; NaN for one example."""
        return self.nats.std(correction=1).item() / math.sqrt(len(self.nats)) if len(self.nats) > 1 else math.nan

    def __str__(self) -> str:
        scale = bits_per_dim(self.replicates.new_ones(()), self.dims).item()
        value, error, spread = self.mean * scale, self.mean_error * scale, self.spread_error * scale
        return f"{value:.4f} ± {error:.4f} (Monte Carlo) ± {spread:.4f} (images) bits/dim"


__all__ = ["Replicated"]
