"""The first ten minutes of somebody with a network and pictures of her own: the commands and the
program of docs/training.md, as they stand there, with small numbers."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
MINE = '''
"""A network as people write it: knows nothing of vdiff."""

import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.time = nn.Linear(1, width)
        self.inner = nn.Conv2d(3, width, 3, padding=1)
        self.outer = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, t):
        hidden = self.inner(x) + self.time(0.1 * t[:, None])[..., None, None]
        return self.outer(torch.relu(hidden))


def build():
    return Mine()
'''
SMALL = {"64": "16", "50000": "6", "0.01": "0.2", "tolerance=0.01": "tolerance=0.2"}
MORE = {"train": ["--set", "steps=60", "batch=8", "lr=0.01", "warmup=5", "ema=[0.9]"]}


def page() -> str:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    return text.partition("## Your own network and images\n")[2].partition("\n## ")[0]


def commands() -> list[list[str]]:
    """The three commands, in small."""
    lines = re.findall(r"^    vdiff (.*)$", page(), re.MULTILINE)
    words = [[SMALL.get(word, word) for word in shlex.split(line)] for line in lines]
    return [[*given, *MORE.get(given[0], []), "--device", "cpu"] for given in words]


def program() -> str:
    lines = page().partition("The bound in Python")[2].partition("\n`build`")[0].splitlines()[1:]
    return re.sub("tolerance=0.01", SMALL["tolerance=0.01"], "\n".join(x[4:] for x in lines))


def pictures(folder: Path, count: int, seed: int) -> None:
    """Smooth pictures, no two of one size."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        colors = Image.fromarray(rng.integers(0, 256, (2, 2, 3)).astype(np.uint8))
        size = (17 + i % 7, 19 + i % 5)
        colors.resize(size, Image.Resampling.BICUBIC).save(folder / f"IMG_{i:03d}.png")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """What each command printed, in a new folder; and the Python program."""
    home = tmp_path_factory.mktemp("newcomer")
    (home / "mine.py").write_text(MINE, encoding="utf-8")
    pictures(home / "photos", 60, 0)
    pictures(home / "test_photos", 9, 1)
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "cwd": home, "env": place, "timeout": 120}
    done = {"home": subprocess.CompletedProcess(str(home), 0)}
    for words in commands():
        done[words[0]] = subprocess.run([sys.executable, "-m", "vdiff", *words], **options)
    done["python"] = subprocess.run([sys.executable, "-c", program()], **options)
    return done


def test_the_page_has_three_commands():
    assert [words[0] for words in commands()] == ["train", "evaluate", "sample"]


def test_none_fails_and_none_warns(said):
    for name, done in said.items():
        assert done.returncode == 0, (name, done.stderr)
        assert "arning" not in (done.stderr or ""), (name, done.stderr)


def test_training_says_how_long_it_takes_and_what_is_next(said):
    out, err = said["train"].stdout, said["train"].stderr
    assert "photos: 60 pictures, 3×16×16, bicubic to 16, centre, 256 levels" in err
    assert re.search(r"about \S+ \w+ a step and \S+ \w+ in all", err)
    assert "next, vdiff evaluate runs/mine --model mine.py:build" in out


def test_the_number_is_that_of_all_test_pictures_within_the_tolerance(said):
    report = json.loads((Path(said["home"].args) / "runs/mine/evaluation.json").read_text())
    protocol, total = report["protocol"], report["total"]
    assert protocol["images"] == 9
    assert protocol["in the training data"] == "0 of the 9 images"
    assert protocol["read as"].startswith("test_photos: 9 pictures, 3×16×16, bicubic to 16")
    assert total["monte_carlo"] <= 0.2
    assert 3 < total["value"] < 8  # better than uniform noise
    in_python = float(re.search(r"^total +(\S+)", said["python"].stdout, re.MULTILINE)[1])
    assert in_python == pytest.approx(total["value"], abs=1e-4)


def test_the_samples_are_pictures_in_the_form_of_the_run(said):
    samples = Path(said["home"].args) / "samples"
    assert sorted(p.name for p in samples.glob("*.png")) == [f"{i:06d}.png" for i in range(6)]
    pixels = [np.asarray(Image.open(path)) for path in samples.glob("*.png")]
    assert {(p.shape, p.dtype) for p in pixels} == {((16, 16, 3), np.dtype(np.uint8))}
    assert np.stack(pixels).std() > 1
