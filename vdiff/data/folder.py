"""A folder of pictures."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from vdiff._validate import require
from vdiff.data.images import Images
from vdiff.errors import InvalidValue
from vdiff.extras import extra
from vdiff.terminal import Bar, on_terminal

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Alpha = Literal["refuse", "drop"]
COLORS = ("RGB", "RGBA")

NAMED = 10  # most classes that a record names


@dataclass(frozen=True)
class Reading:
    """How pictures are read: see `load`."""

    size: int | None
    resampling: Resampling
    channels: int | None
    alpha: Alpha
    levels: int | None

    def __str__(self) -> str:
        sized = f"{self.resampling} to {self.size}, centre" if self.size else "as they are"
        alpha = ", alpha dropped" if self.alpha == "drop" else ""
        return f"{sized}{alpha}"


def read_folder(folder: Path, reading: Reading) -> Images:
    """All pictures of a folder and its subfolders, whose names are the classes, sorted by path.

    Hidden files are left out, and those without the suffix of a picture; the record counts these.
    Raises ValueError, which names the file, for one that cannot be read, and where sizes or
    channels differ.
    """
    paths, others = _files(folder)
    hint = f"a picture ends with {', '.join(SUFFIXES)}"
    came = f"none in {folder}, and {others:,} other files"
    require(bool(paths), "path", "hold pictures", came, hint)
    names, labels = _classes(folder, paths)
    first = _read(paths[0], reading)
    pixels = _empty(len(paths), first, folder)

    def fill(i: int) -> None:
        picture = _read(paths[i], reading)
        _check_same(paths[i], picture, paths[0], first)
        pixels[i] = picture

    show = Bar(len(paths), "image", f"reading {folder.name}", quiet=not on_terminal())
    with ThreadPoolExecutor(os.cpu_count()) as pool, show as bar:
        try:
            for _ in pool.map(fill, range(len(paths))):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    levels = reading.levels or 256
    shape = "×".join(map(str, first.shape))
    record = f"{folder.name}: {len(paths):,} pictures, {shape}, {reading}, {levels} levels"
    classes = ", ".join([*names[:NAMED], *(["…"] if len(names) > NAMED else [])])
    record += f", labels 0, 1, … are {classes}" if names else ""
    record += f", {others:,} other files left out" if others else ""
    return Images(torch.from_numpy(pixels), torch.tensor(labels), levels, names, record)


def as_pictures(
    images: Images,
    size: int | None = None,
    resampling: Resampling = "bicubic",
    channels: int | None = None,
) -> Images:
    """Images of an array, converted and resized as pictures are. Images that have this form stay
    as they are, and so do images that are not grey or RGB bytes."""
    wanted = (channels or images.shape[0], *((size, size) if size else images.shape[1:]))
    of_bytes = images.levels == 256 and len(images.shape) == 3 and images.shape[0] in (1, 3)
    if images.shape == wanted or not of_bytes:
        return images
    with extra("train"):
        from PIL import Image

    reading, rows = Reading(size, resampling, channels, "refuse", None), []
    for part in images.chunks("resizing the images"):
        for row in part.permute(0, 2, 3, 1).numpy():
            picture = Image.fromarray(row[..., 0] if row.shape[2] == 1 else row)
            rows.append(_values(picture, Path(images.record), reading))
    store = torch.from_numpy(np.stack(rows))
    return replace(images, store=store, record=f"{images.record}, {reading}")


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of a folder, in the order of their labels; no picture is read."""
    return _classes(folder, _files(folder)[0])[0]


def _files(folder: Path) -> tuple[list[Path], int]:
    """The pictures, sorted by path, and the number of other files. Links are followed once."""
    paths, others, seen = list[Path](), 0, set[str]()
    for where, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                paths.append(Path(where, name))
            else:
                others += not name.startswith(".")
    return sorted(paths), others


def _classes(folder: Path, paths: list[Path]) -> tuple[tuple[str, ...], list[int]]:
    """The names of the subfolders, and the number of each picture's; all 0 if there are none."""
    parts = [path.relative_to(folder).parts for path in paths]
    inside = [path for path, part in zip(paths, parts, strict=True) if len(part) == 1]
    if inside:
        came = f"{inside[0]} beside subfolders"
        what = "hold pictures or subfolders (one a class), not both"
        require(len(inside) == len(paths), "path", what, came)
        return (), [0] * len(paths)
    names = sorted({part[0] for part in parts})
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), [number[part[0]] for part in parts]


def _read(path: Path, reading: Reading) -> np.ndarray:
    """A picture as levels (channels, height, width)."""
    with extra("train"):
        from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            frames, deep = getattr(opened, "n_frames", 1), _is_deep(opened)
            picture = ImageOps.exif_transpose(opened)  # as every viewer shows it
            picture.load()
    except Exception as error:  # of Pillow and its codecs: each has its own
        what, hint = "hold pictures that can be read", "it is cut off, damaged or no picture"
        raise InvalidValue("path", what, f"{path}: {error}", hint) from error
    require(frames == 1, "path", "hold single pictures", f"{frames} frames in {path}")
    if deep:
        hint = "levels=256 keeps the upper 8 bits, levels=65536 all"
        what, came = "be given for pictures of 16 bits", f"None for {path}"
        require(reading.levels is not None, "levels", what, came, hint)
        grey, few = picture.mode not in COLORS, (reading.levels or 0) <= 256
        came, hint = f"{reading.levels} for {path}", "Pillow reads the upper 8 bits of 16 in color"
        require(grey or few, "levels", "be at most 256 for color", came, hint)
    picture = _without_alpha(picture, path, reading.alpha)
    return _values(picture, path, reading)


def _values(picture: "Image", path: Path, reading: Reading) -> np.ndarray:
    """The levels of an opened picture, in the form that is asked for."""
    picture = _in_mode(picture, path, reading.channels)
    if reading.size is not None:
        picture = _resized(picture, reading.size, reading.resampling)
    values = np.asarray(picture)
    bits = 16 if values.dtype.itemsize > 1 else 8
    levels = reading.levels or 256
    values = np.clip(np.rint(values), 0, 2**bits - 1).astype(np.uint16)
    values = values >> max(0, bits + 1 - levels.bit_length())
    values = values.astype(np.uint8 if levels <= 256 else np.uint16)
    values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if reading.channels == 3:
        values = np.broadcast_to(values, (3, *values.shape[1:]))
    return values


def _is_deep(picture: "Image") -> bool:
    """Whether an opened picture has more than 8 bits a channel. Pillow reads color as 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return True
    return any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _without_alpha(picture: "Image", path: Path, alpha: Alpha) -> "Image":
    """The picture with a palette replaced by its colors, and without alpha if it may be
    dropped."""
    if picture.has_transparency_data:
        came, hint = f"an alpha channel in {path}", "alpha='drop' drops it"
        require(alpha == "drop", "path", "hold pictures without alpha", came, hint)
        return picture.convert("L" if picture.mode in ("L", "LA") else "RGB")
    return picture.convert({"P": "RGB", "1": "L"}.get(picture.mode, picture.mode))


def _in_mode(picture: "Image", path: Path, channels: int | None) -> "Image":
    """The picture as grey or RGB; 16 bits as floats."""
    if picture.mode.startswith("I"):
        return picture.convert("I").convert("F")
    if channels == 1 and picture.mode != "L":
        return picture.convert("L")
    if channels == 3 and picture.mode not in ("L", "RGB"):
        return picture.convert("RGB")
    what, hint = "hold grey or RGB", "channels=3 converts to RGB, channels=1 to grey"
    require(picture.mode in ("L", "RGB"), "path", what, f"{picture.mode} in {path}", hint)
    return picture


def _resized(picture: "Image", size: int, resampling: Resampling) -> "Image":
    """The central square of a picture whose shorter side is resized to `size`."""
    with extra("train"):
        from PIL import Image

    scale, how = size / min(picture.size), Image.Resampling[resampling.upper()]
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), how)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _empty(count: int, picture: np.ndarray, folder: Path) -> np.ndarray:
    """Memory for all pictures. Raises ValueError if this machine does not have it."""
    needed = count * picture.nbytes
    try:
        return np.empty((count, *picture.shape), picture.dtype)
    except MemoryError:
        what, came = "fit into memory", f"{needed:,} bytes of pixels in {folder}"
        hint = "write them to a .npy file, which is mapped; or a smaller size"
        raise InvalidValue("path", what, came, hint) from None


def _check_same(path: Path, picture: np.ndarray, other: Path, first: np.ndarray) -> None:
    """Raise unless two pictures have the same channels and size."""
    (channels, *size), (own, *side) = picture.shape, first.shape
    what, hint = "hold pictures with the same channels", "channels=3, or channels=1"
    came = f"{channels} in {path} where {other} has {own}"
    require(channels == own, "path", what, came, hint)
    came = f"{size[1]}×{size[0]} in {path} where {other} has {side[1]}×{side[0]}"
    require(size == side, "path", "hold pictures of one size", came, "size=64 resizes them")
