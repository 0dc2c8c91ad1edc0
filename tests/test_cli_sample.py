"""`vdiff sample RUN`: what it writes, and what it refuses."""

import json
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff import sample
from vdiff.cli import main
from vdiff.cli.pictures import cells_of, picture
from vdiff.parameterization import V
from vdiff.sampling import (
    adams_bashforth,
    ancestral,
    ddim,
    leading,
    logistic,
    ode,
    per_sample_generators,
    start,
    trailing,
    uniform,
)
from vdiff.schedule import Cosine, Karras, Linear
from vdiff.training import Config, Run
from vdiff.variance import FixedLarge


@pytest.fixture
def run(tmp_path):
    """A run with random weights of a small network, none of them zero; with classes where asked
    for."""

    def make(labels=None, **options):
        torch.manual_seed(0)
        config = Config(
            network={
                "name": "UNet",
                "channels": 1,
                "channels_out": 17,
                "width": 8,
                "labels": labels,
            },
            **options,
        )
        made, objective = Run.create(tmp_path / "run", config), config.objective()
        for parameter in objective.model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        made.save(objective)
        return made.folder

    return make


def test_samples_are_written(run, capsys):
    folder = run()
    assert (
        main(
            [
                "sample",
                str(folder),
                "--count",
                "10",
                "--steps",
                "3",
                "--batch",
                "4",
                "--gif",
                "--quiet",
            ]
        )
        == 0
    )
    assert "10 samples, 4 evaluations each" in capsys.readouterr().out
    written = np.load(folder / "samples" / "samples.npz", allow_pickle=False)
    assert written["data"].shape == written["x"].shape == (10, 1, 8, 8)
    assert written["data"].min() >= 0
    assert written["data"].max() <= 16
    np.testing.assert_array_equal(
        written["data"], np.round((written["x"] + 1) * 8.5 - 0.5).clip(0, 16)
    )
    settings = json.loads(str(written["settings"]))
    assert (settings["seed"], settings["steps"], settings["levels"]) == (0, 3, 4)
    with Image.open(folder / "samples" / "samples.png") as picture:
        picture.load()
    assert (picture.width % 37, picture.height % 28) == (
        0,
        0,
    )  # four columns and three rows of 8 pixels with thin gaps
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
    for name, options in {
        "whole": ["--batch", "6"],
        "parts": ["--batch", "4"],
        "other": ["--seed", "1"],
    }.items():
        arguments = [
            "sample",
            str(folder),
            "--count",
            "6",
            "--steps",
            "2",
            "--out",
            str(tmp_path / name),
            "--quiet",
            *options,
        ]
        assert main(arguments) == 0
        made[name] = np.load(tmp_path / name / "samples.npz")["x"]
    np.testing.assert_allclose(made["whole"], made["parts"], atol=1e-4)
    assert abs(made["whole"] - made["other"]).max() > 0.1


def test_samples_by_class_and_guidance(run):
    folder = run(labels=4)
    options = [
        "--count",
        "7",
        "--steps",
        "2",
        "--step",
        "adams_bashforth",
        "--grid",
        "logistic",
        "--quiet",
        "--clip",
        "--draw",
    ]
    assert main(["sample", str(folder), *options, "--guidance", "2.0", "--null-label", "3"]) == 0
    written = np.load(folder / "samples" / "samples.npz")
    assert written["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert json.loads(str(written["settings"]))["evaluations"] == 6
    assert main(["sample", str(folder), *options, "--label", "1"]) == 0
    assert np.load(folder / "samples" / "samples.npz")["label"].tolist() == [1] * 7


@pytest.mark.parametrize(("count", "batch"), [(4, 4), (8, 2), (7, 3)])
@pytest.mark.parametrize(
    ("options", "each"),
    [((), 4), (("--step", "heun"), 7), (("--guidance", "2", "--null-label", "3"), 8)],
)
def test_the_file_says_how_many_evaluations_a_sample_took_as_the_screen_does(
    run, capsys, count, batch, options, each
):
    folder = run(labels=4)
    assert (
        main(
            [
                "sample",
                str(folder),
                "--count",
                str(count),
                "--batch",
                str(batch),
                "--steps",
                "3",
                "--quiet",
                *options,
            ]
        )
        == 0
    )
    assert f"{count} samples, {each} evaluations each" in capsys.readouterr().out
    assert (
        json.loads(str(np.load(folder / "samples" / "samples.npz")["settings"]))["evaluations"]
        == each
    )


def settings_of(folder, *options):
    """What `vdiff sample` writes down, and the levels it visited."""
    assert main(["sample", str(folder), "--count", "2", "--quiet", *options]) == 0
    written = np.load(folder / "samples" / "samples.npz")
    return json.loads(str(written["settings"])), written["logsnr"], written["x"]


def test_the_levels_are_those_asked_for(run, tmp_path):
    folder, mine = run(), tmp_path / "mine.py"
    mine.write_text(
        "import vdiff\nschedule = vdiff.schedule.Cosine(5.0, -5.0)\nrow = [-6.0, -1.0, 2.5]\n"
    )
    trained, own = Linear(9.0, -7.0), Cosine(5.0, -5.0)
    asked = {
        (): uniform(Cosine(9.0, -7.0), 100),
        ("--grid", "run", "--steps", "4"): uniform(trained, 4),
        ("--grid", "run", "--steps", "5", "--spacing", "trailing"): trailing(trained, 5),
        ("--grid", "logistic", "--steps", "4", "--spacing", "leading"): leading(
            logistic(9.0, -7.0), 4
        ),
        ("--grid", "karras", "--steps", "3"): uniform(Karras(math.exp(-4.5), math.exp(3.5)), 3),
        ("--grid", f"{mine}:schedule", "--steps", "3"): uniform(own, 3),
        ("--grid", f"{mine}:row"): torch.tensor([-6.0, -1.0, 2.5]),
        ("--step", "ode", "--rtol", "0.1", "--atol", "0.1"): torch.tensor([-7.0, 9.0]),
    }
    for options, wanted in asked.items():
        settings, levels, _ = settings_of(folder, *options)
        np.testing.assert_allclose(levels, wanted.numpy(), rtol=1e-6, atol=1e-9)
        assert settings["levels"] == len(wanted)


def test_the_options_of_a_step_reach_it(run):
    """Each against the same step made by hand, and written down by name."""
    folder = run()
    model = Run(folder).load().model
    asked = {
        ("--variance", "forward"): partial(ancestral, variance=FixedLarge()),
        ("--step", "ddim", "--eta", "0.5"): partial(ddim, eta=0.5),
        ("--step", "adams_bashforth", "--order", "2", "--target", "v"): partial(
            adams_bashforth, order=2, target=V()
        ),
        ("--step", "ode", "--method", "rk4", "--steps", "5"): partial(ode, method="rk4"),
        ("--step", "ode", "--rtol", "0.01", "--atol", "0.02"): partial(ode, rtol=0.01, atol=0.02),
    }
    for options, step in asked.items():
        settings, levels, x = settings_of(folder, "--steps", "2", *options)
        generators = per_sample_generators(0, range(2))
        z = start((1, 8, 8), generators)
        wanted = sample(model, z, levels=levels, step=step, generator=generators)
        np.testing.assert_allclose(x, wanted.numpy(), rtol=0.0, atol=1e-5)
        assert all(
            str(settings[name.removeprefix("--")]) == value
            for name, value in zip(options[::2], options[1::2], strict=True)
        )


def test_guidance_within_an_interval(run):
    """Three levels of λ = −7, 1, 9, of which one is guided: four evaluations."""
    options = ["--steps", "2", "--grid", "linear", "--guidance", "2", "--null-label", "3"]
    folder = run(labels=4)
    assert settings_of(folder, *options)[0]["evaluations"] == 6
    settings, _, x = settings_of(folder, *options, "--interval", "-3", "4")
    assert settings["evaluations"] == 4
    assert settings["interval"] == [-3.0, 4.0]
    assert abs(x - settings_of(folder, *options)[2]).max() > 0


@pytest.mark.parametrize(("options", "words"), [
    (["--step", "huen"], ("'huen' is no step", "did you mean 'heun'?")),
    (["--grid", "karas"], ("'karas' is no grid", "did you mean 'karras'?")),
    (["--step", "rk45"], ("there are ancestral, ddim",)),
    (["--steps", "0"], ("must be at least 1; got 0",)),
    (["--steps", "2.5"], ("must be a whole number; got 2.5",)),
    (["--grid", "rnu"], ("did you mean 'run'?",)),
    (["--spacing", "trail"], ("did you mean 'trailing'?",)),
    (["--target", "epz"], ("did you mean 'eps'?",)),
    (["--variance", "large"], ("there are posterior, forward",)),
    (["--order", "4"], ("invalid choice",)),
])  # fmt: skip
def test_unknown_names_get_the_nearest(options, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "run", *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.parametrize(("options", "words"), [
    (["--label", "3"], "takes no label"),
    (["--guidance", "2", "--null-label", "3"], "takes no label"),
    (["--eta", "0.5"], "come with --step ddim"),
    (["--step", "ddim", "--eta", "2"], "lie in [0, 1]"),
    (["--order", "2"], "come with --step adams_bashforth"),
    (["--step", "heun", "--rtol", "1"], "come with --step ode"),
    (["--interval", "-1", "1"], "come with guidance"),
    (["--step", "ode", "--method", "rk5"], "did you mean 'rk4'?"),
    (["--grid", "no.py:row"], "name a file"),
    (["--step", "confidence"], "confidence"),
])  # fmt: skip
def test_what_a_run_cannot_do(run, options, words, capsys):
    assert main(["sample", str(run()), "--steps", "2", "--quiet", *options]) == 2
    assert words in capsys.readouterr().err


def test_guidance_and_the_null_label_come_together(run, capsys):
    assert main(["sample", str(run(labels=3)), "--guidance", "2", "--quiet"]) == 2
    assert "come with guidance" in capsys.readouterr().err


def test_a_solver_that_gives_up_and_a_row_of_levels_with_steps(run, tmp_path, capsys, monkeypatch):
    folder, mine = str(run()), tmp_path / "mine.py"
    mine.write_text("row = [-6.0, -1.0]\nfalls = [3.0, 1.0]\n")
    for options, words in {
        ("--grid", f"{mine}:row", "--steps", "2"): "come without --steps",
        ("--grid", f"{mine}:falls"): "rise strictly",
        ("--step", "ode", "--rtol", "1e-30", "--atol", "1e-30"): "dopri5 gave up",
    }.items():
        assert main(["sample", folder, "--quiet", *options]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    assert main(["sample", folder, "--quiet", "--step", "ode"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_no_run_and_no_weights(run, tmp_path, capsys):
    assert main(["sample", str(tmp_path)]) == 2
    assert "hold a config.json" in capsys.readouterr().err
    folder = run()
    (folder / "ema.safetensors").unlink()
    assert main(["sample", str(folder), "--quiet"]) == 2
    assert "ema.safetensors" in capsys.readouterr().err


def test_the_program_explains_itself():
    done = subprocess.run(
        [sys.executable, "-c", "from vdiff.cli import main; main(['sample', '--help'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in (
        "RUN",
        "--step",
        "--gif",
        "trajectory.gif",
        "adams_bashforth",
        "logistic",
        "FILE.py:NAME",
        "trailing",
        "--interval",
        "--device",
    ):
        assert word in done.stdout


def test_each_class_has_a_row_of_its_own_in_thepicture():
    """Also where the classes have not equally many samples."""
    labels = torch.arange(64) % 10
    cells, columns = cells_of(64, labels)
    assert columns == 7
    assert torch.equal(cells // columns, labels)
    assert len(cells.unique()) == 64
    pixels = np.asarray(
        picture(torch.arange(64).view(64, 1, 1, 1) % 10, 10, cells, columns, smallest=1)
    )
    values = pixels[1::2, 1::2]
    assert (values[3] == 85).all()  # 3 of 0 … 9 as a byte
    assert values[9, 6] == 128  # the last classes have six: grey
