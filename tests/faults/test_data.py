"""Faults 57, 58, 64 to 66, 70 and 76 where they concern data: what is on the disk."""

import errno
import gzip
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cifar_files import lay_out, pack, pictures, small, write_binary
from soak_data import outcomes
from watch import nothing_happens

from vdiff import Denoiser
from vdiff.data import dataset
from vdiff.data import download as downloads
from vdiff.data.cifar10 import Published, cifar10, decode_binary, unpack
from vdiff.decoder import Categorical
from vdiff.likelihood.evaluation import evaluate
from vdiff.parameterization import X
from vdiff.schedule import Linear

from .common import assert_refused, assert_refused_with

pytestmark = pytest.mark.usefixtures("alone")


class Evil:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.made = call, arguments

    def __reduce__(self) -> tuple[object, object]:
        return self.made


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_fault_57_no_pickle_is_read(place: str, form: Published, tmp_path: Path) -> None:
    """Neither a malicious one, nor one that asks for much memory in few bytes."""
    evil = pickle.dumps({"data": Evil(os.mkdir, str(tmp_path / "ran")), "labels": [1]}, 2)
    says = ("hold the binary form of CIFAR-10", f"got {place} in", form.archive.name)
    for raw in (evil, b"\x80\x02]r\xff\xff\xff\x7f."):
        home = tmp_path / f"data{len(raw)}"
        if place.endswith(".gz"):
            home.mkdir()
            (home / place).write_bytes(pack({"cifar-10-batches-py/data_batch_1": raw}))
        else:
            lay_out(home / place, {"data_batch_1": raw})
        with nothing_happens(), assert_refused(ValueError, "dataset", "folder", *says):
            cifar10(home)
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)
    assert (tmp_path / "ran").exists()  # it was malicious


def test_fault_57_what_is_no_image_is_refused() -> None:
    data, labels = pictures(1)
    says = ("hold classes 0 to 9", "got 11 at image 0")
    with assert_refused(ValueError, "decode_binary", "raw", *says):
        decode_binary(write_binary(data, labels + 10))
    says = ("hold records of 3,073 bytes", "got 3,072 bytes")
    with assert_refused(ValueError, "decode_binary", "raw", *says):
        decode_binary(write_binary(data, labels)[1:])


def info(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE],
    ids=["symbolic", "hard", "folder", "device", "fifo"],
)
def test_fault_58_a_batch_that_is_a_link_or_a_device(
    kind: bytes, form: Published, tmp_path: Path
) -> None:
    name = f"{form.folder}/data_batch_1.bin"
    with assert_refused(
        ValueError, "", "folder", "hold cifar-10-binary.tar.gz whole", "a link or a device"
    ):
        link = info(name, kind, "/etc/passwd")
        link.size = form.batches[0].size  # a header may say anything
        unpack(pack({name: link}), form)


def test_fault_58_names_outside_the_folder_are_not_written(
    form: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batches = small()[2]
    others: dict[str, bytes | tarfile.TarInfo] = {
        "../evil": b"1",
        "/tmp/evil-of-vdiff": b"1",
        f"{form.folder}/../../evil": b"1",
    }
    archive = pack(
        others
        | {"l": info("l", tarfile.SYMTYPE, "..")}
        | {f"{form.folder}/{name}": raw for name, raw in batches.items()}
    )
    assert list(unpack(archive, form)) == list(
        batches.values()
    )  # what is asked for is read by its name
    assert list(tmp_path.iterdir()) == []
    assert not Path("/tmp/evil-of-vdiff").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_fault_58_bombs(form: Published) -> None:
    """Zeros to 1:1000 in the batch's place, in a long name's, behind a true size and as an endless
    file."""
    name = f"{form.folder}/data_batch_1.bin"
    zeros = 50_000_000
    long = info("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    long.size = zeros
    header = long.tobuf(tarfile.GNU_FORMAT)
    bombs = [
        pack({name: bytes(zeros)}),
        gzip.compress(header + bytes(zeros), 1),
        pack({"other": bytes(zeros)}),
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with assert_refused(ValueError, "", "folder", "hold cifar-10-binary.tar.gz whole"):
                unpack(bomb, form)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_fault_58_links_out_of_the_folder_and_things_that_are_no_files(
    form: Published, tmp_path: Path
) -> None:
    batches = small()[2]
    lay_out(tmp_path / "elsewhere", batches)
    lay_out(tmp_path / "data" / form.folder, batches)
    place = tmp_path / "data" / form.folder / "data_batch_2.bin"
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere" / "data_batch_2.bin")
    with assert_refused(
        ValueError, "", "folder", "hold data_batch_2.bin itself", "a link to", "elsewhere"
    ):
        cifar10(tmp_path / "data")
    place.unlink()
    os.mkfifo(place)  # reading it would wait for ever
    with assert_refused(ValueError, "", "folder", "hold data_batch_2.bin as a regular file"):
        cifar10(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")  # the folder itself may be a link
    place.unlink()
    place.write_bytes(batches["data_batch_2.bin"])
    assert len(cifar10(tmp_path / "link")[0]) == 20


def test_fault_64_a_folder_that_cannot_be_written_to(
    form: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for name, missing in (("cifar10", "cifar-10-binary.tar.gz"), ("patches", "patches")):
        with assert_refused(
            ValueError,
            "dataset",
            "folder",
            f"be one that {missing} can be written to, for it is not there",
            "file",
        ):
            dataset(name, tmp_path / "file" / "below")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_fetch", full)
    with assert_refused(
        ValueError,
        "",
        "folder",
        "be one that cifar-10-binary.tar.gz can be written to",
        "No space left",
        "bytes free",
    ):
        cifar10(tmp_path / "data")


def test_fault_65_relative_paths_spaces_and_letters(
    form: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "mit Leerzeichen und 図形"
    lay_out(home / form.folder, small()[2])
    monkeypatch.chdir(tmp_path)
    train, _ = cifar10(home.name)
    monkeypatch.chdir(home)
    assert torch.equal(cifar10(".")[0].pixels, train.pixels)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(cifar10(f"~/{home.name}")[0].pixels, train.pixels)


def test_fault_66_damaged_files_load_right_or_are_refused() -> None:
    """Of 10,000 in `tests/soak_data.py` a sample: under the checksums, which would refuse them
    all."""
    seen = outcomes(399, seed=1)
    assert sum(seen.values()) == 399
    assert {"binary loaded", "binary refused", "archive refused", "tar refused"} <= set(seen)


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b"\1" + raw[1:], lambda raw: b""],
)
def test_fault_66_a_wrong_archive_is_refused_before_it_is_opened(
    change: Callable[[bytes], bytes],
    form: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vdiff.data.cifar10.unpack", lambda *_: pytest.fail("opened"))
    (tmp_path / form.archive.name).write_bytes(change(small()[1]))
    with assert_refused(
        ValueError, "", "folder", "hold cifar-10-binary.tar.gz as published", "delete it"
    ):
        cifar10(tmp_path)


def test_fault_66_damaged_patches_are_not_used(tmp_path: Path) -> None:
    home = tmp_path / "patches"
    lay_out(home, {"data_batch_1.bin": b""})
    with assert_refused_with(
        ValueError,
        "dataset: folder must hold patches/SHA256SUMS with all six batches .. 0 of them .. delete",
    ):
        dataset("patches", tmp_path)


def test_fault_66_patches_left_by_a_process_that_was_killed(tmp_path: Path) -> None:
    lay_out(tmp_path / "patches.part", {"data_batch_1.bin": b"half", "rubbish": b""})
    dataset("patches", tmp_path)
    assert not (tmp_path / "patches.part").exists()
    assert not (tmp_path / "patches" / "rubbish").exists()


def test_fault_70_uneven_last_batch() -> None:
    """Seven images in batches of three: each counts once, and as when each stands alone."""
    images = dataset("digits")[1].pixels[:7]
    options = {"schedule": Linear(), "decoder": Categorical(17), "draws": 4}
    model = Denoiser(lambda z, logsnr: 0.5 * z, X())
    whole, alone = (evaluate(model, images, batch=batch, **options) for batch in (12, 4))  # type: ignore[arg-type]
    assert whole.total.value == pytest.approx(alone.total.value, rel=1e-6)
    assert whole.total.images == pytest.approx(alone.total.images, rel=1e-6)
    assert whole.protocol["images"] == 7
