"""The divergence of a field: exact, or from random probes that are fixed along a trajectory."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import Count, validated
from vdiff.gaussian import sum_dims

EXACT = 16  # dimensions, up to which the default is exact


class Trace(ABC):
    """An estimator of div v = tr J, J = ∂v/∂z, from the products pᵀ J p of directions p.

    A trajectory uses one set of directions. With new ones at each call the field would be no
    function of z, and an adaptive solver could not control its error.

    >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> trace = Exact()
    >>> trace.divergence(z**2, z, trace.directions(z, [torch.Generator()]))
    tensor([[6.]])
    """

    exact: ClassVar[bool] = False
    __example__: ClassVar[str] = "for instance Exact()"

    @abstractmethod
    def directions(
        self, z: Float[Tensor, "batch *dims"], generators: list[torch.Generator]
    ) -> Float[Tensor, "n batch *dims"]:
        """The vectors p. Each example has its own generator."""

    def divergence(
        self, v: Tensor, z: Tensor, directions: Tensor, *, weight: Tensor | None = None,
        differentiable: bool = False,
    ) -> Float[Tensor, "batch columns"]:  # fmt: skip
        """Estimates of div v from v and its graph to z: one for each direction, or their sum in
        one column if `exact`. A `weight` that broadcasts over z multiplies each ∂v_i/∂z_i.

        It takes a backward pass for each direction. With `differentiable` the estimates have a
        graph.
        """
        if not v.requires_grad:  # a constant field
            return z.new_zeros(len(z), 1 if self.exact else len(directions))
        options = {"retain_graph": True, "create_graph": differentiable, "materialize_grads": True}
        left = directions if weight is None else directions * weight
        products = [
            torch.autograd.grad(v, z, p, **options)[0] * q
            for p, q in zip(directions, left, strict=True)
        ]
        estimates = torch.stack([sum_dims(product) for product in products], 1)
        return estimates.sum(1, keepdim=True) if self.exact else estimates

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Exact(Trace):
    """The exact trace, from a backward pass for each dimension.

    >>> Exact().directions(torch.zeros(1, 2), [])[:, 0]
    tensor([[1., 0.],
            [0., 1.]])
    """

    exact = True

    def directions(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        dims = z[0].numel()
        axes = torch.eye(dims, dtype=z.dtype, device=z.device).view(dims, 1, *z.shape[1:])
        return axes.expand(-1, len(z), *z.shape[1:])


class Hutchinson(Trace):
    """pᵀ J p with random signs p (Rademacher), whose mean is the trace (Hutchinson 1990; Grathwohl
    et al., arXiv:1810.01367).

    Each of the `probes` gives an estimate from the same evaluations of the field. One suffices for
    a mean over many examples. An example's own error needs two.

    >>> generator = torch.Generator().manual_seed(0)
    >>> Hutchinson(probes=1).directions(torch.zeros(1, 4), [generator]).abs()
    tensor([[[1., 1., 1., 1.]]])
    """

    @validated
    def __init__(self, probes: Count = 2) -> None:
        self.probes = probes

    def directions(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        size = (self.probes, *z.shape[1:])
        bits = [torch.randint(0, 2, size, generator=g, device=g.device) for g in generators]
        return torch.stack(bits, 1).to(z) * 2 - 1


def default_trace(dims: int) -> Trace:
    """`Exact()` up to 16 dimensions, else `Hutchinson()`.

    >>> default_trace(2), default_trace(3072)
    (Exact(), Hutchinson(probes=2))
    """
    return Exact() if dims <= EXACT else Hutchinson()
