"""`vdiff sample --png`: numbered PNGs, bounded memory, resumed where it stopped."""

import json
import os
import secrets
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_runs import at_most
from PIL import Image
from points import launch

from vdiff.cli import main
from vdiff.cli.numbered import name_of
from vdiff.cli.sampler import Sampler
from vdiff.training import Config, Run

ROOT = Path(__file__).parent.parent
NETWORK = {"name": "UNet", "channels": 3, "channels_out": 12, "width": 8, "labels": 3}
NETWORK |= {"multipliers": [1], "heads": 1}
DECODER = {"name": "Categorical", "levels": 4}
CONFIG = Config(network=NETWORK, shape=[3, 4, 4], decoder=DECODER, conditional=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made, objective = Run.create(tmp_path / "run", CONFIG), CONFIG.objective()
    for parameter in objective.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    made.save(objective)
    return made.folder


def sample(run: Path, *words: object) -> int:
    return main(["sample", str(run), "--steps", "2", "--quiet", *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_pngs_are_the_samples_by_their_numbers(run, tmp_path, capsys):
    pngs = tmp_path / "samples"
    assert sample(run, "--n", 7, "--png", pngs, "--batch", 3) == 0
    captured = capsys.readouterr()
    assert "7 of 7 PNGs to draw, at most 0.0 MB" in captured.err
    assert sorted(contents(pngs)) == [*map(name_of, range(7)), "samples.json"]
    assert sample(run, "--count", 7) == 0
    data = np.load(run / "samples" / "samples.npz")["data"]
    for i in range(7):
        with Image.open(pngs / name_of(i)) as image:
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), 85 * data[i].transpose(1, 2, 0))


def test_two_processes_write_the_files_of_one(run, tmp_path):
    """Each its own batches: also where one of them has nothing to do."""
    words = ["sample", run, "--steps", 2, "--batch", 3, "--device", "cpu"]
    for count, levels in ((8, 15), (2, 6)):  # of the first process: 5 of 8 samples
        one, two = tmp_path / f"one{count}", tmp_path / f"two{count}"
        assert sample(run, "--n", count, "--batch", 3, "--png", one, "--device", "cpu") == 0
        command = [sys.executable, "-m", "vdiff", *map(str, words), "--count", str(count)]
        started = launch(2, [*command, "--png", str(two)], PYTHONPATH=str(ROOT))
        said = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        assert contents(two) == contents(one)
        assert sum(f"{count} samples in" in out for out, _ in said) == 1
        assert sum(f"{levels} of {levels} level" in err for _, err in said) == 1


def test_several_processes_share_nothing_but_pngs(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sample(run) == 2
    assert "'png' must be given to several processes" in capsys.readouterr().err


def test_it_continues_where_it_stopped_and_beyond(run, tmp_path, capsys):
    pngs = tmp_path / "samples"
    assert sample(run, "--n", 6, "--png", pngs) == 0
    known = contents(pngs)
    (pngs / name_of(2)).unlink()
    (pngs / name_of(4)).write_bytes(b"")  # the machine went down
    (pngs / ".000005.partial").write_bytes(b"cut o")
    capsys.readouterr()
    assert sample(run, "--n", 8, "--png", pngs, "--batch", 2) == 0
    assert "4 of 8 PNGs to draw" in capsys.readouterr().err
    again = contents(pngs)
    assert {name: again[name] for name in known} == known
    assert {name_of(6), name_of(7)} < set(again)


def test_an_interruption_says_what_is_kept(run, tmp_path, monkeypatch, capsys):
    draw, calls = Sampler.draw, []

    def cut(self, numbers, bar):
        calls.append(len(numbers))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, numbers, bar)

    monkeypatch.setattr(Sampler, "draw", cut)
    pngs = tmp_path / "samples"
    assert sample(run, "--n", 1000, "--png", pngs, "--batch", 4) == 130
    assert f"samples so far are in {pngs}: the same command continues" in capsys.readouterr().err
    assert calls == [4, 4, 4]  # a batch at a time is in memory
    assert len(list(pngs.glob("*.png"))) == 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--seed", 1], "seed: 1, where it was 0"),
        (["--steps", 3], "levels: "),
        (["--step", "heun"], "step: heun, where it was ancestral"),
        (["--label", 1], "labels: [1], where it was [0, 1, 2]"),
        (["--clip"], "clip: True, where it was False"),
    ],
)
def test_samples_of_other_settings_are_not_mixed(run, tmp_path, words, text, capsys):
    pngs = tmp_path / "samples"
    assert sample(run, "--n", 2, "--png", pngs) == 0
    before = contents(pngs)
    assert sample(run, "--n", 4, "--png", pngs, *words) == 2
    assert text in capsys.readouterr().err
    assert contents(pngs) == before


def test_a_folder_with_other_things_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.png").write_bytes(b"mine")
    assert sample(run, "--png", tmp_path / "samples") == 2
    assert "that this command has begun" in capsys.readouterr().err
    for words in (["--gif"], ["--out", tmp_path / "out"]):
        assert sample(run, "--png", tmp_path / "new", *words) == 2
        assert "come without --png" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_weights_are_other_samples(run, tmp_path, capsys):
    pngs = tmp_path / "samples"
    assert sample(run, "--n", 2, "--png", pngs) == 0
    Run(run).save(CONFIG.objective())
    assert sample(run, "--n", 2, "--png", pngs) == 2
    assert "weights file: " in capsys.readouterr().err
    assert json.loads((pngs / "samples.json").read_text())["seed"] == 0


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("kind", ["link", "broken link", "pipe"])
@pytest.mark.parametrize(
    "name", [".000001.partial", f".{'0' * 16}.partial", "000001.png", "samples.json"]
)
def test_nothing_that_lies_in_a_folder_of_pngs_leads_outside_or_hangs(
    name, kind, run, tmp_path, monkeypatch
):
    """Whatever has the name of a sample, or of one that is being written."""
    victim, folder = tmp_path / "victim", tmp_path / "pngs"
    assert sample(run, "--n", 1, "--png", folder) == 0
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)  # the worst case
    victim.write_text("precious")
    victim.chmod(0o600)
    place = folder / name
    place.unlink(missing_ok=True)
    aims = {"link": victim, "broken link": tmp_path / "nowhere"}
    place.symlink_to(aims[kind]) if kind in aims else os.mkfifo(place)
    with at_most(60):
        code = sample(run, "--n", 2, "--png", folder, "--batch", 2)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("precious", 0o600)
    assert not (tmp_path / "nowhere").exists()
    assert code == (2 if name == "samples.json" or "0000000000" in name else 0)
    assert (folder / name_of(1)).is_file() == (code == 0)
    assert not (folder / name_of(1)).is_symlink()


def test_a_disk_that_is_full_leaves_no_torn_png(run, tmp_path, monkeypatch):
    def full(image, file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert sample(run, "--n", 2, "--png", tmp_path / "pngs") == 2
    assert [*contents(tmp_path / "pngs")] == ["samples.json"]
    assert sample(run, "--n", 2, "--png", tmp_path / "pngs") == 0
