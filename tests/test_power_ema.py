"""Averages of a length chosen afterwards, against the averages of a known trajectory."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from vdiff.training import PowerEMA, reconstruct
from vdiff.training.power_ema import LONGEST, Snapshot, exponent_of, power_weights

STEPS = 400


def weight_at(n: int) -> Tensor:
    """The weights after step n of a known trajectory."""
    t = torch.tensor(n / STEPS, dtype=torch.float64)
    return torch.stack([torch.ones_like(t), t, torch.exp(-3 * t), torch.sin(9 * t)])


def profile(updates: int, length: float) -> Tensor:
    """The factors of the weights of updates 1, 2, … in their average: (n/N)^{γ+1} minus the same
    at n − 1. They sum to one."""
    ends = torch.arange(updates + 1, dtype=torch.float64) / updates
    return (ends ** (exponent_of(length) + 1)).diff()


def average(updates: int, length: float) -> Tensor:
    """The average of the trajectory, computed directly."""
    weights = torch.stack([weight_at(n) for n in range(updates)])
    return (profile(updates, length)[:, None] * weights).sum(0)


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_at(0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))


def trained(every: int, lengths: tuple[float, ...] = (0.05, 0.1), steps: int = STEPS) -> PowerEMA:
    module = Point()
    ema = PowerEMA(module, lengths)
    for n in range(steps):
        with torch.no_grad():
            module.weight.copy_(weight_at(n))
            module.seen += 1
        ema.update(n)
        if (n + 1) % every == 0:
            ema.snapshot()
    return ema


@pytest.fixture(scope="module")
def ema() -> PowerEMA:
    return trained(every=10)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, LONGEST])
def test_the_exponent_gives_the_length(length):
    g = exponent_of(length)
    assert math.sqrt(g + 1) / (g + 2) / math.sqrt(g + 3) == pytest.approx(length, rel=1e-9)
    ends = torch.arange(20001, dtype=torch.float64) / 20000
    p, middle = (ends ** (g + 1)).diff(), (ends[1:] + ends[:-1]) / 2
    mean = (p * middle).sum()
    assert (p * (middle - mean) ** 2).sum().sqrt().item() == pytest.approx(length, rel=1e-5)


def test_the_averages_are_those_of_the_trajectory(ema):
    for snapshot in ema.snapshots:
        expected = average(snapshot.updates, snapshot.length)
        torch.testing.assert_close(snapshot.means["weight"], expected, rtol=0, atol=1e-12)


def test_a_stored_average_comes_out_as_it_is(ema):
    stored = [(s.updates, s.length) for s in ema.snapshots]
    for updates, length in [(400, 0.05), (400, 0.1), (200, 0.1)]:
        used = [pair for pair in stored if pair[0] <= updates]
        weights = power_weights(used, length, updates=updates)
        basis = torch.tensor([float(pair == (updates, length)) for pair in used])
        torch.testing.assert_close(weights, basis.double(), rtol=0, atol=1e-10)
        made = reconstruct(ema.snapshots, length, updates=updates)["weight"]
        torch.testing.assert_close(made, average(updates, length), rtol=0, atol=1e-10)


def test_what_the_snapshots_span_is_exact_for_any_trajectory(ema):
    """The reconstruction is linear: its factors of the trajectory are those of the profiles."""
    stored = [(s.updates, s.length) for s in ema.snapshots]
    weights = power_weights(stored, 0.07)
    factors = torch.zeros(STEPS, dtype=torch.float64)
    for weight, (updates, length) in zip(weights, stored, strict=True):
        factors[:updates] += weight * profile(updates, length)
    expected = (factors[:, None] * torch.stack([weight_at(n) for n in range(STEPS)])).sum(0)
    made = reconstruct(ema.snapshots, 0.07)["weight"]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)
    assert (factors - profile(STEPS, 0.07)).abs().sum() < 1e-3


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2])
def test_other_lengths_are_near_the_average_computed_directly(ema, length):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = reconstruct(ema.snapshots, length)
    torch.testing.assert_close(made["weight"], average(STEPS, length), rtol=0, atol=2e-3)
    torch.testing.assert_close(made["weight"][0].item(), 1.0, rtol=0, atol=1e-10)  # constant
    assert made["seen"].item() == STEPS


def test_the_distance_of_profiles_is_least_among_factors_that_sum_to_one():
    stored = [(100, 0.05), (100, 0.1), (200, 0.05), (200, 0.1)]
    fine = [(n * 1000, length) for n, length in stored]  # nearly continuous
    with pytest.warns(UserWarning, match="store more of them"):
        weights = power_weights(fine, 0.15)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)

    def distance(x: Tensor) -> float:
        total = -profile(200_000, 0.15)
        for factor, (n, length) in zip(x, fine, strict=True):
            total[:n] += factor * profile(n, length)
        return total.square().sum().item()

    best, generator = distance(weights), torch.Generator().manual_seed(0)
    for _ in range(10):
        change = torch.randn(4, generator=generator, dtype=torch.float64)
        assert distance(weights + 0.01 * (change - change.mean())) > best


def test_a_state_resumes_with_its_snapshots(tmp_path, ema):
    first = trained(every=10, steps=150)
    torch.save(first.state_dict(), tmp_path / "state")
    module = Point()
    again = PowerEMA(module)
    again.load_state_dict(torch.load(tmp_path / "state"))
    for n in range(150, STEPS):
        with torch.no_grad():
            module.weight.copy_(weight_at(n))
        again.update(n)
        if (n + 1) % 10 == 0:
            again.snapshot()
    one, two = (reconstruct(e.snapshots, 0.08)["weight"] for e in (ema, again))
    assert torch.equal(one, two)


def test_a_snapshot_is_a_copy(ema):
    short = trained(every=5, steps=5)
    before = short.snapshots[0].means["weight"].clone()
    short.update(5)
    assert torch.equal(short.snapshots[0].means["weight"], before)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, float("nan")])
def test_a_length_outside_its_range_is_refused(length):
    with pytest.raises(ValueError, match=r"'length' must lie in \(0, 0.288675\]"):
        exponent_of(length)
    with pytest.raises(ValueError, match=r"PowerEMA: argument 'lengths' must lie in"):
        PowerEMA(nn.Linear(1, 1), (0.05, length))


def test_what_cannot_be_is_refused():
    module = nn.Linear(1, 1)
    ema = PowerEMA(module)
    with pytest.raises(ValueError, match="'n' must be the number of updates so far; got 3"):
        ema.update(3)
    with pytest.raises(ValueError, match="have been updated since the last snapshot; got 0"):
        ema.snapshot()
    with pytest.raises(ValueError, match="'lengths' must be lengths that differ"):
        PowerEMA(module, (0.1, 0.1))
    with pytest.raises(ValueError, match="'lengths' must be lengths that differ"):
        PowerEMA(module, ())
    with pytest.raises(ValueError, match="'state' must hold averages, updates, snapshots"):
        ema.load_state_dict({"averages": {}})
    with pytest.raises(ValueError, match="'stored' must hold averages; got none"):
        power_weights([], 0.1)
    with pytest.raises(ValueError, match="'stored' must hold each average once"):
        power_weights([(5, 0.1), (5, 0.1)], 0.1)
    with pytest.raises(ValueError, match="'updates' must be at most 5; got 6"):
        power_weights([(5, 0.1)], 0.1, updates=6)
    snapshot = Snapshot(5, 0.1, {"weight": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="'snapshots' must hold some up to 3 updates"):
        reconstruct([snapshot], 0.1, updates=3)
