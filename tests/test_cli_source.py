"""`vdiff evaluate` and `vdiff sample` of weights that no run holds: of a builder's Objective, and
of a folder that `save_pretrained` wrote."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff import Objective, evaluate
from vdiff.cli import main
from vdiff.cli.own import builder_of
from vdiff.data import load_images

MINE = """
import torch
from torch import nn
import vdiff


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.classes = nn.Embedding(2, 1)

    def forward(self, z, t, label=None):
        shift = 0 if label is None else self.classes(label)[..., None, None]
        return self.layer(z) + shift


def my_time(logsnr):
    return logsnr / 10


def model():
    torch.manual_seed(0)
    return vdiff.Denoiser(Net(), vdiff.parameterization.V(), time=my_time)


def build():
    loss = vdiff.objective.VLB(vdiff.decoder.Categorical(256), steps=4)
    return vdiff.Objective(model(), schedule=vdiff.schedule.Linear(12.0, -7.0), loss=loss)


def weighted():
    return vdiff.Objective(model(), schedule=vdiff.schedule.Linear(12.0, -7.0))
"""
FEW = ("--draws", "64", "--replicates", "4", "--device", "cpu", "--quiet", "--json")
SAMPLE = ("--n", "3", "--steps", "2", "--device", "cpu", "--quiet")
pytestmark = pytest.mark.filterwarnings("ignore:evaluate. ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, a folder of pictures of two classes, and their array."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(MINE)
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), np.uint8)
    for i, image in enumerate(images):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    np.save(tmp_path / "photos.npy", images)
    return tmp_path


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["evaluate", *words, *FEW]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def assert_measures(report: dict, objective: Objective, data: str, labels: bool = False) -> None:
    """That a report is of these weights and images, whose order may be another."""
    images = load_images(data)
    path = {"schedule": objective.schedule, "decoder": objective.decoder, "steps": 4}
    given = {"condition": {"label": images.labels} if labels else None}
    expected = evaluate(objective.model, images.pixels, **path, **given, draws=64, replicates=4)
    error = math.hypot(report["total"]["monte_carlo"], expected.total.monte_carlo)
    assert abs(report["total"]["value"] - expected.total.value) < 4 * error
    assert error < 0.01 * expected.total.value


@pytest.mark.parametrize("data", ["photos.npy", "photos/"])
def test_a_builder_s_weights_are_measured_without_a_run(data, here, capsys):
    report = measured(capsys, "mine.py:build", "--data", data)
    objective = builder_of("mine.py:build").thing()
    assert_measures(report, objective, data)
    protocol = report["protocol"]
    assert protocol["weights of"] == "mine.py:build"
    assert protocol["network"].startswith("mine.py:build, file ")
    assert (protocol["run"], protocol["ema"]) == (None, None)
    assert json.loads((here / "mine-build" / "evaluation.json").read_text()) == report


def test_a_builder_is_sampled_without_a_run(here, capsys):
    assert main(["sample", "mine.py:build", "--shape", "1", "6", "6", *SAMPLE]) == 0
    with np.load(here / "mine-build" / "samples" / "samples.npz") as file:
        assert file["data"].shape == (3, 1, 6, 6)
        assert "label" not in file
    classes = ("--classes", "2", "--png", "pngs")
    assert main(["sample", "mine.py:build", "--shape", "1", "6", "6", *SAMPLE, *classes]) == 0
    assert json.loads((here / "pngs" / "samples.json").read_text())["labels"] == [0, 1]


def test_a_network_that_takes_classes_gets_those_of_the_data(here, capsys):
    report = measured(capsys, "mine.py:build", "--data", "photos/", "--classes", "2")
    objective = builder_of("mine.py:build").thing()
    assert_measures(report, objective, "photos/", labels=True)
    without = measured(capsys, "mine.py:build", "--data", "photos/")
    assert report["total"]["value"] != without["total"]["value"]


@pytest.mark.parametrize("name", ["model", "build"])
def test_a_saved_objective_with_parts_of_one_s_own(name, here, capsys):
    """The builder gives what plain data cannot say; all else is the folder's."""
    objective = builder_of("mine.py:build").thing()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1)
    objective.save_pretrained("saved")
    words = ("saved", "--model", f"mine.py:{name}", "--data", "photos.npy")
    report = measured(capsys, *words)
    assert_measures(report, objective, "photos.npy")
    assert main(["sample", "saved", *words[1:3], "--shape", "1", "6", "6", *SAMPLE]) == 0
    assert (here / "saved" / "samples" / "samples.png").is_file()


REFUSED = {
    "no data": (("evaluate", "mine.py:build"), "'data' must be given for weights that no run"),
    "no shape": (("sample", "mine.py:build"), "'shape' must be given for weights that no run"),
    "a model alone": (
        ("evaluate", "mine.py:model", "--data", "photos/"),
        "must return an Objective with its weights loaded, whose loss has a decoder",
    ),
    "no decoder": (("evaluate", "mine.py:weighted", "--data", "photos/"), "whose loss has a dec"),
    "two builders": (
        ("evaluate", "mine.py:build", "--model", "mine.py:build", "--data", "photos/"),
        "'model' must be left out where RUN is a builder",
    ),
    "no such function": (("evaluate", "mine.py:bild", "--data", "photos/"), "it has torch, nn"),
    "no parts": (("evaluate", "saved", "--data", "photos/"), "plain data cannot say: <run_path>"),
    "other parts": (
        ("evaluate", "saved", "--model", "mine.py:Net", "--data", "photos/"),
        "plain data cannot say: <run_path>.my_time; got others",
    ),
    "classes of a run": (("sample", "runs/x", "--classes", "3"), "left out for a run, whose con"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_missing_is_said_in_a_line(kind, here, capsys):
    words, said = REFUSED[kind]
    builder_of("mine.py:build").thing().save_pretrained("saved")
    assert main([*words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir()) == [
        "mine.py", "photos", "photos.npy", "saved",
    ]  # fmt: skip
