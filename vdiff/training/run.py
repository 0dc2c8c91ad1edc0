"""A run folder: config.json, checkpoints, the averaged weights, log.jsonl, figures. Everything a later command needs."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from vdiff.denoiser import widen_trained
from vdiff.disk import absolute, commit
from vdiff.errors import did_you_mean, must, printable
from vdiff.likelihood.protocol import version
from vdiff.objective import Objective
from vdiff.training import checkpoint
from vdiff.training.config import Config
from vdiff.training.lock import hold
from vdiff.training.plain import lines, parse, read_json
from vdiff.training.ranks import from_first, here, on_first
from vdiff.training.state import State, is_state

RESUME = ("auto", "never")
FREE = ("accumulate", "compile", "channels_last", "folder")  # how a step is computed, not what: a resumed run may change it


class Run:
    """A folder that holds one run.

    `Run(folder)` reads one; `Run.open` and `Run.create` are for its training, and keep everyone else from training in the same
    folder until they are closed. Of several processes the first one writes.

    >>> import tempfile
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Run.open(folder, config) as run:
    ...         run.save(config.objective())
    ...     loaded = Run(folder).load()
    >>> type(loaded).__name__
    'Objective'
    """

    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = absolute("Run", "folder", folder)  # once: the working directory may change
        self.keep = 3
        self._lock: FileLock | None = None
        if config is None:
            if not (self.folder / "config.json").is_file():
                raise ValueError(must("Run", "folder", "hold a config.json", self.folder, "`make demo` writes runs/digits"))
            path = self.folder / "config.json"
            known = read_json("Run", path)
            if not isinstance(known, dict):
                raise ValueError(must("Run", str(path), "hold the settings of a run by name", type(known).__name__, "it is damaged"))
            config = Config.from_dict(known)
        self.config = config

    @classmethod
    def open(cls, folder: str | Path, config: Config, *, resume: str = "auto", keep: int = 3) -> "Run":
        """The run of `config` in `folder`, which is made: from its newest whole checkpoint if it has any, else from the start.

        Args:
            resume: "auto", or "never" for a folder that must not hold a run yet.
            keep: how many checkpoints are kept.

        Raises:
            ValueError: where the folder holds a run of another config, with the difference; where another process trains in
                it; where it cannot be written to.
        """
        if resume not in RESUME:
            hint = checkpoint.UNPICKLE if Path(resume).suffix in checkpoint.PICKLES else did_you_mean(resume, RESUME)
            raise ValueError(must("Run.open", "resume", f"be one of {', '.join(RESUME)}", repr(resume), hint))
        if keep < 1:
            raise ValueError(must("Run.open", "keep", "be at least 1", keep, "without a checkpoint nothing can be gone on from"))
        run = cls(folder, config)
        run.keep = keep

        def check() -> None:
            if resume == "never":
                hint = "resume='auto' goes on with it"
                raise ValueError(must("Run.open", "folder", "hold no run yet", run.folder, hint))
            difference = differences(cls(run.folder).config.asdict(), config.asdict())
            if difference:
                hint = "another config is another run: take another folder"
                raise ValueError(must("Run.open", "config", f"be that of the run in {run.folder}", difference, hint))

        on_first(lambda: run._take(check))
        return run

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """A new run in `folder`, which is made; an older run in it is replaced whole, with a warning."""
        run = cls(folder, config)

        def clear() -> None:
            warnings.warn(f"replacing the run in {printable(str(run.folder))}", stacklevel=6)
            for old in ("config.json", "ema.safetensors", "results.json", "table.txt", "log.jsonl"):
                (run.folder / old).unlink(missing_ok=True)
            for old in ("checkpoints", "tensorboard"):
                shutil.rmtree(run.folder / old, ignore_errors=True)

        on_first(lambda: run._take(clear))
        return run

    def _take(self, older: Callable[[], None]) -> None:
        """Make the folder this training's; `older` is called where a run is in it already, and may raise."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.folder)
            if (self.folder / "config.json").exists() and self._begun():
                older()
            self.checkpoints.mkdir(exist_ok=True)
            write_aside(self.folder / "config.json", json.dumps(self.config.asdict(), indent=2) + "\n")
        except OSError as error:
            self.close()
            raise ValueError(must("Run", "folder", "be one that can be written to", f"{self.folder}: {error}")) from error
        except ValueError:
            self.close()
            raise

    def _begun(self) -> bool:
        """Whether anything was trained here: a start that failed leaves nothing to go on with, and nothing to keep."""
        return bool(checkpoint.checkpoints(self.checkpoints)) or any(
            (self.folder / name).exists() for name in ("ema.safetensors", "log.jsonl")
        )

    def check(self, config: Config) -> None:
        """Raise unless this run was opened for the training of this config."""
        if differences(self.config.asdict(), config.asdict()):
            came = differences(self.config.asdict(), config.asdict())
            raise ValueError(must("train", "run", "be of the config that is trained", came))
        if self._lock is None and here().first:
            raise ValueError(must("train", "run", "be opened for training", f"Run({str(self.folder)!r})", "Run.open(folder, config)"))

    def close(self) -> None:
        """Let others train in this folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def figures(self) -> Path:
        """The folder of figures, made if missing."""
        path = self.folder / "figures"
        path.mkdir(exist_ok=True)
        return path

    def restore(self, state: State) -> None:
        """Go on from the newest whole checkpoint, on every process, and forget what the log has beyond it. A checkpoint that is cut off,
        damaged or of another run is warned of and put aside, and the one before it is used.

        Raises ValueError where there are checkpoints and none can be used.
        """
        live = state.tensors()
        facts = on_first(lambda: checkpoint.newest(self.checkpoints, partial(self.read, live=live)))
        from_first(value for named in live.values() for value in named.values())
        if facts is not None:
            state.take(facts["state"])
        if here().first:
            kept = [entry for entry in self.history() if entry.get("step", 0) <= state.step]
            write_aside(self.folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))

    def read(self, path: Path, live: checkpoint.Tensors) -> dict[str, Any]:
        """Copy a checkpoint of this run into tensors and return its facts. Raises ValueError where it is damaged or of another run."""
        meta = checkpoint.read_meta(path)
        facts = meta["facts"]
        config, state, versions = (facts.get(name) for name in ("config", "state", "versions"))
        if not isinstance(config, dict) or not is_state(state) or state["step"] != meta["step"]:
            raise ValueError(must("checkpoint", str(path), "hold the state of a run", facts, "it is something else"))
        difference = differences(Config.from_dict(config).asdict(), self.config.asdict())
        if difference:
            raise ValueError(must("checkpoint", str(path), "be of this run's config", difference, "it is of another run"))
        if versions != _versions():
            warnings.warn(f"the run goes on with {_versions()} after {versions}: not bit for bit", stacklevel=2)
        return checkpoint.read(path, live)

    def store(self, state: State) -> bool:
        """Write a checkpoint and delete the oldest beyond `keep`; whether it was written. Where the disk does not allow it, what is
        there stays, and a warning says how much is missing."""
        if not here().first:
            return True
        facts = {"config": self.config.asdict(), "versions": _versions(), "state": state.facts()}
        try:
            checkpoint.write(self.checkpoints, state.step, state.tensors(), facts)
        except OSError as error:
            warnings.warn(f"no checkpoint at step {state.step}: {error}; the older ones are kept", stacklevel=2)
            return False
        checkpoint.prune(self.checkpoints, self.keep)
        return True

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl, behind one that a full disk cut off."""
        if here().first:
            with (self.folder / "log.jsonl").open("ab+") as file:
                torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
                file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")

    def history(self) -> list[dict[str, Any]]:
        """All entries of log.jsonl, but for lines that a crash has cut off or that are damaged."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return []
        entries = []
        for line in lines(path):
            try:
                entry = parse(line)
            except ValueError:  # half a line
                continue
            if isinstance(entry, dict) and type(entry.get("step", 0)) is int:
                entries.append(entry)
        return entries

    def save(self, objective: Objective, name: str = "ema") -> None:
        """Write weights to `<name>.safetensors`: aside first, then renamed, so that a crash leaves the old file."""
        if here().first:
            save_aside(self.folder / f"{name}.safetensors", objective.state_dict(), sealed=True)

    def load(self, name: str = "ema") -> Objective:
        """The run's objective with its averaged weights, in evaluation mode; while it trains, those of the newest checkpoint.

        Raises ValueError where there are none, or they are not of this run.
        """
        expected = self.config.objective(outline=True).state_dict()
        path = self.weights(name)
        if path.parent.parent == self.checkpoints:
            checkpoint.verify(path.parent, path.name)
        loaded = checkpoint.load(path, expected)  # before a network of another size takes memory
        objective = self.config.objective()
        checkpoint.fill(objective.state_dict(), loaded)
        widen_trained(objective.model, *objective.schedule.ends())
        return objective.eval()

    def weights(self, name: str = "ema") -> Path:
        """The file that `load` reads: `ema` is the average that is evaluated, `ema-0.9999` that of a decay in the newest checkpoint."""
        if Path(name).suffix in checkpoint.PICKLES:
            return self.folder / name
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            return path
        inside = f"ema-{self.config.ema[0]}" if name == "ema" else name
        for folder in reversed(checkpoint.checkpoints(self.checkpoints)):
            if (folder / f"{inside}.safetensors").is_file():
                return folder / f"{inside}.safetensors"
        raise ValueError(must("Run", "folder", f"hold {name}.safetensors or a checkpoint", self.folder, "it has not been trained yet"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In which fields two configs differ that make another run, in words; empty where they do not.

    >>> differences({"lr": 0.1, "accumulate": 1}, {"lr": 0.2, "accumulate": 4})
    'lr: 0.2, where it was 0.1'
    """
    names = [name for name in {**old, **new} if name not in FREE and old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {new.get(name, 'nothing')}, where it was {old.get(name, 'nothing')}" for name in names)


def _versions() -> dict[str, str]:
    return {"vdiff": version(), "torch": torch.__version__}


def write_aside(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    commit(aside, path)


def save_aside(path: Path, tensors: Mapping[str, Tensor], *, sealed: bool = False) -> None:
    """Write tensors to a safetensors file whole or not at all; `sealed` with a checksum in it."""
    aside = path.with_name(path.name + ".partial")
    checkpoint.save_tensors(aside, tensors, sealed=sealed)
    commit(aside, path)


__all__ = ["Run"]
