"""A run folder: config.json, checkpoints, the averaged weights, log.jsonl, figures. Everything a
later command needs."""

import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from vdiff.disk import absolute, append_line, remove, sweep, write_text
from vdiff.errors import did_you_mean, must, printable
from vdiff.likelihood.protocol import versions, warn_of_others
from vdiff.objective import Objective
from vdiff.training import checkpoint, described
from vdiff.training.config import Config
from vdiff.training.lock import hold
from vdiff.training.plain import lines, parse, read_json
from vdiff.training.ranks import from_first, here, on_first
from vdiff.training.state import State, is_state
from vdiff.training.trained import Loaded, differences, fingerprint, load_trained, weights_file
from vdiff.training.weights import PICKLES, UNPICKLE, Facts, save_tensors

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

    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = absolute("Run", "folder", folder)  # once: the working directory may change
        self.keep = 3
        self._lock: FileLock | None = None
        if config is None:
            if not (self.folder / "config.json").is_file():
                raise ValueError(
                    must(
                        "Run",
                        "folder",
                        "hold a config.json",
                        self.folder,
                        "`make demo` writes runs/digits",
                    )
                )
            path = self.folder / "config.json"
            known = read_json("Run", path)
            if not isinstance(known, dict):
                raise ValueError(
                    must(
                        "Run",
                        str(path),
                        "hold the settings of a run by name",
                        type(known).__name__,
                        "it is damaged",
                    )
                )
            config = Config.from_dict(known)
        self.config = config

    @classmethod
    def open(
        cls, folder: str | Path, config: Config, *, resume: str = "auto", keep: int = 3
    ) -> "Run":
        """The run of `config` in `folder`, which is made: from its newest whole checkpoint if it
        has any, else from the start.

        Args:
            resume: "auto", or "never" for a folder that must not hold a run yet.
            keep: how many checkpoints are kept.

        Raises:
            ValueError: where the folder holds a run of another config, with the difference; where
                another process trains in it; where it cannot be written to.
        """
        if resume not in RESUME:
            hint = UNPICKLE if Path(resume).suffix in PICKLES else did_you_mean(resume, RESUME)
            raise ValueError(
                must("Run.open", "resume", f"be one of {', '.join(RESUME)}", repr(resume), hint)
            )
        if keep < 1:
            raise ValueError(
                must(
                    "Run.open",
                    "keep",
                    "be at least 1",
                    keep,
                    "without a checkpoint nothing can be gone on from",
                )
            )
        run = cls(folder, config)
        run.keep = keep

        def check() -> None:
            if resume == "never":
                hint = "resume='auto' goes on with it"
                raise ValueError(must("Run.open", "folder", "hold no run yet", run.folder, hint))
            difference = differences(cls(run.folder).config.asdict(), config.asdict())
            if difference:
                hint = "another config is another run: take another folder"
                raise ValueError(
                    must(
                        "Run.open",
                        "config",
                        f"be that of the run in {run.folder}",
                        difference,
                        hint,
                    )
                )
            finished = os.path.lexists(run.folder / "ema.safetensors")
            if finished and not checkpoint.checkpoints(run.checkpoints):
                what = "hold a checkpoint to go on from"
                came = f"trained weights alone, in {run.folder}"
                hint = "they are kept; take another folder, or Run.create, which replaces the run"
                raise ValueError(must("Run.open", "folder", what, came, hint))

        on_first(lambda: run._take(check))
        return run

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """A new run in `folder`, which is made; an older run in it is replaced whole, with a
        warning."""
        run = cls(folder, config)

        def clear() -> None:
            warnings.warn(f"replacing the run in {printable(str(run.folder))}", stacklevel=6)
            for old in (*FILES, "checkpoints", "tensorboard"):
                remove(run.folder / old)

        on_first(lambda: run._take(clear))
        return run

    def _take(self, older: Callable[[], None]) -> None:
        """Make the folder this training's; `older` is called where a run is in it already, and may
        raise."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.folder)
            if (self.folder / "config.json").exists() and self._begun():
                older()
            self.checkpoints.mkdir(exist_ok=True)
            sweep(self.folder)
            write_text(
                self.folder / "config.json", json.dumps(self.config.asdict(), indent=2) + "\n"
            )
        except OSError as error:
            self.close()
            raise ValueError(
                must("Run", "folder", "be one that can be written to", f"{self.folder}: {error}")
            ) from error
        except ValueError:
            self.close()
            raise

    def _begun(self) -> bool:
        """Whether anything was trained here: a start that failed leaves nothing to go on with, and
        nothing to keep."""
        return bool(checkpoint.checkpoints(self.checkpoints)) or any(
            os.path.lexists(self.folder / name) for name in ("ema.safetensors", "log.jsonl")
        )

    def check(self, config: Config) -> None:
        """Raise unless this run was opened for the training of this config."""
        came = differences(self.config.asdict(), config.asdict())
        if came:
            raise ValueError(must("train", "run", "be of the config that is trained", came))
        if self._lock is None and here().first:
            raise ValueError(
                must(
                    "train",
                    "run",
                    "be opened for training",
                    f"Run({str(self.folder)!r})",
                    "Run.open(folder, config)",
                )
            )

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
        """Go on from the newest whole checkpoint, on every process, and forget what the log has
        beyond it. A checkpoint that is cut off, damaged or of another run is warned of and put
        aside, and the one before it is used.

        Where there is none, a log of an earlier training is kept as old-log.jsonl, with a warning.

        Raises ValueError where there are checkpoints and none can be used.
        """
        live = state.tensors()
        facts = on_first(
            lambda: checkpoint.newest(self.checkpoints, partial(self.read, live=live))
        )
        from_first(value for named in live.values() for value in named.values())
        if facts is not None:
            state.take(facts["state"])
            self._merge(state, facts)
        if here().first:
            if facts is None and self.history():
                self._keep_log()
            kept = [entry for entry in self.history() if entry.get("step", 0) <= state.step]
            write_text(
                self.folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept)
            )

    def _keep_log(self) -> None:
        """Give the log of a training that left no checkpoint another name, with a warning."""
        kept = checkpoint.unused(self.folder / "old-log.jsonl")
        (self.folder / "log.jsonl").rename(kept)
        what = f"{self.folder} has a log and no checkpoint: the training starts again at step 0"
        warnings.warn(f"{what}; the old log is {kept.name}", stacklevel=2)

    def _merge(self, state: State, facts: Facts) -> None:
        """Take up what the checkpoint says of its objective and data; warn where the training goes
        on with others.
        """
        now = state.about
        before = {name: facts.get(name, value) for name, value in now.items()}
        known = set(now["data"]) <= set(before["data"])
        if here().first and not (known and now["unlike"] == before["unlike"]):
            what = "the run goes on with other data or another objective"
            warnings.warn(f"{what}: {now}, where it was {before}", stacklevel=2)
        now["data"] = sorted({*before["data"], *now["data"]})

    def read(self, path: Path, live: checkpoint.Tensors) -> dict[str, Any]:
        """Copy a checkpoint of this run into tensors and return its facts. Raises ValueError where
        it is damaged or of another run."""
        meta = checkpoint.read_meta(path)
        facts = meta["facts"]
        config, state = facts.get("config"), facts.get("state")
        if not isinstance(config, dict) or not is_state(state) or state["step"] != meta["step"]:
            raise ValueError(
                must(
                    "checkpoint",
                    str(path),
                    "hold the state of a run",
                    facts,
                    "it is something else",
                )
            )
        difference = differences(Config.from_dict(config).asdict(), self.config.asdict())
        if difference:
            raise ValueError(
                must(
                    "checkpoint",
                    str(path),
                    "be of this run's config",
                    difference,
                    "it is of another run",
                )
            )
        warn_of_others("the run", facts.get("versions"))
        return checkpoint.read(path, live)

    def store(self, state: State) -> bool:
        """Write a checkpoint and delete the oldest beyond `keep`; whether it was written. Where
        the disk does not allow it, what is there stays, and a warning says how much is missing."""
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
            warnings.warn(
                f"no checkpoint at step {state.step}: {error}; the older ones are kept",
                stacklevel=2,
            )
            return False
        checkpoint.prune(self.checkpoints, self.keep)
        return True

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl, behind one that a full disk cut off."""
        if here().first:
            append_line(self.folder / "log.jsonl", json.dumps(entry))

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
        say it; for those of a loop of your own pass `data`, and `labels` of a conditional network.
        """
        if here().first:
            unlike = described.differences(objective, self.config)
            known = list(objective.trained_on) if data is None else [fingerprint(data, labels)]
            self._save(objective, name, {"unlike": unlike, "data": known, "step": None})

    def finish(self, state: State) -> bool:
        """Write the averaged weights of a training; whether they were written. Where the disk does
        not allow it, a warning says how much is missing, and the checkpoints stay."""
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

        Raises:
            ValueError: where there are no weights, or they are not of this run, its config or this
                objective, with what differs.
        """
        return self.loaded(name, objective=objective).objective

    def loaded(self, name: str = "ema", *, objective: Objective | None = None) -> Loaded:
        """`load`, with the file, its step and its hash for a protocol, and what it was trained
        on."""
        return load_trained(self.folder, self.config, name, objective)

    def weights(self, name: str = "ema") -> Path:
        """The file that `load` reads."""
        return weights_file(self.folder, self.config, name)


__all__ = ["FILES", "Run"]
