"""A run knows on which images it was trained: those of its config, or others, on which no command
measures it unasked.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cifar_files import lay_out, small
from torch import Tensor

from vdiff.cli import load as taking
from vdiff.cli import main
from vdiff.data import dataset, load, load_images, splits
from vdiff.data.cifar10 import cifar10
from vdiff.data.digits import digits
from vdiff.likelihood.digest import data_hash
from vdiff.training import Config, Run, train
from vdiff.training.loading import Loaded

NETWORK = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
CONFIG = Config(network=NETWORK, steps=2, batch=4)
CONDITIONAL = replace(CONFIG, network=NETWORK | {"labels": 10}, conditional=True)
OWN = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
EVALUATE = ["--draws", "1", "--replicates", "2", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def parts() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(part.pixels for part in splits("digits"))


def trained(
    folder: Path, data: Tensor, config: Config = CONFIG, labels: Tensor | None = None
) -> Path:
    with Run.open(folder, config) as run:
        train(config.objective(), data, config, labels=labels, run=run, every=1, quiet=True)
    return folder


def evaluated(run: Path, *words: str) -> int:
    return main(["evaluate", str(run), *EVALUATE, *words])


KNOWN: dict[str, Callable[[tuple[Tensor, Tensor, Tensor]], Tensor]] = {
    "bytes": lambda parts: parts[0],
    "whole numbers": lambda parts: digits().train,
    "of dataset": lambda parts: dataset("digits")[0].pixels,
    "with the selection": lambda parts: torch.cat(parts[:2]).int(),
}
OTHER: dict[str, Callable[[tuple[Tensor, Tensor, Tensor]], Tensor]] = {
    "of one's own": lambda parts: OWN,
    "a part of the digits": lambda parts: parts[0][:100],
    "in another order": lambda parts: parts[0].flip(0),
    "the test": lambda parts: parts[2],
    "all": lambda parts: torch.cat(parts),
    "one pixel another": lambda parts: torch.cat(
        [parts[0][:-1], (parts[0][-1:] + 1).clamp(max=16)]
    ),
}


@pytest.mark.parametrize("data", KNOWN)
def test_a_run_on_the_data_of_its_config_is_measured_on_it(data, tmp_path, parts):
    run = trained(tmp_path, KNOWN[data](parts))
    assert evaluated(run) == 0
    protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
    assert (protocol["data set"], protocol["trained on"]) == (
        "digits",
        [data_hash(KNOWN[data](parts))],
    )
    assert protocol["data"] == data_hash(parts[2]) == data_hash(digits().test)


@pytest.mark.filterwarnings("ignore:.* are in the training data of this run")
@pytest.mark.parametrize(
    ("data", "weights"),
    [*((data, "averaged") for data in OTHER), ("of one's own", "of a checkpoint")],
)
def test_a_run_on_other_data_is_measured_on_none_unasked(
    data, weights, tmp_path, parts, capsys, monkeypatch
):
    run = trained(tmp_path, OTHER[data](parts))
    if weights == "of a checkpoint":
        (run / "ema.safetensors").unlink()
    with monkeypatch.context() as nothing:
        nothing.setattr(
            "vdiff.cli.evaluate.evaluate_bound", lambda *_, **__: pytest.fail("computed")
        )
        assert evaluated(run) == 2
        assert evaluated(run, "--split", "train", "--ode") == 2
    said = capsys.readouterr().err
    assert (
        "'data' must be given for a run that was trained on other images than its config names"
        in said
    )
    assert "--data digits" in said
    assert not (run / "evaluation.json").exists()
    assert evaluated(run, "--data", "digits") == 0  # as asked
    assert json.loads((run / "evaluation.json").read_text())["protocol"]["trained on"] == [
        data_hash(OTHER[data](parts))
    ]


def test_labels_of_one_s_own_are_other_data(tmp_path, capsys):
    train_, *_ = splits("digits")
    own = train_.labels.flip(0)
    assert evaluated(trained(tmp_path / "own", train_.pixels, CONDITIONAL, own)) == 2
    assert "trained on other images than its config names" in capsys.readouterr().err
    assert (
        evaluated(trained(tmp_path / "right", train_.pixels, CONDITIONAL, train_.labels.int()))
        == 0
    )
    assert evaluated(trained(tmp_path / "not told", train_.pixels, CONFIG, own)) == 0


def test_the_other_run_of_a_comparison_is_asked_too(tmp_path, capsys, parts):
    one, other = trained(tmp_path / "one", parts[0]), trained(tmp_path / "other", OWN)
    assert evaluated(one, "--against", str(other)) == 2
    assert "trained on other images than its config names" in capsys.readouterr().err
    assert evaluated(one, "--against", str(other), "--data", "digits") == 0
    protocol = json.loads((one / "comparison.json").read_text())["protocol"]
    assert protocol["weights file"] != protocol["weights file against"]
    assert protocol["read from against"] == "ema.safetensors"


def test_weights_of_a_loop_of_one_s_own_say_what_they_are_told(tmp_path, capsys, parts):
    with Run.open(tmp_path / "own", CONFIG) as run:
        run.save(CONFIG.objective(), data=OWN)
    assert evaluated(run.folder) == 2
    assert "trained on other images than its config names" in capsys.readouterr().err
    with Run.open(tmp_path / "known", CONFIG) as run:
        run.save(CONFIG.objective(), data=parts[0])
    assert evaluated(run.folder) == 0
    assert "not recorded" not in capsys.readouterr().out


def test_what_train_returns_knows_its_data_without_a_run(tmp_path, capsys, parts):
    """As the digits' demo keeps it: trained, then saved."""
    for name, data, code in (("own", OWN, 2), ("known", parts[0], 0)):
        averaged = train(CONFIG.objective(), data, CONFIG, quiet=True)
        assert averaged.trained_on == (data_hash(data),)
        with Run.open(tmp_path / name, CONFIG) as run:
            run.save(averaged)
        assert evaluated(run.folder) == code
    assert "trained on other images than its config names" in capsys.readouterr().err


def test_where_it_is_not_known_the_number_says_so(tmp_path, capsys):
    """Of a run that an earlier version wrote, and of weights that were saved without their
    data."""
    with Run.open(tmp_path, CONFIG) as run:
        run.save(CONFIG.objective())
    assert evaluated(tmp_path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "on what the weights were trained is not recorded" in printed
    assert (
        json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["trained on"]
        == "images that are not recorded"
    )
    assert evaluated(tmp_path, "--data", "digits") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "on what the weights were trained" not in printed


def test_a_run_that_goes_on_with_other_data_says_so_and_is_of_neither(tmp_path, capsys, parts):
    def fails(averaged):
        raise RuntimeError("stop")

    with Run.open(tmp_path, CONFIG) as run, pytest.raises(RuntimeError, match="stop"):
        train(CONFIG.objective(), OWN, CONFIG, run=run, every=1, validate=fails, quiet=True)
    with pytest.warns(UserWarning, match="the run continues with other data"):
        trained(tmp_path, parts[0])
    assert Run(tmp_path).loaded().data == sorted([data_hash(OWN), data_hash(parts[0])])
    assert evaluated(tmp_path) == 2
    assert "trained on other images than its config names" in capsys.readouterr().err


def test_the_hash_of_whole_numbers_does_not_know_their_dtype():
    small_ = torch.randint(0, 256, (7, 3), generator=torch.Generator().manual_seed(0))
    large = small_ + 250
    for values in (small_, large, -large):
        fitting = [
            dtype
            for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
            if torch.equal(values.to(dtype).long(), values)
        ]
        assert len(fitting) >= 3
        assert len({data_hash(values.to(dtype)) for dtype in fitting}) == 1
    assert data_hash(small_.to(torch.uint16)) == data_hash(small_)
    assert data_hash(small_ > 100) == data_hash((small_ > 100).long())
    assert (
        len(
            {
                data_hash(v)
                for v in (small_, large, -large, small_.float(), small_.T, small_.flatten())
            }
        )
        == 6
    )
    assert data_hash(large.T.contiguous().T) == data_hash(large)
    assert data_hash(torch.zeros(0, 2, dtype=torch.int64)) == data_hash(
        torch.zeros(0, 2, dtype=torch.uint8)
    )


# where files are read from, and written to


@pytest.fixture
def no_network(monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr("vdiff.data.download.download", lambda *words: asked.append(words))
    return asked


PICTURES = {"a.png": b"\x89PNG", "b.png": b"\x89PNG", "readme.txt": b"mine"}
FOLDERS: dict[str, Callable[[Path], object]] = {
    "pictures": lambda folder: lay_out(folder, PICTURES),
    "one file": lambda folder: lay_out(folder, {"model.pt": b"1"}),
    "another folder in it": lambda folder: (folder / "MNIST").mkdir(parents=True),
    "an archive of another set": lambda folder: lay_out(folder, {"cifar-100-binary.tar.gz": b"1"}),
    "CIFAR's own among others": lambda folder: lay_out(
        folder, {"cifar-10-binary.tar.gz.part": b"1", "thesis.tex": b"1"}
    ),
    "a broken link": lambda folder: (folder.mkdir(), (folder / "elsewhere").symlink_to("nowhere")),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_nothing_is_downloaded_into_a_folder_with_other_things(kind, tmp_path, no_network, capsys):
    folder = tmp_path / "mine"
    FOLDERS[kind](folder)
    there = sorted(folder.rglob("*"))
    with pytest.raises(
        ValueError,
        match=r"must hold CIFAR-10; got nothing of it in .*mine, which holds .*name a new one",
    ) as refused:
        cifar10(folder)
    assert "vdiff.data.load reads images of your own" in str(refused.value)
    assert len(str(refused.value)) < 900
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.save(CONFIG.objective())
    assert evaluated(run.folder, "--data", str(folder)) == 2
    assert f"{folder}" in capsys.readouterr().err
    assert no_network == []
    assert sorted(folder.rglob("*")) == there


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["cifar-10-binary.tar.gz.part"],
        [".cifar-10-binary.tar.gz.lock", ".DS_Store"],
        ["patches"],
        None,
    ],
)
def test_an_empty_folder_a_new_one_and_one_of_data_sets_alone_get_it(names, tmp_path, no_network):
    folder = tmp_path / "data"
    if names is not None:
        lay_out(folder, dict.fromkeys(names, b""))
    with pytest.raises(ValueError, match="must hold CIFAR-10"):
        cifar10(folder)
    assert len(no_network) == 1


def test_a_file_is_told_that_it_is_one(tmp_path, no_network, capsys):
    import sys

    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import cifar10 as script

    path = tmp_path / "pictures.npz"
    path.write_bytes(b"1")
    with pytest.raises(ValueError, match=r"must hold CIFAR-10; got a file, .*pictures\.npz"):
        cifar10(path)
    assert script.main(["--recipe", "small", "--data", str(path), "--dry-run"]) == 2
    assert "is no data set and no folder; it is a file" in capsys.readouterr().err
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.save(CONFIG.objective())
    assert evaluated(run.folder, "--data", str(path)) == 2
    assert f"that numpy wrote, without Python objects; got {path}" in capsys.readouterr().err
    assert no_network == []
    assert path.read_bytes() == b"1"


PHOTOGRAPHS = Config(
    network={"name": "UNet", "channels": 3, "width": 8}, shape=[3, 32, 32], data="patches",
    folder="/none", level_head=False,
    decoder={"name": "Categorical", "levels": 256}, parameterization={"name": "V"}, steps=2,
    batch=4,
)  # fmt: skip


@pytest.mark.parametrize("data", ["patches", "cifar10"])
def test_a_run_whose_files_are_not_there_makes_and_downloads_nothing(
    data, tmp_path, no_network, capsys, monkeypatch
):
    """Wherever its config says they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vdiff.data.patches._make", lambda home: pytest.fail("made"))
    folder = tmp_path / "somewhere" / "else"
    with Run.open(tmp_path / "run", replace(PHOTOGRAPHS, data=data, folder=str(folder))) as run:
        run.save(run.config.objective())
    assert evaluated(run.folder) == 2
    said = capsys.readouterr().err
    assert "'data' must be given where the run's folder has none" in said
    assert f"none of {data} in {folder}" in said
    assert f"--data {data}" in said
    assert no_network == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("data", ["patches", "cifar10"])
def test_what_is_asked_for_by_name_is_made_in_the_library_s_own_place(
    data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    made: list[Path] = []
    monkeypatch.setattr("vdiff.data.patches._make", lambda home: made.append(home))
    monkeypatch.setattr(
        "vdiff.data.download.download", lambda url, file, folder: made.append(folder / "patches")
    )
    with Run.open(tmp_path / "run", replace(PHOTOGRAPHS, data=data, folder="/etc")) as run:
        run.save(run.config.objective())
    assert evaluated(run.folder, "--data", data) == 2  # nothing was made in truth
    assert made == [tmp_path / "data" / "patches"]


def test_a_run_whose_folder_has_the_python_archive_is_told_how_to_convert_it(
    tmp_path, capsys, no_network
):
    lay_out(tmp_path / "data", {"cifar-10-python.tar.gz": b""})
    config = replace(PHOTOGRAPHS, data="cifar10", folder=str(tmp_path / "data"))
    with Run.open(tmp_path / "run", config) as run:
        run.save(config.objective())
    assert evaluated(run.folder) == 2
    assert "whose pickles are not read" in capsys.readouterr().err
    assert no_network == []


def test_files_that_are_there_are_read_and_nothing_else_happens(tmp_path, monkeypatch):
    form, _, batches = small()
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", form)
    monkeypatch.setattr("vdiff.data.registry.HELD_OUT", 4)
    lay_out(tmp_path / "data" / form.folder, batches)
    run = Run("anywhere", replace(PHOTOGRAPHS, data="cifar10", folder=str(tmp_path / "data")))
    before = sorted(os.walk(tmp_path))
    parts = taking.data_for(run, Loaded(run.config.objective(), {}, []), None)
    assert [len(part) for part in parts] == [16, 4, 4]
    assert sorted(os.walk(tmp_path)) == before


def pictures(folder: Path, first: int, count: int, side: int = 8) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        values = torch.randint(0, 256, (side, side), generator=torch.Generator().manual_seed(i))
        Image.fromarray(values.to(torch.uint8).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.filterwarnings("ignore:.*draw of ")
def test_a_run_on_a_folder_is_measured_on_its_own_test_part_and_on_all_of_another(tmp_path):
    photos, other = pictures(tmp_path / "photos", 0, 30, 9), pictures(tmp_path / "test", 30, 7)
    config = replace(
        CONFIG, data=str(photos), data_options={"size": 8, "resampling": "box"},
        network=NETWORK | {"channels_out": 256}, decoder={"name": "Categorical", "levels": 256},
    )  # fmt: skip
    parts = load(photos, **config.data_options)
    run = tmp_path / "run"
    with Run.open(run, config) as opened:
        train(config.objective(), parts.train, config, run=opened, quiet=True)
    expected = {"": parts.test, str(photos): parts.test, str(other): load_images(other)}
    for named, images in expected.items():
        assert evaluated(run, *(["--data", named] if named else [])) == 0
        protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
        assert protocol["images"] == len(images)
        assert protocol["training data"] == parts.train.record
        assert protocol["trained on"] == [data_hash(parts.train.pixels)]
    pictures(photos, 99, 1)
    assert evaluated(run) == 2  # it was trained on other images than are there now
