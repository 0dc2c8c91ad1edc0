"""A run folder: config.json, checkpoints, the averaged weights, log.jsonl, figures. Everything a
later command needs."""

import json
import os
import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from vdiff._validate import Count, require, validated
from vdiff.disk import absolute, append_line, open_regular, remove, sweep, write_text
from vdiff.errors import InvalidValue, did_you_mean, printable
from vdiff.likelihood.protocol import versions, warn_if_versions_differ
from vdiff.objective import Objective
from vdiff.training import checkpoint, described
from vdiff.training.config import Config
from vdiff.training.plain import lines, parse, read_json
from vdiff.training.ranks import from_first, here, on_first
from vdiff.training.state import State, is_state
from vdiff.training.trained import Loaded, differences, fingerprint, load_trained, weights_file
from vdiff.training.weights import DAMAGED, PICKLES, UNPICKLE, Facts, refused, save_tensors

RESUME = ("auto", "never")
# that a training writes
FILES = ("config.json", "ema.safetensors", "results.json", "table.txt", "log.jsonl")


class Run:
    """A folder that holds one run.

    `Run(folder)` reads one; `Run.open` and `Run.create` are for its training, and keep everyone
    else from training in the same folder until they are closed. Of several processes the first one
    writes.

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
        self.folder = absolute("folder", folder)  # once: the working directory may change
        self.keep = 3
        self._lock: FileLock | None = None
        if config is None:
            path = self.folder / "config.json"
            hint = "`make demo` writes runs/digits"
            require(path.is_file(), "folder", "hold a config.json", self.folder, hint)
            known = read_json(path)
            if not isinstance(known, dict):
                what = "hold the settings of a run by name"
                raise InvalidValue(str(path), what, type(known).__name__, DAMAGED)
            config = Config.from_dict(known)
        self.config = config

    @classmethod
    @validated
    def open(
        cls, folder: str | Path, config: Config, *, resume: str = "auto", keep: Count = 3
    ) -> "Run":
        """The run of `config` in `folder`, which is made if it is missing; training resumes from
        its newest whole checkpoint.

        Args:
            resume: "auto", or "never" for a folder that must not hold a run yet.
            keep: how many checkpoints are kept.

        Raises ValueError if the folder holds a run of another config, with the difference, if
        another process trains in it, and if it cannot be written to.
        """
        near = UNPICKLE if Path(resume).suffix in PICKLES else did_you_mean(resume, RESUME)
        require(resume in RESUME, "resume", f"be one of {', '.join(RESUME)}", repr(resume), near)
        run = cls(folder, config)
        run.keep = keep

        def check() -> None:
            hint = "resume='auto' resumes it"
            require(resume == "auto", "folder", "hold no run yet", run.folder, hint)
            difference = differences(cls(run.folder).config.asdict(), config.asdict())
            what = f"be that of the run in {run.folder}"
            hint = "another config is another run: take another folder"
            require(not difference, "config", what, difference, hint)
            finished = os.path.lexists(run.folder / "ema.safetensors")
            came = f"trained weights alone, in {run.folder}"
            hint = "they are kept; take another folder, or Run.create, which replaces the run"
            whole = not finished or checkpoint.checkpoints(run.checkpoints)
            require(bool(whole), "folder", "hold a checkpoint to resume from", came, hint)

        on_first(lambda: run._take(check))
        return run

    @classmethod
    @validated
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """A new run in `folder`, which is made if it is missing; an older run in it is replaced,
        with a warning."""
        run = cls(folder, config)

        def clear() -> None:
            warnings.warn(f"replacing the run in {printable(str(run.folder))}", stacklevel=7)
            for old in (*FILES, "checkpoints", "tensorboard"):
                remove(run.folder / old)

        on_first(lambda: run._take(clear))
        return run

    def _take(self, older: Callable[[], None]) -> None:
        """Lock the folder for this training; `older` is called if it holds a run already, and may
        raise."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire_lock(self.folder)
            if (self.folder / "config.json").exists() and self._begun():
                older()
            self.checkpoints.mkdir(exist_ok=True)
            sweep(self.folder)
            text = json.dumps(self.config.asdict(), indent=2) + "\n"
            write_text(self.folder / "config.json", text)
        except (OSError, ValueError) as error:
            self.close()
            if isinstance(error, ValueError):
                raise
            what, came = "be one that can be written to", f"{self.folder}: {error}"
            raise InvalidValue("folder", what, came) from error

    def _begun(self) -> bool:
        """Whether anything was trained here; a start that failed leaves nothing to keep."""
        files = [self.folder / name for name in ("ema.safetensors", "log.jsonl")]
        return bool(checkpoint.checkpoints(self.checkpoints)) or any(map(os.path.lexists, files))

    def check(self, config: Config) -> None:
        """Raise unless this run was opened for the training of this config."""
        came = differences(self.config.asdict(), config.asdict())
        require(not came, "run", "be of the config that is trained", came)
        opened = self._lock is not None or not here().first
        came, hint = f"Run({str(self.folder)!r})", "Run.open(folder, config)"
        require(opened, "run", "be opened for training", came, hint)

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
        """Resume from the newest whole checkpoint, on every process, and cut the log there. A
        checkpoint that is cut off, damaged or of another run is warned of and renamed, and the one
        before it is used.

        If there is none, the log of an earlier training becomes old-log.jsonl, with a warning.
        Raises ValueError if there are checkpoints and none can be used.
        """
        live = state.tensors()
        read = partial(self.read, live=live)
        facts = on_first(lambda: checkpoint.newest(self.checkpoints, read))
        from_first(live)
        if facts is not None:
            state.take(facts["state"])
            self._merge(state, facts)
        if here().first:
            log, entries = self.folder / "log.jsonl", self.history()
            if facts is None and entries:
                old, entries = checkpoint.unused(self.folder / "old-log.jsonl"), []
                log.rename(old)
                what = f"{self.folder} has a log and no checkpoint: the training starts again"
                warnings.warn(f"{what} at step 0; the old log is {old.name}", stacklevel=2)
            kept = [entry for entry in entries if entry.get("step", 0) <= state.step]
            write_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))

    def _merge(self, state: State, facts: Facts) -> None:
        """Add the data of a checkpoint to the state's; warn if the training continues with other
        data or another objective."""
        now = state.about
        before = {name: facts.get(name, value) for name, value in now.items()}
        known = set(now["data"]) <= set(before["data"])
        if here().first and not (known and now["unlike"] == before["unlike"]):
            what = "the run continues with other data or another objective"
            warnings.warn(f"{what}: {now}, where it was {before}", stacklevel=2)
        now["data"] = sorted({*before["data"], *now["data"]})

    def read(self, path: Path, live: checkpoint.Tensors) -> dict[str, Any]:
        """Copy a checkpoint of this run into tensors and return its facts. Raises ValueError if it
        is damaged or of another run."""
        meta = checkpoint.read_meta(path)
        facts = meta["facts"]
        config, state = facts.get("config"), facts.get("state")
        if not isinstance(config, dict) or not is_state(state) or state["step"] != meta["step"]:
            raise refused(path, "hold the state of a run", facts, "it is something else")
        difference = differences(Config.from_dict(config).asdict(), self.config.asdict())
        if difference:
            raise refused(path, "be of this run's config", difference, "it is of another run")
        warn_if_versions_differ("the run", facts.get("versions"))
        return checkpoint.read(path, live)

    def store(self, state: State) -> bool:
        """Write a checkpoint and delete the oldest beyond `keep`; returns whether it was written.
        If the disk does not allow it, the older ones stay, and a warning says how much is
        missing."""
        if not here().first:
            return True
        facts = {
            "config": self.config.asdict(),
            "versions": versions(),
            "state": state.facts(),
        } | state.about
        try:
            checkpoint.write(self.checkpoints, state.step, state.tensors(), facts)
        except OSError as error:
            text = f"no checkpoint at step {state.step}: {error}; the older ones are kept"
            warnings.warn(text, stacklevel=2)
            return False
        checkpoint.prune(self.checkpoints, self.keep)
        return True

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl, after a line that a full disk cut off."""
        if here().first:
            append_line(self.folder / "log.jsonl", json.dumps(entry))

    def history(self) -> list[dict[str, Any]]:
        """All entries of log.jsonl, without lines that are cut off or damaged."""
        path = self.folder / "log.jsonl"
        entries = []
        for line in lines(path) if path.is_file() else ():
            try:
                entry = parse(line)
            except ValueError:  # half a line
                continue
            if isinstance(entry, dict) and type(entry.get("step", 0)) is int:
                entries.append(entry)
        return entries

    @validated
    def save(
        self,
        objective: Objective,
        name: str = "ema",
        *,
        data: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Write weights to `<name>.safetensors`, whole or not at all, with what they are of.

        `vdiff evaluate` must know on which images they were trained. Weights that `train` returned
        record it; for those of your own loop pass `data`, and `labels` of a conditional network.
        """
        if here().first:
            unlike = described.differences(objective, self.config)
            known = list(objective.trained_on) if data is None else [fingerprint(data, labels)]
            self._save(objective, name, {"unlike": unlike, "data": known, "step": None})

    def finish(self, state: State) -> bool:
        """Write the averaged weights of a training; returns whether they were written. If the disk
        does not allow it, the checkpoints stay, and a warning says how much is missing."""
        try:
            self._save(state.averaged, "ema", state.about | {"step": state.step})
        except OSError as error:
            kept = "what train returned has them, and so has the newest checkpoint"
            warnings.warn(f"no averaged weights: {error}; {kept}", stacklevel=2)
            return False
        return True

    def _save(self, objective: Objective, name: str, about: Facts) -> None:
        path = self.folder / f"{name}.safetensors"
        facts = {"config": self.config.asdict(), "versions": versions()} | about
        save_tensors(path, objective.state_dict(), facts)

    @validated
    def load(self, name: str = "ema", *, objective: Objective | None = None) -> Objective:
        """The run's objective with its averaged weights, in evaluation mode; while it trains,
        those of the newest checkpoint.

        Weights come back in the precision in which they were saved: averages of a half-precision
        network are in float32.

        Args:
            name: of the file, such as "ema", or "ema-0.9999" for the average of another decay in
                the newest checkpoint.
            objective: filled and returned, for a run with parts of your own, which its config
                cannot build.

        Raises ValueError if there are no weights, or if they are not of this run, its config or
        this objective, with what differs.
        """
        return load_trained(self.folder, self.config, name, objective).objective

    @validated
    def loaded(self, name: str = "ema", *, objective: Objective | None = None) -> Loaded:
        """`load`, with the file, its step and its hash for a protocol, and the training data."""
        return load_trained(self.folder, self.config, name, objective)

    @validated
    def weights(self, name: str = "ema") -> Path:
        """The file that `load` reads."""
        return weights_file(self.folder, self.config, name)


def _acquire_lock(folder: Path) -> FileLock:
    """The lock of a folder, until it is released or its process ends. Raises ValueError with the
    process that holds it."""
    path = folder / ".lock"
    os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # the lock itself would follow a link
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder, hint = "another process", "wait for it or stop it, or take another folder"
        try:
            who = read_json(path)
            holder = f"process {who['pid']} on {who['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
            pass
        what = "be used by one training at a time"
        raise InvalidValue("folder", what, f"{holder} in {folder}", hint) from error
    with open(open_regular(path, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
    return lock


__all__ = ["FILES", "Run"]
