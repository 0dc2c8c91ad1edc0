"""The script for CIFAR-10 from end to end, on images in CIFAR-10's own form, and the commands that
follow it."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import lay_out, small

from vdiff import bits_per_dim
from vdiff.cli import main as vdiff
from vdiff.data.download import Unreachable
from vdiff.likelihood import evaluation
from vdiff.training import Config, Run

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import baselines
import cifar10
import recipes

TINY = ["network.width=8", "network.depth=1", "steps=2", "batch=4", "ema=[0.9, 0.5]"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 20 training and 4 test images, of which the last 4 for training select."""
    form, _, batches = small()
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", form)
    monkeypatch.setattr("vdiff.data.registry.HELD_OUT", 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        evaluation._PLAN.controls[1], "full", 0
    )  # the axes of 3,072 dimensions take half a minute
    lay_out(tmp_path / "data" / form.folder, batches)
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore:evaluate")  # a few draws of four images
def test_one_command_trains_evaluates_and_draws(folder, tmp_path, capsys):
    out = tmp_path / "run"
    command = [
        "--recipe",
        "small",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--every",
        "1",
        "--images",
        "4",
        "--set",
        *TINY,
    ]
    assert cifar10.main(command) == 0
    printed = capsys.readouterr().out
    assert "2 steps of 4, 0.5 times 16 images of cifar10" in printed
    results = json.loads((out / "results.json").read_text())
    assert f"{results['bound']['total']['value']:.4f}" in printed
    assert results["bound"]["total"]["monte_carlo"] > 0
    assert (results["protocol"]["images"], results["protocol"]["levels"]) == (4, 256)
    assert list(results["baselines"]) == [
        "uniform",
        "per-pixel histogram",
        "full-covariance Gaussian",
    ]
    assert (out / "table.txt").read_text() in printed
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        "error_by_logsnr.png",
        "samples.png",
        "schedule.png",
        "training.png",
    ]
    run = Run(out)
    assert (run.config.data, run.config.folder, run.config.network["width"], run.config.ema) == (
        "cifar10",
        str(folder),
        8,
        [0.9, 0.5],
    )
    assert [entry["step"] for entry in run.history()] == [1, 2]
    assert all("selection_bits_per_dim" in entry for entry in run.history())

    assert cifar10.main(command) == 2
    assert "hold no run yet" in capsys.readouterr().err
    assert cifar10.main([*command, "--resume", "auto"]) == 0  # nothing is left to do but the table
    assert json.loads((out / "results.json").read_text())["bound"] == results["bound"]
    assert len(run.history()) == 2
    assert cifar10.main([*command, "lr=0.5", "--resume", "auto"]) == 2
    assert "lr: 0.5, where it was 0.002" in capsys.readouterr().err

    assert vdiff(["evaluate", str(out), "--draws", "2", "--replicates", "2", "--quiet"]) == 0
    own = json.loads((out / "evaluation.json").read_text())
    assert (
        vdiff(
            [
                "evaluate",
                str(out),
                "--draws",
                "2",
                "--replicates",
                "2",
                "--quiet",
                "--data",
                str(folder),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert json.loads((out / "evaluation.json").read_text())["total"] == own["total"]
    assert vdiff(["sample", str(out), "--count", "2", "--steps", "2", "--quiet"]) == 0
    assert np.load(out / "samples" / "samples.npz")["data"].shape == (2, 3, 32, 32)


PROGRAM = """
import sys, torch
sys.path[:0] = ["tests", "examples"]
import cifar10, vdiff.data.cifar10, vdiff.data.registry
from cifar_files import small
from vdiff.likelihood import evaluation
vdiff.data.cifar10.PUBLISHED, vdiff.data.registry.HELD_OUT = small()[0], 4
evaluation._PLAN.controls[1].full = 0
torch.cuda.is_available = lambda: False
raise SystemExit(cifar10.main(sys.argv[1:]))
"""


def test_two_processes_train_one_run(folder, tmp_path):
    """As torchrun starts them: one run, one table. That weights are those of one process is tested
    where the loop is."""
    out, root = tmp_path / "run", Path(__file__).parent.parent
    command = [
        "--recipe",
        "small",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--images",
        "4",
        "--set",
        *TINY,
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        known = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": "2",
        }
    known |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command], cwd=root, stdout=subprocess.PIPE, text=True,
            env=known | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [text.count("4 of 4 test images") for text in said] == [1, 0]
    results = json.loads((out / "results.json").read_text())
    assert (results["protocol"]["processes"], results["protocol"]["images"]) == (2, 4)
    assert 8 < results["bound"]["total"]["value"] < 12


def test_a_dry_run_prints_all_settings_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cifar10.main(
            ["--recipe", "vdm-gamma", "--data", "patches", "--dry-run", "--set", "schedule_lr=0.5"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Reproduces:  ") for line in lines[:4])
    shown = dict(
        line.split(maxsplit=1)
        for line in lines
        if line.split(maxsplit=1)[:1] and line.split()[0] in {one.name for one in fields(Config)}
    )
    config = Config.from_dict({name: json.loads(value) for name, value in shown.items()})
    assert len(shown) == len(fields(Config))
    assert (config.schedule["name"], config.schedule_lr, config.data) == (
        "Monotone",
        0.5,
        "patches",
    )
    assert lines[-1] == f"{30_578_181 + 3 * 1024:,} parameters"  # `vdm`'s and the schedule's
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "says"), [
    (["--recipe", "vdmm"], "there is no recipe 'vdmm', but ddpm, edm, "), (["--recipe",
    "vdm-gama"], "did you mean 'vdm-gamma'?"),
    (["--recipe", "vdm", "--data", "patchs"], "did you mean 'patches'?"), (["--recipe", "vdm",
    "--data", "nowhere/at/all"], "there is no such folder"),
    (["--recipe", "vdm", "--set", "schedule.name=Cosin"], "did you mean 'Cosine'?"),
    (["--recipe", "vdm", "--set", "augment=flip-turns"], "did you mean 'flip-turn'?"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_made(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cifar10.main(words) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "says"), [
    (["--lr", "3"], "unknown option --lr; a setting is --set lr=…"), (["--schedule.name=Cosine"],
    "a setting is --set schedule.name=…"),
    (["--recpie", "vdm"], "did you mean '--recipe'?"), (["--recipe", "vdm", "--every", "0"],
    "must be at least 1; got 0"), ([], "required: --recipe"),
])  # fmt: skip
def test_unknown_arguments_are_answered_with_the_nearest(words, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cifar10.main(
            words
            if "--recipe" in words or not words or "--recpie" in words
            else ["--recipe", "vdm", *words]
        )
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error or (words == ["--recpie", "vdm"] and "required: --recipe" in error), error


def test_without_the_data_it_says_what_to_put_where(tmp_path, capsys, monkeypatch):
    def offline(*_):
        raise Unreachable("no route to host")

    monkeypatch.setattr("vdiff.data.download.download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert cifar10.main(["--recipe", "vdm", "--data", "here"]) == 2
    error = capsys.readouterr().err
    for word in (
        str(tmp_path / "here"),
        "no route to host",
        "cifar-10-binary.tar.gz",
        "170,052,171 bytes",
        "sha256 c4a38c50",
        "https://www.cs.toronto.edu/~kriz",
        "--data patches",
    ):
        assert word in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_is_one_of_the_digits_too(name):
    config = cifar10.config_of(
        cifar10.parse(["--recipe", name, "--data", "digits", "--set", "network.width=8"]),
        gpu=False,
    )
    if "embedding" in config.network:
        config = config.override(["network.groups=4"])
    torch.manual_seed(0)
    objective, levels = config.objective(), torch.randint(0, 17, (2, *config.shape))
    loss = objective(
        levels, condition={"augmented": torch.ones(2)} if config.augment == "flip-turn" else None
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(bits_per_dim(objective.bound(levels).total, 64)).all()
    assert (config.autocast, config.compile, config.channels_last) == (False, False, False)


def test_a_gpu_keeps_what_is_for_it():
    config = cifar10.config_of(
        cifar10.parse(["--recipe", "vdm", "--set", "compile=false"]), gpu=True
    )
    assert (config.autocast, config.compile, config.channels_last) == (True, False, True)


def test_the_gaussian_is_a_probability():
    """Over all images of two pixels with four levels it adds up to one; and it knows what depends
    on what."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 4, (500, 1), generator=generator)
    train = torch.cat(
        [first, (first + (torch.rand(500, 1, generator=generator) < 0.1)).clamp(max=3)], 1
    )
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    bits = torch.tensor(
        [baselines.gaussian(train, one[None], 4) * 2 for one in every], dtype=torch.float64
    )
    assert (2**-bits).sum().item() == pytest.approx(1.0, abs=1e-9)
    assert baselines.gaussian(train, train, 4) < baselines.histogram(train, train, 4)


def test_the_histogram_counts_each_pixel():
    train = torch.tensor([[0, 1], [0, 2], [1, 2]])
    known = torch.tensor([[2.5, 1.5, 0.5], [0.5, 1.5, 2.5]]) / 4.5
    assert baselines.histogram(train, torch.tensor([[0, 1]]), 3) == pytest.approx(
        -(known[0, 0] * known[1, 1]).log2().item() / 2
    )


@pytest.mark.filterwarnings("ignore:evaluate")
@pytest.mark.parametrize(
    ("where", "says"), [("train", "raise accumulate"), ("report", "lower the batch")]
)
def test_fault_71_out_of_memory_is_a_line(where, says, folder, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 7999999999992 "
            "bytes."
        )

    monkeypatch.setattr(
        *(
            ("vdiff.objective.Objective.forward", full)
            if where == "train"
            else (cifar10, "report", full)
        )
    )
    command = [
        "--recipe",
        "small",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--every",
        "1",
        "--images",
        "4",
        "--set",
        *TINY,
    ]
    assert cifar10.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("cifar10: out of memory; ")
    assert says in error
    assert error.count("\n") == 1


def test_the_home_of_nobody_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nosuchuser").mkdir()
    assert cifar10.main(["--recipe", "small", "--data", "~nosuchuser", "--dry-run"]) == 2
    assert "must be a path that leads somewhere; got '~nosuchuser'" in capsys.readouterr().err
