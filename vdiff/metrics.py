"""How far samples are from data."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import FiniteData
from vdiff._validate import require, validated

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)


def comparable(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None) -> None:
    """Rule: two or more examples in each of x and y, of one shape, and positive widths."""
    for word, points in (("x", x), ("y", y)):
        require(len(points) > 1, word, "hold at least two examples", len(points))
    same = f"hold examples of the shape of those in x, {tuple(x.shape[1:])}"
    require(x.shape[1:] == y.shape[1:], "y", same, tuple(y.shape[1:]))
    widths = [1.0] if bandwidths is None else bandwidths
    positive = len(widths) > 0 and all(0 < width < math.inf for width in widths)
    require(positive, "bandwidths", "be positive", widths)


@validated(rules=[comparable])
def mmd(
    x: FiniteData, y: FiniteData, bandwidths: Sequence[float] | None = None
) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy of samples `x` from a reference set `y`, without bias,
    in float64.

        MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j),
        k(x, y) = mean_h exp(−‖x − y‖²/2h²)

    Its expectation is 0 for equal distributions and positive for others, whatever n and m. An
    estimate may be negative. Gradients flow to `x`.

    Args:
        x: samples (n, *dims).
        y: the reference (m, *dims), for instance held-out data.
        bandwidths: the widths h of the Gaussians; by default ¼, ½, 1, 2 and 4 times the median
            distance within `y`. Values for another `y` are then not comparable.

    Raises:
        TypeError: if x or y is not a floating tensor.
        ValueError: for examples of two shapes, fewer than two of them, values that are not finite,
            bandwidths that are not positive, or a reference with a median distance of 0.

    Gretton et al., A kernel two-sample test, JMLR 13 (2012), lemma 6.

    >>> points = torch.tensor([[0.0], [1.0]])
    >>> mmd(points, points, bandwidths=[1.0])
    tensor(-0.3935, dtype=torch.float64)
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if bandwidths is None:
        median = torch.pdist(y).median().item()
        hint = "give bandwidths=[…]"
        require(median > 0, "y", "have a median distance above 0", median, hint)
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
