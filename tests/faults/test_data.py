"""Faults 57, 58, 64 to 66, 70 and 76 where they concern data: what is on the disk, what comes over
the network."""

import errno
import gzip
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cifar_files import file_of, lay_out, pack, pictures, small, write_binary
from soak_data import outcomes
from watch import nothing_happens

from vdiff import Denoiser
from vdiff.data import dataset
from vdiff.data import download as downloads
from vdiff.data.cifar10 import Published, cifar10, decode_binary, unpack
from vdiff.data.download import download
from vdiff.decoder import Categorical
from vdiff.likelihood.evaluation import evaluate
from vdiff.parameterization import X
from vdiff.schedule import Linear

from .common import assert_refused, assert_refused_with


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Published:
    """CIFAR-10 as it is published, but for its size and its checksums."""
    made = small()[0]
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", made)
    return made


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


@contextmanager
def serving(
    content: bytes,
    *,
    cut: tuple[int, ...] = (),
    resumes: bool = True,
    status: int = 200,
    stall: int = 0,
) -> Iterator[tuple[str, list[str]]]:
    """A server of one file, and the log of what it was asked for; its first answers end after
    `cut` bytes, or the first hangs after `stall`."""
    log: list[str] = []
    cuts, closed = list(cut), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            log.append(f"{self.path} {asked}".strip())
            start = int(asked[6:-1]) if asked and resumes else 0
            if status >= 400 or start > len(content):
                self.send_error(status if status >= 400 else 416)
                return
            body = content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body = body[: cuts.pop(0)] if cuts else body
            try:
                if stall and len(log) == 1:
                    self.wfile.write(body[:stall])
                    closed.wait(60)
                else:
                    self.wfile.write(body)
            except OSError:
                pass  # the other side was killed

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", log
    finally:
        closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts, and no way out of this machine."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("vdiff.data.cifar10.HOME", "http://127.0.0.1:9/")


CONTENT = bytes(range(256)) * 400
FILE = file_of("file.bin", CONTENT)


def test_fault_66_an_archive_that_is_not_there_is_downloaded(
    form: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(small()[1]) as (url, log):
        monkeypatch.setattr("vdiff.data.cifar10.HOME", url)
        first = cifar10(tmp_path / "new")
        again = cifar10(tmp_path / "new")
    assert log == ["/cifar-10-binary.tar.gz"]
    assert torch.equal(first[0].pixels, again[0].pixels)
    assert sorted(
        p.name for p in (tmp_path / "new").iterdir() if not p.name.endswith(".lock")
    ) == ["cifar-10-binary.tar.gz"]
    assert capsys.readouterr().err == ""  # fault 76: no bar where there is no terminal


def test_fault_66_offline(
    form: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = (
        "hold CIFAR-10",
        f"nothing of it in {tmp_path}; its download failed: ",
        "Connection refused",
        (
            f"put cifar-10-binary.tar.gz ({form.archive.size:,} bytes, sha256 "
            f"{form.archive.checksum[7:]}) from "
        ),
        "there as it is; dataset('patches') needs no download",
    )
    with assert_refused(ValueError, "dataset", "folder", *says):
        dataset("cifar10", tmp_path)
    with assert_refused(
        ValueError, "", "folder", "hold CIFAR-10", f"nothing of it in {tmp_path} (put"
    ):
        cifar10(tmp_path, download=False)
    lay_out(
        tmp_path / form.folder,
        {k: v for k, v in small()[2].items() if "3" not in k and "test" not in k},
    )
    with assert_refused(
        ValueError,
        "",
        "folder",
        "hold CIFAR-10",
        f"{form.folder} without data_batch_3.bin, test_batch.bin",
    ):
        cifar10(tmp_path)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr("vdiff.data.cifar10.HOME", "http://cifar.invalid/")
    with pytest.raises(ValueError, match=r"Connection refused through the") as caught:
        cifar10(tmp_path)
    assert "secret" not in str(caught.value)


def test_fault_66_proxies_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as (url, log):
        monkeypatch.setenv("http_proxy", url)
        download("http://cifar.invalid/file.bin", FILE, tmp_path)
    assert log == ["http://cifar.invalid/file.bin"]


def test_fault_66_a_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving(CONTENT, cut=(30_000, 10_000, 0)) as (url, log):
        with pytest.raises(downloads.Unreachable, match="ended after 40,000 of 102,400 bytes"):
            download(url, FILE, tmp_path)  # the third answer brought nothing
        assert (tmp_path / "file.bin.part").stat().st_size == 40_000
        download(url, FILE, tmp_path)
    assert log == ["/", "/ bytes=30000-", "/ bytes=40000-", "/ bytes=40000-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert not (tmp_path / "file.bin.part").exists()


def test_fault_66_a_server_that_starts_again(tmp_path: Path) -> None:
    with serving(CONTENT, cut=(30_000,), resumes=False) as (url, log):
        download(url, FILE, tmp_path)
    assert len(log) == 2
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "part",
    [CONTENT[::-1][:5_000], bytes(200_000), bytes(len(CONTENT))],
    ids=["wrong", "too long", "all wrong"],
)
def test_fault_66_a_beginning_of_something_else(part: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    with serving(CONTENT) as (url, _):
        if len(part) <= len(CONTENT):
            with assert_refused(
                ValueError,
                "",
                "folder",
                "hold file.bin as published",
                "got sha256",
                url,
                "delete it",
            ):
                download(url, FILE, tmp_path)
            assert not any(path.suffix in (".bin", ".part") for path in tmp_path.iterdir())
        download(url, FILE, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, downloads.ATTEMPTS)])
def test_fault_66_a_server_that_refuses(status: int, requests: int, tmp_path: Path) -> None:
    with (
        serving(b"", status=status) as (url, log),
        pytest.raises(downloads.Unreachable, match=r"Not Found|Service Unavailable"),
    ):
        download(url, FILE, tmp_path)
    assert len(log) == requests


def test_fault_66_a_page_in_the_files_place(tmp_path: Path) -> None:
    """As a hotel's network answers, or a mirror with a shorter file, which has no such rest."""
    with serving(b"<html>log in</html>") as (url, _):
        with pytest.raises(downloads.Unreachable, match="ended after 19 of 102,400 bytes"):
            download(url, FILE, tmp_path)
        (tmp_path / "file.bin.part").write_bytes(bytes(50))
        with pytest.raises(downloads.Unreachable, match="ended after 19 of 102,400 bytes"):
            download(url, FILE, tmp_path)


def test_fault_66_two_processes_and_one_is_killed(tmp_path: Path) -> None:
    """One downloads, the other waits; when the first is killed, the second continues with what it
    left."""
    with serving(CONTENT, stall=30_000) as (url, log):
        code = f"""
from pathlib import Path
from vdiff.data.download import download
from vdiff.data.file import File
print("ready", flush=True)
download({url!r}, File({FILE.name!r}, {FILE.size}, {FILE.checksum!r}), Path({str(tmp_path)!r}))
"""
        processes: list[subprocess.Popen[str]] = []
        try:
            for _ in range(2):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
                    )
                )
                stdout = processes[-1].stdout
                assert stdout is not None
                assert stdout.readline() == "ready\n"
                deadline = time.monotonic() + 60
                while not (tmp_path / "file.bin.part").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)  # the first has the lock
            time.sleep(0.5)
            assert len(log) == 1
            assert processes[1].poll() is None
            processes[0].kill()
            assert processes[1].wait(60) == 0
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(log) == 2
    assert re.fullmatch(r"/( bytes=\d+-)?", log[1])


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
