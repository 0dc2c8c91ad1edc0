"""What a command reads from outside: data, objects of a Python file, the device; and where it may
write."""

import runpy
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vdiff._validate import require
from vdiff.data import Splits, splits
from vdiff.data.registry import DATASETS, is_available
from vdiff.disk import absolute, check_output
from vdiff.errors import InvalidValue, did_you_mean

if TYPE_CHECKING:
    from vdiff.training import Run
    from vdiff.training.loading import Loaded

DATA: dict[str, Callable[[str], Splits]] = {name: partial(splits, name) for name in DATASETS}


def load_object(source: str) -> Any:
    """The object NAME of FILE.py, which is run as a Python program: name only files that you
    trust. Raises ValueError if the file or the name is missing, or the file fails."""
    path, _, name = source.rpartition(":")
    what, hint = "name a file and something in it", "for instance mine.py:model"
    require(bool(path) and Path(path).is_file(), "FILE.py:NAME", what, repr(source), hint)
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


def load_splits(name: str, folder: str) -> Splits:
    """The parts of a data set whose files are in `folder`, or of CIFAR-10 in the folder `name`.
    Raises ValueError for an unknown name."""
    if name in DATA:
        return DATA[name](folder)
    if Path(name).expanduser().is_dir():
        return DATA["cifar10"](name)
    is_file = Path(name).is_file()
    came = f"the file {name}" if is_file else repr(name)
    hint = "the folder that holds an archive of CIFAR-10" if is_file else did_you_mean(name, DATA)
    raise InvalidValue("data", f"be one of {', '.join(DATA)}, or a folder", came, hint)


def data_for(run: "Run", loaded: "Loaded", named: str | None) -> Splits:
    """The data set to measure a run on: that of its config, or the one that is `named`.

    Without a name nothing is downloaded or created. Raises ValueError if the run was trained on
    other images than its config names, or if their files are missing."""
    config = run.config
    if named is not None:  # missing files go into the default folder, not into a config's
        return load_splits(named, config.folder if is_available(named, config.folder) else "data")
    came = f"none of {config.data} in {config.folder}"
    hint = f"--data {config.data}, or --data FOLDER"
    available = is_available(config.data, config.folder)
    require(available, "data", "be given where the run's folder has none", came, hint)
    parts = load_splits(config.data, config.folder)
    check_training_data(run, loaded, parts)
    return parts


def check_training_data(run: "Run", loaded: "Loaded", parts: Splits) -> None:
    """Raise if a run was trained on other images or labels than those of a data set."""
    from vdiff.training.loading import fingerprint

    hashes = set()
    for used in (parts[:1], parts[:2]) if loaded.data else ():  # with and without the selection
        pixels = torch.cat([part.pixels for part in used])
        labels = torch.cat([part.labels for part in used])
        hashes.add(fingerprint(pixels, labels if run.config.conditional else None))
    what = "be given for a run that was trained on other images than its config names"
    came = f"images {'; '.join(loaded.data)} where {run.config.data} has {min(hashes, default='')}"
    hint = f"--data {run.config.data} measures it on those all the same; on yours, in Python: "
    hint += "vdiff.likelihood.evaluate(model, images, …)"
    require(hashes.issuperset(loaded.data), "data", what, came, hint)


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
