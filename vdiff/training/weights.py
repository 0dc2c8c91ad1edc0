"""Weights in safetensors files: written whole, read once, verified. Nothing is ever unpickled."""

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
from vdiff.disk import atomic_write, no_room
from vdiff.errors import LONGEST, printable
from vdiff.training import plain

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
UNPICKLE = (
    "unpickling runs whatever code is in it: where you trust it, torch.load(…, "
    "weights_only=True), then safetensors.torch.save_file"
)
PICKLE = "a {} file, which is never unpickled"
DAMAGED, OTHER = "it is damaged", "it is of another architecture"
SEAL, FACTS = "sha256", "facts"  # of a file that stands alone, in its own header
Facts = dict[str, Any]


class Weights(NamedTuple):
    """The tensors of a file that stands alone, the facts in its header (older files have none),
    and the SHA-256 of the file."""

    tensors: dict[str, Tensor]
    facts: Facts
    sha256: str


def refused(path: Path, requirement: str, got: object, hint: str = "") -> ValueError:
    """The error of a file that is not as it must be.

    >>> str(refused(Path("a"), "be whole", "half of it"))
    "checkpoint 'a' must be whole; got half of it"
    """
    came = str(got)
    came = came if len(came) <= LONGEST else f"{came[:LONGEST]} …"
    text = f"checkpoint '{path}' must {requirement}; got {came}"
    return ValueError(printable(f"{text} ({hint})" if hint else text))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Facts | None = None) -> None:
    """Write tensors whole or not at all to a safetensors file that stands alone, with a checksum
    and `facts` in its header.

    Raises OSError if the file cannot be written, with the bytes needed and free; the old file
    stays.
    """
    whole, header = sealed(tensors, facts)
    try:
        with atomic_write(path) as aside:
            save_file(whole, aside, header)
    except (OSError, SafetensorError) as error:
        raise no_room(error, path, sum(value.nbytes for value in whole.values())) from error


def sealed(
    tensors: Mapping[str, Tensor], facts: Facts | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as a file holds them, and its header with the facts and a checksum of both.

    >>> sorted(sealed({"a": torch.ones(2)}, {"step": 3})[1])
    ['facts', 'sha256']
    """
    whole, said = separate(tensors), json.dumps(facts or {}, sort_keys=True)
    return whole, {FACTS: said, SEAL: _content(whole, said)}


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file holds them: those that share memory are copied, complex ones are pairs of
    real numbers."""
    whole: dict[str, Tensor] = {}
    seen = set()
    for name, value in tensors.items():
        plain = value.detach().cpu()
        if plain.is_complex():
            plain = torch.view_as_real(plain.resolve_conj())
        plain = plain.contiguous()
        whole[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return whole


def read_weights(path: Path, *, seal: bool = False) -> Weights:
    """The content of a safetensors file that stands alone, for `accept`.

    The file is read once: the hash is that of the tensors, also while a training replaces the
    file. Raises ValueError if it is another kind of file, or not as it was written; with `seal`
    also if it has no checksum, as older files have none.
    """
    if path.suffix in PICKLES:
        raise refused(path, "be safetensors", PICKLE.format(path.suffix), UNPICKLE)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise refused(path, "be in the form of safetensors", error, DAMAGED) from error
    return parsed(path, raw, hashlib.sha256(raw).hexdigest(), seal=seal)


def parsed(path: Path, raw: bytes, sha256: str, *, seal: bool = False) -> Weights:
    """The content of a safetensors file from its bytes."""
    try:
        tensors = parse(raw)
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
    except SafetensorError as error:
        raise refused(path, "be in the form of safetensors", error, DAMAGED) from error
    if (seal or SEAL in header) and header.get(SEAL) != _content(tensors, header.get(FACTS, "")):
        raise refused(path, "be as it was written", "another checksum", DAMAGED)
    try:
        facts = plain.parse(header.get(FACTS, "{}"))
    except ValueError as error:
        raise refused(path, "have facts in its header that are JSON", error, DAMAGED) from error
    if not isinstance(facts, dict):
        raise refused(path, "have facts by name in its header", type(facts).__name__, DAMAGED)
    return Weights(tensors, facts, sha256)


def accept(
    path: Path, loaded: dict[str, Tensor], expected: Mapping[str, Tensor], *, exact: bool = False
) -> dict[str, Tensor]:
    """The tensors of a file, which must have the names, shapes and kinds of those expected (with
    `exact` their precision too), and no NaN. Raises ValueError with what differs."""
    _compare(path, {name: list(value.shape) for name, value in loaded.items()}, expected)
    for name, value in loaded.items():
        live = expected[name]
        dtype = live.dtype.to_real() if live.is_complex() else live.dtype
        floating = value.is_floating_point() and dtype.is_floating_point
        if value.dtype != dtype and (exact or not floating):
            raise refused(path, f"have {name} in {dtype}", value.dtype, OTHER)
        if value.isnan().any():
            raise refused(path, "hold no NaN", f"one in {name}")
        if _is_ends(name) and not torch.equal(value.to(dtype), live.cpu()):
            what, hint = f"have {name} = {live.tolist()}", "it is of another schedule"
            raise refused(path, what, value.tolist(), hint)
    # cloned: in a file's memory a complex number may lie at any address, at which the processor
    # faults
    complex_ = {name for name in loaded if expected[name].is_complex()}
    ends = {name: value for name, value in expected.items() if _is_ends(name)}
    return ends | {
        n: torch.view_as_complex(v.clone()) if n in complex_ else v for n, v in loaded.items()
    }


def _is_ends(name: str) -> bool:
    """Whether a tensor is the ends of a schedule: they are compared, and older files do not have
    them."""
    return name.rpartition(".")[2] == ENDS


def _compare(path: Path, found: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> None:
    pair = {name: [2] if value.is_complex() else [] for name, value in tensors.items()}
    expected = {name: [*value.shape, *pair[name]] for name, value in tensors.items()}
    missing = [name for name in expected if name not in found and not _is_ends(name)]
    unknown = sorted(set(found) - set(expected))  # a file has its tensors in no fixed order
    wrong = [f"{name} {expected[name]} is missing" for name in missing]
    wrong += [f"{name} {found[name]} is unknown here" for name in unknown]
    both = ((name, found.get(name, here), here) for name, here in expected.items())
    wrong += [f"{name} is {shape}, here {here}" for name, shape, here in both if shape != here]
    if wrong:
        came = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise refused(path, "have the tensors of this architecture", came, OTHER)


def _content(tensors: Mapping[str, Tensor], facts: str) -> str:
    """A checksum of tensors by name and of the facts beside them."""
    whole = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        whole.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        whole.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


__all__ = ["Weights", "accept", "parsed", "read_weights", "refused", "save_tensors", "separate"]
