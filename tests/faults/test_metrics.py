"""Samples and references that have no discrepancy."""

import pytest
import torch

from vdiff.metrics import mmd

from .common import assert_refused


def points(n: int, dims: int = 2) -> torch.Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "y", "bandwidths", "argument", "words"),
    [
        (
            points(4),
            points(4, 3),
            None,
            "y",
            "hold examples of the shape of those in x, (2,) .. got (3,)",
        ),
        (points(1), points(4), None, "x", "hold at least two examples .. got 1"),
        (points(4), points(1), None, "y", "hold at least two examples .. got 1"),
        (points(4) / 0, points(4), None, "x", "be finite .. got 8 NaN or infinite values"),
        (points(4), points(4) / 0, None, "y", "be finite .. got 8 NaN or infinite values"),
        (
            points(4),
            torch.zeros(4, 2),
            None,
            "y",
            "have a median distance above 0 .. give bandwidths",
        ),
        (points(4), points(5), [], "bandwidths", "be positive .. got []"),
        (points(4), points(5), [1.0, 0.0], "bandwidths", "be positive .. got [1.0, 0.0]"),
    ],
)
def test_values_that_have_no_discrepancy(
    x: torch.Tensor, y: torch.Tensor, bandwidths: list[float] | None, argument: str, words: str
) -> None:
    with assert_refused(ValueError, "mmd", argument, words):
        mmd(x, y, bandwidths)


@pytest.mark.parametrize("argument", ["x", "y"])
def test_integers_are_refused_by_type(argument: str) -> None:
    given = {"x": points(4), "y": points(5), argument: torch.zeros(4, 2, dtype=torch.long)}
    with assert_refused(TypeError, "mmd", argument, "be real and floating", "torch.int64"):
        mmd(**given)
