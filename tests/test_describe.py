"""What a recipe optimises: its weighting as published, constant, monotony and peak included, and
what the report says."""

import math
import re

import pytest
import torch
from theorems.reference import gmm1d

from vdiff import weighted_elbo
from vdiff.describe import describe
from vdiff.parameterization import Eps, V, X
from vdiff.profile import Profile
from vdiff.recipes import RECIPES, Recipe, recipe
from vdiff.schedule import Cosine, Linear
from vdiff.weighting import ELBO, MSE, Custom, MinSNR, Sigmoid


def sech(v):
    return 1 / torch.cosh(v)


def normal(v, mean, variance):
    return torch.exp(-0.5 * (v - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)


def iddpm(v):
    c = math.cos(math.pi * 0.008 / (2 * 1.008)) ** 2
    return (
        2
        * 1.008
        / math.pi
        * torch.sigmoid(-v)
        * torch.sqrt(c * torch.sigmoid(v) / (1 - c * torch.sigmoid(v)))
    )


PUBLISHED = {  # w(λ) with its constant; monotone; the λ of the peak, where it has one
    "ddpm-continuous": (
        lambda v: (
            2 * torch.sigmoid(-v) / torch.sqrt(0.01 + 39.8 * torch.nn.functional.softplus(-v))
        ),
        False,
        -0.92189,
    ),
    "iddpm": (iddpm, False, None),
    "vdm": (torch.ones_like, True, None),
    "vdmpp-sigmoid": (lambda v: torch.sigmoid(2 - v), True, None),
    "edm": (lambda v: 8 * normal(v, 2.4, 2.4**2) * (torch.exp(-v) + 0.25), False, -3.3077775),
    "flow-matching": (lambda v: torch.exp(-v / 2), True, None),
    "sd3": (lambda v: 2 * normal(v, 0.0, 4.0) * (1 + torch.exp(-v / 2)) ** 2, False, None),
    "v-prediction": (lambda v: 2 / math.pi * torch.exp(-v / 2), True, None),
    "p2": (lambda v: sech(v / 2) / (1 + torch.exp(v)) / math.pi, False, -math.log(3)),
    "min-snr": (
        lambda v: sech(v / 2) * torch.clamp(5 * torch.exp(-v), max=1) / math.pi,
        False,
        0.0,
    ),
    "indi": (lambda v: torch.exp(-v) * sech(v / 4) ** 2 / 4, True, None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_weighting(name):
    described = describe(name)
    if name == "vdmpp-edm-monotone":
        edm = describe("edm")
        expected = torch.where(edm.logsnr < edm.peak, edm.weight.max(), edm.weight)
        assert torch.allclose(described.weight, expected, rtol=1e-7)  # the grid passes by the peak
        assert described.monotone
        return
    if name == "ddpm":  # the chain's is the continuous one but for the width of a step
        t = torch.linspace(0.3, 0.9, 7, dtype=torch.float64)
        level = recipe(name).schedule(t)
        assert torch.allclose(
            recipe(name).weighting(level), PUBLISHED["ddpm-continuous"][0](level), rtol=0.02
        )
        assert not described.monotone
        return
    weight, monotone, peak = PUBLISHED[name]
    assert torch.allclose(described.weight, weight(described.logsnr), rtol=1e-10)
    assert described.monotone is monotone
    if peak is not None:
        assert described.peak == pytest.approx(peak, abs=1e-5)


def test_where_it_rises_is_where_the_derivative_is_positive():
    two = Recipe(
        "two humps",
        Linear(8.0, -8.0),
        Eps(),
        Custom(lambda v: 2 + torch.sin(v), logsnr_max=8.0, logsnr_min=-8.0),
    )
    described = describe(two)
    expected = [
        (-2.5 * math.pi, -1.5 * math.pi),
        (-0.5 * math.pi, 0.5 * math.pi),
        (1.5 * math.pi, 2.5 * math.pi),
    ]
    assert len(described.rises) == 3
    for (a, b), (c, d) in zip(described.rises, expected, strict=True):
        assert a == pytest.approx(max(c, -8), abs=2e-3)
        assert b == pytest.approx(min(d, 8), abs=2e-3)
    ups = sum(math.sin(min(d, 8)) - math.sin(max(c, -8)) for c, d in expected)
    assert described.negative_mass() == pytest.approx(ups / 3, rel=1e-5)


def test_the_augmentation_is_the_weighting_itself():
    described = describe("vdmpp-sigmoid")
    level = torch.tensor([-15.0, 2.0, 15.0], dtype=torch.float64)
    expected = torch.sigmoid(2 - level) / torch.sigmoid(torch.tensor(17.0, dtype=torch.float64))
    assert torch.allclose(described.augmentation(level), expected, rtol=1e-12)
    with pytest.raises(
        ValueError,
        match=r"must have a monotone weighting; got w that rises from λ = -9.6 to -3.31",
    ):
        describe("edm").augmentation(level)


def test_the_signal_is_the_share_of_the_loss():
    """Against the loss itself: λ drawn by the schedule, the exact denoiser, its own error."""
    oracle = gmm1d()
    described = describe(Recipe("mine", Cosine(8.0, -8.0), V(), Sigmoid(1.0)), error=oracle.mmse)
    t = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    loss = weighted_elbo(
        oracle, oracle.sample(40_000), schedule=Cosine(8.0, -8.0), weighting=Sigmoid(1.0), t=t
    )
    level = Cosine(8.0, -8.0)(t)
    for share in (0.1, 0.5, 0.9):
        at = described.quantile(described.signal, share)
        below = torch.where(level <= at, loss, 0.0) - share * loss
        assert abs(below.mean()) < 4 * below.std() / 200


def test_the_same_loss_on_another_target():
    mine = describe(Recipe("mine", Cosine(), V(), MSE(Cosine(), V()) * MinSNR(5.0)))
    level = torch.linspace(-5, 5, 11, dtype=torch.float64)
    plain = MinSNR(5.0)(level)
    assert torch.allclose(mine.factor(V())(level), plain, rtol=1e-10)
    assert torch.allclose(mine.factor(X())(level), plain * (1 + level.exp()), rtol=1e-10)
    assert torch.allclose(mine.factor(Eps())(level), plain * (1 + (-level).exp()), rtol=1e-10)


def test_overlap_is_a_share():
    assert describe("edm").overlap(describe("edm")) == pytest.approx(1.0, abs=1e-6)
    assert (
        0.3
        < describe("vdm").overlap(describe("edm"))
        == pytest.approx(describe("edm").overlap(describe("vdm")))
    )
    apart = [describe(Recipe(str(i), Linear(i + 1.0, float(i)), Eps(), Sigmoid())) for i in (0, 5)]
    assert apart[0].overlap(apart[1]) == pytest.approx(0.0, abs=1e-3)


def test_the_report_in_words():
    text = str(describe("edm"))
    assert (
        "no likelihood, not even of noisier data: w rises for λ from -9.6 to -3.3, "
        "by 97 % of its largest value" in text
    )
    assert "the evidence lower bound itself" in str(describe("vdm"))
    profile = Profile(logsnr_max=15.0, logsnr_min=-15.0, bins=3)
    profile.update(torch.tensor([-10.0, 0.0, 10.0]), torch.ones(3))
    text = str(describe("vdmpp-sigmoid", error=profile.at))
    assert (
        "an ELBO of noisier data: half of it of data noised to λ ≤ 2.0 (σ/α ≥ 0.37), "
        "a share of 2.3e-06 of data as it is" in text
    )
    assert "with the error of the given model" in text
    assert "-0.0" not in str(describe("min-snr"))


TABLELAND = Custom(lambda v: 1 / (1 + (v / 4) ** 8))


@pytest.mark.parametrize(
    ("described", "ends"),
    [
        (describe("vdmpp-sigmoid"), (-15.0, 2 - math.log(99))),
        (
            describe(Recipe("mine", Cosine(), Eps(), ELBO() * MinSNR(5.0))),
            (-15.0, math.log(5) - math.log(0.99)),
        ),
        (
            describe(Recipe("mine", Linear(8.0, -8.0), Eps(), TABLELAND)),
            (-4 * 99**-0.125, 4 * 99**-0.125),
        ),
    ],
    ids=["noisy end", "to a corner", "inside"],
)
def test_a_plateau_is_no_peak(described, ends):
    """Where w is within 1 % of its largest value, over a stretch."""
    assert described.plateau == pytest.approx(ends, abs=0.01)
    text = str(described)
    where = f"for λ from {ends[0]:.1f} to {ends[1]:.1f}"
    assert f"none: a plateau, w within 1 % of its largest value {where}" in text
    assert "peak      λ =" not in text


@pytest.mark.parametrize("name", ["ddpm", "iddpm", "edm", "flow-matching", "sd3", "p2", "min-snr"])
def test_a_peak_is_no_plateau(name):
    described = describe(name)
    assert described.plateau is None
    assert f"peak      λ = {round(described.peak, 2) + 0.0:.2f}," in str(described)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("vdm++", "did you mean 'vdmpp-sigmoid' or 'vdmpp-edm-monotone'?"),
        ("VDM++-sigmoid", "did you mean 'vdmpp-sigmoid'?"),
        ("vdmpp", "did you mean 'vdmpp-sigmoid' or 'vdmpp-edm-monotone'?"),
        ("flow", "did you mean 'flow-matching'?"),
        ("min", "did you mean 'min-snr'?"),
        ("edmm", "did you mean 'edm'?"),
        ("vmd", "did you mean 'vdm'?"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_those_that_are_meant(word, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        recipe(word)


def test_what_is_no_recipe_is_named():
    with pytest.raises(
        ValueError, match=r"recipe: argument 'name' must be one of .* \(did you mean 'edm'\?\)"
    ):
        describe("edmm")


@pytest.mark.parametrize("name", RECIPES)
def test_a_repr_holds_no_address(name):
    assert " at 0x" not in repr(describe(name))
    assert "name='edm'" in repr(describe("edm"))
