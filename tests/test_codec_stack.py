"""The stack of bits: it restores what it gave, costs what a normal distribution says, and gives
random numbers whatever was pushed before."""

import math

import numpy as np
import pytest

from vdiff.codec import stack as module
from vdiff.codec.stack import Stack, Underflow

pytest.importorskip("constriction")


def words(count, seed=0):
    found = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    found[-1] |= 1
    return found


@pytest.mark.parametrize("std", [0.01, 0.3, 1.0, 16.0, 37.5, 900.0, 2.0**18])
def test_what_is_popped_and_pushed_again_leaves_the_words(std):
    rng, given = np.random.default_rng(1), words(4000)
    mean, stds = rng.normal(0, 1e5, 3000), std * rng.uniform(1, 3, 3000)
    stack = Stack(given)
    index = stack.pop_normal(mean, stds)
    assert len(stack) < len(given)
    stack.push_normal(index, mean, stds)
    assert np.array_equal(stack.words(), given)


@pytest.mark.parametrize("far", [0, 3, 70, 10**4, 10**9, 2**43])
def test_any_number_comes_back_however_far_from_its_mean(far):
    rng = np.random.default_rng(far)
    mean, std = rng.normal(0, 50, 500), np.exp(rng.normal(2, 2, 500))
    index = np.rint(mean).astype(np.int64) + rng.integers(-far, far + 1, 500)
    stack = Stack(words(9))
    stack.push_normal(index, mean, std)
    assert np.array_equal(stack.pop_normal(mean, std), index)
    assert np.array_equal(stack.words(), words(9))


def bits_of(stack, index, std, repeats=4000):
    before = stack.bits
    stack.push_normal(np.full(repeats, index), np.zeros(repeats), np.full(repeats, std))
    return (stack.bits - before) / repeats


@pytest.mark.parametrize(("deviations", "within"), [(0, 1e-3), (2, 1e-3), (4, 0.03), (6, 0.1)])
def test_a_symbol_costs_what_its_distribution_says(deviations, within):
    std = 16.0
    index = round(deviations * std)
    upper, lower = ((index + half) / (std * math.sqrt(2)) for half in (-0.5, 0.5))
    mass = 0.5 * (math.erfc(upper) - math.erfc(lower))
    assert bits_of(Stack(words(9)), index, std) == pytest.approx(-math.log2(mass), abs=within)


def test_beyond_eight_deviations_a_symbol_costs_less():
    assert bits_of(Stack(words(9)), 16 * 20, 16.0) < 0.5 * 20**2 / math.log(2)


def test_what_is_popped_off_random_bits_is_normal():
    count = 200_000
    index = Stack(words(60_000)).pop_normal(np.full(count, 0.3), np.full(count, 20.0))
    z = (index - 0.3) / 20
    assert abs(z.mean()) < 4 / math.sqrt(count)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / count)
    outside = count * math.erfc(4.4 / math.sqrt(2))
    assert 0 < (np.abs(z) > 4.4).sum() < outside + 5 * math.sqrt(outside)
    assert np.abs(z).max() < 8


def after_wrong_symbols(whitened):
    """The variance of what is popped where symbols of another distribution were pushed."""
    count, stack = 20_000, Stack(words(9))
    wrong = np.random.default_rng(2).normal(0, 50, count).round().astype(np.int64)
    zero, std = np.zeros(count), np.full(count, 16.0)
    stack.push_normal(wrong, zero, std)
    if whitened:
        stack.whiten(1, 32.0 * (len(stack) - 2))
    return (stack.pop_normal(zero[:10_000], std[:10_000] * 1.01) / std[:10_000]).var()


def test_whitened_bits_are_random_whatever_was_pushed():
    assert abs(after_wrong_symbols(whitened=True) - 1) < 4 * math.sqrt(2 / 10_000)
    assert after_wrong_symbols(whitened=False) > 1.1


def test_whitening_twice_changes_nothing():
    stack = Stack(words(50))
    stack.whiten(3, 900.0)
    assert not np.array_equal(stack.words(), words(50))
    stack.whiten(3, 900.0)
    assert np.array_equal(stack.words(), words(50))


def exact_bits(stack):
    """The bits of a stack with their fraction: its last two words are one number."""
    given = stack.words()
    return 32 * (len(given) - 2) + math.log2(int(given[-1]) * 2**32 + int(given[-2]))


def test_whitening_costs_nothing():
    stack, zero, std = Stack(words(200)), np.zeros(3), np.full(3, 16.0)
    cost, rounds = 0.0, 20_000
    for key in range(rounds):
        before = exact_bits(stack)
        stack.whiten(key, 96.0)
        cost += exact_bits(stack) - before
        stack.push_normal(stack.pop_normal(zero, std), zero + 0.3, std)
    assert abs(cost) / rounds < 3e-5


def test_a_stack_that_ends_raises():
    stack = Stack(words(20))
    with pytest.raises(Underflow):
        stack.pop_normal(np.zeros(200), np.full(200, 16.0))
    with pytest.raises(Underflow):
        Stack(words(20)).whiten(0, 32.0 * 19)


def test_the_lowest_count_of_words_is_noted():
    stack = Stack(words(100))
    stack.whiten(0, 32 * 40)
    assert stack.lowest == 60
    index = stack.pop_normal(np.zeros(300), np.full(300, 16.0))
    stack.push_normal(index, np.zeros(300), np.full(300, 16.0))
    assert len(stack) == 100
    assert stack.lowest < 60


def test_levels_come_back_in_pieces(monkeypatch):
    monkeypatch.setattr(module, "TABLE", 17 * 10)
    rng, stack = np.random.default_rng(0), Stack(words(9))
    probabilities = rng.dirichlet(np.full(17, 0.3), 105)
    levels = np.array([rng.choice(17, p=row) for row in probabilities])
    before = stack.bits
    stack.push_levels(levels, probabilities)
    cost = -np.log2(probabilities[np.arange(105), levels]).sum()
    assert stack.bits - before == pytest.approx(cost, abs=2)
    assert np.array_equal(stack.pop_levels(probabilities), levels)
    assert np.array_equal(stack.words(), words(9))


def test_words_go_below_and_come_from_below():
    stack = Stack(words(30))
    below = stack.take_below(10)
    assert np.array_equal(below, words(30)[:20])
    assert len(stack) == stack.lowest == 10
    stack.put_below(below)
    assert np.array_equal(stack.words(), words(30))
    other = stack.copy()
    other.pop_normal(np.zeros(9), np.ones(9))
    assert len(stack) == 30
