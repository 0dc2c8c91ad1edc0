"""Guidance and clipping: models made of a model."""

from functools import partial

import pytest
import torch
from registry import CLOSED_TARGETS, ORACLES, STEPS

from vdiff import Denoiser, Prediction, sample
from vdiff.decoder import Categorical
from vdiff.likelihood import evaluate
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import Eps, X
from vdiff.sampling import Clipped, Counted, Guided, ddim, ode
from vdiff.schedule import Karras, Linear
from vdiff.variance import FixedLarge

CLASSES = [GaussianMixture([1.0], [[mean, 0.2]], [[0.1, 0.3]]) for mean in (-0.8, 0.9)]
ALL = GaussianMixture([0.5, 0.5], [[-0.8, 0.2], [0.9, 0.2]], [[0.1, 0.3], [0.1, 0.3]])
NULL = 2


class Conditional:
    """The perfect denoiser of a class, of both for the null class, saying any target."""

    def __init__(self, target=None):
        self.target = target or Eps()

    def __call__(self, z, logsnr, label):
        said = torch.stack([data(z, logsnr).as_target(self.target) for data in (*CLASSES, ALL)])
        return Prediction(z, logsnr, said[label, torch.arange(len(z))], self.target, FixedLarge())


def noise(n=32):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABEL = torch.tensor([0, 1] * 16)
LEVEL = torch.linspace(-6, 6, 32, dtype=torch.float64)


def test_guidance_is_the_line_through_both_predictions():
    both = [
        Conditional()(noise(), LEVEL, label=label).eps
        for label in (LABEL, torch.full_like(LABEL, NULL))
    ]
    for scale in (0.0, 0.5, 1.5, 4.0):
        guided = Guided(Conditional(), scale, {"label": NULL})(noise(), LEVEL, label=LABEL)
        torch.testing.assert_close(
            guided.eps, both[1] + scale * (both[0] - both[1]), rtol=1e-12, atol=1e-12
        )
        assert isinstance(guided.variance, FixedLarge)


@pytest.mark.parametrize(
    "unconditional",
    [NULL, torch.tensor(NULL), torch.full((32,), NULL)],
    ids=["number", "scalar", "batch"],
)
def test_what_replaces_the_condition(unconditional):
    wanted = Guided(Conditional(), 3.0, {"label": NULL})(noise(), LEVEL, label=LABEL).output
    assert torch.equal(
        Guided(Conditional(), 3.0, {"label": unconditional})(noise(), LEVEL, label=LABEL).output,
        wanted,
    )


@pytest.mark.parametrize("step", (STEPS | {"ode": partial(ode, method="rk4")}).values(), ids=STEPS)
def test_guidance_gives_the_same_samples_in_every_parameterization(step):
    made = [
        sample(
            Guided(Conditional(target), 2.5, {"label": NULL}, interval=(-3.0, 4.0)),
            noise(),
            schedule=Karras(),
            steps=9,
            step=step,
            generator=torch.Generator().manual_seed(1),
            condition={"label": LABEL},
        )
        for target in CLOSED_TARGETS.values()
    ]
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-8, atol=1e-8)
    generator = torch.Generator().manual_seed(1)
    plain = sample(
        Conditional(),
        noise(),
        schedule=Karras(),
        steps=9,
        step=step,
        generator=generator,
        condition={"label": LABEL},
    )
    assert (made[0] - plain).abs().max() > 0.02


def test_a_scale_of_one_is_the_conditional_model_exactly():
    counted = Counted(Conditional())
    one = sample(
        Guided(counted, 1.0, {"label": NULL}),
        noise(),
        schedule=Karras(),
        steps=5,
        step=ddim,
        condition={"label": LABEL},
    )
    assert torch.equal(
        one,
        sample(
            Conditional(),
            noise(),
            schedule=Karras(),
            steps=5,
            step=ddim,
            condition={"label": LABEL},
        ),
    )
    assert counted.evaluations == 6


def test_guidance_within_an_interval():
    """Outside the scale is 1, to the last bit, and where no sample is inside the second evaluation
    is saved."""
    counted = Counted(Conditional())
    guided = Guided(counted, 3.0, {"label": NULL}, interval=(-1.0, 2.0))
    inside = (LEVEL >= -1.0) & (LEVEL <= 2.0)
    got, plain = (
        guided(noise(), LEVEL, label=LABEL).output,
        Conditional()(noise(), LEVEL, label=LABEL).output,
    )
    everywhere = Guided(Conditional(), 3.0, {"label": NULL})(noise(), LEVEL, label=LABEL).output
    assert torch.equal(got[~inside], plain[~inside])
    assert torch.equal(got[inside], everywhere[inside])
    assert counted.evaluations == 2
    guided(noise(), LEVEL + 20.0, label=LABEL)
    assert counted.evaluations == 3


def test_clipping():
    free = Denoiser(lambda z, logsnr: 3 * z, X(), variance=FixedLarge())
    clipped = Clipped(free, -0.5, 1.0)(noise(), LEVEL)
    assert torch.equal(clipped.x, (3 * noise()).clamp(-0.5, 1.0))
    assert isinstance(clipped.variance, FixedLarge)
    made = sample(Clipped(free, -0.5, 1.0), noise().float(), schedule=Linear(), steps=4, step=ddim)
    assert made.min() >= -0.5
    assert made.max() <= 1.0


def test_evaluation_takes_them_and_writes_them_down():
    """A clipped oracle on a lattice within the range has the oracle's own bound; one clipped too
    far, a worse one."""
    decoder = Categorical(4)
    oracle, data = (
        ORACLES["lattice"](),
        torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), 20, replacement=True)[:, None],
    )
    options = {"schedule": Linear(7.0, -6.0), "decoder": decoder, "draws": 8, "replicates": 2}
    plain, same, worse = (
        evaluate(model, data, **options)
        for model in (oracle, Clipped(oracle), Clipped(oracle, -0.2, 0.2))
    )
    assert same.total.value == pytest.approx(plain.total.value, rel=1e-4)
    assert worse.total.value > plain.total.value + 0.1
    assert worse.protocol["x̂ clipped to"] == "[-0.2, 0.2]"
    assert "x̂ clipped to" not in plain.protocol
    nested = Clipped(Guided(oracle, 1.5, {"label": 0}, interval=(-1.0, 2.0)))
    assert nested.protocol == {"guidance": "scale 1.5 for λ in [-1, 2]", "x̂ clipped to": "[-1, 1]"}
    assert "scale 1.5" in repr(nested)
    assert Clipped(Counted(nested), -2.0, 2.0).protocol["x̂ clipped to"] == "[-1, 1], then [-2, 2]"


def test_a_guided_model_has_a_bound_given_the_condition():
    decoder = Categorical(4)
    data, label = torch.tensor([[0], [3], [0], [3], [1], [2]]), torch.tensor([0, 1, 0, 1, 0, 1])
    halves = [
        Lattice(decoder.level_values, pmf)
        for pmf in ([0.5, 0.4, 0.05, 0.05], [0.05, 0.05, 0.4, 0.5])
    ]
    whole = Lattice(decoder.level_values, [0.275, 0.225, 0.225, 0.275])

    def model(z, logsnr, label):
        said = torch.stack([one(z, logsnr).eps for one in (*halves, whole)])
        return Prediction(z, logsnr, said[label, torch.arange(len(z))], Eps())

    options = {"schedule": Linear(7.0, -6.0), "decoder": decoder, "draws": 16, "replicates": 2}
    by_scale = {
        scale: evaluate(
            Guided(model, scale, {"label": 2}), data, condition={"label": label}, **options
        )
        for scale in (0.0, 1.0)
    }
    assert by_scale[0.0].total.value == pytest.approx(
        evaluate(whole, data, **options).total.value, rel=1e-4
    )
    apart = [
        evaluate(half, data[label == i], **options).total.value for i, half in enumerate(halves)
    ]
    assert by_scale[1.0].total.value == pytest.approx(sum(apart) / 2, abs=0.15)
    assert by_scale[1.0].total.value < by_scale[0.0].total.value - 0.1
    shuffled = evaluate(
        Guided(model, 1.0, {"label": 2}), data, condition={"label": label}, batch=32, **options
    )
    assert shuffled.total.value == pytest.approx(by_scale[1.0].total.value, rel=1e-4)
    assert by_scale[0.0].protocol["guidance"] == "scale 0"
