"""Checkpoints: folders of safetensors and JSON that are whole or not there, and are verified
before anything is taken from them. Nothing is ever unpickled.

    step-00001000/
        meta.json                what it is of, the size and the SHA-256 of every file, and its own
        <name>.safetensors       tensors
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
from vdiff.training import weights
from vdiff.training.plain import LARGEST
from vdiff.training.weights import DAMAGED, Facts, Weights, accept, parsed, refused, separate

FORMAT = 1
META = "meta.json"
Tensors = Mapping[str, Mapping[str, Tensor]]


def write(folder: Path, step: int, tensors: Tensors, facts: Facts) -> Path:
    """Write `tensors`, by file and name, and `facts`, plain data, as `folder`/step-…: whole, or
    not at all.

    Raises ValueError if a tensor holds NaN, and OSError if the disk is full, with the bytes needed
    and free, or cannot be written to.

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
                came, hint = f"one in {file} {name}", "training could not resume from it"
                raise refused(folder, "hold no NaN", came, hint)
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.partial"
    needed = sum(value.nbytes for named in tensors.values() for value in named.values())
    try:
        new_folder(aside)
        files = {}
        for file, named in tensors.items():
            whole = aside / f"{file}.safetensors"
            save_file(separate(named), whole)
            with whole.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[whole.name] = {"bytes": whole.stat().st_size, "sha256": digest}
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

    Everything is verified before the first tensor is changed. Raises ValueError if the checkpoint
    is cut off or damaged, or is of another architecture.
    """
    meta, found = read_meta(path), {}
    for file, named in into.items():
        name = f"{file}.safetensors"
        found[file] = accept(path / name, _read(path, name, meta).tensors, named, exact=True)
    for file, named in into.items():
        for name, value in named.items():
            value.detach().copy_(found[file][name])
    facts: Facts = meta["facts"]
    return facts


def read_file(path: Path, name: str) -> Weights:
    """One file of a checkpoint, with the facts of the checkpoint. Raises ValueError unless it is
    as meta.json says."""
    meta = read_meta(path)
    return _read(path, name, meta)._replace(facts=meta["facts"])


def _read(path: Path, name: str, meta: Facts) -> Weights:
    """The content of a file, which must have the size and the checksum of meta.json."""
    files, file = meta["files"], path / name
    if name not in files:
        raise refused(path, f"hold {name}", ", ".join(files), "it is no part of this checkpoint")
    if file.is_symlink() or not file.is_file():
        raise refused(path, f"hold {name} as a regular file", "none, or a link")
    size, recorded = file.stat().st_size, files[name]["bytes"]
    if size != recorded:  # before it takes memory
        what = f"hold {name} whole, {recorded:,} bytes"
        raise refused(path, what, f"{size:,}", "it is cut off")
    raw = file.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != files[name]["sha256"]:
        raise refused(path, f"hold {name} as it was written", "another checksum", DAMAGED)
    return parsed(file, raw, digest)


def read_meta(path: Path) -> Facts:
    """The verified meta.json of a checkpoint. Raises ValueError if there is none, or if it is not
    as it was written.

    >>> read_meta(Path("step-00000010"))
    Traceback (most recent call last):
        ...
    ValueError: checkpoint 'step-00000010' must hold meta.json; got none (it is no checkpoint, ...
    """
    file = path / META
    if path.suffix in weights.PICKLES:
        came = weights.PICKLE.format(path.suffix)
        raise refused(path, "be a folder of safetensors and JSON", came, weights.UNPICKLE)
    if path.is_symlink() or not file.is_file() or file.is_symlink():
        raise refused(path, f"hold {META}", "none", "it is no checkpoint, or was not finished")
    if file.stat().st_size > LARGEST:
        limit = f"have a {META} of at most {LARGEST:,} bytes"
        raise refused(path, limit, f"{file.stat().st_size:,}")
    as_written = f"have a {META} as it was written"
    try:
        meta: Facts = json.loads(file.read_bytes().decode("utf-8"))
        sealed = meta.pop("sha256")
        right = sealed == seal(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(path, as_written, f"{type(error).__name__}: {error}", DAMAGED) from error
    if not right:
        raise refused(path, as_written, "another checksum", DAMAGED)
    if meta.get("format") != FORMAT:
        hint = "it was written by another version of vdiff"
        raise refused(path, f"have format {FORMAT}", meta.get("format"), hint)
    if not _is_meta(meta) or meta["step"] != number(path):
        what = f"have a {META} with step, files and facts"
        raise refused(path, what, "another form", "it is no checkpoint of vdiff")
    return meta


def newest(folder: Path, use: Callable[[Path], Facts]) -> Facts | None:
    """The facts of the newest checkpoint that `use` accepts; None if there are no checkpoints.

    One that `use` refuses with a ValueError is warned of and renamed, and the one before it is
    used. Raises ValueError if all are refused: starting again in silence would lose the run.
    """
    reasons: dict[Path, Exception] = {}
    for path in reversed(checkpoints(folder)):
        try:
            facts = use(path)
        except (ValueError, OSError) as error:
            reasons[path] = error
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
        else:
            for wrong in reasons:
                wrong.rename(unused(folder / f"refused-{wrong.name}"))
            return facts
    if reasons:
        names, cause = ", ".join(path.name for path in reasons), next(iter(reasons.values()))
        hint = "their files are kept; to start anew, take another folder"
        why = f"none of the {len(reasons)} checkpoints in {folder} can be used ({hint})"
        raise ValueError(f"{why}; a warning says why each is refused: {names}") from cause
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and the remains of one whose process was
    killed. A checkpoint is renamed before it is deleted."""
    for path in checkpoints(folder)[:-keep]:
        aside = path.with_name(f".{path.name}.partial")
        remove(aside)
        path.rename(aside)
    for left in folder.glob(".step-*.partial"):
        remove(left)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their step, the oldest first; damaged ones too."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found)


def number(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def unused(path: Path) -> Path:
    """This path, with a number appended if the name is taken."""
    names = (path.with_name(f"{path.name}-{i}" if i else path.name) for i in count())
    return next(other for other in names if not os.path.lexists(other))


def _is_meta(meta: dict[str, Any]) -> bool:
    step, facts, files = meta.get("step"), meta.get("facts"), meta.get("files")
    if not (isinstance(step, int) and isinstance(facts, dict) and isinstance(files, dict)):
        return False
    each = [(f.get("bytes"), f.get("sha256")) for f in files.values() if isinstance(f, dict)]
    typed = all(isinstance(size, int) and isinstance(digest, str) for size, digest in each)
    return typed and len(each) == len(files)


def seal(meta: dict[str, Any]) -> str:
    """SHA-256 of everything else in meta.json."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


__all__ = ["checkpoints", "newest", "number", "prune", "read", "read_file", "read_meta", "write"]
