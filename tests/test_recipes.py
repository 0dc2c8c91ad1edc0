"""The published recipes: their mathematics is that of `vdiff.recipe`, their settings those of the
papers, and all of them train."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vdiff import Denoiser, bits_per_dim, recipe
from vdiff.objective import Hybrid
from vdiff.parameterization import Eps
from vdiff.recipes import RECIPES
from vdiff.training import Config, train

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import recipes

SAME = {"iddpm-hybrid": "iddpm", "iddpm-vlb": "vdm"} | dict.fromkeys(
    ("vdm-fixed", "vdm-gamma", "vdm-adaptive", "vdm-aug", "small"), "vdm"
)
SIZES = {
    "ddpm": 35.75,
    "iddpm-hybrid": 52.55,
    "iddpm-vlb": 52.55,
    "vdm": 30.58,
    "vdm-gamma": 30.58,
    "small": 0.22,
}  # millions


def tiny(name, **settings):
    """A recipe with a network that can be run."""
    config = recipes.load(name)
    small = {
        "width": 8,
        **(
            {"depth": 1}
            if config.network["name"] == "VDMUNet"
            else {"multipliers": [1, 1], "attention": [1]}
        ),
    }
    if "embedding" in config.network:
        small |= {"embedding": 16, "groups": 4, "blocks": 1}
    return replace(
        config, network=config.network | small, compile=False, autocast=False, **settings
    )


def weight(objective, t):
    """w(λ) that the loss at each time really has, with its density: of a model whose error of ε is
    ε itself."""
    levels, eps = (
        torch.full((len(t), 3, 32, 32), 100),
        torch.randn(len(t), 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    objective.model = Denoiser(lambda z, logsnr: 0 * z, Eps())
    square = eps.square().flatten(1).sum(1).double()
    bound = objective.bound(levels, t=t, eps=eps)
    loss = (
        bound.diffusion if objective.loss.is_bound else objective(levels, t=t, eps=eps)
    ).double()
    logsnr, measure = objective.schedule.at(t, objective.steps)[:2]
    if isinstance(objective.loss, Hybrid):  # each of n levels is drawn as often
        measure = measure * (objective.steps + 1) / objective.steps
    return logsnr, 2 * loss / (measure * square)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_has_the_weighting_of_the_published_objective(name):
    config = recipes.load(name)
    published = recipe(SAME.get(name, name))
    objective = replace(
        tiny(name), variance=None, bound_weight=None if config.bound_weight is None else 0.0
    ).objective()
    assert repr(objective.model.parameterization) == repr(published.parameterization)
    t = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)
    if objective.steps is not None:
        t = (t * objective.steps).round() / objective.steps
    with torch.no_grad():
        logsnr, found = weight(objective, t)
    known = published.weighting(logsnr.detach())
    # iDDPM's table is its cosine in 4,000 steps
    torch.testing.assert_close(
        found, known, rtol=0.01 if name == "iddpm-hybrid" else 1e-5, atol=1e-9
    )


def test_every_published_objective_with_a_cifar10_recipe_has_one_of_its_name():
    without = {
        "ddpm-continuous",
        "iddpm",
        "sd3",
        "v-prediction",
        "indi",
    }  # no CIFAR-10 run of their own
    assert set(RECIPES) - without <= set(recipes.NAMES)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_says_what_it_reproduces(name):
    words = recipes.about(name)
    assert all(word in words for word in ("Reproduces:", "Expect:", "Takes:"))
    assert words.partition("\n\n")[0].endswith(".")  # the title may take two lines
    assert recipes.load(name).folder == "data"
    assert json.loads(json.dumps(recipes.load(name).asdict())) == recipes.load(name).asdict()


@pytest.mark.parametrize(("name", "millions"), SIZES.items())
def test_the_networks_have_their_published_sizes(name, millions):
    with torch.device("meta"):
        objective = recipes.load(name).objective()
    assert sum(p.numel() for p in objective.model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.005
    )


def test_published_settings():
    ddpm, iddpm, edm = recipes.load("ddpm"), recipes.load("iddpm-hybrid"), recipes.load("edm")
    assert ddpm.decoder["variance"] == pytest.approx(5.4532e-5, rel=1e-4)
    assert ddpm.clip * math.log(2) == pytest.approx(1.0)
    assert (ddpm.chain, ddpm.steps, ddpm.batch, ddpm.lr, ddpm.warmup, ddpm.betas) == (
        999,
        800_000,
        128,
        2e-4,
        5000,
        [0.9, 0.999],
    )
    assert (iddpm.chain, iddpm.steps, iddpm.lr, iddpm.network["dropout"]) == (
        3999,
        500_000,
        1e-4,
        0.3,
    )
    assert edm.ema[0] ** (500_000 / 512) == pytest.approx(0.5)
    assert (edm.steps, edm.warmup) == (390_625, 19_531)
    vdm = recipes.load("vdm")
    assert (vdm.steps, vdm.batch, vdm.lr, vdm.warmup, vdm.clip, vdm.ema, vdm.weight_decay) == (
        10_000_000,
        128,
        2e-4,
        100,
        None,
        [0.9999],
        0.01,
    )


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"there is no recipe .vdmp., but .*did you mean .vdm."):
        recipes.load("vdmp")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_trains(name):
    """Two steps on images of its shape; the network has moved, and what the decoder measures is
    finite."""
    torch.manual_seed(0)
    config = tiny(name, steps=2, batch=4, warmup=0)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    objective, log = config.objective(), []
    before = [p.clone() for p in objective.parameters()]
    averaged = train(objective, images, config, log=log.append, quiet=True)
    assert log[-1]["skipped"] == 0
    assert math.isfinite(
        log[-1]["train_bits_per_dim" if objective.loss.is_bound else "train_loss"]
    )
    assert any(not torch.equal(p, q) for p, q in zip(before, objective.parameters(), strict=True))
    with torch.no_grad():
        bound = averaged.bound(images, generator=torch.Generator().manual_seed(0)).total
    assert torch.isfinite(bits_per_dim(bound, 3072)).all()


def test_recipes_are_configs():
    assert all(isinstance(recipes.load(name), Config) for name in recipes.NAMES)
