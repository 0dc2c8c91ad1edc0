"""Safetensors files with a checksum. Nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save_file
from torch import Tensor

from vdiff._modules import ENDS
from vdiff.disk import atomic_write, write_error
from vdiff.errors import LONGEST, printable
from vdiff.training import safe_json

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
UNPICKLE = "unpickling runs whatever code is in it: where you trust it, torch.load(…, "
UNPICKLE += "weights_only=True), then safetensors.torch.save_file"
DAMAGED, OTHER = "it is damaged", "it is of another architecture"
SEAL, FACTS = "sha256", "facts"  # keys of a file's header
HEADER, WIDEST = 1 << 24, 16  # the most bytes of a header, and of a number
Facts = dict[str, Any]


class Weights(NamedTuple):
    """The tensors of a file, the facts in its header (older files have none), and the SHA-256 of
    the file."""

    tensors: dict[str, Tensor]
    facts: Facts
    sha256: str


def invalid_file(path: Path, requirement: str, got: object, hint: str = "") -> ValueError:
    """The error of a file of tensors."""
    came = str(got)
    came = came if len(came) <= LONGEST else f"{came[:LONGEST]} …"
    text = f"checkpoint '{path}' must {requirement}; got {came}"
    return ValueError(printable(f"{text} ({hint})" if hint else text))


def refuse_pickle(path: Path, requirement: str) -> None:
    """Raise for the name of a pickle."""
    if path.suffix in PICKLES:
        came = f"a {path.suffix} file, which is never unpickled"
        raise invalid_file(path, requirement, came, UNPICKLE)


def refuse_nan(path: Path, tensors: Mapping[str, Tensor], hint: str = "") -> None:
    """Raise if a tensor holds NaN."""
    names = [name for name, value in tensors.items() if value.isnan().any()]
    if names:
        raise invalid_file(path, "hold no NaN", f"one in {names[0]}", hint)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Facts | None = None) -> None:
    """Write a safetensors file with `facts` and a checksum in its header.

    Raises OSError with the bytes needed and free; the old file stays.
    """
    stored, header = sealed(tensors, facts)
    try:
        with atomic_write(path) as aside:
            save_file(stored, aside, header)
    except (OSError, SafetensorError) as error:
        raise write_error(error, path, sum(v.nbytes for v in stored.values())) from error


def sealed(
    tensors: Mapping[str, Tensor], facts: Facts | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as a file stores them, and its header with the facts and a checksum of both."""
    stored, text = to_stored(tensors), json.dumps(facts or {}, sort_keys=True)
    return stored, {FACTS: text, SEAL: _checksum(stored, text)}


def to_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file stores them: on the CPU, without shared memory, complex numbers as pairs
    of real ones."""
    stored: dict[str, Tensor] = {}
    pointers = set()
    for name, value in tensors.items():
        real = value.detach().cpu()
        if real.is_complex():
            real = torch.view_as_real(real.resolve_conj())
        real = real.contiguous()
        stored[name] = real.clone() if real.data_ptr() in pointers else real
        pointers.add(real.data_ptr())
    return stored


def read_weights(path: Path, *, seal: bool = False, limit: int | None = None) -> Weights:
    """Read a safetensors file of at most `limit` bytes, and verify its checksum.

    Raises OSError if it cannot be read, and ValueError for another kind of file or another
    content; with `seal` also if it has no checksum, as older files.
    """
    refuse_pickle(path, "be safetensors")
    check_size(path, limit)
    raw = path.read_bytes()
    return parse_weights(path, raw, hashlib.sha256(raw).hexdigest(), seal=seal)


def size_limit(tensors: Mapping[str, Tensor]) -> int:
    """The bytes that a file with these tensors takes at most, in any precision."""
    return HEADER + WIDEST * sum(value.numel() for value in tensors.values())


def check_size(path: Path, limit: int | None) -> None:
    """Raise if a file is larger than `limit` bytes: it would be read whole."""
    size = path.stat().st_size
    if limit is not None and size > limit:
        came = f"{size:,} bytes"
        raise invalid_file(path, f"have at most {limit:,} bytes", came, f"{OTHER}, or damaged")


def texts(path: Path, facts: Facts, name: str) -> list[str]:
    """A fact that is a list of texts; empty where the file does not have it."""
    value = facts.get(name, [])
    if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        what = f"hold a list of texts as its {name}"
        raise invalid_file(path, what, safe_json.json_repr(value), DAMAGED)
    return value


def parse_weights(path: Path, raw: bytes, sha256: str, *, seal: bool = False) -> Weights:
    """The content of a safetensors file from its bytes."""
    try:
        tensors = parse(raw)
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
        facts = safe_json.parse_object(header.get(FACTS, "{}"))
    except (SafetensorError, ValueError) as error:
        raise invalid_file(path, "be in the form of safetensors", error, DAMAGED) from error
    if (seal or SEAL in header) and header.get(SEAL) != _checksum(tensors, header.get(FACTS, "")):
        raise invalid_file(path, "be as it was written", "another checksum", DAMAGED)
    return Weights(tensors, facts, sha256)


def check_tensors(
    path: Path, loaded: dict[str, Tensor], expected: Mapping[str, Tensor], *, exact: bool = False
) -> dict[str, Tensor]:
    """The tensors of a file, which must have the names, shapes and kinds of those expected (with
    `exact` their dtypes too), and no NaN. Raises ValueError with what differs."""
    _compare(path, {name: list(value.shape) for name, value in loaded.items()}, expected)
    for name, value in loaded.items():
        live = expected[name]
        dtype = live.dtype.to_real() if live.is_complex() else live.dtype
        floating = value.is_floating_point() and dtype.is_floating_point
        if value.dtype != dtype and (exact or not floating):
            raise invalid_file(path, f"have {name} in {dtype}", value.dtype, OTHER)
        if _is_ends(name) and not torch.equal(value.to(dtype), live.cpu()):
            what, hint = f"have {name} = {live.tolist()}", "it is of another schedule"
            raise invalid_file(path, what, value.tolist(), hint)
    refuse_nan(path, loaded)
    # cloned: a file in memory may hold a complex number at an address where the processor faults
    complex_ = {name for name in loaded if expected[name].is_complex()}
    ends = {name: value for name, value in expected.items() if _is_ends(name)}
    return ends | {
        n: torch.view_as_complex(v.clone()) if n in complex_ else v for n, v in loaded.items()
    }


def _is_ends(name: str) -> bool:
    """Whether a tensor is the ends of a schedule. Older files do not have them."""
    return name.rpartition(".")[2] == ENDS


def _compare(path: Path, shapes: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> None:
    """Raise for tensors that are missing, unknown or of another shape."""
    pair = {name: [2] if value.is_complex() else [] for name, value in tensors.items()}
    expected = {name: [*value.shape, *pair[name]] for name, value in tensors.items()}
    missing = [name for name in expected if name not in shapes and not _is_ends(name)]
    wrong = [f"{name} {expected[name]} is missing" for name in missing]
    unknown = sorted(set(shapes) - set(expected))  # a file has its tensors in no fixed order
    wrong += [f"{name} {shapes[name]} is unknown here" for name in unknown]
    both = ((name, shapes.get(name, here), here) for name, here in expected.items())
    wrong += [f"{name} is {shape}, here {here}" for name, shape, here in both if shape != here]
    if wrong:
        came = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise invalid_file(path, "have the tensors of this architecture", came, OTHER)


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    """SHA-256 of tensors with their names, and of the facts."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
