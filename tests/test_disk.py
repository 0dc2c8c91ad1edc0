"""What the library writes: whole or not at all, where it was asked for, and nowhere else."""

import os
import stat
import time
import warnings
from pathlib import Path

import pytest
import torch
from cifar_files import file_of
from image_runs import EVALUATE, OUTPUTS, VICTIM, at_most, call, trained

from vdiff.cli import main
from vdiff.data import download as downloads
from vdiff.data import patches
from vdiff.disk import atomic_write, open_regular, remove_stale, write_text
from vdiff.training.weights import save_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and modes of POSIX")

SAMPLE = ["sample", "RUN", "--count", "2", "--steps", "2", "--gif", "--quiet"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of what is written to, that only its owner may read."""
    path = tmp_path / "victim"
    path.write_text(VICTIM)
    path.chmod(0o600)
    return path


def assert_untouched(victim: Path) -> None:
    assert victim.read_text() == VICTIM
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def text_writer(path: Path) -> None:
    write_text(path, "new")


def tensor_writer(path: Path) -> None:
    save_tensors(path, {"a": torch.ones(2)})


def figure_writer(path: Path) -> None:
    assert main(["describe", "edm", "--figure", str(path)]) == 0


WRITERS = {"a": text_writer, "a.safetensors": tensor_writer, "a.png": figure_writer}


@pytest.mark.parametrize(("name", "write"), WRITERS.items())
def test_a_file_that_is_replaced_keeps_its_mode_and_a_new_one_has_the_default(
    name, write, tmp_path
):
    before = os.umask(0o027)
    try:
        write(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
        (tmp_path / name).chmod(0o604)
        first = (tmp_path / name).stat().st_ino
        write(tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o604
    assert (tmp_path / name).stat().st_ino != first
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("write", [text_writer, tensor_writer])
@pytest.mark.parametrize("target", ["a file", "nothing"])
def test_a_link_is_replaced_and_not_followed(write, target, tmp_path, victim):
    place = tmp_path / "place.safetensors"
    place.symlink_to(victim if target == "a file" else tmp_path / "not-there")
    write(place)
    assert not place.is_symlink()
    assert_untouched(victim)
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("write", [text_writer, tensor_writer])
@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_is_refused_and_stays(write, make, kind, tmp_path):
    place = tmp_path / "place.safetensors"
    make(place)
    with pytest.raises(OSError, match=f"{kind} has this name, where a file is written"):
        write(place)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert not place.is_file()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a") as aside:
        aside.write_bytes(tmp_path.read_bytes())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
    with pytest.raises(FileNotFoundError) as missing:
        write_text(tmp_path / "none" / "a", "new")
    assert missing.value.filename == str(tmp_path / "none" / "a")  # not a name that nobody knows


@pytest.mark.parametrize("target", ["link", "file"])
def test_the_new_file_is_made_and_never_opened(target, tmp_path, victim, monkeypatch):
    """Not even if somebody could guess its name."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    place = tmp_path / ".guessed.partial.json"
    place.symlink_to(victim) if target == "link" else place.write_text(VICTIM)
    with pytest.raises(FileExistsError) as refused:
        write_text(tmp_path / "a.json", "new")
    assert refused.value.filename == str(tmp_path / "a.json")
    assert place.read_text() == VICTIM
    assert_untouched(victim)
    assert not (tmp_path / "a.json").exists()


def test_a_name_is_opened_only_if_it_is_a_file(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a reader
    for name, kind in (("link", "a link"), ("pipe", "a pipe"), (".", "a folder")):
        for flags in (os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
            with pytest.raises(OSError, match=f"{kind} has this name"):
                open_regular(tmp_path / name, flags)
    assert_untouched(victim)


def test_what_killed_processes_left_is_swept_away_a_day_later(tmp_path):
    for name, age in (
        (".0123.partial.json", 100_000),
        (".4567.partial", 10),
        ("evaluation.json", 100_000),
    ):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".4567.partial", "evaluation.json"]


# what a run, its evaluation and its samples write, and what stood in their way or beside it
LINKS = [
    "config.json", "config.json.partial", "log.jsonl", "log.jsonl.partial",
    "ema.safetensors.partial", ".lock",
    "evaluation.json", "evaluation.json.partial", "evaluation.bound.0.partial",
    "evaluation.bound.0.safetensors.partial",
    "samples/samples.npz", "samples/samples.png", "samples/trajectory.gif",
    "checkpoints/.step-00000001.partial", "checkpoints/.step-00000002.partial",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_that_lies_in_a_run_folder_leads_outside_or_hangs(name, kind, tmp_path, victim):
    """Training, evaluation and sampling end, and a file elsewhere is what it was, whether they
    refuse or go on.
    """
    warnings.simplefilter("ignore")  # of what could not be written
    refused = "or nothing has this name"
    run = tmp_path / "run"
    place = run / name
    place.parent.mkdir(parents=True)
    place.symlink_to(victim) if kind == "link" else os.mkfifo(place)
    with at_most(120):
        try:
            trained(run)
        except (OSError, ValueError) as error:
            refused = str(error)
        assert "has this name" in refused
        for command in (["evaluate", str(run), *EVALUATE], SAMPLE):
            assert main([word.replace("RUN", str(run)) for word in command]) in (0, 2)
    assert_untouched(victim)


CONTENT = bytes(range(256)) * 4
FILE = file_of("file.bin", CONTENT)


@pytest.mark.parametrize("kind", ["link", "hard link", "link of the lock"])
def test_a_download_is_not_appended_to_what_is_another_s(kind, tmp_path, victim, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "link":
        (folder / "file.bin.part").symlink_to(victim)
    elif kind == "hard link":
        (folder / "file.bin.part").hardlink_to(victim)
    else:
        (folder / ".file.bin.lock").symlink_to(victim)
    url = (
        "data:application/octet-stream;base64," + __import__("base64").b64encode(CONTENT).decode()
    )
    if kind == "link of the lock":
        with pytest.raises(ValueError, match="a link has this name, where a file is written"):
            downloads.download(url, FILE, folder)
    else:
        downloads.download(url, FILE, folder)
        assert FILE.read(folder) == CONTENT
    assert_untouched(victim)


def test_a_link_in_the_place_of_unfinished_patches_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text(VICTIM)
    (tmp_path / "patches.part").symlink_to(tmp_path / "elsewhere")
    patches.patches(tmp_path)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


@pytest.mark.parametrize("command", OUTPUTS)
def test_what_exists_and_is_no_file_is_no_output(command, tmp_path, victim, capsys):
    run = trained(tmp_path / "run").folder
    capsys.readouterr()
    place = tmp_path / OUTPUTS[command][1]
    kinds = {
        "a link": lambda: place.symlink_to(victim),
        "a pipe": lambda: os.mkfifo(place),
        "a folder": place.mkdir,
    }
    kinds["a device"] = lambda: os.mknod(place, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    if os.geteuid() != 0:
        del kinds["a device"]
    for kind, make in kinds.items():
        make()
        assert call(command, run, place) == 2
        printed = capsys.readouterr()
        assert f"must be a new file or one to replace; got {place}, {kind}" in printed.err
        assert printed.out == ""  # before anything is computed
        place.rmdir() if kind == "a folder" else place.unlink()
    assert_untouched(victim)
    assert call(command, run, place) == 0
    assert call(command, run, place) == 0  # an older output is replaced
