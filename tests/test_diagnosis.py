"""The variance of a draw of the loss, against its enumeration and its integrals in closed form."""

import itertools
import math

import pytest
import torch

from vdiff.diagnosis import diagnose
from vdiff.profile import Profile
from vdiff.schedule import Cosine, Linear

SEEN = ([1.0, 3.0], [2.0, 4.0, 6.0])  # errors ‖e‖² below λ = ½ and above
EDGES = (-1.0, 0.5, 2.0)


def profile():
    seen = Profile(logsnr_max=2.0, logsnr_min=-1.0, bins=2)
    seen.update(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([*SEEN[0], *SEEN[1]]))
    return seen


def test_at_a_uniform_log_snr_it_is_the_variance_of_what_can_be_drawn():
    """p = ⅓: a draw is ½ e/p with either bin as likely, and each of its errors."""
    draws = [(0.5 / len(bin), 0.5 * e * 3.0, place) for place, bin in enumerate(SEEN) for e in bin]
    mean, square = (sum(p * ell**k for p, ell, _ in draws) for k in (1, 2))
    found = diagnose(profile(), Linear(2.0, -1.0))
    assert found.loss == pytest.approx(mean)
    assert found.variance == pytest.approx(square - mean**2)
    assert found.logsnr.tolist() == [-0.25, 1.25]
    assert found.density.tolist() == pytest.approx([1 / 3, 1 / 3])
    parts = [sum(p * ell**2 for p, ell, at in draws if at == place) for place in (0, 1)]
    assert found.square.tolist() == pytest.approx(parts)
    assert found.share.tolist() == pytest.approx([part / square for part in parts])
    # with the best density the same draws, and p by bin in proportion to the root of their mean
    # square
    root = [(sum(e**2 for e in bin) / len(bin)) ** 0.5 for bin in SEEN]
    best = [one / (1.5 * sum(root)) for one in root]
    least = sum(
        1.5 * p * sum((0.5 * e / p) ** 2 for e in bin) / len(bin)
        for p, bin in zip(best, SEEN, strict=True)
    )
    assert found.best.tolist() == pytest.approx(best)
    assert found.least == pytest.approx(least - mean**2)
    assert found.effective == pytest.approx(least / square)


def test_on_a_cosine_schedule_with_a_weighting_it_is_the_integrals():
    """p = sech(λ/2)/C, whose reciprocal has the integral 2C sinh(λ/2); C is the integral 4 arctan
    tanh(λ/4) of sech(λ/2)."""
    total = 4 * (math.atan(math.tanh(EDGES[2] / 4)) - math.atan(math.tanh(EDGES[0] / 4)))
    reciprocal = [
        2 * total * (math.sinh(b / 2) - math.sinh(a / 2)) for a, b in itertools.pairwise(EDGES)
    ]
    mean, second, w = [2.0, 4.0], [5.0, 56 / 3], [math.exp(0.25), math.exp(-1.25)]
    found = diagnose(profile(), Cosine(2.0, -1.0), lambda logsnr: torch.exp(-logsnr))
    square = [0.25 * w[b] ** 2 * second[b] * reciprocal[b] for b in (0, 1)]
    loss = 0.5 * 1.5 * (w[0] * mean[0] + w[1] * mean[1])
    assert found.square.tolist() == pytest.approx(square, rel=2e-3)  # by the midpoint rule
    assert found.density.tolist() == pytest.approx([1.5 / one for one in reciprocal], rel=2e-3)
    assert found.loss == pytest.approx(loss)
    assert found.variance == pytest.approx(sum(square) - loss**2, rel=5e-3)
    reach = 1.5 * (w[0] * second[0] ** 0.5 + w[1] * second[1] ** 0.5)
    assert found.least == pytest.approx(0.25 * reach**2 - loss**2)
    assert found.effective == pytest.approx(0.25 * reach**2 / sum(square), rel=2e-3)


def test_what_is_printed_is_the_ratio_of_what_is_printed_beside_it():
    """A loss that is nearly the same at every draw: variances 49 times apart, second moments 1.01
    times."""
    seen = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
    seen.update(torch.tensor([-0.5, -0.5, 0.5, 0.5]), torch.tensor([9.9, 10.1, 11.8, 12.2]))
    found = diagnose(seen, Linear(1.0, -1.0))
    *_, variance, moment = str(found).splitlines()
    times = found.variance / found.least
    assert times > 20
    said = f"variance of a draw {found.variance:.4g}, least {found.least:.4g}: {times:.3g} times"
    assert variance == f"{said}, and as many times the draws for the same error"
    second = found.square.sum().item()
    least = second * found.effective
    said = f"second moment of a draw {second:.4g}, least {least:.4g}"
    assert moment == f"{said}: {1 / found.effective:.3g} times"
    assert second / least < 1.02


def test_a_least_variance_of_zero_has_no_ratio():
    seen = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2)
    seen.update(torch.tensor([-0.5, 0.5]), torch.tensor([0.1, 0.3]))
    lines = str(diagnose(seen, Linear(1.0, -1.0))).splitlines()
    assert lines[-2] == "variance of a draw 0.01, least 0"
