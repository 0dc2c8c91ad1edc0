"""Downloads that resume, and are verified before they get their name."""

import errno
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from vdiff.data.file import File, writing
from vdiff.disk import atomic_rename, open_regular
from vdiff.errors import InvalidValue
from vdiff.terminal import Bar, on_terminal

ATTEMPTS, PAUSE, TIMEOUT, CHUNK = 5, 2.0, 30.0, 1 << 18


class Unreachable(Exception):
    """A download that failed, with the reason."""


def download(url: str, file: File, folder: Path) -> None:
    """Fetch `file` into `folder`, with a progress bar. Of several processes one downloads, and the
    others wait.

    A partial download stays in `<name>.part`, and the next call resumes it. HTTP(S)_PROXY is used.
    Raises `Unreachable`, and ValueError if the folder cannot be written to, or the content is not
    the published one.
    """
    with writing(folder, file.name):
        path, part = folder / file.name, folder / f"{file.name}.part"
        if path.exists():
            return
        if part.is_symlink() or (part.exists() and part.stat().st_nlink > 1):
            part.unlink()  # it is another file too
        with Bar(file.size, "B", file.name, quiet=not on_terminal()) as bar:
            for attempt in range(ATTEMPTS):
                had = _size(part)
                try:
                    _fetch(url, file, part, bar)
                    break
                except (OSError, http.client.HTTPException) as error:
                    if _is_local(error):
                        came = f"{error} ({shutil.disk_usage(folder).free:,} bytes free)"
                        needs = f"be one that {file.name} can be written to"
                        hint = "what has arrived is kept"
                        raise InvalidValue("folder", needs, came, hint) from error
                    code = getattr(error, "code", 0)
                    if code == 416:  # there is no such rest: the part is of another file
                        part.unlink(missing_ok=True)
                    final = code < 500 and code != 416 and _size(part) <= had
                    if final or attempt + 1 == ATTEMPTS:
                        raise Unreachable(_reason(url, error)) from error
                time.sleep(PAUSE)
        try:
            file.check(part.read_bytes(), f" from {url}")
        except ValueError:
            part.unlink()  # a wrong beginning would never be replaced
            raise
        atomic_rename(part, path)


def _fetch(url: str, file: File, part: Path, bar: Bar) -> None:
    """Append the missing bytes to `part`. Raises OSError if they end early."""
    if _size(part) > file.size:
        part.unlink()
    have = _size(part)
    if have == file.size:
        return
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    flags, opener = os.O_WRONLY | os.O_APPEND | os.O_CREAT, urllib.request.build_opener()
    with (
        opener.open(request, timeout=TIMEOUT) as answer,
        open(open_regular(part, flags), "ab") as out,
    ):
        if not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            have = out.truncate(0)  # this server starts again
        bar.to(have)
        while have < file.size and (chunk := answer.read(min(CHUNK, file.size - have))):
            have += out.write(chunk)
            bar.to(have)
    if have < file.size:
        raise ConnectionError(f"the connection ended after {have:,} of {file.size:,} bytes")


def _is_local(error: Exception) -> bool:
    """Whether it is the disk that failed, not the network."""
    if isinstance(error, urllib.error.URLError) or not isinstance(error, OSError):
        return False
    local = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return error.filename is not None or error.errno in local


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(url: str, error: Exception) -> str:
    """The reason, with the proxy but not its password."""
    scheme = urllib.parse.urlsplit(url).scheme
    proxy = urllib.parse.urlsplit(urllib.request.getproxies().get(scheme, ""))
    through = f" through the proxy {proxy.hostname}:{proxy.port}" if proxy.hostname else ""
    return f"{getattr(error, 'reason', None) or error or type(error).__name__}{through}"
