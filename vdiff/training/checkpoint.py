"""Checkpoints: folders of safetensors and JSON, written completely or not at all, and verified
before they are used. Nothing is ever unpickled.

    step-00001000/
        meta.json                step, facts, the size and the SHA-256 of every file, and its own
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

from vdiff.disk import atomic_rename, new_folder, remove, write_error
from vdiff.training.safe_json import read_json
from vdiff.training.weights import (
    DAMAGED,
    Facts,
    Weights,
    check_size,
    check_tensors,
    invalid_file,
    parse_weights,
    refuse_nan,
    refuse_pickle,
    size_limit,
    to_stored,
)

FORMAT = 1
META = "meta.json"
Tensors = Mapping[str, Mapping[str, Tensor]]  # by file and name


def write(folder: Path, step: int, tensors: Tensors, facts: Facts) -> Path:
    """Write tensors and `facts`, plain data, as `folder`/step-….

    Raises ValueError if a tensor holds NaN, and OSError with the bytes needed and free.
    """
    flat = {f"{file} {name}": v for file, named in tensors.items() for name, v in named.items()}
    refuse_nan(folder, flat, "training could not resume from it")
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.partial"
    try:
        new_folder(aside)
        files = {}
        for file, named in tensors.items():
            part = aside / f"{file}.safetensors"
            save_file(to_stored(named), part)
            with part.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[part.name] = {"bytes": part.stat().st_size, "sha256": digest}
        meta = {"format": FORMAT, "step": step, "files": files, "facts": facts}
        text = json.dumps(meta | {"sha256": checksum(meta)}, indent=1, allow_nan=False) + "\n"
        (aside / META).write_text(text, encoding="utf-8")
        atomic_rename(aside, path)
    except (OSError, SafetensorError) as error:
        raise write_error(error, path, sum(v.nbytes for v in flat.values())) from error
    finally:
        remove(aside)
    return path


def read(path: Path, into: Tensors) -> Facts:
    """Copy a checkpoint into tensors of the same names, shapes and dtypes; returns its facts.

    Everything is verified before the first tensor is changed. Raises ValueError if the checkpoint
    is incomplete, damaged or of another architecture.
    """
    meta, loaded = read_meta(path), {}
    for file, named in into.items():
        name = f"{file}.safetensors"
        tensors = _read(path, name, meta, size_limit(named)).tensors
        loaded[file] = check_tensors(path / name, tensors, named, exact=True)
    for file, named in into.items():
        for name, value in named.items():
            value.detach().copy_(loaded[file][name])
    facts: Facts = meta["facts"]
    return facts


def read_file(path: Path, name: str, limit: int | None = None) -> Weights:
    """One file of a checkpoint, of at most `limit` bytes, with the facts of the checkpoint. Raises
    as `read`."""
    meta = read_meta(path)
    return _read(path, name, meta, limit)._replace(facts=meta["facts"])


def _read(path: Path, name: str, meta: Facts, limit: int | None) -> Weights:
    """The content of a file, which must have the size and the checksum of meta.json."""
    files, file = meta["files"], path / name
    if name not in files:
        listed = f"{', '.join(files)}; it is no part of this checkpoint"
        raise invalid_file(path, f"hold {name}", listed)
    if file.is_symlink() or not file.is_file():
        raise invalid_file(path, f"hold {name} as a regular file", "none, or a link")
    check_size(file, limit)
    size, recorded = file.stat().st_size, files[name]["bytes"]
    raw = file.read_bytes() if size == recorded else b""  # another size may take all memory
    digest = hashlib.sha256(raw).hexdigest()
    if digest != files[name]["sha256"]:
        came, hint = f"{size:,} of {recorded:,} bytes", "it is cut off"
        if size == recorded:
            came, hint = "another checksum", DAMAGED
        raise invalid_file(path, f"hold {name} as it was written", came, hint)
    return parse_weights(file, raw, digest)


def read_meta(path: Path) -> Facts:
    """The verified meta.json of a checkpoint. Raises ValueError if it is missing or damaged."""
    file = path / META
    refuse_pickle(path, "be a folder of safetensors and JSON")
    if path.is_symlink() or not file.is_file() or file.is_symlink():
        raise invalid_file(path, f"hold {META}", "none", "it is no checkpoint, or is incomplete")
    why = "another checksum"
    try:
        meta = read_json(file)
        intact = meta.pop("sha256") == checksum(meta)
        complete = intact and _is_complete(meta) and meta["step"] == step_of(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        intact, why = False, repr(error)
    if not intact:
        raise invalid_file(path, f"have a {META} as it was written", why, DAMAGED)
    if meta.get("format") != FORMAT:
        hint = "it was written by another version of vdiff"
        raise invalid_file(path, f"have format {FORMAT}", meta.get("format"), hint)
    if not complete:
        what, hint = f"have a {META} with step, files and facts", "it is no checkpoint of vdiff"
        raise invalid_file(path, what, "another form", hint)
    return meta


def use_newest(folder: Path, use: Callable[[Path], Facts]) -> Facts | None:
    """The facts of the newest checkpoint that `use` accepts; None if there are no checkpoints.

    One for which `use` raises a ValueError is renamed with a warning, and the one before it is
    tried. Raises ValueError if none is accepted: a silent restart would lose the run.
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
                wrong.rename(unused_path(folder / f"refused-{wrong.name}"))
            return facts
    if reasons:
        names, cause = ", ".join(path.name for path in reasons), next(iter(reasons.values()))
        hint = "their files are kept; to start anew, take another folder"
        why = f"none of the {len(reasons)} checkpoints in {folder} can be used ({hint})"
        raise ValueError(f"{why}; a warning says why each is refused: {names}") from cause
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and partial ones. A checkpoint is renamed
    before it is deleted."""
    for path in checkpoints(folder)[:-keep]:
        aside = path.with_name(f".{path.name}.partial")
        remove(aside)
        path.rename(aside)
    for left in folder.glob(".step-*.partial"):
        remove(left)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, damaged ones too, sorted by step."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def unused_path(path: Path) -> Path:
    """This path, with a number appended if the name is taken."""
    names = (path.with_name(f"{path.name}-{i}" if i else path.name) for i in count())
    return next(other for other in names if not os.path.lexists(other))


def _is_complete(meta: dict[str, Any]) -> bool:
    step, facts, files = meta.get("step"), meta.get("facts"), meta.get("files")
    if not (isinstance(step, int) and isinstance(facts, dict) and isinstance(files, dict)):
        return False
    each = [(f.get("bytes"), f.get("sha256")) for f in files.values() if isinstance(f, dict)]
    typed = all(isinstance(size, int) and isinstance(digest, str) for size, digest in each)
    return typed and len(each) == len(files)


def checksum(meta: dict[str, Any]) -> str:
    """SHA-256 of meta.json without its own checksum."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
