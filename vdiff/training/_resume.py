"""Resume a training from the checkpoints of its run."""

import json
import warnings
from functools import partial
from pathlib import Path

from vdiff.disk import remove, write_text
from vdiff.errors import InvalidValue
from vdiff.likelihood.protocol import warn_if_versions_differ
from vdiff.training import checkpoint
from vdiff.training.config import Config
from vdiff.training.loading import differences
from vdiff.training.logger import read_log, write_log
from vdiff.training.ranks import broadcast, on_rank_zero, rank
from vdiff.training.state import State, is_state
from vdiff.training.weights import Facts, invalid_file


def resume(folder: Path, config: Config, state: State) -> None:
    """Restore the newest intact checkpoint in every process, and cut the log there. Without one,
    the log of an earlier training is put aside."""
    live = state.tensors()
    read = partial(read_of_config, config=config, live=live)
    facts = on_rank_zero(lambda: checkpoint.use_newest(folder / "checkpoints", read))
    broadcast(live)
    if facts is not None:
        state.load_facts(facts["state"])
        state.stream = facts.get("stream")
        merge_provenance(folder, config, state, facts)
        if rank().is_zero and facts["config"]["steps"] < config.steps:
            # more steps follow: the newest checkpoint counts
            remove(folder / "ema.safetensors")
    if rank().is_zero:
        log = folder / "log.jsonl"
        if facts is None and read_log(log):
            old = checkpoint.unused_path(folder / "old-log.jsonl")
            log.rename(old)
            what = f"{folder} has a log and no checkpoint: the training starts again"
            warnings.warn(f"{what} at step 0; the old log is {old.name}", stacklevel=3)
        write_log(log, [entry for entry in read_log(log) if entry.get("step", 0) <= state.step])


def merge_provenance(folder: Path, config: Config, state: State, facts: Facts) -> None:
    """Add the data of a checkpoint to the state's. Warn if the training continues with other data,
    another objective or another mask. Raises ValueError for other data at another path."""
    now, old = state.provenance, Config.from_dict(facts["config"])
    before = {name: facts.get(name, value) for name, value in now.items()}
    before["mask"] = facts.get("mask")
    same_data = set(now["data"]) <= set(before["data"])
    if not same_data and old.data != config.data:
        on_rank_zero(lambda: write_config(folder, old))
        what = f"be that of the run in {folder}, at another path"
        hint = "other data is another run: take another folder"
        raise InvalidValue("data", what, f"other images at {config.data}", hint)
    same = all(now[name] == before[name] for name in ("unlike", "mask"))
    if rank().is_zero and not (same_data and same):
        what = "the run continues with other data, another objective or another mask"
        warnings.warn(f"{what}: {now}, where it was {before}", stacklevel=2)
    now["data"] = sorted({*before["data"], *now["data"]})


def read_of_config(path: Path, config: Config, live: checkpoint.Tensors) -> Facts:
    """`Run.read` for the run of a config."""
    meta = checkpoint.read_meta(path)
    facts = meta["facts"]
    own, state = facts.get("config"), facts.get("state")
    if not isinstance(own, dict) or not is_state(state) or state["step"] != meta["step"]:
        raise invalid_file(path, "hold the state of a run", facts, "it is something else")
    difference = differences(Config.from_dict(own).asdict(), config.asdict())
    if difference:
        raise invalid_file(path, "be of this run's config", difference, "it is of another run")
    warn_if_versions_differ("the run", facts.get("versions"))
    return checkpoint.read(path, live)


def write_config(folder: Path, config: Config) -> None:
    """Write config.json."""
    write_text(folder / "config.json", json.dumps(config.asdict(), indent=2) + "\n")
