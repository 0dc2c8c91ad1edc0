"""Data in .npy and .npz files, which are mapped, not read."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch

from vdiff._validate import require
from vdiff.data.images import Images
from vdiff.data.mapped import Layout, Mapped
from vdiff.errors import InvalidValue

SUFFIXES = (".npy", ".npz")
IMAGES, LABELS = "images.npy", "labels.npy"
LEVELS = {"uint8": 256, "bool": 2}


def read_arrays(
    path: Path, *, levels: int | None, alpha: Literal["refuse", "drop"], tokens: bool = False
) -> Images:
    """The images of a .npy or .npz file, (n, height, width), (n, height, width, 1 or 3) or (n,
    channels, height, width); tokens (n, length); floating data of any shape, (n, …). With `tokens`
    whole numbers have no levels, and each row is a text.

    An .npz has one array, or `images` with or without `labels`. A compressed one cannot be mapped
    and is refused. Raises ValueError, which names the file.
    """
    labels = None
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                store = _mapped(path, file, 0)
        else:
            store, labels = _of_archive(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidValue):
            raise
        what = "be a .npy or .npz file that numpy wrote, without Python objects"
        raise InvalidValue("path", what, f"{path}: {error}") from error
    integers = store.kind.kind in "bui"
    if tokens:
        _check_tokens(path, store, levels)
    layout: Layout = _layout(path, store, alpha) if integers and not tokens else "as it is"
    store = replace(store, layout=layout)
    levels = None if tokens else _levels(path, store.kind, levels)
    if labels is None:
        labels = np.zeros(len(store), np.int64)
    fits = labels.shape == (len(store),) and labels.dtype.kind in "ui"
    what = f"hold labels (n,) = ({len(store)},), whole numbers"
    require(fits, "path", what, f"{labels.dtype} of shape {labels.shape} in {path}")
    record = f"{path.name}: {len(store):,} rows of {store.kind}"
    example = "text" if tokens else "image"
    classes = torch.from_numpy(labels.astype(np.int64))
    return Images(store, classes, levels, record=record, example=example)


def _mapped(path: Path, file: IO[bytes], start: int, size: int | None = None) -> Mapped:
    """The array whose header begins at `start`. Raises ValueError if the file has no such array,
    or is cut off."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}
    full, fortran, kind = read.get(version, np.lib.format.read_array_header_2_0)(file)
    if kind.hasobject:
        raise ValueError("it holds Python objects, which are not read: they can run code")
    offset = file.tell()
    needed = int(np.prod(full, dtype=object)) * kind.itemsize
    there = (path.stat().st_size if size is None else start + size) - offset
    require(there >= needed, "path", "be whole", f"{path}, {there:,} of {needed:,} bytes")
    require(bool(full) and full[0] > 0, "path", "hold rows", f"shape {full} in {path}")
    rows = torch.arange(full[0])
    return Mapped(path, offset, full, kind, "F" if fortran else "C", "as it is", rows)


def _of_archive(path: Path) -> tuple[Mapped, np.ndarray | None]:
    """The images and the labels of an .npz."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {member.filename: member for member in archive.infolist()}
        names = [name for name in members if name != LABELS]
        came = ", ".join(name.removesuffix(".npy") for name in members) or "nothing"
        fits = len(names) == 1 or IMAGES in members
        hint = "np.savez(file, images=…, labels=…)"
        require(
            fits, "path", "hold images, and labels if there are any", f"{came} in {path}", hint
        )
        member = members[IMAGES if IMAGES in members else names[0]]
        hint = "np.savez writes them so; np.savez_compressed does not"
        stored = member.compress_type == zipfile.ZIP_STORED
        came = f"a compressed {member.filename} in {path}"
        require(stored, "path", "hold arrays that are not compressed, to be mapped", came, hint)
        file.seek(member.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        start = member.header_offset + 30 + name + extra
        images = _mapped(path, file, start, member.file_size)
        if LABELS not in members:
            return images, None
        with archive.open(LABELS) as part:
            return images, np.lib.format.read_array(part, allow_pickle=False)


def _check_tokens(path: Path, store: Mapped, levels: int | None) -> None:
    """Raise unless an array holds whole numbers, with texts of one length in its rows."""
    require(levels is None, "levels", "be left out for tokens", levels, "the process has them")
    what = "hold token ids, whole numbers"
    require(store.kind.kind in "ui", "path", what, f"{store.kind} in {path}")
    hint = "cut a stream into windows of 128: ids[: len(ids) // 128 * 128].reshape(-1, 128)"
    what, came = "hold texts of one length, (n, length)", f"shape {store.full} in {path}"
    require(len(store.full) > 1, "path", what, came, hint)


def _layout(path: Path, store: Mapped, alpha: str) -> Layout:
    """How an image lies in the file, from the shape."""
    row = store.full[1:]
    if len(row) == 1:  # tokens
        return "as it is"
    if len(row) == 2:
        return "no channels"
    what = "hold images (n, height, width), (n, height, width, channels) or (n, channels, …)"
    require(len(row) == 3, "path", what, f"shape {store.full} in {path}")
    if row[0] in (1, 3) or row[2] > 4:
        return "as it is"
    if row[2] in (2, 4):
        came = f"{row[2]} channels, so the last is alpha, in {path}"
        require(alpha == "drop", "path", "hold grey or RGB", came, "alpha='drop' drops it")
        return "alpha last"
    return "channels last"


def _levels(path: Path, kind: np.dtype, levels: int | None) -> int | None:
    """The number of levels of a dtype: as given, or 256 for bytes."""
    if kind.kind == "f":
        require(levels is None, "levels", f"be left out for {kind}", levels, "it has no levels")
        return None
    require(kind.kind in "bui", "path", "hold whole or floating numbers", f"{kind} in {path}")
    if levels is None:
        came, hint = (
            f"{kind} in {path}",
            "levels=256 for bytes in a wider type, levels=65536 for all 16 bits",
        )
        require(str(kind) in LEVELS, "levels", "be given unless data are bytes", came, hint)
        return LEVELS[str(kind)]
    return levels
