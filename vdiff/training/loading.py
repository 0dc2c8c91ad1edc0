"""Load the trained weights of a run, after checking that they belong to its config."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff._known_range import widen_trained
from vdiff._validate import require
from vdiff.data.images import Images
from vdiff.data.load import is_path
from vdiff.errors import InvalidValue, printable
from vdiff.likelihood.digest import data_hash, hash_of_parts
from vdiff.objective import Objective
from vdiff.training import structure
from vdiff.training.checkpoint import checkpoints, read_file, step_of
from vdiff.training.config import Config
from vdiff.training.weights import (
    PICKLES,
    Facts,
    Weights,
    check_tensors,
    read_weights,
    size_limit,
    texts,
)

# how a step is computed, not what it computes: a resumed run may change these. Of another file of
# an own network `vdiff` warns
MAY_CHANGE = ("accumulate", "compile", "channels_last", "folder", "network_source")


class Loaded(NamedTuple):
    """An objective with its trained weights, their record for an evaluation's protocol, and the
    fingerprints of the training images (none if unknown)."""

    objective: Objective
    record: Facts
    data: list[str]


def load_trained(folder: Path, config: Config, name: str, objective: Objective | None) -> Loaded:
    """The averaged weights of the run in a folder, in the config's objective or in a given one.
    Raises ValueError as `Run.load`."""
    outline = (config.objective(outline=True) if objective is None else objective).state_dict()
    path, weights = _read(folder, config, name, size_limit(outline))
    facts = weights.facts
    _check(path, config, facts, objective)
    tensors = check_tensors(path, weights.tensors, outline)
    if "config" not in facts:
        what = f"{path.name} does not say with which config it was trained"
        warnings.warn(printable(f"{what}: config.json is taken for it"), stacklevel=2)
    # built after the checks: a network of another size may take too much memory
    live = config.objective() if objective is None else objective
    fill(live, tensors)
    record = {
        "weights file": weights.sha256[:16],
        "read from": str(path.relative_to(folder)),
        "step": step_of(path.parent) if _in_checkpoint(folder, path) else facts.get("step"),
        "config": config_hash(config),
        "parameterization": repr(getattr(live.model, "parameterization", None)),
        "trained schedule": repr(live.schedule),
        "training data": facts.get("split") or None,
        "trained with": facts.get("versions"),
    }
    record |= {"trained with masks": facts["mask"]} if facts.get("mask") else {}
    return Loaded(live.eval(), record, texts(path, facts, "data"))


def fill(objective: Objective, tensors: Mapping[str, Tensor]) -> None:
    """Load trained tensors, in their precision."""
    for key, value in (*objective.named_parameters(), *objective.named_buffers()):
        if key in tensors and tensors[key].dtype != value.dtype:
            value.data = value.data.to(tensors[key].dtype)
    objective.load_state_dict(tensors)
    widen_trained(objective.model, *objective.schedule.ends())


def weights_file(folder: Path, config: Config, name: str) -> Path:
    """The file that holds weights of this name: in the run's folder or, while it trains, in the
    newest checkpoint. Raises ValueError if there is none."""
    if Path(name).suffix in PICKLES:
        return folder / name
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    if os.path.lexists(path):  # older weights must not be taken for these
        what, hint = f"hold {path.name} as a file", "delete it: the newest checkpoint is then read"
        raise InvalidValue("folder", what, "a link that leads nowhere, a folder or a pipe", hint)
    inside = f"ema-{config.ema[0]}.safetensors" if name == "ema" else path.name
    saved = checkpoints(folder / "checkpoints")
    if any(os.path.lexists(path / inside) for path in saved):
        return saved[-1] / inside
    what = f"hold {path.name} or a checkpoint"
    raise InvalidValue("folder", what, folder, "it has not been trained yet")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which fields of two configs make another run, in words; an empty string if none does."""
    fixed = [name for name in {**old, **new} if name not in MAY_CHANGE]
    unlike = [name for name in fixed if old.get(name) != new.get(name)]
    unlike = [name for name in unlike if not _continues(name, old, new)]
    pairs = [(name, new.get(name, "nothing"), old.get(name, "nothing")) for name in unlike]
    return "; ".join(f"{name}: {now}, where it was {was}" for name, now, was in pairs)


def _continues(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a run can go on with this field changed: data that were moved, whose hash is
    compared when it resumes, and more steps at a learning rate that does not depend on them."""
    if name == "data":
        return is_path(str(old.get(name))) and is_path(str(new.get(name)))
    constant = old.get("decay") == new.get("decay") == "constant"
    return name == "steps" and constant and new["steps"] > old["steps"]


def fingerprint(data: Tensor, labels: Tensor | None = None) -> str:
    """The hash of data, and of its labels if the network is given them."""
    return data_hash(data) + ("" if labels is None else f", labels {data_hash(labels)}")


def fingerprint_of(parts: Sequence[Images], conditional: bool) -> str:
    """`fingerprint` of parts of a data set, put together; those in files are read in pieces."""
    shape = (sum(map(len, parts)), *parts[0].shape)

    def read() -> Iterator[Tensor]:
        for part in parts:
            yield from part.chunks("hashing the data")

    hashed = hash_of_parts(read, shape)
    labels = torch.cat([part.labels for part in parts]) if conditional else None
    return hashed + ("" if labels is None else f", labels {data_hash(labels)}")


def config_hash(config: Config) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the settings that make a run."""
    settings = {name: value for name, value in config.asdict().items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path, config: Config, name: str, limit: int) -> tuple[Path, Weights]:
    """The file and its content; tries again if a training has replaced the file meanwhile."""
    while True:
        before = checkpoints(folder / "checkpoints")
        try:
            path = weights_file(folder, config, name)
            if _in_checkpoint(folder, path):
                return path, read_file(path.parent, path.name, limit)
            return path, read_weights(path, limit=limit)
        except (OSError, ValueError):
            if checkpoints(folder / "checkpoints") == before:
                raise


def _in_checkpoint(folder: Path, path: Path) -> bool:
    return path.parent.parent == folder / "checkpoints"


def _check(path: Path, config: Config, facts: Facts, objective: Objective | None) -> None:
    """Raise unless weights were trained with this config and objective, as far as they say."""
    if isinstance(facts.get("config"), dict):
        try:
            trained = Config.from_dict(facts["config"]).asdict()
        except ValueError:  # of another version
            trained = facts["config"]
        difference = differences(trained, config.asdict())
        hint = "config.json of another run: put its own back"
        what = f"be the one that {path.name} was trained with"
        require(not difference, "config", what, difference, hint)
    if "unlike" not in facts:  # an older file
        return
    parts = texts(path, facts, "unlike")
    now = [] if objective is None else structure.differences(objective, config)
    apart = [part for part in (*parts, *now) if part not in parts or part not in now]
    what = f"be the one that was trained, which {path.name} says differs from its config"
    hint = "build it as for the training: Run(folder).load(objective=objective)"
    require(now == parts, "objective", what, structure.shortened(apart), hint)
