"""The divergence of a field: exactly, or by random probes that stay the same along a
trajectory."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import Count, validated
from vdiff.gaussian import sum_dims

EXACT = 16  # dimensions up to which every one of them is differentiated


class Trace:
    """How div v = tr ∂v/∂z is found from products of the Jacobian with probes, pᵀ J p.

    `directions(z, generators)` makes them, (n, batch, …), once for a trajectory: drawn anew at
    every call the field would be no function, and an adaptive solver's error control void. The
    `columns` of a divergence are estimates of it, carried along side by side.

    >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> trace = Exact()
    >>> trace.divergence(z**2, z, trace.directions(z, [torch.Generator()]))
    tensor([[6.]])
    """

    exact: bool = False
    __example__: ClassVar[str] = "for instance Exact()"

    def directions(
        self, z: Float[Tensor, "batch *dims"], generators: list[torch.Generator]
    ) -> Float[Tensor, "n batch *dims"]:
        """The vectors p, one set for each example by its own generator."""
        raise NotImplementedError

    def divergence(
        self, v: Tensor, z: Tensor, directions: Tensor, *, differentiable: bool = False
    ) -> Float[Tensor, "batch columns"]:
        """An estimate for each probe, from v with its graph back to z: one backward pass each.

        With `differentiable` the estimates have a graph of their own.
        """
        if not v.requires_grad:  # a constant field
            return z.new_zeros(len(z), len(directions))
        options = {"retain_graph": True, "create_graph": differentiable, "materialize_grads": True}
        products = [torch.autograd.grad(v, z, p, **options)[0] * p for p in directions]
        return torch.stack([sum_dims(product) for product in products], 1)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Exact(Trace):
    """All of the diagonal: a backward pass for each dimension.

    >>> Exact()
    Exact()
    """

    exact = True

    def directions(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        dims = z[0].numel()
        axes = torch.eye(dims, dtype=z.dtype, device=z.device).view(dims, 1, *z.shape[1:])
        return axes.expand(-1, len(z), *z.shape[1:])

    def divergence(
        self, v: Tensor, z: Tensor, directions: Tensor, *, differentiable: bool = False
    ) -> Tensor:
        found = super().divergence(v, z, directions, differentiable=differentiable)
        return found.sum(1, keepdim=True)


class Hutchinson(Trace):
    """pᵀ J p with random signs p (Rademacher), whose mean is the trace (Hutchinson 1990; Grathwohl
    et al., arXiv:1810.01367).

    `probes` of them are carried along one trajectory, each as an estimate of its own: a backward
    pass each, and no further evaluation. One is enough for a mean over many examples; it takes two
    for an example to know its own error.

    >>> Hutchinson(probes=2)
    Hutchinson(probes=2)
    """

    @validated
    def __init__(self, probes: Count = 2) -> None:
        self.probes = probes

    def directions(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        size = (self.probes, *z.shape[1:])
        each = [torch.randint(0, 2, size, generator=g, device=g.device) for g in generators]
        return torch.stack(each, 1).to(z) * 2 - 1


def default_trace(dims: int) -> Trace:
    """`Exact()` up to 16 dimensions, else `Hutchinson()`.

    >>> default_trace(2), default_trace(3072)
    (Exact(), Hutchinson(probes=2))
    """
    return Exact() if dims <= EXACT else Hutchinson()


__all__ = ["Exact", "Hutchinson", "Trace", "default_trace"]
