"""`vdiff sample RUN`: what it writes, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff.cli import main
from vdiff.cli.sample import _cells, _picture
from vdiff.training import Config, Run


@pytest.fixture
def run(tmp_path):
    """A run with fresh weights of a small network; of ten classes and a null one where asked for."""

    def make(labels=None, **options):
        torch.manual_seed(0)
        config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "labels": labels}, **options)
        made, objective = Run.create(tmp_path / "run", config), config.objective()
        made.save(objective)
        return made.folder

    return make


def test_samples_are_written(run, capsys):
    folder = run()
    assert main(["sample", str(folder), "--count", "10", "--steps", "4", "--batch", "4", "--gif", "--quiet"]) == 0
    assert "10 samples, 4 evaluations each" in capsys.readouterr().out
    written = np.load(folder / "samples" / "samples.npz", allow_pickle=False)
    assert written["data"].shape == written["x"].shape == (10, 1, 8, 8)
    assert written["data"].min() >= 0
    assert written["data"].max() <= 16
    np.testing.assert_array_equal(written["data"], np.round((written["x"] + 1) * 8.5 - 0.5).clip(0, 16))
    settings = json.loads(str(written["settings"]))
    assert (settings["seed"], settings["steps"]) == (0, 4)
    with Image.open(folder / "samples" / "samples.png") as picture:
        picture.load()
    assert (picture.width % 37, picture.height % 28) == (0, 0)  # four columns and three rows of 8 pixels with thin gaps
    factor = picture.width // 37
    first = np.asarray(picture)[::factor, ::factor][1:9, 1:9]
    np.testing.assert_array_equal(first, (written["data"][0, 0] * (255 / 16)).round())
    with Image.open(folder / "samples" / "trajectory.gif") as film:
        assert film.n_frames == 4
        film.seek(3)
        shown = np.asarray(film.convert("L"))[::factor, ::factor][1:9, 1:9].astype(int)
    assert abs(shown - first).max() <= 8  # a palette's rounding


def test_the_samples_do_not_depend_on_the_batch_and_do_on_the_seed(run, tmp_path):
    folder, made = run(), {}
    for name, options in {"whole": ["--batch", "6"], "parts": ["--batch", "4"], "other": ["--seed", "1"]}.items():
        arguments = ["sample", str(folder), "--count", "6", "--steps", "3", "--out", str(tmp_path / name), "--quiet", *options]
        assert main(arguments) == 0
        made[name] = np.load(tmp_path / name / "samples.npz")["x"]
    np.testing.assert_allclose(made["whole"], made["parts"], atol=1e-4)
    assert abs(made["whole"] - made["other"]).max() > 0.1


def test_samples_by_class_and_guidance(run):
    folder = run(labels=4)
    options = ["--count", "7", "--steps", "3", "--step", "adams", "--grid", "few", "--quiet", "--clip", "--draw"]
    assert main(["sample", str(folder), *options, "--guidance", "2.0", "--null-label", "3"]) == 0
    written = np.load(folder / "samples" / "samples.npz")
    assert written["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert json.loads(str(written["settings"]))["evaluations"] == 6
    assert main(["sample", str(folder), *options, "--label", "1"]) == 0
    assert np.load(folder / "samples" / "samples.npz")["label"].tolist() == [1] * 7


@pytest.mark.parametrize(("options", "words"), [
    (["--step", "huen"], ("'huen' is no step", "did you mean 'heun'?")), (["--grid", "karas"], ("'karas' is no grid", "did you mean 'karras'?")),
    (["--step", "rk45"], ("there are ancestral, ddim",)), (["--steps", "0"], ("must be at least 1; got 0",)),
])  # fmt: skip
def test_unknown_names_get_the_nearest(options, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "run", *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.parametrize(("options", "words"), [
    (["--label", "3"], "takes no label"), (["--guidance", "2", "--null-label", "3"], "takes no label"), (["--eta", "0.5"], "come with --step ddim"),
    (["--step", "ddim", "--eta", "2"], "lie in [0, 1]"),
])  # fmt: skip
def test_what_a_run_cannot_do(run, options, words, capsys):
    assert main(["sample", str(run()), "--steps", "2", "--quiet", *options]) == 2
    assert words in capsys.readouterr().err


def test_guidance_and_the_null_label_come_together(run, capsys):
    assert main(["sample", str(run(labels=3)), "--guidance", "2", "--quiet"]) == 2
    assert "come with guidance" in capsys.readouterr().err


def test_no_run_and_no_weights(run, tmp_path, capsys):
    assert main(["sample", str(tmp_path)]) == 2
    assert "hold a config.json" in capsys.readouterr().err
    folder = run()
    (folder / "ema.safetensors").unlink()
    assert main(["sample", str(folder), "--quiet"]) == 2
    assert "ema.safetensors" in capsys.readouterr().err


def test_the_program_explains_itself():
    done = subprocess.run(
        [sys.executable, "-c", "from vdiff.cli import main; main(['sample', '--help'])"], capture_output=True, text=True, check=True
    )
    for word in ("RUN", "--step", "--gif", "trajectory.gif", "adams", "few"):
        assert word in done.stdout


def test_each_class_has_a_row_of_its_own_in_the_picture():
    """Also where the classes have not equally many samples."""
    labels = torch.arange(64) % 10
    cells, columns = _cells(64, labels)
    assert columns == 7
    assert torch.equal(cells // columns, labels)
    assert len(cells.unique()) == 64
    picture = np.asarray(_picture(torch.arange(64).view(64, 1, 1, 1) % 10, 10, cells, columns, smallest=1))
    values = picture[1::2, 1::2]
    assert (values[3] == 85).all()  # 3 of 0 … 9 as a byte
    assert values[9, 6] == 128  # the last classes have six: grey
