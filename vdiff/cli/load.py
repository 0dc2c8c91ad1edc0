"""What a command reads from outside: data, objects of a Python file, the device; and where it may
write."""

import argparse
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.data import Images, Splits, load, load_images, splits
from vdiff.data.arrays import SUFFIXES
from vdiff.data.folder import as_pictures, class_names
from vdiff.data.load import OPTIONS, has_own_split, is_path
from vdiff.data.registry import DATASETS, is_available
from vdiff.data.split import split, whole
from vdiff.disk import absolute, check_output
from vdiff.errors import LONGEST, InvalidArgument, InvalidValue, did_you_mean, printable

if TYPE_CHECKING:
    from vdiff.training import Config, Run
    from vdiff.training.loading import Loaded

DATA: dict[str, Callable[[str], Splits]] = {name: partial(splits, name) for name in DATASETS}
OF_PICTURES = ("size", "resampling", "channels")  # what a file of arrays has no option for
SETTING = re.compile(rf"\b({'|'.join(OPTIONS)})='?(\w+)'?")


def load_object(source: str) -> Any:
    """The object NAME of FILE.py, which is run as a Python program: name only files that you
    trust. It may import what is beside it, or beside the package that it is in.

    Raises ValueError if the file or the name is missing, or the file fails."""
    path, _, name = source.rpartition(":")
    what, hint = "name a file and something in it", "for instance mine.py:model"
    require(bool(path), "FILE.py:NAME", what, repr(source), hint)
    came, hint = f"no file at {Path(path).absolute()}", f"of {source}"
    require(Path(path).is_file(), "FILE.py:NAME", what, came, hint)
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
        device, why = torch.device("meta"), str(error).splitlines()[0][:LONGEST]
    what = "be one of this machine: cpu, cuda or cuda:1"
    require(device.type != "meta", "device", what, repr(name), why)
    return device


def load_splits(name: str, folder: str, options: Mapping[str, Any] | None = None) -> Splits:
    """The parts of a data set whose files are in `folder`, or of the data at the path `name`, read
    with the options of `vdiff.data.load`. Raises ValueError for an unknown name."""
    if name in DATA:
        return DATA[name](folder)
    with in_words_of_the_command():
        return load(_path_of(name), **(options or {}))


def reading_options(config: "Config") -> dict[str, Any]:
    """The options of `vdiff.data.load` for the data of a config: token ids where its process is
    over tokens."""
    options = config.data_options
    if config.process is None:
        return dict(options)
    return {word: value for word, value in options.items() if word != "levels"} | {"tokens": True}


def data_options(config: "Config", options: argparse.Namespace) -> dict[str, Any]:
    """The options of `vdiff.data.load` that --size and --set give."""
    settings = [*options.set, *([f"data_options.size={options.size}"] if options.size else [])]
    for text in settings:
        what, hint = "be data_options.NAME=VALUE", "an evaluation changes no other setting"
        require(text.startswith("data_options."), "set", what, repr(text), hint)
        word = "size" if text.startswith("data_options.size=") else "set"
        require(options.data is not None, word, "come with --data", text)
    return replace(config, data_options={}).override(settings).data_options


def load_other(name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> Images:
    """All images at a path, read with the options of a run, or those that are given. Arrays of
    bytes are converted and resized as pictures are, unless they have the run's form."""
    path, every = _path_of(name), {**options, **given}
    with in_words_of_the_command():
        if path.is_dir():
            return load_images(path, **every)
        images = load_images(path, **{k: v for k, v in every.items() if k not in OF_PICTURES})
        return as_pictures(images, **{k: v for k, v in every.items() if k in OF_PICTURES})


def _path_of(name: str) -> Path:
    path = Path(name).expanduser()
    exists = path.is_dir() or (path.suffix in SUFFIXES and path.is_file())
    came = f"the file {name}" if path.is_file() else repr(name)
    hint = did_you_mean(name, DATA) or "a file of arrays ends with .npy or .npz"
    require(exists, "data", f"be one of {', '.join(DATA)}, or a folder", came, hint)
    return path


@contextmanager
def in_words_of_the_command() -> Iterator[None]:
    """Raise errors of `vdiff.data` with the options of the command line in their hints."""
    try:
        yield
    except InvalidArgument as error:
        error.function = None
        error.argument = "data" if error.argument == "path" else error.argument
        error.hint = SETTING.sub(r"--set data_options.\1=\2", error.hint)
        error.hint = error.hint.replace("--set data_options.size=", "--size ")
        raise


def data_for(
    run: "Run", loaded: "Loaded", named: str | None, given: Mapping[str, Any] | None = None
) -> Splits:
    """The data set to measure a run on: that of its config, or the one that is `named`, by name or
    path. A path is read as the config reads its data, but for the options that are given. Unless
    the run was trained on a part of it, each split is all of it.

    Without a name nothing is downloaded or created. Raises ValueError if the run was trained on
    other images than its config names, or if their files are missing."""
    config = run.config
    if named is None:
        return _own_data(run, loaded)
    if named in DATA or has_own_split(named):
        what, hint = "be left out", f"{named} has a form of its own"
        require(not given, "set", what, given, hint)
        # missing files go into the default folder, not into a config's
        folder = config.folder if is_available(named, config.folder) else "data"
        return load_splits(named, folder)
    images = load_other(named, reading_options(config), given or {})
    if parts := _own_parts(images, loaded, config):
        return parts
    is_folder = Path(named).expanduser().is_dir()  # an array's labels are numbers
    return whole(of_classes(images, config) if config.conditional and is_folder else images)


def _own_parts(images: Images, loaded: "Loaded", config: "Config") -> Splits | None:
    """The parts of images if the run was trained on one of them."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of copies: this split is a trial
            parts = split(images)
    except ValueError:  # there are too few
        return None
    return parts if _hashes(parts, config) & set(loaded.data) else None


def _own_data(run: "Run", loaded: "Loaded") -> Splits:
    """The data set of a run's config."""
    config = run.config
    available = is_available(config.data, config.folder)
    if is_path(config.data):
        available = Path(config.data).exists()
    came = f"none of {config.data} in {config.folder}"
    hint = f"--data {config.data}, or --data FOLDER"
    require(available, "data", "be given where the run's folder has none", came, hint)
    parts = load_splits(config.data, config.folder, reading_options(config))
    check_training_data(run, loaded, parts)
    return parts


def of_classes(images: Images, config: "Config") -> Images:
    """The images of a folder with the labels of the run's own classes, by name: the subfolders of
    another folder are counted from 0 again.

    Raises ValueError for a class that the run does not have, for pictures without one, and where
    the run's classes are not known any more."""
    home, names = Path(config.data), images.names
    known = class_names(home) if is_path(config.data) and home.is_dir() else ()
    what = f"have the classes of the run's data, {', '.join(known) or 'which are gone'}"
    came = ", ".join(names) or "pictures without classes"
    hint = "the subfolders of a folder are its classes"
    require(bool(names) and set(names) <= set(known), "data", what, came, hint)
    number = torch.tensor([known.index(name) for name in names])
    return replace(images, labels=number[images.labels], names=known)


def check_training_data(run: "Run", loaded: "Loaded", parts: Splits) -> None:
    """Raise if a run was trained on other images or labels than those of a data set."""
    hashes = _hashes(parts, run.config) if loaded.data else set()
    what = "be given for a run that was trained on other images than its config names"
    came = f"images {'; '.join(loaded.data)} where {run.config.data} has {min(hashes, default='')}"
    hint = f"--data {run.config.data} measures it on those all the same; on yours, in Python: "
    hint += "vdiff.likelihood.evaluate(model, images, …)"
    require(hashes.issuperset(loaded.data), "data", what, came, hint)


def training_images(run: "Run", loaded: "Loaded", images: Tensor, *, warn: bool) -> str:
    """How many of some images a run was trained on, in words, and with `warn` a warning if there
    are any."""
    from vdiff.training.trained_on import overlap

    found = overlap(run.folder, loaded.data, images)
    if found is not None and found.found > 0 and warn:
        what = f"{found} are in the training data of this run, {printable(run.folder.name)}"
        warnings.warn(f"{what}: of new images the bound may be larger", stacklevel=2)
    return "not recorded" if found is None else str(found)


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
