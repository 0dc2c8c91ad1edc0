"""Fault 66: what comes over the network."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cifar_files import file_of, lay_out, small

from vdiff.data import dataset
from vdiff.data import download as downloads
from vdiff.data.cifar10 import Published, cifar10
from vdiff.data.download import download

from .common import assert_refused

pytestmark = pytest.mark.usefixtures("alone")


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
