"""Random masks: what they give, their chances, their draws by seed, step and slot."""

import functools

import pytest
import torch
from registry import MASKS
from scipy.stats import chi2

from vdiff import masks
from vdiff.errors import InvalidType, InvalidValue
from vdiff.masks import (
    Absent,
    Bernoulli,
    Mixture,
    NothingGiven,
    RandomBox,
    RandomHalf,
    masks_of_step,
    name_of,
)

EVERY = MASKS | {
    "a function": lambda x, generator: torch.rand(x.shape[-1], generator=generator)[None] < 0.5
}
X = torch.zeros(12, 2, 5)


def test_every_public_mask_is_in_the_registry():
    public = {getattr(masks, name) for name in masks.__all__}
    assert {p for p in public if isinstance(p, type)} == {type(mask) for mask in MASKS.values()}


def drawn(mask, count=4000, x=X[0]):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([mask(x, generator) for _ in range(count)])


@pytest.mark.parametrize("mask", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shares_put_together_are_the_masks_of_the_step(mask, count):
    whole, absent = masks_of_step(mask, X, seed=1, step=5)
    assert whole.shape == X.shape
    assert whole.dtype == torch.bool
    assert (absent is not None) == ("Absent" in repr(mask))
    for index in range(count):
        rows = X[index::count]
        share, gone = masks_of_step(mask, rows, seed=1, step=5, index=index, count=count)
        assert torch.equal(share, whole[index::count])
        if absent is not None:
            none = torch.zeros_like(share)
            assert torch.equal(none if gone is None else gone, absent[index::count])


def test_another_step_or_seed_has_other_masks_and_one_slot_has_one():
    mask = Bernoulli()
    places = ((1, 5), (1, 5), (1, 6), (2, 5))
    first, again, *others = (masks_of_step(mask, X, seed=a, step=b)[0] for a, b in places)
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)
    assert not torch.equal(first[0], first[1])


def test_each_half_is_equally_likely():
    masks = drawn(RandomHalf(), x=torch.zeros(3, 4))
    kinds, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 4
    assert (kinds[:, None] == ~kinds).all(2).any(1).all()  # with each half, the other
    assert chi_square(counts, torch.full((4,), 1000.0)) < chi2.ppf(1 - 1e-4, 3)
    odd = drawn(RandomHalf(dims=(1,)), 100, torch.zeros(2, 5)).sum((1, 2)).unique()
    assert odd.tolist() == [4, 6]


def test_a_box_has_a_uniform_size_and_a_uniform_place():
    boxes = drawn(RandomBox(dims=(-1,)), x=torch.zeros(1, 4))[:, 0]
    kinds, counts = boxes.unique(dim=0, return_counts=True)
    sizes = kinds.sum(1)
    assert len(kinds) == 10  # 4 places of size 1, 3 of size 2, 2, 1
    expected = 4000 / 4 / (5 - sizes)
    assert chi_square(counts, expected) < chi2.ppf(1 - 1e-4, 9)
    assert (kinds.int().diff(dim=1).abs().sum(1) <= 2).all()  # connected
    inside, outside = drawn(RandomBox(), 100), drawn(RandomBox(outside=True), 100)
    assert torch.equal(inside, ~outside)


def test_bernoulli_has_its_probability_and_is_shared_where_it_says():
    masks = drawn(Bernoulli(0.3)).double()
    error = (0.3 * 0.7 / len(masks)) ** 0.5
    assert (masks.mean(0) - 0.3).abs().max() < 4.5 * error
    shared = drawn(Bernoulli(0.3, shared=(0,)))
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert not torch.equal(masks[:, 0], masks[:, 1])
    assert not drawn(Bernoulli(0.0), 10).any()
    assert drawn(Bernoulli(1.0), 10).all()


def test_a_mixture_draws_in_proportion_to_its_weights():
    masks = drawn(Mixture([NothingGiven(), Bernoulli(0.0)], weights=[3, 1]))
    every = masks.flatten(1).all(1).double()
    assert abs(every.mean() - 0.75) < 4 * (0.75 * 0.25 / len(every)) ** 0.5
    assert Mixture([NothingGiven()] * 2).weights == (1.0, 1.0)
    assert Mixture([NothingGiven()] * 2, [0.25, 0.5]).weights == (0.25, 0.5)


def chi_square(counts, expected):
    return ((counts - expected).square() / expected).sum().item()


FAULTS = {
    "a class": (lambda: Mixture([RandomHalf]), InvalidType, r"an instance: RandomHalf\(\)"),
    "weights": (lambda: Mixture([RandomHalf()], [1, 2]), InvalidValue, "one number for each of 1"),
    "no weight": (lambda: Mixture([RandomHalf()], [0]), InvalidValue, "not all 0"),
    "no masks": (lambda: Mixture([]), InvalidValue, "'masks' must hold at least one"),
    "a dimension": (lambda: of(RandomHalf((3,))), InvalidValue, r"dimensions of an example"),
    "a probability": (lambda: Bernoulli(1.5), InvalidValue, r"must lie in \[0, 1\]"),
    "a tensor": (lambda: masks_of_step(X > 0, X, seed=0, step=0), InvalidType, "mask of a loss"),
    "floats": (lambda: of(lambda x, g: x), InvalidType, "'mask' must return a bool tensor"),
    "one argument": (
        lambda: of(lambda x: x > 0),
        InvalidType,
        r"'mask' must take \(x, generator\)",
    ),
    "numpy": (lambda: of(lambda x, g: x.numpy() > 0), InvalidType, r"torch.from_numpy\(array\)"),
    "a vector": (
        lambda: masks_of_step(RandomHalf(), X[0], seed=0, step=0),
        InvalidValue,
        r"'dims' must name dimensions of an example, \(5,\); got -2 of RandomHalf\(dims="
        r"\(-2, -1\)\) \(without the batch; RandomHalf\(dims=\(-1,\)\)",
    ),
    "shared": (
        lambda: of(Bernoulli(shared=(-3,))),
        InvalidValue,
        r"'shared' must name .*got -3 of Bernoulli.*Bernoulli\(shared=\(-1,\)\)",
    ),
    "a shape": (lambda: of(lambda x, g: x[:, :3] > 0), InvalidValue, r"over an example, \(2, 5\)"),
}


def of(mask):
    return masks_of_step(mask, X, seed=0, step=0)


@pytest.mark.parametrize(("act", "error", "text"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_mask_is_refused(act, error, text):
    with pytest.raises(error, match=text):
        act()


def test_what_is_absent_is_not_given():
    x = torch.tensor([[1.0, torch.nan, 3.0], [4.0, 5.0, 6.0]])
    mask, absent = masks_of_step(lambda x, g: (~x.isnan(), x.isnan()), x, seed=0, step=0)
    assert torch.equal(absent, x.isnan())
    assert torch.equal(mask, ~absent)
    twice = Absent(Absent(RandomHalf()))(X[0], torch.Generator().manual_seed(0))
    assert torch.equal(twice[1], ~twice[0])


def test_a_mask_has_a_name_without_an_address():
    assert name_of(RandomHalf()) == "RandomHalf(dims=(-2, -1))"
    assert name_of(of) == "test_masks.of"

    class Own:
        def __call__(self, x, generator):
            return x > 0

    assert name_of(Own()).endswith("Own")


def test_the_name_of_a_mask_has_its_settings():
    """So that a run that continues with others says so."""

    class Own:
        def __init__(self, rate):
            self.rate, self.noise = rate, object()

        def __call__(self, x, generator):
            return torch.rand(x.shape, generator=generator) < self.rate

    assert name_of(Own(0.1)).endswith("Own(rate=0.1)")
    assert name_of(Absent(Own(0.1))).endswith("Own(rate=0.1))")
    mixtures = [name_of(Mixture([NothingGiven(), Own(rate)])) for rate in (0.1, 0.9)]
    assert mixtures[0].replace("0.1", "0.9") == mixtures[1] != mixtures[0]
    assert name_of(functools.partial(of, 3)) == "functools.partial(test_masks.of, 3)"
