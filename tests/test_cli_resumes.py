"""`vdiff train` again: from which step it resumes, what a finished run says, and what is another
run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from own_network import convolution
from safetensors.torch import load_file

from vdiff.cli import main
from vdiff.training import Run

MINE = convolution(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old" / "photos.npy", images)
    np.save(tmp_path / "others.npy", images[::-1])
    return tmp_path


def train(*settings: str, data: str = "old/photos.npy", out: str = "run") -> int:
    words = ["mine.py:Net", "--data", data, "--out", out, "--device", "cpu", "--every", "2"]
    return main(["train", *words, "--set", "batch=4", "decay=constant", *settings])


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/ema.safetensors")


def test_a_run_that_was_cut_off_says_from_which_step_it_resumes(here, capsys):
    assert train("steps=4") == 0
    (here / "run" / "ema.safetensors").unlink()
    shutil.rmtree(here / "run" / "checkpoints" / "step-00000004")
    capsys.readouterr()
    assert train("steps=4") == 0
    out, err = capsys.readouterr()
    assert "resumes from step 2 of 4\n" in err
    assert " to go, if nothing is compiled" in err
    assert out.splitlines()[-1].startswith("trained: ")


def test_a_finished_run_says_so_and_goes_on_with_more_steps_bit_for_bit(here, capsys):
    assert train("steps=4") == 0
    known = weights("run")
    capsys.readouterr()
    assert train("steps=4") == 0
    out, err = capsys.readouterr()
    assert out.startswith("finished at step 4 already: ")
    assert "the same command with more steps, --set steps=…" in out
    assert err == ""  # neither a forecast nor a bar
    assert all(torch.equal(value, known[name]) for name, value in weights("run").items())
    assert train("steps=7") == 0
    assert train("steps=7", out="whole") == 0
    one, other = weights("run"), weights("whole")
    assert all(torch.equal(one[name], value) for name, value in other.items())
    assert not all(torch.equal(one[name], value) for name, value in known.items())
    assert train("steps=5") == 2
    assert "steps: 5, where it was 7" in capsys.readouterr().err


def test_while_a_finished_run_goes_on_its_weights_are_the_newest(here, monkeypatch):
    assert train("steps=4") == 0
    monkeypatch.setattr(Run, "finish", lambda *_: False)  # as if it was killed before
    assert train("steps=6") == 0
    assert Run("run").weights().parent.name == "step-00000006"


def test_a_rate_that_has_fallen_ends_a_run(here, capsys):
    assert train("steps=4", "decay=cosine") == 0
    assert train("steps=4", "decay=cosine") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "its learning rate falls to 0 at step 4" in said
    assert train("steps=6", "decay=cosine") == 2
    assert "steps: 6, where it was 4" in capsys.readouterr().err


def test_moved_data_is_the_same_run_and_other_data_another(here, capsys):
    assert train("steps=4") == 0
    shutil.move(here / "old", here / "new")
    assert train("steps=6", data="new/photos.npy") == 0
    assert Run("run").config.data == str(here / "new" / "photos.npy")
    assert train("steps=8", data="others.npy") == 2
    assert "'data' must be that of the run in " in capsys.readouterr().err
    assert Run("run").config.data == str(here / "new" / "photos.npy")
    assert Run("run").config.steps == 6
    assert train("steps=8", data="digits") == 2
