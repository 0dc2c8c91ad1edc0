"""What a command reads from outside: data, objects of a Python file, the device; and where it may
write."""

import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vdiff._validate import require
from vdiff.data import Splits, load, splits
from vdiff.data.arrays import SUFFIXES
from vdiff.data.folder import class_names
from vdiff.data.load import has_own_split, is_path
from vdiff.data.mapped import Mapped
from vdiff.data.registry import DATASETS, is_available
from vdiff.data.split import whole
from vdiff.disk import absolute, check_output
from vdiff.errors import InvalidValue, did_you_mean

if TYPE_CHECKING:
    from vdiff.training import Config, Run
    from vdiff.training.loading import Loaded

DATA: dict[str, Callable[[str], Splits]] = {name: partial(splits, name) for name in DATASETS}


def load_object(source: str) -> Any:
    """The object NAME of FILE.py, which is run as a Python program: name only files that you
    trust. It may import what is beside it, or beside the package that it is in.

    Raises ValueError if the file or the name is missing, or the file fails."""
    path, _, name = source.rpartition(":")
    what, hint = "name a file and something in it", "for instance mine.py:model"
    require(bool(path) and Path(path).is_file(), "FILE.py:NAME", what, repr(source), hint)
    home = Path(path).resolve().parent
    home = next(
        folder for folder in (home, *home.parents) if not (folder / "__init__.py").exists()
    )
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    try:
        variables = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        came = f"{type(error).__name__}: {error}{lines[-1] if lines else ''}"
        what = f"name a file that runs as Python, as {path} does not"
        raise InvalidValue("FILE.py:NAME", what, came) from error
    names = ", ".join(key for key in variables if not key.startswith("_")) or "nothing"
    what = f"be something that {path} defines"
    require(name in variables, "FILE.py:NAME", what, repr(name), f"it has {names}")
    return variables[name]


def parse_device(name: str | None) -> torch.device:
    """A device by name. The default is a GPU if there is one; under torchrun each process has its
    own. Raises ValueError for a device that this machine does not have."""
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


def load_splits(name: str, folder: str, options: Mapping[str, Any] | None = None) -> Splits:
    """The parts of a data set whose files are in `folder`, or of the data at the path `name`, read
    with the options of `vdiff.data.load`. Raises ValueError for an unknown name."""
    if name in DATA:
        return DATA[name](folder)
    path = Path(name).expanduser()
    exists = path.is_dir() or (path.suffix in SUFFIXES and path.is_file())
    came = f"the file {name}" if path.is_file() else repr(name)
    hint = did_you_mean(name, DATA) or "a file of arrays ends with .npy or .npz"
    require(exists, "data", f"be one of {', '.join(DATA)}, or a folder", came, hint)
    return load(path, **(options or {}))


def data_for(run: "Run", loaded: "Loaded", named: str | None) -> Splits:
    """The data set to measure a run on: that of its config, or the one that is `named`, by name or
    path. A path is read as the config reads its data. Unless the run was trained on a part of it,
    each split is all of it.

    Without a name nothing is downloaded or created. Raises ValueError if the run was trained on
    other images than its config names, or if their files are missing."""
    config = run.config
    if named is not None:  # missing files go into the default folder, not into a config's
        folder = config.folder if is_available(named, config.folder) else "data"
        parts = load_splits(named, folder, config.data_options)
        if named in DATA or has_own_split(named) or _trained_on(loaded, parts, config):
            return parts
        return whole(of_classes(parts, config) if config.conditional else parts)
    available = is_available(config.data, config.folder)
    if is_path(config.data):
        available = Path(config.data).exists()
    came = f"none of {config.data} in {config.folder}"
    hint = f"--data {config.data}, or --data FOLDER"
    require(available, "data", "be given where the run's folder has none", came, hint)
    parts = load_splits(config.data, config.folder, config.data_options)
    check_training_data(run, loaded, parts)
    return parts


def of_classes(parts: Splits, config: "Config") -> Splits:
    """The parts of a folder with the labels of the run's own classes, by name: the subfolders of
    another folder are counted from 0 again.

    Raises ValueError for a class that the run does not have, for pictures without one, and where
    the run's classes are not known any more."""
    if isinstance(parts.train.store, Mapped):  # an array's labels are numbers
        return parts
    home, names = Path(config.data), parts.train.names
    known = class_names(home) if is_path(config.data) and home.is_dir() else ()
    what = f"have the classes of the run's data, {', '.join(known) or 'which are gone'}"
    came = ", ".join(names) or "pictures without classes"
    hint = "the subfolders of a folder are its classes"
    require(bool(names) and set(names) <= set(known), "data", what, came, hint)
    number = torch.tensor([known.index(name) for name in names])
    return Splits(*(replace(p, labels=number[p.labels], names=known) for p in parts))


def check_training_data(run: "Run", loaded: "Loaded", parts: Splits) -> None:
    """Raise if a run was trained on other images or labels than those of a data set."""
    hashes = _hashes(parts, run.config) if loaded.data else set()
    what = "be given for a run that was trained on other images than its config names"
    came = f"images {'; '.join(loaded.data)} where {run.config.data} has {min(hashes, default='')}"
    hint = f"--data {run.config.data} measures it on those all the same; on yours, in Python: "
    hint += "vdiff.likelihood.evaluate(model, images, …)"
    require(hashes.issuperset(loaded.data), "data", what, came, hint)


def _trained_on(loaded: "Loaded", parts: Splits, config: "Config") -> bool:
    """Whether a run was trained on the training part of a data set."""
    return bool(_hashes(parts, config) & set(loaded.data))


def _hashes(parts: Splits, config: "Config") -> set[str]:
    """The hashes of the images to train on, with and without the selection."""
    from vdiff.training.loading import fingerprint_of

    return {fingerprint_of(used, config.conditional) for used in (parts[:1], parts[:2])}


def output_file(argument: str, name: str | Path) -> Path:
    """A path that the user named. Raises ValueError unless a file can be written there, and for
    the files of a run itself."""
    from vdiff.training.run import FILES

    path = Path(name)
    check_output(argument, path)
    file = absolute(argument, path)
    of_run = file.name in (*FILES, ".lock") or file.suffix == ".safetensors"
    runs = [file.parent] if of_run else []
    runs += [folder.parent for folder in file.parents if folder.name == "checkpoints"]
    inside = any((run / "config.json").is_file() for run in runs)
    require(not inside, argument, "be no file of a run itself", path, "it would be lost")
    return path


__all__ = [
    "DATA",
    "check_training_data",
    "data_for",
    "load_object",
    "load_splits",
    "output_file",
    "parse_device",
]
