"""A run keeps what was trained, and gives back that or nothing: an objective that its config does
not describe, and a config of another run.
"""

import copy
import functools
import re
from collections.abc import Callable

import pytest
import torch
from points import data_of, points
from structures import CONFIG, model, network, objective
from torch import Tensor, nn

from vdiff import Objective
from vdiff.cli import main
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.denoiser import ScaledGamma, TableStep, edm_time
from vdiff.nn import MLP
from vdiff.parameterization import Eps, V
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, Linear, Shifted, Spline, Tabulated
from vdiff.training import Run, train
from vdiff.training.structure import differences, has_custom_parts, parts_of, shortened
from vdiff.variance import FixedLarge, LearnedRange
from vdiff.weighting import Sigmoid

CHAIN = points(
    steps=2,
    schedule={"name": "Linear", "logsnr_max": 10.0, "logsnr_min": -7.0},
    chain=10,
    ema=[0.9],
    variance={"name": "FixedSmall"},
)

OTHERS: dict[str, Callable[[], Objective]] = {
    "model.parameterization": lambda: objective(model=model(parameterization=Eps())),
    "model.parameterization.sigma_data": lambda: objective(model=model(parameterization=V(0.5))),
    "model.time": lambda: objective(model=model(time=edm_time)),
    "model.time (scaled)": lambda: objective(
        model=model(time=ScaledGamma(logsnr_max=10.0, logsnr_min=-7.0))
    ),
    "model.time (step)": lambda: objective(
        model=model(time=TableStep(Tabulated([11.0, 0.0, -8.0])))
    ),
    "model.output": lambda: objective(model=model(output=torch.neg)),
    "model.variance": lambda: objective(model=model(variance=FixedLarge())),
    "model.network.layers": lambda: objective(
        model=model(network=MLP(64, width=24, depth=1, features=8))
    ),
    "schedule": lambda: objective(schedule=Cosine(10.0, -7.0)),
    "schedule.logsnr_max": lambda: objective(schedule=Linear(9.0, -7.0)),
    "schedule.logsnr_min": lambda: objective(schedule=Linear(10.0, -7.5)),
    "schedule (learned)": lambda: objective(schedule=Spline(10.0, -7.0)),
    "schedule (shifted)": lambda: objective(schedule=Shifted(Linear(9.0, -8.0), 1.0)),
    "loss": lambda: objective(weighting=Sigmoid(1.0)),
    "loss.decoder": lambda: objective(decoder=DiscretizedGaussian(17)),
    "loss.decoder.levels": lambda: objective(decoder=Categorical(18)),
    "loss.decoder.levels_at_ends": lambda: objective(decoder=Categorical(17, levels_at_ends=True)),
    "loss.decoder.prior": lambda: objective(
        decoder=Categorical(17, prior=torch.full((17,), 1 / 17))
    ),
    "loss (no decoder)": lambda: objective(decoder=None),
    "loss.steps": lambda: objective(steps=10),
    "loss (hybrid)": lambda: objective(steps=10, bound_weight=0.1),
    "loss.resampling": lambda: objective(steps=10, resampling=LossSecondMoment(10)),
}


@pytest.mark.parametrize("part", OTHERS)
def test_an_objective_that_its_config_does_not_describe_is_not_trained_in_a_run(part, tmp_path):
    """Not one that is made of the library's own parts: `load` would build the config's."""
    other, place = OTHERS[part](), part.split(" ")[0]
    with (
        Run.open(tmp_path, CONFIG) as run,
        pytest.raises(
            ValueError,
            match=(
                rf"train: argument 'objective' must be the one that the config of its run "
                rf"describes; got .*{re.escape(place)}.*, by the config"
            ),
        ),
    ):
        train(other, data_of(CONFIG), CONFIG, run=run, quiet=True)
    assert not (tmp_path / "ema.safetensors").exists()
    assert differences(objective(), CONFIG) == []


@pytest.mark.parametrize("part", OTHERS)
def test_weights_of_another_objective_are_not_loaded_into_the_config_s(part, tmp_path):
    """Also where the caller's own loop trained it, and the run only keeps it."""
    other, place = OTHERS[part](), part.split(" ")[0]
    with Run.open(tmp_path, CONFIG) as run:
        run.save(other)
    with pytest.raises(ValueError, match=rf"{re.escape(place)}|of another architecture"):
        Run(tmp_path).load()
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--quiet"]) == 2
    twin = OTHERS[part]()
    loaded = Run(tmp_path).load(objective=twin)
    assert loaded is twin
    assert not loaded.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), other.state_dict().values(), strict=True)
    )
    with pytest.raises(
        ValueError,
        match=(
            r"Run.load: argument 'objective' must be the one that was trained|of another "
            r"architecture"
        ),
    ):
        Run(tmp_path).load(objective=objective())


def test_a_setting_of_a_chain_s_variance_is_seen():
    assert differences(objective(steps=10), CHAIN) == []
    other = objective(
        steps=10,
        model=model(
            network=MLP(64, dims_out=128, width=16, depth=1, features=8), variance=LearnedRange()
        ),
    )
    assert any(
        line.startswith("model.variance: LearnedRange, by the config FixedSmall")
        for line in differences(other, CHAIN)
    )


class Own(nn.Module):
    """A network of one's own, with the very weights of the config's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network().layers
        self.features = network().features if hasattr(network(), "features") else nn.Identity()

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return 0.5 * z + 0 * next(self.parameters()).sum()


class Twin(MLP):
    """Another function with the same names and shapes of weights."""

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return -super().forward(z, time)


OWN: dict[str, Callable[[], Objective]] = {
    "a network": lambda: objective(model=model(network=Own())),
    "a network with the same weights": lambda: objective(
        model=model(network=Twin(64, width=16, depth=1, features=8))
    ),
    "a time": lambda: objective(model=model(time=lambda logsnr: 0.1 * logsnr)),
    "an output": lambda: objective(model=model(output=lambda out: -out)),
    "a part of a partial": lambda: objective(
        model=model(time=functools.partial(scaled, factor=0.1))
    ),
    "a weighting": lambda: objective(weighting=lambda logsnr: torch.sigmoid(-logsnr)),
    "another schedule too": lambda: objective(
        model=model(network=Own()), schedule=Cosine(9.0, -7.0)
    ),
}


def scaled(logsnr: Tensor, factor: float) -> Tensor:
    return factor * logsnr


@pytest.mark.parametrize("part", OWN)
def test_parts_of_one_s_own_are_trained_and_resumed_and_are_loaded_into_them(part, tmp_path):
    """A config cannot name them: a run keeps them as before, and `load` without them refuses
    instead of building something else.
    """
    torch.manual_seed(0)
    for _ in range(2):  # the second goes on, with nothing left to do
        with Run.open(tmp_path, CONFIG) as run:
            averaged = train(OWN[part](), data_of(CONFIG), CONFIG, run=run, quiet=True)
    assert has_custom_parts(averaged)
    with pytest.raises(ValueError, match=r"your own|of another architecture|loss: Weighted"):
        Run(tmp_path).load()
    loaded = Run(tmp_path).load(objective=OWN[part]())
    points_ = data_of(CONFIG)[:8]
    setting = {"u": torch.linspace(0.1, 0.9, 8), "eps": torch.randn(8, 64)}
    assert torch.equal(loaded(points_, **setting), averaged(points_, **setting))
    (tmp_path / "ema.safetensors").unlink()  # the newest checkpoint says the same
    with pytest.raises(ValueError, match=r"your own|of another architecture|loss: Weighted"):
        Run(tmp_path).load()
    assert torch.equal(
        Run(tmp_path).load(objective=OWN[part]())(points_, **setting), averaged(points_, **setting)
    )


def test_a_run_that_goes_on_with_another_objective_or_other_data_says_so(tmp_path):
    config = points(steps=4, ema=[0.9], schedule=CONFIG.schedule)
    own = [OWN["a network"](), OWN["another schedule too"]()]
    with Run.open(tmp_path, config) as run, pytest.raises(RuntimeError, match="stop"):
        train(own[0], data_of(config), config, run=run, every=2, quiet=True, validate=stop_at(1))
    with (
        Run.open(tmp_path, config) as run,
        pytest.warns(
            UserWarning,
            match=r"continues with other data, another objective or another mask: .*Cosine",
        ),
    ):
        train(own[1], data_of(config), config, run=run, every=2, quiet=True)


def stop_at(count: int) -> Callable[[Objective], float]:
    """A validation that raises when it is called for the so-manieth time: with what is trained
    until then in a checkpoint.
    """
    calls = iter(range(1, count + 1))

    def validate(averaged: Objective) -> float:
        if next(calls) == count:
            raise RuntimeError("stop")
        return 1.0

    return validate


def test_pretrained_and_moved_weights_are_no_difference():
    config = points(schedule={"name": "LearnedLinear"}, ema=[0.9])
    other = config.objective()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert differences(other, config) == []
    assert differences(copy.deepcopy(other).eval().requires_grad_(False), config) == []
    adaptive = points(schedule={"name": "Adaptive", "bins": 4, "warmup": 1}, ema=[0.9])
    trained = train(adaptive.objective(), data_of(adaptive), adaptive, quiet=True)
    assert differences(trained, adaptive) == []
    half = config.objective()
    half.model.bfloat16()
    assert differences(half, config) == []
    fixed = objective(schedule=Tabulated.linear_betas())
    other = objective(
        schedule=Tabulated(
            fixed.schedule.table.clone().mul_(torch.linspace(1, 1.0, 1000, dtype=torch.float64))
        )
    )
    assert parts_of(fixed) == parts_of(other)


def test_the_values_of_a_fixed_table_count():
    """Two with the same ends and as many levels."""
    table = torch.linspace(9.0, -9.0, 5, dtype=torch.float64)
    bent = table.clone()
    bent[2] = 1.0
    one, other = (parts_of(objective(schedule=Tabulated(t))) for t in (table, bent))
    assert {place for place in one if one[place] != other[place]} == {"schedule.table (values)"}


def test_messages_are_short():
    wide = objective(model=model(network=MLP(64, width=256, depth=9, features=8)))
    wrong = differences(wide, CONFIG)
    assert len(wrong) > 20
    assert len(shortened(wrong)) < 500
    assert f"and {len(wrong) - 5} more" in shortened(wrong)
