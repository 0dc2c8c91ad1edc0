"""A run folder: config.json, checkpoints, the averaged weights, log.jsonl, figures."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import BaseFileLock
from torch import Tensor

from vdiff._validate import Count, Given, OneOf, require, validated
from vdiff.disk import absolute, append_line, remove, remove_stale
from vdiff.errors import InvalidValue, printable
from vdiff.likelihood.protocol import versions
from vdiff.objective import Objective
from vdiff.training import checkpoint, structure, trained_on
from vdiff.training._resume import read_of_config, resume, write_config
from vdiff.training.config import Config
from vdiff.training.loading import Loaded, differences, fingerprint, load_trained, weights_file
from vdiff.training.lock import lock_folder
from vdiff.training.logger import read_log
from vdiff.training.ranks import on_rank_zero, rank
from vdiff.training.safe_json import read_json
from vdiff.training.sources import Examples, source_of
from vdiff.training.state import State
from vdiff.training.weights import PICKLES, UNPICKLE, Facts, save_tensors

# what a training writes
FILES = ("config.json", "ema.safetensors", "results.json", "table.txt", "log.jsonl")


def _auto_or_never(value: str, argument: str, given: Given) -> str:
    if Path(str(value)).suffix in PICKLES:
        raise InvalidValue(argument, "be one of 'auto', 'never'", repr(value), UNPICKLE)
    chosen: str = OneOf(("auto", "never"))(value, argument, given)
    return chosen


Resume = Annotated[str, _auto_or_never]


class Run:
    """A folder that holds one run.

    `Run(folder)` reads a run. `Run.open` and `Run.create` are for training: they lock the folder
    until `close`. Only rank 0 writes.

    >>> import tempfile
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Run.open(folder, config) as run:
    ...         run.save(config.objective())
    ...     loaded = Run(folder).load()
    >>> type(loaded).__name__
    'Objective'
    """

    @validated
    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = absolute("folder", folder)  # now: the working directory may change
        self.keep = 3
        self._lock: BaseFileLock | None = None
        if config is None:
            path = self.folder / "config.json"
            hint = "`make demo` writes runs/digits"
            require(path.is_file(), "folder", "hold a config.json", self.folder, hint)
            config = Config.from_dict(read_json(path))
        self.config = config

    @classmethod
    @validated
    def open(
        cls, folder: str | Path, config: Config, *, resume: Resume = "auto", keep: Count = 3
    ) -> "Run":
        """Open `folder` for training with `config`, and create it if it is missing. Training
        resumes from the newest intact checkpoint.

        Args:
            resume: "auto", or "never" for a folder that must not hold a run yet.
            keep: the number of checkpoints to keep.

        Raises ValueError if the folder holds a run of another config, with the difference, if
        another process trains in it, and if it cannot be written to.
        """
        run = cls(folder, config)
        run.keep = keep

        def check() -> None:
            hint = "resume='auto' (--resume auto) resumes it"
            require(resume == "auto", "folder", "hold no run yet", run.folder, hint)
            difference = differences(cls(run.folder).config.asdict(), config.asdict())
            what = f"be that of the run in {run.folder}"
            hint = "another config is another run: take another folder"
            require(not difference, "config", what, difference, hint)
            finished = os.path.lexists(run.folder / "ema.safetensors")
            resumable = not finished or bool(checkpoint.checkpoints(run.checkpoints))
            came = f"trained weights alone, in {run.folder}"
            hint = "they are kept; take another folder, or Run.create, which replaces the run"
            require(resumable, "folder", "hold a checkpoint to resume from", came, hint)

        on_rank_zero(lambda: run._lock_and_prepare(check))
        return run

    @classmethod
    @validated
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """Start a new run in `folder`, and create it if it is missing. Replaces an older run, with
        a warning."""
        run = cls(folder, config)

        def clear() -> None:
            warnings.warn(f"replacing the run in {printable(str(run.folder))}", stacklevel=7)
            for old in (*FILES, "checkpoints", "tensorboard", trained_on.FOLDER):
                remove(run.folder / old)

        on_rank_zero(lambda: run._lock_and_prepare(clear))
        return run

    def _lock_and_prepare(self, on_older: Callable[[], None]) -> None:
        """Lock the folder and write config.json. `on_older` is called first if the folder holds a
        run."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
            if (self.folder / "config.json").exists() and self._has_training():
                on_older()
            self.checkpoints.mkdir(exist_ok=True)
            remove_stale(self.folder)
            write_config(self.folder, self.config)
        except ValueError:
            self.close()
            raise
        except OSError as error:
            self.close()
            what, came = "be one that can be written to", f"{self.folder}: {error}"
            raise InvalidValue("folder", what, came) from error

    def _has_training(self) -> bool:
        """Whether anything was trained here. A failed start leaves nothing to keep."""
        files = [self.folder / name for name in ("ema.safetensors", "log.jsonl")]
        return bool(checkpoint.checkpoints(self.checkpoints)) or any(map(os.path.lexists, files))

    def check(self, config: Config) -> None:
        """Raise unless this run was opened for training with this config."""
        came = differences(self.config.asdict(), config.asdict())
        require(not came, "run", "be of the config that is trained", came)
        opened = self._lock is not None or not rank().is_zero
        came, hint = f"Run({str(self.folder)!r})", "Run.open(folder, config)"
        require(opened, "run", "be opened for training", came, hint)

    def close(self) -> None:
        """Unlock the folder."""
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
        """The folder of figures. It is created if it is missing."""
        path = self.folder / "figures"
        path.mkdir(exist_ok=True)
        return path

    def restore(self, state: State) -> None:
        """Resume every process from the newest intact checkpoint, and cut the log there.

        A checkpoint that is damaged or of another run is renamed with a warning, and the one
        before it is used. If there is none, the log of an earlier training becomes old-log.jsonl,
        with a warning. Raises ValueError if no checkpoint can be used.
        """
        resume(self.folder, self.config, state)

    def read(self, path: Path, live: checkpoint.Tensors) -> dict[str, Any]:
        """Copy a checkpoint of this run into tensors; returns its facts. Raises ValueError if it
        is damaged or of another run."""
        return read_of_config(path, self.config, live)

    def store(self, state: State) -> bool:
        """Write a checkpoint and delete the oldest beyond `keep`; returns whether it was written.
        If the disk is full, the older ones stay, and a warning gives the bytes needed."""
        if not rank().is_zero:
            return True
        facts = self._facts(state.provenance) | {"state": state.facts(), "stream": state.stream}
        try:
            checkpoint.write(self.checkpoints, state.step, state.tensors(), facts)
        except OSError as error:
            text = f"no checkpoint at step {state.step}: {error}; the older ones are kept"
            warnings.warn(text, stacklevel=2)
            return False
        checkpoint.prune(self.checkpoints, self.keep)
        return True

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if rank().is_zero:
            append_line(self.folder / "log.jsonl", json.dumps(entry))

    def history(self) -> list[dict[str, Any]]:
        """All entries of log.jsonl. Incomplete and damaged lines are skipped."""
        return read_log(self.folder / "log.jsonl")

    @validated
    def save(
        self,
        objective: Objective,
        name: str = "ema",
        *,
        data: Examples | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Write weights to `<name>.safetensors`, with what they were trained on.

        `vdiff evaluate` must know the training images. Weights that `train` returned record them;
        for those of your own loop pass `data`, whatever `train` takes, and the `labels` of a
        conditional network.
        """
        if rank().is_zero:
            facts: Facts = {"unlike": structure.differences(objective, self.config), "step": None}
            facts["data"] = list(objective.trained_on)
            if isinstance(data, Tensor):
                facts["data"] = [fingerprint(data, labels)]
            elif data is not None:
                source = source_of(data, self.config, labels, torch.device("cpu"))
                facts["data"] = [source.fingerprint(self.config.conditional)]
                facts["split"] = source.record
            if data is not None:
                trained_on.remember(self.folder, data, facts["data"][0])
            self._save(objective, name, facts)

    def finish(self, state: State) -> bool:
        """Write the averaged weights of a training; returns whether they were written. If the disk
        is full, the checkpoints stay, and a warning gives the bytes needed."""
        try:
            self._save(state.averaged, "ema", state.provenance | {"step": state.step})
        except OSError as error:
            kept = "what train returned has them, and so has the newest checkpoint"
            warnings.warn(f"no averaged weights: {error}; {kept}", stacklevel=2)
            return False
        return True

    def _save(self, objective: Objective, name: str, provenance: Facts) -> None:
        path = self.folder / f"{name}.safetensors"
        save_tensors(path, objective.state_dict(), self._facts(provenance))

    def _facts(self, provenance: Facts) -> Facts:
        return {"config": self.config.asdict(), "versions": versions()} | provenance

    @validated
    def load(self, name: str = "ema", *, objective: Objective | None = None) -> Objective:
        """Load the averaged weights, in evaluation mode. While the run trains, they are those of
        the newest checkpoint.

        Weights have the precision in which they were saved: averages of a half-precision network
        are in float32.

        Args:
            name: of the file, such as "ema", or "ema-0.9999" for the average of another decay in
                the newest checkpoint.
            objective: to load into, for a run with parts of your own, which its config cannot
                build.

        Raises ValueError if there are no weights, and if they are not of this run, its config or
        this objective.
        """
        return load_trained(self.folder, self.config, name, objective).objective

    @validated
    def loaded(self, name: str = "ema", *, objective: Objective | None = None) -> Loaded:
        """`load`, with the record for an evaluation's protocol."""
        return load_trained(self.folder, self.config, name, objective)

    @validated
    def weights(self, name: str = "ema") -> Path:
        """The file that `load` reads."""
        return weights_file(self.folder, self.config, name)
