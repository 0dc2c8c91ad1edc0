"""Theorem 1 as a way to train: levels drawn from p_w, and the plain bound of data noised to
them."""

import math

import pytest
import torch
from registry import ORACLES

from vdiff import Denoiser, weighted_elbo
from vdiff.augmentation import Augmentation, augmented_elbo
from vdiff.describe import describe
from vdiff.parameterization import Eps, V
from vdiff.prediction import Prediction
from vdiff.recipes import RECIPES
from vdiff.schedule import Cosine, Linear, Spline
from vdiff.weighting import EDM, ELBO, MSE, Custom, MinSNR, Sigmoid

ENDS = (6.0, -5.0)
DATA = ORACLES["mixture"]()
WEIGHTINGS = {
    "sigmoid": Sigmoid(2.0),
    "much noise": Sigmoid(-3.0),
    "edm, held left of its peak": EDM(monotone=True),
    "v-prediction": MSE(Cosine(), V()),
    "a corner": ELBO() * MinSNR(5.0),
    "two levels": Custom(lambda v: 1.0 + (v < 1.0)),
    "the bound": ELBO(),
}


def law(name, ends=ENDS):
    return Augmentation(WEIGHTINGS[name], *ends)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_levels_are_drawn_from_the_law(name):
    """Kolmogorov-Smirnov on both sides of each level, for the law has atoms."""
    noise, n = law(name), 20_000
    levels = noise.sample(n, torch.Generator().manual_seed(0)).sort().values
    assert levels.min() >= ENDS[1]
    assert levels.max() <= ENDS[0]
    grid = torch.linspace(*reversed(ENDS), 200, dtype=torch.float64)
    w = WEIGHTINGS[name]
    # P(level > λ), and at λ_max P(level = λ_max)
    known = w(grid) / w(torch.tensor([ENDS[1]], dtype=torch.float64))
    above = [(levels > v).double().mean() for v in grid[:-1]]
    seen = torch.stack([*above, (levels == ENDS[0]).double().mean()])
    assert (seen - known).abs().max() < 2.2 / math.sqrt(n)
    assert torch.equal(noise(grid), known)
    assert noise(torch.tensor([ENDS[0] + 0.1])).item() == 0.0


def test_a_law_is_inverted_to_rounding():
    noise = law("sigmoid")
    level = torch.linspace(-4.9, 5.9, 50, dtype=torch.float64)
    assert torch.allclose(noise.icdf(1 - noise(level)), level, atol=1e-9)
    mass = noise(torch.tensor(ENDS[0], dtype=torch.float64)).item()
    ends = noise.icdf(torch.tensor([0.0, 1 - mass, 1 - mass / 2, 1 - 2**-53], dtype=torch.float64))
    assert ends[0] == pytest.approx(ENDS[1], abs=1e-6)
    assert ends[1:].tolist() == pytest.approx([ENDS[0]] * 3, abs=1e-9)


def test_where_w_is_held_no_noise_is_drawn_and_the_bound_adds_none():
    assert law("edm, held left of its peak").sample(10_000).min() > -3.31
    assert law("two levels").sample(10_000).unique().tolist() == pytest.approx([1.0, ENDS[0]])
    assert (law("the bound").sample(100) == ENDS[0]).all()


def scaled(c):
    """An inexact model: c times the exact ε̂."""
    return lambda z, logsnr: Prediction(z, logsnr, c * DATA(z, logsnr).eps, Eps())


def near(a, b):
    """Two means of independent draws agree, and are known to 3 %."""
    error = math.hypot(*(one.std().item() / len(one) ** 0.5 for one in (a, b)))
    assert error < 0.03 * abs(b.mean())
    assert abs(a.mean() - b.mean()) < 4 * error


@pytest.mark.parametrize("schedule", [Linear(*ENDS), Cosine(*ENDS)], ids=repr)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_bound_of_noised_data_is_the_weighted_loss_over_w_at_the_noisy_end(name, schedule):
    """Its mean, and the gradient of it, for an inexact model; the loss is a square in c, so that a
    difference is a derivative."""
    n, generator = 60_000, torch.Generator().manual_seed(0)
    x, w = DATA.sample(n, generator), WEIGHTINGS[name]
    low = w(torch.tensor([ENDS[1]], dtype=torch.float64)).item()
    means, slopes = [], []

    def by_noise(c, **options):
        return augmented_elbo(scaled(c), x, augmentation=law(name), **options)

    def by_weight(c, **options):
        return weighted_elbo(scaled(c), x, weighting=w, **options) / low

    for seed, loss in enumerate((by_noise, by_weight), start=1):  # 0 drew x
        at = []
        for c in (0.6, 0.7, 0.8):
            draws = torch.Generator().manual_seed(seed)
            at.append(loss(c, schedule=schedule, generator=draws))
        means.append(at[1])
        slopes.append((at[2] - at[0]) / 0.2)
    near(*means)
    near(*slopes)


def test_without_the_augmentation_it_is_another_loss():
    n, generator = 20_000, torch.Generator().manual_seed(0)
    model, x = scaled(0.7), DATA.sample(n, generator)
    options = {"schedule": Linear(*ENDS), "generator": generator}
    plain = augmented_elbo(model, x, augmentation=law("the bound"), **options)
    assert torch.allclose(plain.mean(), weighted_elbo(model, x, **options).mean(), rtol=0.05)
    noised = augmented_elbo(model, x, augmentation=law("sigmoid"), **options)
    assert (plain.mean() - noised.mean()) > 10 * (plain.std() + noised.std()) / n**0.5


def test_the_network_is_never_asked_above_the_level_to_which_the_data_is_noised():
    told = []

    def network(z, logsnr):
        told.append(logsnr)
        return 0 * z

    noise = Augmentation(Custom(lambda v: 1.0 * (v < 1.0) + 1e-12), *ENDS)  # all at λ = 1
    model, x = Denoiser(network, Eps()), torch.ones(1000, 2)
    loss = augmented_elbo(model, x, augmentation=noise, schedule=Cosine(*ENDS))
    assert ENDS[1] - 1e-4 <= told[0].min() < -4
    assert 0.5 < told[0].max() <= 1.0 + 1e-4
    assert loss.shape == (1000,)
    assert loss.dtype == torch.float32


def test_it_trains_a_network_and_is_a_function_of_its_generator():
    torch.manual_seed(0)
    model, x = Denoiser(Shift(), Eps()), torch.randn(8, 2)
    options = {"augmentation": law("sigmoid"), "schedule": Linear(*ENDS)}
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    losses = [augmented_elbo(model, x, generator=one, **options) for one in generators]
    assert torch.equal(*losses)
    losses[0].mean().backward()
    assert torch.isfinite(model.network.shift.grad)
    assert model.network.shift.grad != 0


class Shift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, z, logsnr):
        return z + self.shift


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_law_is_that_of_its_weighting_or_none(name):
    described = describe(name)
    if not described.monotone:
        with pytest.raises(ValueError, match=r"must have a monotone weighting; got w that rises"):
            _ = described.augmentation
        return
    noise, weight = described.augmentation, described.weight
    low, high = described.logsnr[[0, -1]].tolist()
    assert (noise.logsnr_min, noise.logsnr_max) == pytest.approx((low, high))
    assert torch.allclose(noise(described.logsnr), weight / weight[0], rtol=1e-12)
    model, schedule = Denoiser(Shift(), V()), described.recipe.schedule
    loss = augmented_elbo(model, torch.randn(4, 2), augmentation=noise, schedule=schedule)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (EDM(), 15.0, -15.0),
            ValueError,
            r"'weighting' must never rise with λ; got EDM\(.*, which rises from λ = -15 to -3.31",
        ),
        (
            (MinSNR(), 15.0, -15.0),
            ValueError,
            r"'weighting' must be a total; got the factor MinSNR",
        ),
        (
            (Sigmoid, 15.0, -15.0),
            TypeError,
            r"'weighting' must be a Weighting or a function .*an instance: Sigmoid\(\)",
        ),
        (
            (lambda v: -v, 15.0, -15.0),
            ValueError,
            r"'weighting' must be finite and at least 0; got -.* at λ = ",
        ),
        (
            (Sigmoid(), -15.0, 15.0),
            ValueError,
            r"'logsnr_max' must be greater than logsnr_min = 15; got -15",
        ),
    ],
    ids=["it rises", "a factor", "a class", "negative", "ends"],
)
def test_what_has_no_law_is_named(arguments, error, message):
    with pytest.raises(error, match="Augmentation: argument " + message):
        Augmentation(*arguments)


def test_above_its_peak_a_weighting_that_rises_has_a_law():
    assert Augmentation(EDM(), 15.0, -3.0)(torch.tensor([-3.0])).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"schedule": Linear()},
            ValueError,
            r"'schedule' must have the ends of the augmentation, 6 and -5; got 13.3 and -5",
        ),
        (
            {"schedule": Spline(*ENDS, learn_ends=False)},
            ValueError,
            r"'schedule' must have a fixed shape; got Spline",
        ),
        ({"x": torch.ones(4, 2).long()}, TypeError, r"'x' must be real and floating"),
        ({"steps": 3}, TypeError, r"'steps' is unknown"),
    ],
    ids=["other ends", "it learns", "levels", "a chain"],
)
def test_bad_arguments_are_named(options, error, message):
    given = {"model": Denoiser(Shift(), V()), "x": torch.randn(4, 2), "schedule": Linear(*ENDS)}
    with pytest.raises(error, match="augmented_elbo: argument " + message):
        augmented_elbo(**(given | {"augmentation": law("sigmoid")} | options))
