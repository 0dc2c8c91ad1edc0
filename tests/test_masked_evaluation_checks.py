"""What `evaluate` and `compare` refuse of a mask, and what they say of it."""

import math
import re

import pytest
import torch
from masked_laws import NORMAL, PLAIN, SETTING, SMALL, by_dim, closed_form

from vdiff.decoder import Decoder, Gaussian
from vdiff.likelihood import Replicated, compare, evaluate

# a few draws of a density of its own, in small tests
pytestmark = pytest.mark.filterwarnings("ignore:(evaluate|compare). .*draws?")


def test_a_reference_must_have_the_modelled_dimensions():
    x = NORMAL.sample(10, 13)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(7)) < 0.6
    dims = mask.sum(1)
    report = evaluate(NORMAL, x, **SETTING, draws=16, plan=SMALL, mask=mask)
    exact = closed_form(NORMAL, x, mask)[None]
    calls = torch.zeros(10)
    found = report.with_reference("exact", Replicated(exact, dims, calls, exact=True))
    gap = found.references["exact"].gap
    known = exact.sum().item() / (dims.sum().item() * math.log(2))
    assert gap.value == pytest.approx(report.total.value - known, rel=1e-9)
    assert found.references["exact"].estimate.value == pytest.approx(known, rel=1e-12)
    assert gap.images < report.total.images
    for wrong in (3, dims + 1):
        with pytest.raises(ValueError, match="be of the dimensions that each image models"):
            report.with_reference("other", Replicated(exact, wrong, calls, exact=True))
    shared = evaluate(
        NORMAL, x, **SETTING, draws=4, plan=PLAIN, mask=torch.tensor([True, False, True])
    )
    with pytest.raises(ValueError, match="be of the same shape, 2; got 3"):
        shared.with_reference("other", Replicated(exact, 3, calls, exact=True))


class Whole(Gaussian):
    """A decoder that says nothing about its dimensions."""

    factorises = False


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"mask": torch.ones(4, dtype=torch.bool)}, "argument 'mask' must broadcast over data"),
        ({"mask": torch.ones(3)}, "argument 'mask' must be a bool tensor"),
        (
            {"mask": torch.zeros(3, dtype=torch.bool)},
            "argument 'mask' must leave a modelled dimension in one image or more; got none",
        ),
        (
            {"absent": torch.ones(5, 3, dtype=torch.bool)},
            "argument 'absent' must leave a modelled dimension",
        ),
        (
            {"mask": torch.tensor([True, False, True]), "decoder": Whole()},
            "argument 'decoder' must factorise over dimensions where there is a mask",
        ),
    ],
)
def test_a_mask_that_does_not_fit(bad, text):
    x = NORMAL.sample(5, 14)
    with pytest.raises((ValueError, TypeError), match=re.escape(text)):
        evaluate(NORMAL, x, **SETTING | bad)
    with pytest.raises((ValueError, TypeError), match=re.escape(text)):
        compare(NORMAL, by_dim, x, **SETTING | bad)


def test_nan_is_allowed_only_where_values_are_absent():
    x, absent = NORMAL.sample(6, 15), torch.zeros(6, 3, dtype=torch.bool)
    absent[2, 1] = absent[4] = True
    mask = torch.tensor([False, True, True])
    holed = torch.where(absent, torch.nan, x)
    setting = SETTING | {"draws": 4, "plan": PLAIN}
    report = evaluate(NORMAL, holed, **setting, mask=mask, absent=absent)
    other = evaluate(NORMAL, torch.where(absent, 7.0, x), **setting, mask=mask, absent=absent)
    assert report.total == other.total  # what is absent is not read
    holed[0, 0] = torch.nan  # given
    with pytest.raises(ValueError, match="evaluate: argument 'data' must be finite; got 1 NaN"):
        evaluate(NORMAL, holed, **setting, mask=mask, absent=absent)
    with pytest.raises(ValueError, match="compare: argument 'data' must be finite"):
        compare(NORMAL, by_dim, holed, **setting, mask=mask, absent=absent)
    skipped = evaluate(NORMAL, holed, **setting, mask=mask, absent=absent, skip_nonfinite=True)
    assert skipped.protocol["skipped"] == 1
    rest = evaluate(NORMAL, holed[1:], **setting, mask=mask, absent=absent[1:])
    assert skipped.total == rest.total
    assert isinstance(Gaussian(), Decoder)


def test_the_protocol_has_hashes_and_counts_and_fits_80_columns():
    mask = torch.tensor([True, False, True])
    report = evaluate(NORMAL, NORMAL.sample(4, 0), **SETTING, draws=4, plan=PLAIN, mask=mask)
    text = str(report)
    assert re.search(r"\n  mask +[0-9a-f]{16}\n  modelled +dims 8, of 12, images 4\n", text)
    assert max(map(len, text.splitlines())) <= 80


def test_absent_values_are_no_sign_of_a_wrong_range():
    images = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    absent = torch.zeros(4, 2, 2, dtype=torch.bool)
    absent[0] = True
    setting = SETTING | {"draws": 32, "plan": SMALL}
    filled = torch.where(absent, 50.0, images)
    outside = "outside"
    assert not any(
        outside in w for w in evaluate(by_dim, filled, **setting, absent=absent).warnings
    )
    with pytest.warns(UserWarning, match=outside):
        evaluate(by_dim, filled, **setting)
