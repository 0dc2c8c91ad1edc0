"""Parts of an objective as plain data and back: every public part of the library, and nothing
else."""

import json
import re

import pytest
import registry
import torch

from vdiff import nn as networks
from vdiff.decoder import Categorical
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep, edm_time
from vdiff.losses import VLB, Hybrid, Weighted
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, Tabulated
from vdiff.training.entries import entry_errors, entry_of, is_own, make, make_network
from vdiff.training.structure import parts_of

OWN = {"custom", "categorical, prior", "categorical, priors"}  # of a function, or of a tensor
MADE = {
    **{("schedule", name): made(8.0, -7.0) for name, made in registry.SCHEDULES.items()},
    **{("parameterization", name): made for name, made in registry.TARGETS.items()},
    **{("weighting", name): made() for name, made in registry.WEIGHTINGS.items()},
    **{("decoder", name): made() for name, made in registry.DECODERS.items()},
    ("time", "scaled"): ScaledGamma(logsnr_max=9.0, logsnr_min=-4.0),
    ("time", "of a schedule"): ScheduleTime(Cosine()),
    ("time", "of a table"): TableStep(Tabulated.linear_betas(), integer=True),
    ("resampling", "by size"): LossSecondMoment(7, memory=3, uniform=0.1),
    ("network", "points"): networks.MLP(2, width=4),
    ("network", "images"): networks.UNet(1, width=8, multipliers=(1, 2), labels=3),
    ("network", "ddpm"): networks.DDPMUNet(width=32, multipliers=(1,)),
    ("network", "iddpm"): networks.IDDPMUNet(width=32, multipliers=[1]),
    ("network", "tokens"): networks.Transformer(
        5, length=8, width=16, depth=1, heads=2, time=True
    ),
    ("network", "vdm"): networks.VDMUNet(width=32, depth=1),
}


@pytest.mark.parametrize(("part", "name"), MADE)
def test_every_part_is_made_again(part, name):
    made = MADE[part, name]
    entry = json.loads(json.dumps(entry_of(part, made)))
    if name in OWN:
        assert is_own(entry)
        return
    assert list(entry_errors(part, entry)) == []
    assert parts_of(make(part, entry)) == parts_of(made)


def test_what_a_spec_cannot_say_is_named():
    class Late(Cosine):
        """A schedule of a user."""

    assert entry_of("schedule", Late())["own"].endswith("Late")
    assert entry_of("time", torch.exp)["own"].endswith("exp")
    assert entry_of("time", ScheduleTime(registry.SCHEDULES["custom"](8.0, -7.0))) == {
        "own": "vdiff.denoiser.ScheduleTime"
    }
    assert is_own(entry_of("network", networks.LevelHead(torch.nn.Identity(), Categorical(4))))
    zero = Tabulated.linear_betas(zero_terminal_snr=True)  # λ = −∞ is not in JSON
    assert is_own(entry_of("schedule", zero))
    assert entry_of("call", None) is None


def test_a_network_of_levels_is_made_with_the_decoder():
    head = networks.LevelHead(networks.UNet(1, channels_out=4, width=8), Categorical(4))
    entry = entry_of("network", head)
    assert list(entry_errors("network", entry)) == []
    assert parts_of(make_network(entry, Categorical(4))) == parts_of(head)
    outline = make_network(entry, Categorical(4), outline=True)
    assert all(p.is_meta for p in outline.parameters())


def test_losses_take_their_decoder_and_weighting():
    entry = entry_of("loss", VLB(Categorical(4), steps=9, resampling=LossSecondMoment(9)))
    assert make("loss", entry, decoder=Categorical(4)).resampling.steps == 9
    assert repr(make("loss", entry_of("loss", Hybrid(99)), decoder=None)) == repr(Hybrid(99))
    assert entry_of("loss", Weighted(steps=3)) == {"name": "Weighted", "steps": 3}


SECOND = {"name": "LossSecondMoment", "memory": 1, "uniform": 0.1}


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("time", {"name": "edm_tme"}, r"'time' must be a class.*did you mean 'edm_time'"),
        ("time", {"name": ["edm_time"]}, "there are ScaledGamma"),
        ("time", "edm_time", "'time' must be a class with its arguments"),
        ("time", None, "'time' must be a class with its arguments; got null"),
        ("time", {"name": "Denoiser"}, "there are ScaledGamma"),
        ("time", {"name": "ScaledGamma", "logsnr_max": 3.0}, "logsnr_max, logsnr_min"),
        ("time", {"name": "edm_time", "x": 1}, "have the arguments of edm_time: none"),
        ("time", {"name": "ScheduleTime", "schedule": {"name": "X"}}, "'time.schedule.name' must"),
        ("time", {"name": "ScheduleTime", "schedule": None}, "'time.schedule' must be a class"),
        ("loss", {"name": "VLB", "steps": [3], "resampling": None}, "'loss.steps' must be a num"),
        ("resampling", SECOND | {"steps": 10**9}, "'resampling.steps' must be a number within"),
        ("resampling", SECOND | {"steps": "9"}, "'resampling.steps' must be a number within"),
        ("network", {"name": "LevelHead"}, "'network.network' must be a class"),
        ("network", {"name": "LevelHead", "network": {"name": "LevelHead"}}, "network.network.n"),
        ("output", {"name": "exec"}, "'output' must be null or"),
        ("schedule", None, "'schedule' must be a class"),
        ("weighting", {"name": "Sigmoid", "bais": 1.0}, "did you mean 'bias'"),
    ],
)
def test_a_wrong_entry_is_named(part, entry, message):
    first, *_ = entry_errors(part, entry)
    assert re.search(message, str(first))


def test_a_function_is_itself():
    assert make("time", entry_of("time", edm_time)) is edm_time
