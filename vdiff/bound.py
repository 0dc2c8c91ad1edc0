"""The negative evidence lower bound of each example, in its three parts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import on_chain
from vdiff._modules import ValuesCopied, copy_values
from vdiff._validate import require, validated
from vdiff.gaussian import bits_per_dim

_PARTS = "prior", "diffusion", "reconstruction"


class Drawn(NamedTuple):
    """The drawn steps of a T-step chain: times i/T, and T times the step's term, (batch,) each."""

    steps: int
    times: tuple[Tensor, ...]
    terms: tuple[Tensor, ...]

    def __deepcopy__(self, memo: dict[Any, Any]) -> "Drawn":
        return Drawn(*copy_values(tuple(self), memo))


@dataclass(frozen=True)
class Bound(ValuesCopied):
    """−log p(x) ≤ prior + diffusion + reconstruction, in nats per example, each a (batch,) tensor.

    For continuous data these are densities and may be negative. `dims` is the number of
    dimensions, or with a mask (batch,) numbers of modelled ones. A bound is a pytree of its
    tensors. `copy.copy` shares the tensors and the graph of the loss. `copy.deepcopy` copies the
    values, detached: torch copies no graph.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> bound = Bound(prior=zero, diffusion=one, reconstruction=one, dims=2)
    >>> bound.total, bound.bits_per_dim
    (tensor([2.]), tensor([1.4427]))
    """

    prior: Float[Tensor, " batch"]
    diffusion: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    dims: int | Tensor
    drawn: Drawn | None = None

    @property
    def total(self) -> Tensor:
        """The whole bound, nats per example."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The whole bound per example, in bits per dimension; 0 where none is modelled."""
        return bits_per_dim(self.total, self.dims)

    @property
    def bits_per_token(self) -> Tensor:
        """The whole bound per example, in bits per token: each token is a dimension."""
        return self.bits_per_dim

    @property
    def mean_bits_per_dim(self) -> Tensor:
        """The bound of the batch: the sum of nats over the number of dimensions, in bits."""
        dims = torch.as_tensor(self.dims).expand_as(self.total).sum()
        return bits_per_dim(self.total.sum(), dims)

    def parts(self) -> dict[str, Tensor]:
        """Prior, diffusion, reconstruction and total by name, bits per dimension per example."""
        names = *_PARTS, "total"
        return {name: bits_per_dim(getattr(self, name), self.dims) for name in names}

    @validated
    def terms(self, *, nats: bool = False) -> dict[str, Tensor]:
        """The terms of a chain's bound by DDPM's name, per example, in bits per dimension or in
        `nats`.

        "L_0" is the reconstruction, "L_i" the step p(z_{i−1} | z_i), i = 1 … T, and "L_{T+1}" the
        prior: a table of 1000 noise levels has L_0 … L_1000, its chain 999 steps. A step that no
        example drew is missing. A step that an example did not draw is NaN for it. After
        `elbo(..., draws=steps)` all steps are there, and they sum to the total.

        Raises:
            ValueError: for a bound in continuous time, and for given times that are not i/T.

        Ho et al., arXiv:2006.11239, eq. 5, where L_t−1 is our L_i with t = i + 1.

        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> drawn = Drawn(steps=2, times=(0.5 * one, one), terms=(1.5 * one, 0.5 * one))
        >>> terms = Bound(zero, one, zero, 1, drawn).terms(nats=True)
        >>> {name: term.item() for name, term in terms.items()}
        {'L_0': 0.0, 'L_1': 0.75, 'L_2': 0.25, 'L_3': 0.0}
        """
        hint = "in continuous time there are no terms: `evaluate` shows the bound by log-SNR"
        require(self.drawn is not None, "steps", "be given to elbo", None, hint)
        steps, times, terms = self.drawn  # type: ignore[misc]
        for t in times:
            on_chain(t, steps)
        index = (torch.stack(times).double() * steps).round().long()
        value = torch.stack(terms) / steps
        none, once = value.new_zeros(steps + 1, value.shape[1]), torch.ones_like(value)
        means = none.scatter_add(0, index, value) / none.scatter_add(0, index, once)
        named = {"L_0": self.reconstruction}
        named |= {f"L_{i}": means[i] for i in sorted(set(index.flatten().tolist()))}
        named[f"L_{steps + 1}"] = self.prior
        if nats:
            return named
        return {name: bits_per_dim(term, self.dims) for name, term in named.items()}


def _flatten(bound: Bound) -> tuple[list[Any], list[int | None]]:
    drawn, dims = bound.drawn, bound.dims
    leaves = [getattr(bound, part) for part in _PARTS]
    leaves += [] if drawn is None else [drawn.times, drawn.terms]
    counted = isinstance(dims, Tensor)
    leaves += [dims] if counted else []
    return leaves, [None if counted else int(dims), None if drawn is None else drawn.steps]


def _unflatten(leaves: Iterable[Any], numbers: list[int | None]) -> Bound:
    prior, diffusion, reconstruction, *rest = leaves
    (dims, steps), bound = numbers, object.__new__(Bound)  # a leaf need not be a tensor
    dims = rest.pop() if dims is None else dims
    vars(bound).update(zip(_PARTS, (prior, diffusion, reconstruction), strict=True), dims=dims)
    vars(bound)["drawn"] = None if steps is None else Drawn(steps, *rest)
    return bound


# for torch.export and torch.vmap
torch.utils._pytree.register_pytree_node(
    Bound, _flatten, _unflatten, serialized_type_name="vdiff.bound.Bound",
    to_dumpable_context=list, from_dumpable_context=list,
)  # fmt: skip
