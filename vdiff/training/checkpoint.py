"""Checkpoints: folders of safetensors and JSON that are whole or not there, and are verified before anything is taken from them.

    step-00001000/
        meta.json                what it is of, the size and the SHA-256 of every file, and its own
        <name>.safetensors       tensors

Nothing is ever unpickled.
"""

import errno
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdiff.disk import commit
from vdiff.errors import must
from vdiff.gaussian import ENDS
from vdiff.training.plain import LARGEST

FORMAT = 1
META = "meta.json"
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
UNPICKLE = "unpickling runs whatever code is in it: where you trust it, torch.load(…, weights_only=True), then safetensors.torch.save_file"
SEAL = "sha256"  # of the tensors in a file, in its own header
Tensors = Mapping[str, Mapping[str, Tensor]]
Facts = dict[str, Any]


def write(folder: Path, step: int, tensors: Tensors, facts: Facts) -> Path:
    """A checkpoint of `tensors`, by file and name, and of `facts`, plain data, as `folder`/step-…: whole, or none.

    Raises:
        ValueError: where a tensor holds NaN.
        OSError: where the disk is full, with the bytes needed and free, or cannot be written to; what was there stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(Path(folder), 10, {"model": {"weight": torch.ones(2)}}, {"best": 1.5})
    ...     live = {"model": {"weight": torch.zeros(2)}}
    ...     path.name, read(path, live), live["model"]["weight"]
    ('step-00000010', {'best': 1.5}, tensor([1., 1.]))
    """
    for file, named in tensors.items():
        for name, value in named.items():
            if value.is_floating_point() and value.isnan().any():
                raise ValueError(must("checkpoint", "state", "hold no NaN", f"one in {file} {name}", "it could not be gone on from"))
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.partial"
    needed = sum(value.nbytes for named in tensors.values() for value in named.values())
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        files = {}
        for file, named in tensors.items():
            whole = aside / f"{file}.safetensors"
            save_tensors(whole, named)
            files[whole.name] = {"bytes": whole.stat().st_size, "sha256": _digest(whole)}
        meta = {"format": FORMAT, "step": step, "files": files, "facts": facts}
        (aside / META).write_text(json.dumps(meta | {"sha256": seal(meta)}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        commit(aside, path)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free
        number = getattr(error, "errno", None) or (errno.ENOSPC if free < needed else errno.EIO)
        raise OSError(number, f"{error}; {needed:,} bytes needed, {free:,} free", str(path)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, sealed: bool = False) -> None:
    """Write tensors to a safetensors file, those that share their memory each on its own; `sealed` with a checksum inside, for
    a file that has no meta.json beside it.

    >>> import tempfile
    >>> weight = torch.ones(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder) / "tied.safetensors", {"a": weight, "b": weight})
    ...     list(load(Path(folder) / "tied.safetensors", {"a": weight, "b": weight}))
    ['a', 'b']
    """
    whole: dict[str, Tensor] = {}
    seen = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        whole[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    save_file(whole, path, {SEAL: _content(whole)} if sealed else None)


def read(path: Path, into: Tensors) -> Facts:
    """Copy files of the checkpoint `path` into tensors of the same names, shapes and dtypes, and return its facts.

    Everything is verified before the first tensor is touched. Raises ValueError that says what is wrong: cut off, another
    checksum, another form, another architecture.

    >>> read(Path("step-00000010"), {})
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'step-00000010' must hold meta.json; got none (it is no checkpoint, or was not finished)
    """
    meta = read_meta(path)
    for name in [f"{file}.safetensors" for file in into]:
        if name not in meta["files"]:
            raise _refused(path, f"hold {name}", ", ".join(meta["files"]), "it is of another run")
        _verify(path, name, meta["files"][name])
    found = {file: load(path / f"{file}.safetensors", named) for file, named in into.items()}
    for file, named in into.items():
        fill(named, found[file])
    facts: Facts = meta["facts"]
    return facts


def fill(live: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names.

    >>> weight = torch.zeros(1)
    >>> fill({"weight": weight}, {"weight": torch.ones(1)})
    >>> weight
    tensor([1.])
    """
    for name, value in live.items():
        value.detach().copy_(loaded[name])


def read_meta(path: Path) -> Facts:
    """The verified meta.json of a checkpoint; raises ValueError where there is none, or it is not as it was written.

    >>> read_meta(Path("model.pkl"))
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'model.pkl' must be a folder of safetensors and JSON; got a .pkl file, which is never unpickled ...
    """
    if path.suffix in PICKLES:
        raise _refused(path, "be a folder of safetensors and JSON", f"a {path.suffix} file, which is never unpickled", UNPICKLE)
    file = path / META
    if path.is_symlink() or not file.is_file() or file.is_symlink():
        raise _refused(path, f"hold {META}", "none", "it is no checkpoint, or was not finished")
    if file.stat().st_size > LARGEST:
        limit = f"have a {META} of at most {LARGEST:,} bytes"
        raise _refused(path, limit, f"{file.stat().st_size:,}")
    try:
        meta: Facts = json.loads(file.read_bytes().decode("utf-8"))
        sealed = meta.pop("sha256")
        right = sealed == seal(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(path, f"have a {META} as it was written", f"{type(error).__name__}: {error}", "it is damaged") from error
    if not right:
        raise _refused(path, f"have a {META} as it was written", "another checksum", "it is damaged")
    if meta.get("format") != FORMAT:
        raise _refused(path, f"have format {FORMAT}", meta.get("format"), "it was written by another version of vdiff")
    if not _is_meta(meta) or meta["step"] != number(path):
        raise _refused(path, f"have a {META} with step, files and facts", "another form", "it is no checkpoint of vdiff")
    return meta


def newest(folder: Path, use: Callable[[Path], Facts]) -> Facts | None:
    """The facts of the newest checkpoint that `use` accepts; one that it refuses by a ValueError is warned of, put
    aside under another name, and the one before it is used. None where there are none at all.

    Raises ValueError where there are checkpoints and all are refused: to start again in silence would lose the run.

    >>> newest(Path("no-such-folder"), lambda path: {}) is None
    True
    """
    reasons: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            facts = use(path)
        except (ValueError, OSError) as error:
            reasons[path] = str(error)
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
        else:
            for refused in reasons:
                refused.rename(_unused(folder / f"refused-{refused.name}"))
            return facts
    if reasons:
        hint = f"what can be used again is in {folder}; to start anew, take another folder"
        raise ValueError(
            must(
                "Run", "folder", "hold a checkpoint to go on from", f"{len(reasons)} that are refused: {'; '.join(reasons.values())}", hint
            )
        )
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a process that was killed has left of one. One that is being deleted has its
    name no longer.

    >>> prune(Path("no-such-folder"), 3)
    """
    for path in checkpoints(folder)[:-keep]:
        path.rename(path.with_name(f".{path.name}.partial"))
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their step, the oldest first; whole or not.

    >>> checkpoints(Path("no-such-folder"))
    []
    """
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def number(path: Path) -> int:
    """The step of a checkpoint, from its name.

    >>> number(Path("step-00000010"))
    10
    """
    return int(path.name.removeprefix("step-"))


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{i}" if i else path.name) for i in count())
    return next(other for other in names if not other.exists())


def _is_meta(meta: dict[str, Any]) -> bool:
    files = meta.get("files")
    return (
        isinstance(meta.get("step"), int)
        and isinstance(meta.get("facts"), dict)
        and isinstance(files, dict)
        and all(isinstance(f, dict) and isinstance(f.get("bytes"), int) and isinstance(f.get("sha256"), str) for f in files.values())
    )


def _verify(path: Path, name: str, recorded: dict[str, Any]) -> None:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise _refused(path, f"hold {name} as a regular file", "none, or a link")
    size = file.stat().st_size
    if size != recorded["bytes"]:
        raise _refused(path, f"hold {name} whole, {recorded['bytes']:,} bytes", f"{size:,}", "it is cut off")
    if _digest(file) != recorded["sha256"]:
        raise _refused(path, f"hold {name} as it was written", "another checksum", "it is damaged")


def verify(path: Path, name: str) -> None:
    """Raise unless a file of a checkpoint is as its meta.json says.

    >>> verify(Path("model.pkl"), "ema")
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'model.pkl' must be a folder of safetensors and JSON; got a .pkl file, which is never unpickled ...
    """
    files = read_meta(path)["files"]
    if name not in files:
        raise _refused(path, f"hold {name}", ", ".join(files), "it is no part of this checkpoint")
    _verify(path, name, files[name])


def load(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must have the names, shapes and dtypes of those expected, and no NaN.

    >>> load(Path("model.pt"), {})
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: argument 'model.pt' must be safetensors; got a .pt file, which is never unpickled (unpickling runs ...
    """
    if path.suffix in PICKLES:
        raise _refused(path, "be safetensors", f"a {path.suffix} file, which is never unpickled", UNPICKLE)
    try:
        with safe_open(path, framework="pt") as tensors:
            found = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
            _compare(path, found, {name: list(value.shape) for name, value in expected.items()})
            loaded = {name: tensors.get_tensor(name) for name in found}
            sealed = (tensors.metadata() or {}).get(SEAL)
    except (SafetensorError, OSError) as error:
        raise _refused(path, "be in the form of safetensors", error, "it is damaged, or something else") from error
    if sealed is not None and sealed != _content(loaded):
        raise _refused(path, "be as it was written", "another checksum", "it is damaged")
    for name, value in loaded.items():
        if value.dtype != expected[name].dtype:
            raise _refused(path, f"have {name} in {expected[name].dtype}", value.dtype, "it is of another architecture")
        if value.is_floating_point() and value.isnan().any():
            raise _refused(path, "hold no NaN", f"one in {name}")
        if _is_ends(name) and not torch.equal(value, expected[name].cpu()):
            own = expected[name].tolist()
            raise _refused(path, f"have {name} = {own}", value.tolist(), "it is of another schedule")
    return {name: value for name, value in expected.items() if _is_ends(name)} | loaded


def _is_ends(name: str) -> bool:
    """Whether a tensor is the ends of a schedule: they are compared, and older files do not have
    them.
    """
    return name.rpartition(".")[2] == ENDS


def _compare(path: Path, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    missing = [name for name in expected if name not in found and not _is_ends(name)]
    wrong = [f"{name} {expected[name]} is missing" for name in missing]
    wrong += [f"{name} {shape} is unknown here" for name, shape in found.items() if name not in expected]
    wrong += [f"{name} is {shape}, here {expected[name]}" for name, shape in found.items() if expected.get(name, shape) != shape]
    if wrong:
        came = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise _refused(path, "have the tensors of this architecture", came, "it is of another architecture")


def seal(meta: dict[str, Any]) -> str:
    """SHA-256 of everything else in meta.json.

    >>> seal({"step": 1})[:8]
    '66acd07f'
    """
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _content(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors by name."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        whole.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(path: Path, requirement: str, got: object, hint: str = "") -> ValueError:
    return ValueError(must("checkpoint", str(path), requirement, got, hint))


__all__ = ["checkpoints", "fill", "load", "newest", "number", "prune", "read", "read_meta", "save_tensors", "seal", "verify", "write"]
