"""`vdiff compress` and `vdiff decompress`: arrays come back as they were, and what cannot be done
is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff import Objective
from vdiff.cli import main
from vdiff.codec.container import Container
from vdiff.training import Config, Run

pytest.importorskip("constriction")
UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
SHORT = ("--steps", "3", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained run on 8×8 images of 17 levels."""
    config = Config(network=UNET)
    torch.manual_seed(0)
    with Run.create(tmp_path_factory.mktemp("codec") / "run", config) as made:
        made.save(config.objective())
    return str(made.folder)


def images(shape=(4, 1, 8, 8), kind=np.uint8):
    return np.random.default_rng(0).integers(0, 17, shape).astype(kind)


def there_and_back(run, source, folder, *options):
    file, back = str(folder / "out.vdiff"), folder / f"back{source.suffix}"
    assert main(["compress", run, str(source), file, *SHORT, "--no-bound", *options]) == 0
    assert main(["decompress", run, file, str(back), "--device", "cpu", "--quiet"]) == 0
    return back


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 8, 8), (4, 8, 8, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_arrays_come_back_byte_for_byte(run, tmp_path, shape, kind):
    np.save(tmp_path / "images.npy", images(shape, kind))
    back = there_and_back(run, tmp_path / "images.npy", tmp_path)
    assert back.read_bytes() == (tmp_path / "images.npy").read_bytes()
    np.savez(tmp_path / "images.npz", images=images(shape, kind))
    back = there_and_back(run, tmp_path / "images.npz", tmp_path)
    with np.load(back) as arrays:
        assert list(arrays) == ["images"]
        assert arrays["images"].dtype == kind
        assert np.array_equal(arrays["images"], images(shape, kind))


def test_the_table_has_the_file_the_bound_and_the_others(run, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", images=images())
    out = tmp_path / "out.vdiff"
    command = ["compress", run, str(tmp_path / "images.npz"), str(out), *SHORT]
    assert main(command) == 0
    text = capsys.readouterr().out
    words = ("images", "start", "container", "file", "bound", "log-ratio of the paths")
    for word in (*words, "discretisation", "PNG", "gzip", "xz"):
        assert f"\n{word} " in text
    assert f"{out.stat().st_size:,}" in text
    assert main([*command, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["bytes"] == out.stat().st_size
    assert numbers["steps"] == 3
    assert numbers["bound"]["Monte Carlo"] > 0
    assert numbers["others"]["PNG"] > 0


def test_weights_that_no_run_holds(tmp_path, capsys):
    config = Config(network=UNET)
    torch.manual_seed(1)
    config.objective().save_pretrained(tmp_path / "saved")
    assert Objective.from_pretrained(tmp_path / "saved").decoder is not None
    np.save(tmp_path / "images.npy", images())
    back = there_and_back(str(tmp_path / "saved"), tmp_path / "images.npy", tmp_path)
    assert back.read_bytes() == (tmp_path / "images.npy").read_bytes()


def test_threads_are_those_of_the_file(run, tmp_path):
    np.save(tmp_path / "images.npy", images())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        file = str(tmp_path / "out.vdiff")
        source = str(tmp_path / "images.npy")
        assert main(["compress", run, source, file, *SHORT, "--no-bound"]) == 0
        torch.set_num_threads(1)
        assert Container.open(Path(file)).facts.of["threads"] == 2
        back = str(tmp_path / "back.npy")
        assert main(["decompress", run, file, back, "--device", "cpu", "--quiet"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert Path(back).read_bytes() == Path(source).read_bytes()


def refused(capsys, *words):
    assert main(list(words)) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_what_cannot_be_done_is_one_line(run, tmp_path, capsys):
    source, out = tmp_path / "images.npy", tmp_path / "out.vdiff"
    np.save(source, images((4, 1, 6, 6)))
    names = ("compress", run, str(source), str(out), *SHORT)
    assert "must be images of shape [1, 8, 8]" in refused(capsys, *names)
    np.save(source, images() + 1.5)
    assert "whole numbers" in refused(capsys, *names)
    np.save(source, images() + np.uint8(9))
    assert "0 … 16" in refused(capsys, *names)
    missing = str(tmp_path / "none.npz")
    assert "a .npy or .npz file" in refused(capsys, "compress", run, missing, str(out))
    folder = str(tmp_path / "no folder" / "out")
    assert "'out'" in refused(capsys, "compress", run, str(source), folder)
    assert not out.exists()


def test_a_damaged_file_is_one_line_and_leaves_the_old_images(run, tmp_path, capsys):
    source, out, back = (tmp_path / name for name in ("images.npy", "out.vdiff", "back.npy"))
    np.save(source, images())
    back.write_text("old")
    assert main(["compress", run, str(source), str(out), *SHORT, "--no-bound"]) == 0
    raw = out.read_bytes()
    out.write_bytes(raw[:-1])
    names = ("decompress", run, str(out), str(back), "--device", "cpu", "--quiet")
    capsys.readouterr()
    assert "must have its own checksum" in refused(capsys, *names)
    out.write_bytes(raw)
    assert "end with .npy or .npz" in refused(capsys, *names[:3], str(tmp_path / "x.png"))
    config = Config(network=UNET)
    with Run.create(tmp_path / "other", config) as made:
        made.save(config.objective())
    assert "with the weights that it was written with" in refused(
        capsys, names[0], str(made.folder), *names[2:]
    )
    assert back.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_labels_are_refused_or_left_out_aloud(run, tmp_path, capsys):
    source, out = tmp_path / "images.npz", tmp_path / "out.vdiff"
    np.savez(source, images=images(), labels=np.array([0, 1, 2, 3]))
    with pytest.warns(UserWarning, match=r"the labels of images\.npz are not compressed"):
        assert main(["compress", run, str(source), str(out), *SHORT, "--no-bound"]) == 0
    capsys.readouterr()
    config = Config(network=UNET | {"labels": 10}, conditional=True)
    with Run.create(tmp_path / "classes", config) as made:
        made.save(config.objective())
    text = refused(capsys, "compress", str(made.folder), str(source), str(out), *SHORT)
    assert "'run' must take no labels" in text


TOKENS = """
import torch
from torch import nn
from vdiff import Objective
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.schedule import LogLinear


def objective():
    torch.manual_seed(0)
    return Objective(TokenDenoiser(nn.Embedding(301, 300), Masked(300)), schedule=LogLinear())


def model():
    return objective().model
"""


@pytest.mark.parametrize("steps", [(), ("--steps", "3")])
def test_tokens_of_a_run_come_back_byte_for_byte(tmp_path, capsys, steps):
    (tmp_path / "mine.py").write_text(TOKENS)
    source, file, back = (str(tmp_path / n) for n in ("x.npy", "x.vdiff", "back.npy"))
    np.save(source, np.random.default_rng(0).integers(0, 300, (20, 8)).astype(np.uint16))
    builder, run = f"{tmp_path}/mine.py:model", str(tmp_path / "run")
    words = ["--data", source, "--set", "data_options.levels=300", "--set", "steps=3"]
    assert main(["train", builder, "--out", run, "--quiet", *words]) == 0
    capsys.readouterr()
    device = ("--model", builder, "--device", "cpu", "--quiet")
    assert main(["compress", run, source, file, *steps, *device, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    error = 3 * numbers["bound"]["Monte Carlo"]
    assert numbers["bits/token"] == pytest.approx(numbers["bound"]["value"], abs=0.3 + error)
    assert numbers["steps"] == (3 if steps else None)
    assert main(["compress", run, source, file, *steps, *device]) == 0
    text = capsys.readouterr().out
    assert f"20 texts of 8 tokens, {'3 steps' if steps else 'one token in each step'}" in text
    assert main(["decompress", run, file, back, *device]) == 0
    assert "20 texts" in capsys.readouterr().out
    assert Path(back).read_bytes() == Path(source).read_bytes()
    np.save(source, np.zeros((3, 9), np.uint16))
    assert "must be texts of shape [8]" in refused(capsys, "compress", run, source, file, *device)
