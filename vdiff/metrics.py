"""How far samples are from data."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import Given, Number, data, finite_values, require, validated

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)


def two_or_more(value: Tensor, argument: str, given: Given) -> Tensor:
    """At least two examples."""
    hint = "one has no distance to another"
    require(len(value) > 1, argument, "hold at least two examples", len(value), hint)
    return value


Samples = Annotated[Tensor, data, finite_values, two_or_more]


def same_shape(x: Tensor, y: Tensor) -> None:
    """Rule: examples of x and y have one shape."""
    same = f"hold examples of the shape of those in x, {tuple(x.shape[1:])}"
    require(x.shape[1:] == y.shape[1:], "y", same, tuple(y.shape[1:]))


def some_widths(bandwidths: Sequence[float] | None) -> None:
    """Rule: there is at least one width, and each is positive."""
    if bandwidths is not None:
        require(len(bandwidths) > 0, "bandwidths", "hold at least one width", bandwidths)
        for width in bandwidths:
            Number(above=0.0)(width, "bandwidths", {})


@validated(rules=[same_shape, some_widths])
def mmd(x: Samples, y: Samples, bandwidths: Sequence[float] | None = None) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy of samples `x` from a reference set `y`, without bias,
    in float64.

        MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j),
        k(x, y) = mean_h exp(−‖x − y‖²/2h²)

    Its expectation is 0 where both have one distribution and positive where not, whatever n and m;
    an estimate may be negative. `x` may be differentiated through.

    Args:
        x: samples (n, *dims).
        y: the reference (m, *dims), for instance held-out data.
        bandwidths: the widths h of the Gaussians; by default ¼, ½, 1, 2 and 4 times the median
            distance within `y`, so that values compare between models under one `y` only.

    Raises:
        TypeError: if an argument is not a floating tensor.
        ValueError: for examples of two shapes, fewer than two of them, values that are not finite,
            bandwidths that are not positive, or a reference with a median distance of 0.

    Gretton et al., A kernel two-sample test, JMLR 13 (2012), lemma 6.

    >>> mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), bandwidths=[1.0])
    tensor(-0.3935, dtype=torch.float64)
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if bandwidths is None:
        median = torch.pdist(y).median().item()
        half = "half of its pairs equal"
        above = "have a median distance above 0"
        require(median > 0, "y", above, half, "give bandwidths=[…]")
        bandwidths = [octave * median for octave in OCTAVES]
    rates = [0.5 / width**2 for width in bandwidths]

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        square = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.stack([torch.exp(-rate * square).sum() for rate in rates]).mean()

    def between_pairs(a: Tensor) -> Tensor:
        n = len(a)
        return (kernel_sum(a, a) - n) / (n * (n - 1))  # the diagonal is k(a_i, a_i) = 1

    return between_pairs(x) + between_pairs(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


__all__ = ["mmd"]
