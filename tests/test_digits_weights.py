"""The weights of `make demo` in the repository: they load, have the bits/dim of their card, and
draw digits."""

import math
import re
from pathlib import Path

import pytest
import torch

from vdiff import Objective, evaluate, sample
from vdiff.data.digits import LEVELS, digits
from vdiff.likelihood.digest import weights_digest
from vdiff.sampling import adams_bashforth, logistic

FOLDER = Path(__file__).parents[1] / "examples" / "weights" / "digits"
CARD = (FOLDER / "README.md").read_text("utf-8")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def objective():
    return Objective.from_pretrained(FOLDER)


def test_all_of_it_is_less_than_a_megabyte():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


def test_the_card_is_of_these_weights_in_full_precision(objective):
    assert f"  model        {weights_digest(objective.model)[0]}\n" in CARD
    assert f"| {objective.trained_on[0]} |" in CARD
    assert {p.dtype for p in objective.parameters()} == {torch.float32}


def test_they_have_the_bits_of_their_card(objective):
    """The same images with few draws: the two differ by both Monte Carlo errors."""
    numbers = re.search(r"bits/dim \| ([\d.]+) ± ([\d.]+) \(Monte Carlo\) ± ([\d.]+)", CARD)
    value, error, over_images = map(float, numbers.groups())
    options = {"schedule": objective.schedule, "decoder": objective.decoder}
    found = evaluate(objective.model, digits().test, draws=4, replicates=2, **options).total
    assert error < 0.003
    assert found.monte_carlo < 0.02
    assert abs(found.value - value) < 4 * math.hypot(found.monte_carlo, error)
    with_noise = math.hypot(over_images, found.monte_carlo)  # the spread has both
    assert found.images == pytest.approx(with_noise, rel=0.15)


def test_they_draw_digits(objective):
    """Dark at the sides and bright in the middle, as the held-out images are."""
    noise = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = logistic(objective.schedule.logsnr_max, objective.schedule.logsnr_min)
    options = {"schedule": schedule, "steps": 12, "step": adams_bashforth}
    made = objective.decoder.decode(sample(objective.model, noise, **options)).double()
    real = digits().test.double()
    assert 0 <= made.min() < made.max() < LEVELS
    off = (made.mean(0) - real.mean(0)).square().mean().sqrt()
    assert off < 0.3 * real.mean(0).std()
