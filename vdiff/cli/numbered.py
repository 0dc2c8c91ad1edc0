"""Samples as numbered PNG files, for torch-fidelity or clean-fid: in bounded memory, resumed."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from torch import Tensor

from vdiff._validate import require
from vdiff.disk import check_output, open_new, remove_stale, write_text
from vdiff.extras import extra

SETTINGS = "samples.json"  # what the samples of a folder have in common


def open_numbered(folder: Path, settings: dict[str, Any], count: int) -> list[int]:
    """Create a folder of samples, or continue one; returns the numbers that are missing.

    Raises ValueError if it cannot be written to, or holds anything else, such as samples of other
    settings.
    """
    from vdiff.training.safe_json import read_json

    here = sorted(os.listdir(folder)) if folder.is_dir() else []
    if SETTINGS in here:
        before = read_json(folder / SETTINGS)
        now = json.loads(json.dumps(settings))
        unlike = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        came = ", ".join(f"{n}: {now.get(n)}, where it was {before.get(n)}" for n in unlike)
        what = f"be a new folder, or one of samples with the same settings as {folder}"
        require(not unlike, "png", what, came, "another folder")
    else:
        others = [name for name in here if not name.startswith(".")]
        came = f"{folder} with {', '.join(others[:3])}"
        what = "be a new folder, an empty one, or one that this command has begun"
        require(not others, "png", what, came)
        check_output("png", folder / SETTINGS if folder.is_dir() else folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    remove_stale(folder)
    done = {entry.name for entry in os.scandir(folder) if _is_done(entry)}
    return [number for number in range(count) if name_of(number) not in done]


def _is_done(entry: os.DirEntry[str]) -> bool:
    """Whether this is a sample. A link is none, nor a file that a crash of the machine left
    empty: they are written again."""
    return entry.is_file(follow_symlinks=False) and entry.stat().st_size > 0


def name_of(number: int) -> str:
    """The file of a sample."""
    return f"{number:06d}.png"


def write_image(folder: Path, number: int, pixels: Tensor) -> None:
    """Write bytes (channels, h, w) as a PNG. It is complete once it has its name."""
    with extra("train"):
        from PIL import Image

    image = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    aside = folder / f".{secrets.token_hex(8)}.partial"
    try:
        with open(open_new(aside), "wb") as file:
            Image.fromarray(image.contiguous().numpy()).save(file, "PNG")
        aside.replace(folder / name_of(number))  # not flushed: see `_is_done`
    finally:
        aside.unlink(missing_ok=True)
