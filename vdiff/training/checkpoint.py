"""Checkpoints: folders of safetensors and JSON that are whole or not there, and are verified
before anything is taken from them.

    step-00001000/
        meta.json                what it is of, the size and the SHA-256 of every file, and its own
        <name>.safetensors       tensors

Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vdiff.disk import commit, new_folder, no_room, remove
from vdiff.errors import must
from vdiff.training.plain import LARGEST
from vdiff.training.weights import (
    PICKLES,
    UNPICKLE,
    Facts,
    Weights,
    fill,
    load,
    read_weights,
    refused,
    separate,
)

FORMAT = 1
META = "meta.json"
Tensors = Mapping[str, Mapping[str, Tensor]]


def write(folder: Path, step: int, tensors: Tensors, facts: Facts) -> Path:
    """A checkpoint of `tensors`, by file and name, and of `facts`, plain data, as `folder`/step-…:
    whole, or none.

    Raises:
        ValueError: where a tensor holds NaN.
        OSError: where the disk is full, with the bytes needed and free, or cannot be written to;
            what was there stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(Path(folder), 10, {"model": {"weight": torch.ones(2)}}, {"best": 1.5})
    ...     live = {"model": {"weight": torch.zeros(2)}}
    ...     path.name, read(path, live), live["model"]["weight"]
    ('step-00000010', {'best': 1.5}, tensor([1., 1.]))
    """
    for file, named in tensors.items():
        for name, value in named.items():
            if value.isnan().any():
                raise ValueError(
                    must(
                        "checkpoint",
                        "state",
                        "hold no NaN",
                        f"one in {file} {name}",
                        "it could not be gone on from",
                    )
                )
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.partial"
    needed = sum(value.nbytes for named in tensors.values() for value in named.values())
    try:
        new_folder(aside)
        files = {}
        for file, named in tensors.items():
            whole = aside / f"{file}.safetensors"
            save_file(separate(named), whole)
            files[whole.name] = {"bytes": whole.stat().st_size, "sha256": _digest(whole)}
        meta = {"format": FORMAT, "step": step, "files": files, "facts": facts}
        text = json.dumps(meta | {"sha256": seal(meta)}, indent=1, allow_nan=False) + "\n"
        (aside / META).write_text(text, encoding="utf-8")
        commit(aside, path)
    except (OSError, SafetensorError) as error:
        raise no_room(error, path, needed) from error
    finally:
        remove(aside)
    return path


def read(path: Path, into: Tensors) -> Facts:
    """Copy files of the checkpoint `path` into tensors of the same names, shapes and dtypes, and
    return its facts.

    Everything is verified before the first tensor is touched. Raises ValueError that says what is
    wrong: cut off, another checksum, another form, another architecture.

    >>> read(Path("step-00000010"), {})
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'step-00000010' must hold meta.json; got none (it is no checkpoint, or was not finished)
    """
    meta = read_meta(path)
    for name in [f"{file}.safetensors" for file in into]:
        if name not in meta["files"]:
            raise refused(path, f"hold {name}", ", ".join(meta["files"]), "it is of another run")
        _check_file(path, name, meta["files"][name])
        if _digest(path / name) != meta["files"][name]["sha256"]:
            raise refused(
                path, f"hold {name} as it was written", "another checksum", "it is damaged"
            )
    found = {file: load(path / f"{file}.safetensors", named) for file, named in into.items()}
    for file, named in into.items():
        fill(named, found[file])
    facts: Facts = meta["facts"]
    return facts


def read_meta(path: Path) -> Facts:
    """The verified meta.json of a checkpoint; raises ValueError where there is none, or it is not
    as it was written.

    >>> read_meta(Path("model.pkl"))
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'model.pkl' must be a folder of safetensors and JSON; got a .pkl file, which is never unpickled ...
    """
    if path.suffix in PICKLES:
        raise refused(
            path,
            "be a folder of safetensors and JSON",
            f"a {path.suffix} file, which is never unpickled",
            UNPICKLE,
        )
    file = path / META
    if path.is_symlink() or not file.is_file() or file.is_symlink():
        raise refused(path, f"hold {META}", "none", "it is no checkpoint, or was not finished")
    if file.stat().st_size > LARGEST:
        limit = f"have a {META} of at most {LARGEST:,} bytes"
        raise refused(path, limit, f"{file.stat().st_size:,}")
    try:
        meta: Facts = json.loads(file.read_bytes().decode("utf-8"))
        sealed = meta.pop("sha256")
        right = sealed == seal(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(
            path,
            f"have a {META} as it was written",
            f"{type(error).__name__}: {error}",
            "it is damaged",
        ) from error
    if not right:
        raise refused(
            path, f"have a {META} as it was written", "another checksum", "it is damaged"
        )
    if meta.get("format") != FORMAT:
        raise refused(
            path,
            f"have format {FORMAT}",
            meta.get("format"),
            "it was written by another version of vdiff",
        )
    if not _is_meta(meta) or meta["step"] != number(path):
        raise refused(
            path,
            f"have a {META} with step, files and facts",
            "another form",
            "it is no checkpoint of vdiff",
        )
    return meta


def newest(folder: Path, use: Callable[[Path], Facts]) -> Facts | None:
    """The facts of the newest checkpoint that `use` accepts; one that it refuses by a ValueError
    is warned of, put aside under another name, and the one before it is used. None where there are
    none at all.

    Raises ValueError where there are checkpoints and all are refused: to start again in silence
    would lose the run.

    >>> newest(Path("no-such-folder"), lambda path: {}) is None
    True
    """
    reasons: dict[Path, Exception] = {}
    for path in reversed(checkpoints(folder)):
        try:
            facts = use(path)
        except (ValueError, OSError) as error:
            reasons[path] = error
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
        else:
            for refused in reasons:
                refused.rename(unused(folder / f"refused-{refused.name}"))
            return facts
    if reasons:
        came = f"{len(reasons)} that are refused: {', '.join(path.name for path in reasons)}"
        why = "a warning says why each is refused"
        hint = f"{why}; they are kept in {folder}; to start anew, take another folder"
        text = must("Run", "folder", "hold a checkpoint to go on from", came, hint)
        raise ValueError(text) from next(iter(reasons.values()))
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a process that was killed has left of
    one. One that is being deleted has its name no longer.

    >>> prune(Path("no-such-folder"), 3)
    """
    for path in checkpoints(folder)[:-keep]:
        aside = path.with_name(f".{path.name}.partial")
        remove(aside)
        path.rename(aside)
    for left in folder.glob(".step-*.partial"):
        remove(left)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their step, the oldest first; whole or not.

    >>> checkpoints(Path("no-such-folder"))
    []
    """
    return sorted(
        path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)
    )


def number(path: Path) -> int:
    """The step of a checkpoint, from its name.

    >>> number(Path("step-00000010"))
    10
    """
    return int(path.name.removeprefix("step-"))


def unused(path: Path) -> Path:
    """A path, with a number behind it where the name is taken.

    >>> unused(Path("no-such-file")).name
    'no-such-file'
    """
    names = (path.with_name(f"{path.name}-{i}" if i else path.name) for i in count())
    return next(other for other in names if not os.path.lexists(other))


def _is_meta(meta: dict[str, Any]) -> bool:
    files = meta.get("files")
    return (
        isinstance(meta.get("step"), int)
        and isinstance(meta.get("facts"), dict)
        and isinstance(files, dict)
        and all(
            isinstance(f, dict)
            and isinstance(f.get("bytes"), int)
            and isinstance(f.get("sha256"), str)
            for f in files.values()
        )
    )


def _check_file(path: Path, name: str, recorded: dict[str, Any]) -> None:
    """Raise unless a file is a regular one of the recorded size."""
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise refused(path, f"hold {name} as a regular file", "none, or a link")
    size = file.stat().st_size
    if size != recorded["bytes"]:
        raise refused(
            path, f"hold {name} whole, {recorded['bytes']:,} bytes", f"{size:,}", "it is cut off"
        )


def read_file(path: Path, name: str) -> Weights:
    """One file of a checkpoint, with the facts of the checkpoint; raises ValueError unless it is
    as meta.json says.

    >>> read_file(Path("model.pkl"), "ema.safetensors")
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'model.pkl' must be a folder of safetensors and JSON; got a .pkl file, which is never unpickled ...
    """
    meta = read_meta(path)
    if name not in meta["files"]:
        came = ", ".join(meta["files"])
        raise refused(path, f"hold {name}", came, "it is no part of this checkpoint")
    _check_file(path, name, meta["files"][name])
    found = read_weights(path / name)
    if found.sha256 != meta["files"][name]["sha256"]:
        raise refused(path, f"hold {name} as it was written", "another checksum", "it is damaged")
    return found._replace(facts=meta["facts"])


def seal(meta: dict[str, Any]) -> str:
    """SHA-256 of everything else in meta.json.

    >>> seal({"step": 1})[:8]
    '66acd07f'
    """
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "checkpoints",
    "newest",
    "number",
    "prune",
    "read",
    "read_file",
    "read_meta",
    "seal",
    "unused",
    "write",
]
