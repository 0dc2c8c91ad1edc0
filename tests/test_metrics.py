"""The maximum mean discrepancy against its closed form and a double loop."""

import math

import pytest
import torch

from vdiff.metrics import OCTAVES, mmd

WIDTHS = [0.5, 2.0]


def kernel(a, b, widths):
    return sum(math.exp(-float((a - b).square().sum()) / (2 * h * h)) for h in widths) / len(
        widths
    )


def by_hand(x, y, widths):
    def within(a):
        return sum(
            kernel(a[i], a[j], widths) for i in range(len(a)) for j in range(len(a)) if i != j
        ) / (len(a) * (len(a) - 1))

    return (
        within(x)
        + within(y)
        - 2 * sum(kernel(a, b, widths) for a in x for b in y) / (len(x) * len(y))
    )


def points(n, *shape, shift=0.0, seed=0):
    return (
        torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        + shift
    )


def test_it_is_the_double_loop():
    x, y = points(6, 2, 3), points(9, 2, 3, shift=0.5, seed=1)
    assert mmd(x, y, WIDTHS).item() == pytest.approx(by_hand(x, y, WIDTHS), rel=1e-12)


def test_the_bandwidths_follow_the_reference_alone():
    x, y = points(30, 2), points(41, 2, seed=1)
    median = torch.pdist(y).median().item()
    assert mmd(x, y) == mmd(x, y, [octave * median for octave in OCTAVES])
    assert mmd(3 * x + 1, 3 * y + 1).item() == pytest.approx(
        mmd(x, y).item(), rel=1e-9
    )  # unit free


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_its_mean_is_the_closed_form_between_two_normals(shift):
    """E k(a, b) for a − b ~ N(δ, 2): h/√(h² + 2) exp(−δ²/2(h² + 2)); with few samples, so that a
    bias would show."""

    def expected(delta, h):
        return h / math.sqrt(h * h + 2) * math.exp(-(delta**2) / (2 * (h * h + 2)))

    exact = sum(2 * expected(0.0, h) - 2 * expected(shift, h) for h in WIDTHS) / len(WIDTHS)
    draws = torch.stack(
        [
            mmd(points(5, 1, seed=2 * i), points(4, 1, shift=shift, seed=2 * i + 1), WIDTHS)
            for i in range(3000)
        ]
    )
    assert abs(draws.mean() - exact) < 4 * draws.std() / len(draws) ** 0.5


def test_it_differentiates_through_the_samples():
    x, y = points(5, 2).requires_grad_(), points(6, 2, shift=0.5, seed=1)
    assert torch.autograd.gradcheck(lambda x: mmd(x, y, WIDTHS), x)
