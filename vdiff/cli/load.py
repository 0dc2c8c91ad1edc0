"""What a command takes from outside: data, objects of a Python file that the user names, the
device, and a place to write."""

import runpy
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vdiff._validate import require
from vdiff.data import Images, Splits, splits
from vdiff.data.registry import DATASETS, is_there
from vdiff.disk import absolute, check_output
from vdiff.errors import InvalidValue, did_you_mean

if TYPE_CHECKING:
    from vdiff.training import Run
    from vdiff.training.trained import Loaded

DATA: dict[str, Callable[[str], Splits]] = {name: partial(splits, name) for name in DATASETS}


def from_file(place: str) -> Any:
    """The object NAME of FILE.py, which is run as a Python program: name only files that you
    trust. Raises ValueError if the file or the name is missing, or the file fails."""
    path, _, name = place.rpartition(":")
    what, hint = "name a file and something in it", "for instance mine.py:model"
    require(bool(path) and Path(path).is_file(), "FILE.py:NAME", what, repr(place), hint)
    try:
        found = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        what = f"name a file that runs as Python, as {path} does not"
        came = f"{type(error).__name__}: {error}{lines[-1] if lines else ''}"
        raise InvalidValue("FILE.py:NAME", what, came) from error
    known = ", ".join(key for key in found if not key.startswith("_")) or "nothing"
    what = f"be something that {path} defines"
    require(name in found, "FILE.py:NAME", what, repr(name), f"it has {known}")
    return found[name]


def parse_device(name: str | None) -> torch.device:
    """A device by name; without one a GPU if there is one, under torchrun each process its own.
    Raises ValueError for a device that this machine does not have."""
    if name is None:
        from vdiff.training.ranks import own_device

        return own_device()
    try:
        device, why = torch.empty(0, device=name).device, "it holds no values"
    except (RuntimeError, AssertionError, ImportError) as error:
        device, why = torch.device("meta"), str(error).splitlines()[0]
    what = "be one of this machine: cpu, cuda or cuda:1"
    require(device.type != "meta", "device", what, repr(name), why)
    return device


def splits_of(name: str, folder: str) -> Splits:
    """The parts of a data set whose files are in `folder`, or of CIFAR-10 in the folder `name`.
    Raises ValueError for an unknown name, with the nearest."""
    if name not in DATA and Path(name).expanduser().is_dir():
        name, folder = "cifar10", name
    if name not in DATA:
        file = Path(name).is_file()
        came = f"the file {name}" if file else repr(name)
        hint = "the folder that holds an archive of CIFAR-10" if file else did_you_mean(name, DATA)
        what = f"be one of {', '.join(DATA)}, or a folder"
        raise InvalidValue("data", what, came, hint)
    return DATA[name](folder)


def images_of(name: str, split: str, folder: str) -> Images:
    """One part of a data set, as `splits_of` finds it."""
    images: Images = getattr(splits_of(name, folder), split)
    return images


def data_for(run: "Run", loaded: "Loaded", named: str | None) -> Splits:
    """The data set that a run is measured on: that of its config, or the one that is `named`.

    Without a name nothing is downloaded and nothing made. Raises ValueError if the run was trained
    on other images than its config names, or if their files are missing."""
    config = run.config
    if named is not None:  # missing files are made in the default folder, not in a config's
        return splits_of(named, config.folder if is_there(named, config.folder) else "data")
    if not is_there(config.data, config.folder):
        what = "be given where the run's folder has none"
        came = f"none of {config.data} in {config.folder}"
        hint = f"--data {config.data}, or --data FOLDER"
        raise InvalidValue("data", what, came, hint)
    parts = splits_of(config.data, config.folder)
    check_known(run, loaded, parts)
    return parts


def check_known(run: "Run", loaded: "Loaded", parts: Splits) -> None:
    """Raise if a run was trained on other images or labels than those of a data set."""
    from vdiff.training.trained import fingerprint

    if not loaded.data:
        return
    known = set()
    for some in (parts[:1], parts[:2]):  # with and without the selection
        pixels = torch.cat([one.pixels for one in some])
        labels = torch.cat([one.labels for one in some])
        known.add(fingerprint(pixels, labels if run.config.conditional else None))
    what = "be given for a run that was trained on other images than its config names"
    came = f"images {'; '.join(loaded.data)} where {run.config.data} has {min(known)}"
    hint = f"--data {run.config.data} measures it on those all the same; on yours, in Python: "
    hint += "vdiff.likelihood.evaluate(model, images, …)"
    require(known.issuperset(loaded.data), "data", what, came, hint)


def output_file(argument: str, place: str | Path) -> Path:
    """A path that the user named, where a file can be written. Raises ValueError if something else
    than a file has the name, and for the files of a run itself."""
    from vdiff.training.run import FILES

    path = Path(place)
    check_output(argument, path)
    whole = absolute(argument, path)
    own = whole.name in (*FILES, ".lock") or whole.suffix == ".safetensors"
    runs = [whole.parent] if own else []
    runs += [one.parent for one in whole.parents if one.name == "checkpoints"]
    inside = any((run / "config.json").is_file() for run in runs)
    require(not inside, argument, "be no file of a run itself", path, "it would be lost")
    return path


__all__ = [
    "DATA",
    "check_known",
    "data_for",
    "from_file",
    "images_of",
    "output_file",
    "parse_device",
    "splits_of",
]
