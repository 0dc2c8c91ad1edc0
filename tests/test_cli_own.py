"""A network of one's own in a run: what its builder may return, and what a config says of it."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vdiff import Denoiser, Objective
from vdiff.cli.own import builder_of, load_run
from vdiff.decoder import Categorical
from vdiff.denoiser import edm_time
from vdiff.losses import VLB
from vdiff.nn import LevelHead
from vdiff.parameterization import Eps, V
from vdiff.schedule import Cosine, Linear
from vdiff.training import Config, Run, train
from vdiff.training.loading import config_hash
from vdiff.training.structure import differences

DATA = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
MINE = """
import vdiff
from torch import nn


class Net(nn.Module):
    def __init__(self, channels_out=1):
        super().__init__()
        self.layer = nn.Conv2d(1, channels_out, 3, padding=1)

    def forward(self, z, logsnr):
        return self.layer(z)


class Levels(Net):
    def __init__(self):
        super().__init__(17)


def denoiser():
    return vdiff.Denoiser(Net(), vdiff.parameterization.Eps(), time=vdiff.denoiser.edm_time)


def objective():
    loss = vdiff.objective.VLB(vdiff.decoder.Categorical(17), steps=8)
    return vdiff.Objective(denoiser(), schedule=vdiff.schedule.Cosine(8.0, -6.0), loss=loss)


made = Net()
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def config_for(name: str, **settings: object) -> Config:
    settings = {"parameterization": {"name": "V"}, "level_head": False, **settings}
    return Config({"name": f"mine.py:{name}"}, steps=2, batch=4, **settings)


def test_a_builder_returns_a_network_a_denoiser_or_an_objective(mine):
    """What it leaves out is the config's."""
    objectives = {
        name: builder_of(f"{mine}:{name}").objective(config_for(name))
        for name in ("Net", "made", "denoiser", "objective")
    }
    for name in ("Net", "made"):
        model = objectives[name].model
        assert type(model.network).__name__ == "Net"
        assert repr(model.parameterization) == repr(V())
    model = objectives["denoiser"].model
    assert (repr(model.parameterization), model.time) == (repr(Eps()), edm_time)
    for name in ("Net", "made", "denoiser"):
        assert isinstance(objectives[name].schedule, Linear)
        assert isinstance(objectives[name].loss, VLB)
    assert isinstance(objectives["objective"].schedule, Cosine)
    assert objectives["objective"].steps == 8
    headed = builder_of(f"{mine}:Levels").objective(config_for("Levels", level_head=True))
    assert isinstance(headed.model.network, LevelHead)


def test_a_builder_is_its_name_and_its_file_not_its_folder(mine):
    builder = builder_of(f"{mine}:Net")
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()[:16]
    assert (builder.name, builder.source) == ("mine.py:Net", digest)
    assert str(builder) == f"mine.py:Net, file {digest}"


def test_a_program_imports_what_is_beside_it_or_beside_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    package = tmp_path / "some_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("from torch import nn\nNet = nn.Identity\n")
    (package / "whole.py").write_text("from some_package_of_mine.part import Net\n")
    assert builder_of(f"{package / 'whole.py'}:Net").thing is nn.Identity


@pytest.mark.parametrize("name", ["Net", "Levels", "denoiser", "objective"])
def test_a_run_is_loaded_with_its_builder_alone(mine, tmp_path, name):
    config = config_for(name, level_head=name == "Levels")
    builder = builder_of(f"{mine}:{name}")
    config = replace(config, network_source=builder.source)
    with Run.open(tmp_path / "run", config) as run:
        averaged = train(builder.objective(config), DATA, config, run=run, quiet=True)
    loaded, again = load_run(Run(run.folder), f"{mine}:{name}")
    assert str(again) == str(builder)
    for key, value in averaged.state_dict().items():
        assert torch.equal(loaded.objective.state_dict()[key], value)
    with pytest.raises(ValueError, match="must be given for a run with a network of your own"):
        load_run(Run(run.folder), None)
    with pytest.raises(ValueError, match="must be given where the config names one of your own"):
        Run(run.folder).load()


@pytest.mark.parametrize(
    ("name", "other", "text"),
    [
        ("denoiser", "Net", "model.parameterization: Eps, by the config V"),
        ("Net", "denoiser", "model.time: edm_time, by the config logsnr_time"),
        ("objective", "denoiser", "schedule: Cosine, by the config Linear"),
    ],
)
def test_the_same_weights_in_another_model_are_refused(mine, tmp_path, name, other, text):
    config = config_for(name)
    with Run.open(tmp_path / "run", config) as run:
        run.save(builder_of(f"{mine}:{name}").objective(config), data=DATA)
    with (
        pytest.warns(UserWarning, match=f"trained with mine.py:{name}"),
        pytest.raises(ValueError, match="must be the one that was trained") as refused,
    ):
        load_run(run, f"{mine}:{other}")
    assert text in str(refused.value)


def test_parts_of_one_s_own_in_a_config_of_the_library(mine, tmp_path):
    """A run whose objective was made in Python: its builder may return all of it."""
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
    config = Config(network, steps=2, batch=4)
    objective = builder_of(f"{mine}:objective").objective(config)
    with Run.open(tmp_path / "run", config) as run:
        run.save(objective, data=DATA)
    loaded, _ = load_run(run, f"{mine}:objective")
    assert isinstance(loaded.objective.schedule, Cosine)


def test_a_library_network_as_one_s_own(tmp_path):
    """Its parts need not be the user's: the config says nothing about it."""
    config = config_for("anything")
    objective = config.objective(nn.Sequential(nn.Identity()))
    assert differences(objective, config) == []
    model = Denoiser(nn.Identity(), Eps())
    other = Objective(model, schedule=Linear(9.0, -7.0), loss=VLB(Categorical(17)))
    assert differences(other, config) == ["model.parameterization: Eps, by the config V"]


def test_the_file_is_no_part_of_what_makes_a_run(mine):
    config = config_for("Net")
    assert config_hash(replace(config, network_source="a")) == config_hash(config)
    assert config.own_network
    assert not Config({"name": "MLP", "dims": 2}).own_network


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ({"name": "mine.py:Net", "width": 8}, "'network.width' must be left out for a network of"),
        ({"name": "mine.py:Net", "labels": 0}, "'network.labels' must be a whole number"),
        ({"name": ["a:b"]}, "'network.name' must be text"),
        ({"name": "mine.py"}, "'network.name' must be a class of vdiff.nn"),
    ],
)
def test_what_a_config_cannot_say_of_a_builder(network, text):
    with pytest.raises(ValueError, match="Config: argument") as refused:
        Config(network)
    assert text in str(refused.value)


def test_conditions_need_labels():
    with pytest.raises(ValueError, match="come with a network that has labels"):
        Config({"name": "mine.py:Net"}, conditional=True)
    assert Config({"name": "mine.py:Net", "labels": 3}, conditional=True).conditional


def test_a_builder_whose_file_is_not_there_is_named_with_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file at") as error:
        builder_of("absent.py:build")
    assert str(tmp_path / "absent.py") in str(error.value)
