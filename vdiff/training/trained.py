"""The trained weights of a run: their file, what they are of, and whether the run's config still
describes them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vdiff._known_range import widen_trained
from vdiff._validate import require
from vdiff.errors import InvalidValue
from vdiff.likelihood.digest import data_hash
from vdiff.objective import Objective
from vdiff.training import described
from vdiff.training.checkpoint import checkpoints, number, read_file
from vdiff.training.config import Config
from vdiff.training.weights import PICKLES, Facts, Weights, accept, read_weights

# how a step is computed, not what: a resumed run may change it
FREE = ("accumulate", "compile", "channels_last", "folder")
ATTEMPTS = 10  # a training deletes its oldest checkpoints while others read


class Loaded(NamedTuple):
    """An objective with its trained weights; `record` goes into the protocol of an evaluation, and
    `data` are the fingerprints of the images that it was trained on, empty if they are unknown."""

    objective: Objective
    record: Facts
    data: list[str]


def load_trained(folder: Path, config: Config, name: str, objective: Objective | None) -> Loaded:
    """The averaged weights of the run in a folder, in the config's objective or in a given one.
    Raises ValueError as `Run.load`."""
    outline = config.objective(outline=True) if objective is None else objective
    path, found = _read(folder, config, name)
    _check_config(folder, path, config, found.facts)
    _check_parts(path, config, found.facts, objective)
    tensors = accept(path, found.tensors, outline.state_dict())
    # only now, for a network of another size would take memory
    live = config.objective() if objective is None else objective
    for key, value in (*live.named_parameters(), *live.named_buffers()):
        if key in tensors and tensors[key].dtype != value.dtype:
            value.data = value.data.to(tensors[key].dtype)  # the precision that was trained
    live.load_state_dict(tensors)
    widen_trained(live.model, *live.schedule.ends())
    record = {
        "weights file": found.sha256[:16],
        "read from": str(path.relative_to(folder)),
        "step": number(path.parent) if _in_checkpoint(folder, path) else found.facts.get("step"),
        "config": config_hash(config),
        "parameterization": repr(getattr(live.model, "parameterization", None)),
        "trained schedule": repr(live.schedule),
        "trained with": found.facts.get("versions"),
    }
    return Loaded(live.eval(), record, list(found.facts.get("data", [])))


def weights_file(folder: Path, config: Config, name: str) -> Path:
    """The file of a run that holds weights by name: that of the run, and while it trains that of
    the newest checkpoint.

    Raises ValueError if there is none, and if the name is not a file's: older weights would be
    taken for these.
    """
    if Path(name).suffix in PICKLES:
        return folder / name
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    if os.path.lexists(path):
        came = f"{path}, a link that leads nowhere, a folder or a pipe"
        hint = "delete it: the newest checkpoint is then read"
        raise InvalidValue("folder", f"hold {path.name} as a file", came, hint)
    inside = f"ema-{config.ema[0]}.safetensors" if name == "ema" else path.name
    known = checkpoints(folder / "checkpoints")
    if any(os.path.lexists(one / inside) for one in known):
        return known[-1] / inside
    what, hint = f"hold {path.name} or a checkpoint", "it has not been trained yet"
    raise InvalidValue("folder", what, folder, hint)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In which fields two configs differ that make another run, in words; empty if in none.

    >>> differences({"lr": 0.1, "accumulate": 1}, {"lr": 0.2, "accumulate": 4})
    'lr: 0.2, where it was 0.1'
    """
    fixed = [name for name in {**old, **new} if name not in FREE]
    unlike = [name for name in fixed if old.get(name) != new.get(name)]
    pairs = [(name, new.get(name, "nothing"), old.get(name, "nothing")) for name in unlike]
    return "; ".join(f"{name}: {now}, where it was {was}" for name, now, was in pairs)


def fingerprint(data: Tensor, labels: Tensor | None = None) -> str:
    """The hash of data, with that of its labels if the network is given them."""
    return data_hash(data) + ("" if labels is None else f", labels {data_hash(labels)}")


def config_hash(config: Config) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the settings that make a run.

    >>> config = Config(network={"name": "MLP", "dims": 2}, shape=[2])
    >>> others = [config_hash(config.override([word])) for word in ("accumulate=2", "lr=1")]
    >>> [config_hash(config) == other for other in others]
    [True, False]
    """
    settings = {name: value for name, value in config.asdict().items() if name not in FREE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path, config: Config, name: str) -> tuple[Path, Weights]:
    """The file and its content; read again if a training has replaced it meanwhile."""
    for attempt in range(ATTEMPTS):
        known = checkpoints(folder / "checkpoints")
        try:
            path = weights_file(folder, config, name)
            if _in_checkpoint(folder, path):
                return path, read_file(path.parent, path.name)
            return path, read_weights(path)
        except (OSError, ValueError):
            if attempt + 1 == ATTEMPTS or checkpoints(folder / "checkpoints") == known:
                raise
    raise AssertionError


def _in_checkpoint(folder: Path, path: Path) -> bool:
    return path.parent.parent == folder / "checkpoints"


def _check_config(folder: Path, path: Path, config: Config, facts: Facts) -> None:
    """Raise if the config of the folder is not the one that the weights were trained with."""
    if isinstance(facts.get("config"), dict):
        try:
            trained = Config.from_dict(facts["config"]).asdict()
        except ValueError:  # of another version
            trained = facts["config"]
        difference = differences(trained, config.asdict())
        what = f"be the one that {path.relative_to(folder)} was trained with"
        hint = "config.json of another run: put its own back"
        require(not difference, "config", what, difference, hint)


def _check_parts(path: Path, config: Config, facts: Facts, objective: Objective | None) -> None:
    """Raise if the objective is not the one that was trained, as far as the weights say."""
    trained = facts.get("unlike")
    if trained is None:  # an older file
        return
    now = [] if objective is None else described.differences(objective, config)
    apart = [part for part in (*trained, *now) if part not in trained or part not in now]
    what = f"be the one that was trained, which {path.name} says differs from its config"
    hint = "build it as for the training: Run(folder).load(objective=objective)"
    require(now == trained, "objective", what, described.shown(apart), hint)


__all__ = ["Loaded", "config_hash", "differences", "fingerprint", "load_trained", "weights_file"]
