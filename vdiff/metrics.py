"""How far samples are from data."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import check_data, check_device, check_finite, finite, must

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd(
    x: Float[Tensor, "n *dims"],
    y: Float[Tensor, "m *dims"],
    bandwidths: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy of samples `x` from a reference set `y`, without bias,
    in float64.

        MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j),   k =
        mean_h exp(−‖x − y‖²/2h²)

    Its expectation is 0 where both have one distribution and positive where not, whatever n and m;
    an estimate may be negative. `x` may be differentiated through.

    Args:
        x: samples, one or more dimensions behind the first.
        y: the reference, for instance held-out data.
        bandwidths: the widths h of the Gaussians; by default ¼, ½, 1, 2 and 4 times the median
            distance within `y`, so that they do not move with the samples: values compare between
            models under one `y` only.

    Raises:
        TypeError: for what is no floating tensor.
        ValueError: for examples of two shapes, fewer than two of them, values that are not finite,
            bandwidths that are not positive, or a reference with a median distance of 0.

    Gretton et al., A kernel two-sample test, JMLR 13 (2012), lemma 6.

    >>> mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), bandwidths=[1.0])
    tensor(-0.3935, dtype=torch.float64)
    """
    check_data("mmd", x)
    check_data("mmd", y, "y")
    check_device("mmd", "y", y, x)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            must(
                "mmd",
                "y",
                f"hold examples of the shape of those in x, {tuple(x.shape[1:])}",
                tuple(y.shape[1:]),
            )
        )
    for argument, examples in (("x", x), ("y", y)):
        check_finite("mmd", examples, argument)
        if len(examples) < 2:
            raise ValueError(
                must(
                    "mmd",
                    argument,
                    "hold at least two examples",
                    len(examples),
                    "one has no distance to another",
                )
            )
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if bandwidths is None:
        median = torch.pdist(y).median().item()
        if median == 0:
            raise ValueError(
                must(
                    "mmd",
                    "y",
                    "have a median distance above 0",
                    "half of its pairs equal",
                    "give bandwidths=[…]",
                )
            )
        bandwidths = [octave * median for octave in OCTAVES]
    if not len(bandwidths):
        raise ValueError(must("mmd", "bandwidths", "hold at least one width", bandwidths))
    rates = [0.5 / finite("mmd", "bandwidths", h, above=0.0) ** 2 for h in bandwidths]

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        square = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.stack([torch.exp(-rate * square).sum() for rate in rates]).mean()

    def between_pairs(a: Tensor) -> Tensor:
        return (kernel_sum(a, a) - len(a)) / (
            len(a) * (len(a) - 1)
        )  # the diagonal is k(a_i, a_i) = 1

    return between_pairs(x) + between_pairs(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


__all__ = ["mmd"]
