"""The negative evidence lower bound of each example, in its three parts."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vdiff.gaussian import bits_per_dim


@dataclass(frozen=True)
class Bound:
    """−log p(x) ≤ prior + diffusion + reconstruction, in nats per example, each a (batch,) tensor.

    `total` is their sum and `bits_per_dim` that over d ln 2, per example; means and standard errors are the
    evaluation's business. For continuous data these are densities and may be negative.

    >>> bound = Bound(prior=torch.zeros(1), diffusion=torch.ones(1), reconstruction=torch.ones(1), dims=2)
    >>> bound.total, bound.bits_per_dim
    (tensor([2.]), tensor([1.4427]))
    """

    prior: Float[Tensor, " batch"]
    diffusion: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    dims: int

    @property
    def total(self) -> Tensor:
        """The whole bound, nats per example."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The whole bound per example, in bits per dimension."""
        return bits_per_dim(self.total, self.dims)

    def parts(self) -> dict[str, Tensor]:
        """Prior, diffusion, reconstruction and total by name, in bits per dimension per example.

        >>> zero = torch.zeros(1)
        >>> list(Bound(zero, zero, zero, 1).parts())
        ['prior', 'diffusion', 'reconstruction', 'total']
        """
        parts = {"prior": self.prior, "diffusion": self.diffusion, "reconstruction": self.reconstruction, "total": self.total}
        return {name: bits_per_dim(nats, self.dims) for name, nats in parts.items()}
