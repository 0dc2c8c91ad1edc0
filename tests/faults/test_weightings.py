"""Faults 22 and 23: weightings and densities of the noise level. (An adaptive density, in 23,
comes with the adaptive schedule.)"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from vdiff import Objective, weighted_elbo
from vdiff.augmentation import augmented_elbo
from vdiff.decoder import Categorical
from vdiff.describe import describe
from vdiff.diagnosis import diagnose
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.profile import Profile
from vdiff.recipes import Recipe
from vdiff.schedule import (
    Cosine,
    Histogram,
    Karras,
    Laplace,
    LearnedLinear,
    LinearBeta,
    Normal,
    OptimalTransport,
    Schedule,
    Shifted,
    Tabulated,
)
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Debiased,
    Factor,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    loss_factor,
)
from vdiff.weighting import Custom as CustomWeighting

from .common import SCHEDULE, assert_refused, assert_refused_with, assert_same, batch, model
from .own_schedules import INF, NAN


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        (lambda logsnr: -torch.ones_like(logsnr), "be finite and at least 0 .. got -1 at λ = -10"),
        (lambda logsnr: logsnr, "be finite and at least 0 .. got -10 at λ = -10"),
        (lambda logsnr: logsnr.log(), "be finite and at least 0 .. got nan at λ = -10"),
        (lambda logsnr: 1 / (logsnr - 10), "be finite and at least 0 .. got -0.05 at λ = -10"),
        (lambda logsnr: 1 / (10 - logsnr), "be finite and at least 0 .. got inf at λ = 10"),
        (
            lambda logsnr: logsnr[:, None].exp(),
            "return the shape and device of logsnr .. (1001, 1), cpu "
            "(it would broadcast in silence)",
        ),
        (
            lambda logsnr: logsnr.exp().mean(),
            "return the shape and device of logsnr .. (), cpu (it would broadcast in silence)",
        ),
        (
            lambda logsnr: 1.0,
            "return the shape and device of logsnr .. got float "
            "(torch.full_like(logsnr, value) for a constant)",
        ),
        (
            lambda logsnr: logsnr.exp().to("meta"),
            "return the shape and device of logsnr .. meta",
        ),
    ],
    ids=[
        "negative",
        "negative somewhere",
        "nan",
        "pole",
        "inf",
        "column",
        "mean",
        "number",
        "device",
    ],
)
def test_fault_22_weightings(weighting: Callable[[Tensor], Tensor], words: str) -> None:
    with assert_refused(ValueError, "Objective", "weighting", words):
        Objective(model(), schedule=SCHEDULE, loss=Weighted(weighting))
    with assert_refused(ValueError, "Custom", "weighting", words):
        CustomWeighting(weighting, logsnr_max=10.0, logsnr_min=-10.0)
    if words.startswith("return"):
        first = words.split(" .. ")[0]
        with assert_refused(ValueError, "weighted_elbo", "weighting", first):
            weighted_elbo(model(), batch()[0], schedule=SCHEDULE, weighting=weighting)


def test_fault_22_a_weighting_for_part_of_the_line() -> None:
    def tent(logsnr: Tensor) -> Tensor:
        return 1 - logsnr.abs() / 20

    with assert_refused_with(
        ValueError,
        "Custom: weighting must be finite and at least 0 .. got -1 at λ = -40 (give the range it "
        "is meant for: Custom(…, logsnr_max=…, logsnr_min=…))",
    ):
        CustomWeighting(tent)
    w = CustomWeighting(tent, logsnr_min=-20.0, logsnr_max=20.0)
    assert w(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0.5, 1.0, 0.5]
    assert not w.monotone  # no fault: the reading as an ELBO does not hold
    assert Objective(model(), schedule=SCHEDULE, loss=Weighted(w)).loss.weighting is w


@pytest.mark.parametrize("weighting", [Sigmoid, "sigmoid", 2.0])
def test_fault_22_what_is_no_weighting(weighting: object) -> None:
    words = (
        ("got the class Sigmoid (an instance: Sigmoid())",)
        if weighting is Sigmoid
        else (f"got {weighting!r} (for instance Sigmoid(2.0))",)
    )
    with assert_refused(
        TypeError, "weighted_elbo", "weighting", "be a Weighting or a function of logsnr", *words
    ):
        weighted_elbo(model(), batch()[0], schedule=SCHEDULE, weighting=weighting)  # type: ignore[arg-type]
    with assert_refused(
        TypeError, "Weighted", "weighting", "be a Weighting or a function of logsnr", *words
    ):
        Objective(model(), schedule=SCHEDULE, loss=Weighted(weighting))  # type: ignore[arg-type]


def test_fault_22_what_is_no_law_of_noise() -> None:
    """A weighting is not one: its law is."""
    words = "be an Augmentation", "got Sigmoid(bias=2.0) (for instance describe("
    with assert_refused(TypeError, "augmented_elbo", "augmentation", *words):
        augmented_elbo(model(), batch()[0], augmentation=Sigmoid(2.0), schedule=SCHEDULE)  # type: ignore[arg-type]


class Halves(Factor):
    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.full_like(logsnr, 0.5)


@pytest.mark.parametrize(
    "factor",
    [
        P2(),
        MinSNR(5.0),
        SoftMinSNR(),
        TruncatedSNR(),
        Debiased(),
        Halves(),
        MinSNR(5.0) * P2(),
        (Debiased() * P2()) * MinSNR(),
    ],
    ids=repr,
)
def test_fault_22_a_factor_alone_is_no_weighting(factor: Weighting) -> None:
    """Wherever a weighting is taken; the hint is the product to write, which is taken."""
    x, profile = batch()[0], Profile(logsnr_max=10.0, logsnr_min=-10.0, bins=2)
    profile.update(torch.tensor([-5.0, 5.0]), torch.ones(2))
    takes: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
        "weighted_elbo": lambda w: weighted_elbo(model(), x, schedule=SCHEDULE, weighting=w),
        "Weighted": lambda w: Objective(model(), schedule=SCHEDULE, loss=Weighted(w)),
        "loss_factor": lambda w: loss_factor(w, SCHEDULE, Eps()),
        "Recipe": lambda w: describe(Recipe("mine", SCHEDULE, Eps(), w)),  # type: ignore[arg-type]
        "diagnose": lambda w: diagnose(profile, SCHEDULE, w),
        "Histogram.optimal": lambda w: Histogram.optimal(profile, w),
    }
    words = "be a total", f"got the factor {factor!r}", f"MSE(schedule, Eps()) * {factor!r}"
    for name, take in takes.items():
        partials = partial(factor), partial(factor.weight_at), partial(partial(factor))
        for alone in (factor, factor.forward, factor.weight_at, *partials):
            with assert_refused(ValueError, name, "weighting", *words):
                take(alone)
        for whole in (MSE(SCHEDULE, Eps()) * factor, factor * ELBO(), lambda v: factor(v)):
            take(whole)
    with assert_refused(ValueError, "Custom", "weighting", "be a total"):
        CustomWeighting(factor)
    assert (
        CustomWeighting(lambda logsnr: factor(logsnr), logsnr_max=10.0, logsnr_min=-10.0).is_factor
        is False
    )
    assert factor.check() is factor  # by itself it is looked at, plotted and multiplied as before


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: ELBO() * 2,
            TypeError,
            "Product: factor must be a Weighting .. got 2 (a constant "
            "changes only the learning rate",
        ),
        (
            lambda: ELBO() * MinSNR,
            TypeError,
            "Product: factor must be a Weighting .. (an instance: MinSNR())",
        ),
        (
            lambda: MSE(SCHEDULE, V),
            TypeError,
            "MSE: parameterization must be a Parameterization .. got the class V (an instance",
        ),
        (
            lambda: MSE(OptimalTransport().law, Flow(), steps=10),
            TypeError,
            "MSE: schedule must be a Schedule where steps are given .. Logistic(",
        ),
        (
            lambda: MinSNR(0.0),
            ValueError,
            "MinSNR: gamma must be finite and greater than 0 .. got 0",
        ),
        (
            lambda: SoftMinSNR(-1.0),
            ValueError,
            "SoftMinSNR: gamma must be finite and greater than 0 .. got -1",
        ),
        (lambda: P2(gamma=NAN), ValueError, "P2: gamma must be finite .. got nan"),
        (lambda: P2(k=0.0), ValueError, "P2: k must be finite and greater than 0 .. got 0"),
        (lambda: Sigmoid(INF), ValueError, "Sigmoid: bias must be finite .. got inf"),
        (lambda: Sigmoid("2+"), TypeError, "Sigmoid: bias must be a number .. got '2+'"),
        (lambda: EDM(std=0.0), ValueError, "EDM: std must be finite and greater than 0 .. got 0"),
        (
            lambda: EDM(sigma_data=0.0),
            ValueError,
            "EDM: sigma_data must be finite and greater than 0 .. got 0",
        ),
    ],
)
def test_fault_22_what_a_weighting_is_made_of(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with assert_refused_with(error, message):
        build()


def test_fault_22_a_weighted_loss_of_levels_is_that_of_the_encoded_data_and_no_bound() -> None:
    decoder, levels = Categorical(17), torch.randint(0, 17, (4, 2))
    objective = Objective(model(), schedule=SCHEDULE, loss=Weighted(Sigmoid(), decoder=decoder))
    t, eps = torch.linspace(0.1, 0.9, 4), torch.ones(4, 2)
    known = weighted_elbo(
        objective.model,
        decoder.encode(levels),
        schedule=SCHEDULE,
        weighting=Sigmoid(),
        t=t,
        eps=eps,
    )
    assert_same(objective(levels, t=t, eps=eps), known)
    whole = Objective(objective.model, schedule=SCHEDULE, loss=VLB(decoder))
    assert_same(whole(levels, t=t, eps=eps), objective.bound(levels, t=t, eps=eps).total)


def test_fault_22_every_weighting_passes_its_own_check() -> None:
    for w in (
        ELBO(),
        Sigmoid(),
        EDM(),
        EDM(monotone=True),
        InDI(),
        MSE(SCHEDULE, V()),
        MSE(Tabulated.linear_betas(), Eps(), steps=999),
        MSE(SCHEDULE, X()) * TruncatedSNR() * P2(),
    ):
        assert w.check() is w


def test_fault_23_a_density_that_is_zero_inside_the_ends() -> None:
    """The schedule is the density of the times: where it never looks, no weight can be trained."""
    with assert_refused_with(
        ValueError,
        "Normal: logsnr_max must lie where Gaussian(mean=0.0, std=1.0) has mass in float64 .. got "
        "[-5, 60], of which it reaches [-5, inf] (the end is too far out",
    ):
        Normal(0.0, 1.0, logsnr_max=60.0)
    with assert_refused_with(
        ValueError,
        "Normal: logsnr_min must lie where Gaussian(mean=0.0, std=1.0) has "
        "mass in float64 .. got [-60, 5]",
    ):
        Normal(0.0, 1.0, logsnr_min=-60.0)
    factor = loss_factor(ELBO(), SCHEDULE, V())
    assert (
        factor(torch.tensor([20.0])).item() == INF
    )  # no finite factor makes up for a λ that is never drawn
    assert 0 < factor(torch.tensor([9.9])).item() < INF


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(3.0, -8.0),
        Cosine(5.0, -2.0, offset=0.008),
        LinearBeta(5.0, -5.0),
        OptimalTransport(4.0, -9.0),
        Normal(2.4, 2.4, 3.0, -4.0),
        Laplace(0.0, 0.5, 2.0, -1.0),
        Karras(),
        Tabulated([5.0, 4.0, 0.0, -3.0]),
        Shifted(SCHEDULE, 2.0),
        LearnedLinear(),
    ],
    ids=repr,
)
def test_fault_23_densities_are_normalized_between_the_ends(schedule: Schedule) -> None:
    edges = schedule(
        torch.linspace(1, 0, 3001, dtype=torch.float64)
    )  # cells end where a table has its levels
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(4))
    half, middle = 0.5 * edges.diff()[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    assert (
        half * weights * schedule.density(middle + half * nodes)
    ).sum().item() == pytest.approx(1.0, abs=1e-6)
    beyond = torch.tensor([schedule.logsnr_max + 1, schedule.logsnr_min - 1])
    assert schedule.density(beyond).tolist() == [0.0, 0.0]
