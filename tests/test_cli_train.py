"""`vdiff train`: a network and images of one's own, from a file and a folder to a number."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from vdiff.cli import main
from vdiff.cli.load import of_classes
from vdiff.data import load_images
from vdiff.terminal import duration
from vdiff.training import Config, Run
from vdiff.training.checkpoint import checkpoints, step_of

MINE = """
import torch
from torch import nn
import vdiff
from scale_of_mine import SCALE

WIDTH = 8


class Net(nn.Module):
    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.inner = nn.Conv2d(channels + 1, WIDTH, 3, padding=1)
        self.outer = nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.classes = nn.Embedding(classes, WIDTH)

    def forward(self, z, logsnr, label=None):
        level = (SCALE * logsnr).to(z).view(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        hidden = self.inner(torch.cat([z, level], 1))
        if label is not None:
            hidden = hidden + self.classes(label)[..., None, None]
        return self.outer(nn.functional.silu(hidden))


def build():
    return Net()


def grey():
    return Net(1)


def vector():
    return nn.Bilinear(2, 1, 2)


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, z, logsnr):
        return self.linear(z)
"""
# few steps of few images
pytestmark = pytest.mark.filterwarnings("ignore:evaluate. one draw of")
FEW = ("--set", "steps=4", "batch=4", "--device", "cpu")
EVALUATE = ("--draws", "2", "--replicates", "2", "--device", "cpu", "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, and photos of two classes and several sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "scale_of_mine.py").write_text("SCALE = 0.1\n")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(30):
            colors = rng.integers(0, 256, (3, 3, 3)).astype(np.uint8)
            size = tuple(rng.integers(8, 14, 2))
            Image.fromarray(colors).resize(size).save(folder / f"{i}.png")
    return tmp_path


def train(*words: object) -> int:
    return main(["train", *map(str, words)])


OWN = ("mine.py:build", "--data", "photos/", "--size", "8", "--out", "runs/mine", *FEW)


def test_own_network_and_images_to_a_number_and_samples(here, capsys):
    """The three commands of the page."""
    assert train(*OWN) == 0
    out, err = capsys.readouterr()
    assert "--model mine.py:build" in out
    assert "parameters; photos: 60 pictures, 3×8×8" in err
    assert "4 steps of 4 images" in err
    assert "a checkpoint takes" in err
    assert "a step and" in err
    config = Run("runs/mine").config
    assert config.network == {"name": "mine.py:build"}
    assert (config.shape, config.decoder) == ([3, 8, 8], {"name": "Categorical", "levels": 256})
    assert config.data == str(here / "photos")
    model = ("--model", "mine.py:build")
    words = ["evaluate", "runs/mine", *model, "--data", "photos/", "--images", "2", *EVALUATE]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"]["network"] == f"mine.py:build, file {config.network_source}"
    assert report["protocol"]["part"].startswith("the first 2 of ")
    assert report["protocol"]["images"] == 2
    words = ["--n", "3", "--png", "samples/", "--steps", "2", "--device", "cpu"]
    assert main(["sample", "runs/mine", *model, *words]) == 0
    assert len(list((here / "samples").glob("*.png"))) == 3


def test_a_run_folder_runs_no_code(here, capsys):
    assert train(*OWN, "--quiet") == 0
    (here / "mine.py").write_text("open('ran', 'w').close()\n")
    for command in ("evaluate", "sample"):
        assert main([command, "runs/mine", "--quiet"]) == 2
        assert "'model' must be given for a run with a network of" in capsys.readouterr().err
    assert not (here / "ran").exists()


def test_the_same_command_resumes_bit_for_bit(here, capsys):
    """As if it had been killed after its second step."""
    assert train(*OWN, "--every", 2, "--quiet") == 0
    run = here / "runs" / "mine"
    known = load_file(run / "ema.safetensors")
    (run / "ema.safetensors").unlink()
    for path in (run / "checkpoints" / "step-00000004").iterdir():
        path.unlink()
    (run / "checkpoints" / "step-00000004").rmdir()
    capsys.readouterr()
    assert train(*OWN, "--every", 2, "--quiet") == 0
    again = load_file(run / "ema.safetensors")
    assert all(torch.equal(again[name], known[name]) for name in known)
    assert capsys.readouterr().err == ""
    assert train(*OWN, "--resume", "never") == 2
    assert "hold no run yet" in capsys.readouterr().err
    assert train(*OWN, "--set", "lr=1") == 2
    assert "lr: 1, where it was 0.0002" in capsys.readouterr().err


def on_two_processes(*words: str, **variables: str) -> int:
    """The exit code of `vdiff train` under torchrun."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "vdiff"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | variables
    command = [sys.executable, *start, "train", *words, "--quiet"]
    return subprocess.run(command, check=False, env=environment, timeout=120).returncode


DYING = """
import os
import signal
from mine import Net

calls = 0


class Dying(Net):
    def forward(self, *given, **named):
        global calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == int(os.environ.get("DIES_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*given, **named)
"""


def test_two_processes_of_which_one_is_killed_resume_to_the_last_bit(here):
    """The user's own network and images, with one checkpoint each second step."""
    (here / "dying.py").write_text(DYING)
    words = ["dying.py:Dying", *OWN[1:], "--set", "steps=12", "--every", "2", "--out"]
    assert on_two_processes(*words, "runs/whole") == 0
    assert on_two_processes(*words, "runs/killed", DIES_AT="20") != 0
    steps = [step_of(path) for path in checkpoints(here / "runs" / "killed" / "checkpoints")]
    assert 0 < max(steps) < 12
    assert not (here / "runs" / "killed" / "ema.safetensors").exists()
    assert on_two_processes(*words, "runs/killed") == 0
    whole, resumed = (load_file(f"runs/{name}/ema.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_two_processes_train_as_one_does(here):
    assert train(*OWN, "--quiet") == 0
    assert on_two_processes(*OWN, "--out", "runs/two") == 0
    one, two = (load_file(f"runs/{name}/ema.safetensors") for name in ("mine", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_file_that_has_changed_is_warned_of_and_another_network_refused(here, capsys):
    assert train(*OWN, "--quiet") == 0
    words = ["evaluate", "runs/mine", "--model", "mine.py:build", "--images", "2", *EVALUATE]
    (here / "mine.py").write_text(MINE + "# a comment\n")
    with pytest.warns(UserWarning, match=r"was trained with mine\.py:build, file \w{16}; this is"):
        assert main(words) == 0
    (here / "mine.py").write_text(MINE.replace("WIDTH = 8", "WIDTH = 9"))
    with pytest.warns(UserWarning, match="the same weights may compute something else"):
        assert main(words) == 2
    assert (
        "model.network.inner.weight is [8, 4, 3, 3], here [9, 4, 3, 3]" in capsys.readouterr().err
    )
    config = (here / "runs" / "mine" / "config.json").read_bytes()
    with pytest.warns(UserWarning, match="the run was trained with"):  # not resumed with it either
        assert train(*OWN) == 2
    assert "model.network.inner.weight is [8, 4, 3, 3]" in capsys.readouterr().err
    assert (here / "runs" / "mine" / "config.json").read_bytes() == config


def test_a_config_is_printed_and_trained(here, capsys):
    """A config from a dry run, from a run folder, and as an object of a program."""
    assert train(*OWN, "--dry-run") == 0
    config = json.loads(capsys.readouterr().out)
    assert not (here / "runs").exists()
    (here / "own.json").write_text(json.dumps(config))
    assert train("own.json", "--out", "runs/json") == 2
    assert "--model mine.py:build" in capsys.readouterr().err
    assert train("own.json", "--model", "mine.py:build", "--out", "runs/json", "--quiet") == 0
    assert Run("runs/json").config == Config.from_dict(config)
    (here / "recipe.py").write_text(
        "from vdiff.training import Config\n"
        "CONFIG = Config({'name': 'UNet', 'channels': 3, 'channels_out': 3, 'width': 8,"
        " 'multipliers': [1], 'heads': 1}, level_head=False, steps=2, batch=4,"
        " shape=[3, 8, 8], compile=True)\n"
    )
    assert train("recipe.py:CONFIG", "--data", "photos", "--size", 8, "--out", "runs/r") == 0
    config = Run("runs/r").config
    assert (config.compile, config.decoder) == (False, {"name": "Categorical", "levels": 256})
    assert main(["evaluate", "runs/r", "--images", "2", *EVALUATE]) == 0
    words = ("--out", "runs/both", "--data", "photos", "--size", 8, "--dry-run")
    capsys.readouterr()
    assert train("recipe.py:CONFIG", "--model", "mine.py:build", *words) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["network"], config["parameterization"]) == (
        {"name": "mine.py:build"},
        {"name": "X"},
    )
    assert train("mine.py:build", "--model", "mine.py:build", *words) == 2
    assert "come with a config" in capsys.readouterr().err


def test_classes_are_those_of_the_folder_and_guidance_has_a_null_class(here, capsys):
    words = ("--set", "conditional=true", "label_dropout=0.2")
    assert train(*OWN, *words, "--quiet") == 0
    assert Run("runs/mine").config.network == {"name": "mine.py:build", "labels": 3}
    options = ["--guidance", "2", "--null-label", "2", "--count", "4", "--steps", "2", "--quiet"]
    assert main(["sample", "runs/mine", "--model", "mine.py:build", *options]) == 0
    assert np.load("runs/mine/samples/samples.npz")["label"].tolist() == [0, 1, 0, 1]


def test_the_classes_of_another_folder_are_the_run_s_own(here, capsys):
    """Subfolders are counted from 0 in each folder: the labels follow the names."""
    assert train(*OWN, "--set", "conditional=true", "label_dropout=0.2", "--quiet") == 0
    first, second = sorted(path.name for path in Path("photos").iterdir())
    config, numbers = Run("runs/mine").config, {}
    Path("photos", "a-folder-without-pictures").mkdir()  # no class
    for name in (first, second):
        (here / "only" / name).mkdir(parents=True)
        for file in sorted(Path("photos", name).iterdir())[:4]:
            (here / "only" / name / file.name).write_bytes(file.read_bytes())
        images = of_classes(load_images("only", size=8), config)
        numbers[name] = sorted({int(k) for k in images.labels})
        shutil.rmtree(here / "only")
    assert numbers == {first: [0], second: [1]}
    evaluated = ["evaluate", "runs/mine", "--model", "mine.py:build", "--data", "other", *EVALUATE]
    for name in ("", "zebra"):
        (here / "other" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, i, i)).save(here / "other" / name / f"{i}.png")
        assert main(evaluated) == 2
        error = capsys.readouterr().err
        assert f"must have the classes of the run's data, {first}, {second}" in error
        shutil.rmtree(here / "other")
    sampled = ["--count", "4", "--steps", "2", "--quiet"]
    assert main(["sample", "runs/mine", "--model", "mine.py:build", *sampled]) == 0
    assert np.load("runs/mine/samples/samples.npz")["label"].tolist() == [0, 1, 0, 1]  # no null


def test_other_data_has_no_split(here, capsys):
    assert train(*OWN, "--quiet") == 0
    (here / "other").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (i, i, i)).save(here / "other" / f"{i}.png")
    words = ["evaluate", "runs/mine", "--model", "mine.py:build", "--data", "other", *EVALUATE]
    assert main([*words, "--split", "train"]) == 2
    error = capsys.readouterr().err
    assert "'split' must be left out; got train (other data than the run's" in error


def test_floating_data_of_any_shape(here):
    np.save(here / "points.npy", np.random.default_rng(0).normal(size=(200, 2)).astype("float32"))
    words = ("--data", "points.npy", "--out", "runs/points", *FEW, "--quiet")
    assert train("mine.py:Vector", *words) == 0
    config = Run("runs/points").config
    assert (config.shape, config.decoder) == ([2], {"name": "Gaussian"})
    assert main(["evaluate", "runs/points", "--model", "mine.py:Vector", *EVALUATE]) == 0


def test_pixels_in_a_file_of_floats_are_said_to_be_a_density(here, recwarn):
    """In [0, 1], and where they are levels in [−1, 1]; not where a density is asked for."""
    levels = np.random.default_rng(0).integers(0, 256, (200, 2))
    arrays = {"unit": levels / 255, "signed": levels / 127.5 - 1, "other": 3 * levels / 255}
    warned = []
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array.astype("float32"))
        for more in ((), ("--set", "decoder.name=Gaussian")):
            words = ("--data", f"{name}.npy", "--out", f"runs/{name}", *FEW, "--quiet", *more)
            assert train("mine.py:Vector", *words, "--dry-run") == 0
            warned.append([str(w.message) for w in recwarn if "as a density" in str(w.message)])
            recwarn.clear()
    assert list(map(len, warned)) == [1, 0, 1, 0, 0, 0]
    assert "unit.npy holds floating numbers in [0, 1]: they are trained as a den" in warned[0][0]
    assert "signed.npy holds floating numbers in [-1, 1]" in warned[2][0]
    for text, x in ((warned[0][0], levels / 255), (warned[2][0], levels / 127.5 - 1)):
        formula = text.partition("256 levels are ")[2].partition(" with a decoder")[0]
        made = eval(formula, {"x": torch.from_numpy(x), "torch": torch})
        assert torch.equal(made, torch.from_numpy(levels).to(torch.uint8))
    assert warned[0][0].endswith("says so: --set decoder.name=Gaussian")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("mine.py:build",), "'data' must be given for a network of your own"),
        (("mine.py:build", "--data", "photos"), "(--size 64 resizes them)"),
        (("mine.py:build", "--data", "digits", "--size", "8"), "be left out for digits"),
        (("mine.py:MINE", "--data", "digits"), "be something that mine.py defines"),
        (("mine.py:nn", "--data", "digits"), "returns a network, a Denoiser or an Objective"),
        (("nowhere.json",), "name a file that exists"),
        (("mine.py:build", "--lr", "1"), "it is a setting: --set lr=…"),
        (("mine.py:build", "--sise", "1"), "did you mean '--size'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(here, words, text, capsys):
    try:
        code = train(*words, "--out", "runs/x")
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not (here / "runs").exists()


def test_a_network_that_does_not_fit_the_images_is_shown_with_their_shape(here, capsys):
    assert train("mine.py:grey", *OWN[1:]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("vdiff train: mine.py:grey: RuntimeError: Given groups=1")
    assert "in the first step, on images (4, 3, 8, 8)" in lines
    assert "    hidden = self.inner(torch.cat([z, level], 1))" in lines


@pytest.mark.filterwarnings("ignore:no checkpoint at step", "ignore:.* has a log and no")
def test_a_training_whose_weights_could_not_be_written_is_no_success(here, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vdiff.training.checkpoint.save_file", full)
    with monkeypatch.context() as patch:
        patch.setattr("vdiff.training.weights.save_file", full)
        with pytest.warns(match="no averaged weights"):
            assert train(*OWN, "--quiet") == 2
    out, err = capsys.readouterr()
    assert "vdiff train: the weights of step 4 could not be written" in err
    assert "continues from step 0" in err
    assert "trained" not in out
    assert train(*OWN, "--quiet") == 0  # the weights alone have room
    assert Run("runs/mine").weights().name == "ema.safetensors"


def test_out_of_memory_says_what_to_lower(here, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vdiff.objective.Objective.forward", full)
    assert train(*OWN) == 2
    assert "vdiff train: out of memory: " in capsys.readouterr().err


def test_aduration_is_in_a_unit_that_one_reads():
    texts = [duration(s) for s in (0.0021, 2.5, 150.0, 9000.0, 400_000.0)]
    assert texts == ["2 ms", "2.5 s", "2.5 min", "2.5 h", "4.6 days"]
