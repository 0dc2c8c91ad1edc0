"""Conditions: one mapping, in which no name collides with a verb's own arguments."""

import inspect
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import objective_of
from test_public_api import FACES, PUBLIC
from torch import Tensor, nn

import vdiff
from vdiff import Denoiser, Objective, codec
from vdiff.augmentation import Augmentation
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import (
    Uniform,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    log_prob,
    ode_likelihood,
    path_gap,
    path_importance,
)
from vdiff.objective import VLB
from vdiff.oracle import Gaussian as GaussianData
from vdiff.parameterization import V
from vdiff.prediction import Prediction
from vdiff.sampling import Counted, Guided, invert, sample, trajectory
from vdiff.schedule import InTurn, Linear
from vdiff.training import Validation
from vdiff.weighting import Sigmoid


class Told(nn.Module):
    """A network that keeps the first conditions it was told; they change what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Any] = {}

    def forward(self, z: Tensor, time: Tensor, **condition: Any) -> Tensor:
        self.told = self.told or condition
        out = 0.5 * z
        for value in condition.values():
            out = out + 0.01 * value[:, None] * z if isinstance(value, Tensor) else out
        return out


def model() -> Denoiser:
    return Denoiser(Told(), V())


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
LEVELS = torch.randint(0, 17, (6, 2), generator=torch.Generator().manual_seed(0))
T, EPS = torch.linspace(0.1, 0.9, 6), torch.ones(6, 2)
FINITE, LOOKING = Linear(4.0, -5.0), DiscretizedGaussian(17, uses_network=True)
PATHS = [FINITE, InTurn(FINITE, 2)]
CHAIN = torch.arange(1, 7) / 6
NOISE = Augmentation(Sigmoid(), Linear().logsnr_max, Linear().logsnr_min)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def objective(m: Denoiser, data: Tensor, given: dict[str, Any], options: dict[str, Any]) -> Tensor:
    made: Tensor = objective_of(m, schedule=Linear(), **options)(data, generator=seeded(), **given)
    return made


class FieldOf(torch.nn.Module):
    """A model that is told the mean of a field."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        number = logsnr if logsnr.ndim == 1 else logsnr.expand_as(z).mean(1)
        said: Prediction = self.model(z, number, **condition)
        return said.replace(logsnr=logsnr)


def coded(model: Denoiser, batches: bool = False, **options: Any) -> Tensor:
    """The levels after they were in a file, and what their paths cost."""
    chain: dict[str, Any] = {"schedule": FINITE, "decoder": Categorical(17), **options}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.vdiff"
        written = codec.compress(model, LEVELS, file, steps=5, **chain)
        if batches:
            levels = torch.cat(list(codec.decompress_batches(model, file, **chain)))
        else:
            levels = codec.decompress(model, file, **chain)
        return torch.cat([levels.double().flatten(), written.log_ratio.double()])


VERBS: dict[str, Callable[..., Any]] = {
    "weighted_elbo": lambda m, **c: vdiff.weighted_elbo(
        m, X, schedule=Linear(), t=T, eps=EPS, **c
    ),
    "augmented_elbo": lambda m, **c: vdiff.augmentation.augmented_elbo(
        m, X, augmentation=NOISE, schedule=Linear(), eps=EPS, generator=seeded(), **c
    ),
    "elbo": lambda m, **c: (
        vdiff.elbo(m, LEVELS, schedule=Linear(), decoder=LOOKING, t=T, eps=EPS, **c).total
    ),
    "hybrid_loss": lambda m, **c: vdiff.hybrid_loss(
        m, X, schedule=Linear(), steps=6, bound_weight=0, t=CHAIN, eps=EPS, **c
    ),
    "vlb": lambda m, **c: (
        vdiff.chain.vlb(
            m, LEVELS, schedule=Linear(), steps=6, decoder=LOOKING, t=CHAIN, eps=EPS, **c
        ).total
    ),
    "path_bound": lambda m, **c: (
        vdiff.chain.path_bound(
            m, LEVELS, schedule=FINITE, decoder=LOOKING, steps=3, generator=seeded(), **c
        ).log_ratio
    ),
    "Objective.forward": lambda m, **c: objective(m, LEVELS, c, {"decoder": Categorical(17)}),
    "Objective.forward, weighted": lambda m, **c: objective(m, X, c, {"weighting": Sigmoid()}),
    "Objective.forward, hybrid": lambda m, **c: objective(
        m, X, c, {"steps": 6, "bound_weight": 0.0}
    ),
    "Objective.forward, resampled": lambda m, **c: objective(
        m,
        LEVELS,
        c,
        {
            "steps": 6,
            "decoder": Categorical(17),
            "resampling": vdiff.resampling.LossSecondMoment(6),
        },
    ),
    "Objective.forward, every term": lambda m, **c: objective(
        m,
        LEVELS,
        c,
        {"steps": 6, "decoder": LOOKING, "resampling": vdiff.resampling.LossSecondMoment(7)},
    ),
    "Objective.bound": lambda m, **c: (
        Objective(m, schedule=Linear(), loss=VLB(Categorical(17)))
        .bound(LEVELS, t=T, eps=EPS, **c)
        .total
    ),
    "sample": lambda m, **c: sample(m, X, schedule=FINITE, steps=2, generator=seeded(), **c),
    "trajectory": lambda m, **c: torch.stack(
        [p.x for _, p in trajectory(m, X, schedule=FINITE, steps=2, generator=seeded(), **c)]
    ),
    "invert": lambda m, **c: invert(m, X, schedule=FINITE, **c),
    "Counted.__init__": lambda m, **c: Counted(m, **c)(X, torch.zeros(6)).output,
    "evaluate": lambda m, **c: (
        evaluate(m, LEVELS, schedule=Linear(), decoder=LOOKING, draws=4, **c).by_image
    ),
    "compare": lambda m, **c: torch.tensor(
        compare(
            m,
            Denoiser(lambda z, time, **_: z, V()),
            X,
            schedule=FINITE,
            decoder=Gaussian(),
            draws=4,
            **c,
        ).difference.value
    ),
    "path_gap": lambda m, **c: torch.tensor(
        path_gap(FieldOf(m), X, paths=PATHS, decoder=Gaussian(), draws=4, **c)
        .gaps[0]
        .difference.value
    ),
    "path_importance": lambda m, **c: (
        path_importance(m, LEVELS, schedule=FINITE, decoder=LOOKING, steps=2, samples=2, **c).nats
    ),
    "ode_likelihood": lambda m, **c: (
        ode_likelihood(m, X, schedule=FINITE, tolerance=1e-3, **c).nats
    ),
    "log_prob": lambda m, **c: log_prob(m, X, schedule=FINITE, tolerance=1e-3, **c),
    "dequantized_ode": lambda m, **c: (
        dequantized_ode(
            m,
            LEVELS,
            schedule=FINITE,
            dequantization=Uniform(Categorical(17)),
            tolerance=1e-3,
            **c,
        ).nats
    ),
    "immse": lambda m, **c: (
        immse(
            m,
            X,
            schedule=Linear(12.0, -12.0),
            gaussian=GaussianData([0.0, 0.0], [1.0, 1.0]),
            draws=4,
            **c,
        ).nats
    ),
    "compress": lambda m, **c: coded(m, **c),
    "decompress": lambda m, **c: coded(m, **c),
    "decompress_batches": lambda m, **c: coded(m, batches=True, **c),
    "Validation.__init__": lambda m, **c: torch.tensor(
        Validation(LEVELS, draws=4, **c)(
            Objective(m, schedule=Linear(), loss=VLB(Categorical(17)))
        ).value
    ),
}


def takes_conditions() -> dict[str, list[str]]:
    """Of every public callable that takes conditions beside its own keywords: all of its
    arguments."""
    found = {}
    faces = {name: value for name, value in PUBLIC.items() if id(value) in FACES}
    for name, value in faces.items():
        members = (
            inspect.getmembers(value, inspect.isfunction)
            if inspect.isclass(value)
            else [("", value)]
        )
        for member, function in members:
            parameters = inspect.signature(function).parameters
            if (
                "condition" in parameters
                and parameters["condition"].kind is inspect.Parameter.KEYWORD_ONLY
            ):
                found[f"{name.rsplit('.', 1)[1]}.{member}".removesuffix(".")] = list(parameters)
    return found


OWN = takes_conditions()
NAMES = sorted(
    {name for names in OWN.values() for name in names} - {"self", "z", "logsnr"}
    | {"draws", "step", "clip", "timestep"}
)


def test_every_verb_is_here():
    assert set(OWN) <= set(VERBS)
    assert {"x", "data", "steps", "t", "eps", "model", "schedule", "batch", "condition"} <= set(
        NAMES
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_condition_may_have_any_name(verb):
    """By the mapping each reaches the network, its rows as they are, and counts as it does under a
    name that is free."""
    value = torch.linspace(0.5, 1.0, 6)
    told, free = model(), model()
    mapping = {name: value / (i + 1) for i, name in enumerate(NAMES)}
    got = VERBS[verb](told, condition=mapping)
    assert list(told.network.told) == NAMES
    others = {f"free_{i}": v for i, v in enumerate(mapping.values())}
    expected = VERBS[verb](free, condition=others)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [v.shape for v in told.network.told.values()] == [
        v.shape for v in free.network.told.values()
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_no_condition_is_an_empty_mapping(verb):
    nothing = [VERBS[verb](model(), **way) for way in ({}, {"condition": None}, {"condition": {}})]
    torch.testing.assert_close(nothing[1], nothing[0], rtol=0, atol=0)
    torch.testing.assert_close(nothing[2], nothing[0], rtol=0, atol=0)
    told = VERBS[verb](model(), condition={"label": torch.linspace(0.5, 1.0, 6)})
    assert not torch.equal(told, nothing[0])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("condition", [torch.ones(6), 2.5, "text", np.arange(6)])
def test_what_is_no_mapping_is_refused(verb, condition):
    with pytest.raises(TypeError, match=r"'condition' must be a mapping .*condition=\{\"label"):
        VERBS[verb](model(), condition=condition)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["z", "logsnr"])
def test_the_names_by_which_a_model_is_called_are_refused(verb, name):
    with pytest.raises(
        TypeError,
        match=rf"argument 'condition' must have other names.*got '{name}' .*{name}=other",
    ):
        VERBS[verb](model(), condition={name: T})
    renamed = Denoiser(
        Told(), V(), call=lambda network, z, t, other: network(z, t, **({"latent": other}))
    )
    VERBS[verb](renamed, condition={"other": T})
    assert list(renamed.network.told) == ["latent"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_keys_of_a_mapping_are_names(verb):
    with pytest.raises(
        TypeError,
        match=r"argument 'condition' must have the names of the network's arguments; got 3",
    ):
        VERBS[verb](model(), condition={3: T})


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "Counted.__init__"])
def test_a_keyword_is_no_condition(verb):
    for word in ("shedule", "weightings", "bound_wieght", "label"):
        with pytest.raises(TypeError, match=f"argument '{word}' is unknown; "):
            VERBS[verb](model(), **{word: T})


def test_guidance_replaces_what_a_mapping_gives():
    guided = Guided(Denoiser(Told(), V()), 2.0, {"steps": 0.0})
    by_mapping = sample(
        guided, X, schedule=FINITE, steps=2, generator=seeded(), condition={"steps": T}
    )
    by_keyword = sample(
        Guided(Denoiser(Told(), V()), 2.0, {"label": 0.0}),
        X,
        schedule=FINITE,
        steps=2,
        generator=seeded(),
        condition={"label": T},
    )
    assert torch.equal(by_mapping, by_keyword)


def test_other_mappings_are_mappings():
    told = model()
    VERBS["weighted_elbo"](told, condition=types.MappingProxyType({"label": T}))
    assert list(told.network.told) == ["label"]
