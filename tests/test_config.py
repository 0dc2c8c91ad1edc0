"""A run as plain data: old files, overrides, what is refused and how."""

import json
from dataclasses import fields

import pytest

from vdiff.parameterization import Eps
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, Tabulated
from vdiff.training import Config
from vdiff.training.config import CHECKS
from vdiff.variance import LearnedRange
from vdiff.weighting import EDM, MSE, MinSNR, Sigmoid

UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
TWO = {"name": "UNet", "channels": 1, "channels_out": 2, "width": 8}
# as a run of an earlier version has it
OLD = """{"network": {"name": "UNet", "channels": 1, "channels_out": 17, "width": 30,
"multipliers": [1, 1], "dropout": 0.35}, "data": "digits",
"shape": [1, 8, 8], "parameterization": {"name": "X"},
"schedule": {"name": "Normal", "mean": 2.5, "std": 3.0, "logsnr_max": 9.0, "logsnr_min": -7.0},
"decoder": {"name": "Categorical", "levels": 17}, "level_head": true,
"steps": 4000, "batch": 128, "lr": 0.002,
"schedule_lr": 0.01, "warmup": 100, "weight_decay": 0.05, "clip": 1.0, "ema": 0.999, "seed": 0}"""


def test_an_old_file_is_the_config_that_it_was():
    config = Config.from_dict(json.loads(OLD))
    assert (config.ema, config.clip, config.betas, config.accumulate, config.augment) == (
        [0.999],
        1.0,
        [0.9, 0.99],
        1,
        "none",
    )
    assert config.objective().steps is None
    assert Config.from_dict(json.loads(json.dumps(config.asdict()))) == config


def test_every_field_is_checked():
    assert list(CHECKS) == [one.name for one in fields(Config)]


def test_specs_are_objects_by_name_with_objects_in_them():
    factored = {
        "name": "Product",
        "base": {
            "name": "MSE",
            "schedule": {"name": "HyperbolicSecant"},
            "parameterization": {"name": "Eps"},
        },
    }
    objective = Config(
        network=UNET,
        schedule={"name": "Cosine"},
        weighting=factored | {"factor": {"name": "MinSNR", "gamma": 3.0}},
    ).objective()
    assert repr(objective.loss.weighting) == repr(MSE(Cosine().law, Eps()) * MinSNR(3.0))
    chain = Config(
        network=TWO,
        parameterization={"name": "Eps"},
        schedule={"name": "Tabulated.cosine_betas", "levels": 11},
        chain=10,
        variance={"name": "LearnedRange"},
        decoder={
            "name": "DiscretizedGaussian",
            "levels": 17,
            "uses_network": True,
            "posterior_variance": 0.1,
        },
        level_head=False,
        resampling=True,
    ).objective()
    assert repr(chain.schedule) == repr(Tabulated.cosine_betas(11))
    assert isinstance(chain.model.variance, LearnedRange)
    assert isinstance(chain.loss.resampling, LossSecondMoment)
    assert (chain.steps, chain.loss.resampling.steps) == (10, 11)


def test_settings_override_any_field():
    config = Config(network=UNET)
    words = [
        "lr=1e-4",
        "clip=null",
        "ema=[0.9, 0.99]",
        "schedule.name=Cosine",
        "weighting.name=Sigmoid",
        "weighting.bias=1",
        "folder=/a=b",
    ]
    changed = config.override(words)
    assert (changed.lr, changed.clip, changed.ema, changed.folder) == (
        1e-4,
        None,
        [0.9, 0.99],
        "/a=b",
    )
    assert changed.schedule == {"name": "Cosine", "logsnr_max": 9.0, "logsnr_min": -7.0}
    objective = changed.objective()
    assert isinstance(objective.loss.weighting, Sigmoid)
    assert objective.loss.weighting.bias == 1.0
    whole = config.override(
        ['weighting={"name": "EDM", "monotone": true}', "compile=True", "clip=None", "warmup=0"]
    )
    assert isinstance(whole.objective().loss.weighting, EDM)
    assert (whole.compile, whole.clip, whole.warmup) == (True, None, 0)
    assert config == Config(network=UNET)


def test_a_network_is_asked_for():
    with pytest.raises(ValueError, match="'network' must be given"):
        Config.from_dict({"data": "digits"})
