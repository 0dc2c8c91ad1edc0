"""Faults 52 to 65 and 67 to 73 where they concern training: what happens to a run, and to what it
keeps."""

import builtins
import contextlib
import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points import command, data_of, environment, outcome, points
from safetensors.torch import load_file, save_file
from soak_training import damaged, kills
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff.cli import main
from vdiff.decoder import Categorical
from vdiff.objective import VLB
from vdiff.parameterization import V
from vdiff.schedule import Spline
from vdiff.training import Config, Run, train
from vdiff.training.batches import Batches
from vdiff.training.checkpoint import checkpoints, checksum, prune, read, read_meta, write
from vdiff.training.ema import EMA
from vdiff.training.ranks import Rank
from vdiff.training.state import State

from .common import Net, assert_refused, assert_refused_with

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # of fork, since Python 3.12


class Sick(nn.Module):
    """A network that at some of its calls returns, or hands back as its gradient, what is not
    finite."""

    def __init__(
        self, calls: Callable[[int], bool], value: float = torch.nan, backwards: bool = False
    ) -> None:
        super().__init__()
        self.inner, self.calls, self.value, self.backwards, self.call = (
            Net(64),
            calls,
            value,
            backwards,
            0,
        )

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        self.call += 1
        out: Tensor = self.inner(z, time)
        if not self.calls(self.call):
            return out
        if self.backwards:
            return out + 0 * (out - out.detach()).abs().sqrt()  # zero, with a gradient of 0 · ∞
        return out + self.value


def objective_of(network: nn.Module) -> Objective:
    return Objective(
        Denoiser(network, V()), schedule=Spline(10.0, -7.0, knots=4), loss=VLB(Categorical(17))
    )


def state_of(objective: Objective) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in objective.state_dict().items()}


@pytest.mark.parametrize("late", [0, 1])  # as on a CPU and as on a GPU
@pytest.mark.parametrize(
    ("value", "backwards"),
    [(torch.nan, False), (torch.inf, False), (0.0, True)],
    ids=["nan", "inf", "gradient"],
)
def test_fault_52_a_step_that_is_not_finite_is_left_out_and_counted(
    value: float, backwards: bool, late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and moments are those of before, and everything after continues from finite
    numbers."""
    monkeypatch.setattr("vdiff.training.trainer.DELAY", {"cpu": late})
    config, seen = points(steps=8), {}
    sick = objective_of(Sick(lambda call: call in (3, 4, 6), value, backwards))

    def look(entry: dict[str, Any]) -> None:
        seen[entry["step"]] = (state_of(sick), entry)

    with Run.open(tmp_path, config) as run:
        averaged = train(sick, data_of(config), config, run=run, log=look, every=1, quiet=True)
        facts = read_meta(checkpoints(run.checkpoints)[-1])["facts"]["state"]
    assert [entry["skipped"] for _, entry in seen.values()] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert ["train_bits_per_dim" in entry for _, entry in seen.values()] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert (facts["skipped"], facts["in_a_row"]) == (3, 0)
    for name, weight in sick.named_parameters():
        assert torch.equal(seen[4][0][name], seen[2][0][name])
        assert torch.equal(seen[6][0][name], seen[5][0][name])
        assert not torch.equal(seen[5][0][name], seen[4][0][name])
        assert weight.isfinite().all()
    assert all(v.isfinite().all() for v in averaged.state_dict().values())
    steps = load_file(checkpoints(tmp_path / "checkpoints")[-1] / "optimizer.safetensors")[
        "step.model.network.inner.last.bias"
    ]
    assert steps == 5


def test_fault_52_ten_in_a_row_end_the_run_and_say_how_to_see_them_again(tmp_path: Path) -> None:
    config = points(accumulate=2, seed=5)
    sick = objective_of(Sick(lambda call: call > 4))
    said = r"in 10 steps in a row, up to step 11 of seed 5 \(lower the learning rate; .* are in"
    with (
        Run.open(tmp_path, config) as run,
        pytest.raises(ValueError, match=f"train: the loss or its gradient was NaN .* {said}"),
    ):
        train(sick, data_of(config), config, run=run, every=1, quiet=True)
    dump = json.loads((tmp_path / "nonfinite-00000011.json").read_text())
    assert (dump["step"], dump["seed"], len(dump["slots"])) == (11, 5, config.batch)
    slots = [slot["slot"] for slot in dump["slots"]]
    assert slots == list(range(config.batch))
    assert {slot["loss"] for slot in dump["slots"]} == {"nan"}
    batch = Batches(data_of(config), replace(config, accumulate=1))(dump["step"], 0)
    assert batch.images.tolist() == [slot["image"] for slot in dump["slots"]]
    assert batch.u.tolist() == [slot["t"] for slot in dump["slots"]]
    t = torch.tensor([slot["t"] for slot in dump["slots"]], dtype=torch.float64)
    assert torch.equal(
        sick.schedule(t),
        torch.tensor([slot["logsnr"] for slot in dump["slots"]], dtype=torch.float64),
    )
    again = Run(tmp_path).config
    assert again == config  # from the newest checkpoint the same steps come again
    assert outcome(tmp_path)["state"]["skipped"] == 9


def test_fault_52_the_first_ends_the_run_where_it_is_asked_to() -> None:
    config = points()
    sick = objective_of(Sick(lambda call: call == 3))
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 steps .* step 2 of seed 0"):
        train(sick, data_of(config), config, on_nonfinite="raise", quiet=True)
    assert all(p.isfinite().all() for p in sick.parameters())
    with assert_refused(
        ValueError, "train", "on_nonfinite", "be one of 'skip', 'raise'", "did you mean 'skip'?"
    ):
        train(sick, data_of(config), config, on_nonfinite="skipp", quiet=True)


def test_fault_52_no_checkpoint_holds_nan(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = tmp_path / "run"
    with assert_refused(ValueError, "checkpoint", str(run), "hold no NaN", "one in model weight"):
        write(run, 1, {"model": {"weight": torch.tensor([1.0, torch.nan])}}, {})
    assert list((tmp_path / "run").iterdir()) == []


def small(value: float) -> dict[str, dict[str, Tensor]]:
    return {
        "a": {"x": torch.full((7,), float(value))},
        "b": {"y": torch.full((2, 3), float(value)), "n": torch.tensor(int(value))},
    }


EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def killed_at(count: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed where it touches the file system for the so-manieth
    time; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda handle: (hook("open", ()), fsync(handle))[1]  # it is no event of its own
        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_fault_53_killed_at_any_moment_of_writing(tmp_path: Path) -> None:
    """Whichever touch of the file system is the last: the old checkpoint or the new one is there,
    whole, and what is left of a new one is cleared away by the next."""
    moments, old, new = 0, 0, 0

    def work() -> None:
        write(tmp_path, 2, small(2), {"best": 2})
        prune(tmp_path, 1)

    while True:
        shutil.rmtree(tmp_path)
        write(tmp_path, 1, small(1), {"best": 1})
        if not killed_at(moments + 1, work):
            break
        moments += 1
        assert checkpoints(tmp_path)
        for path in checkpoints(tmp_path):
            into = small(0)
            assert read(path, into)["best"] == (step := int(path.name[5:]))
            assert all(
                torch.equal(v, small(step)[file][k])
                for file, named in into.items()
                for k, v in named.items()
            )
        old, new = (old, new + 1) if (tmp_path / "step-00000002").exists() else (old + 1, new)
    assert moments > 15
    assert old > 10
    assert new > 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    for name in (
        ".step-00000005.partial",
        ".step-00000001.partial",
    ):  # of processes that were killed
        (tmp_path / name).mkdir()
    newest = write(tmp_path, 3, small(3), {})
    prune(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [newest]


def test_fault_53_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file, then their folder, then the name, then the folder that holds it."""
    done: list[str] = []
    replace_, fsync = os.replace, os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name),
            fsync(handle),
        ),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace_(a, b)))
    write(tmp_path, 1, small(1), {})
    assert sorted(done[:3]) == ["a.safetensors", "b.safetensors", "meta.json"]
    assert done[3:] == [".step-00000001.partial", "name", tmp_path.name]


def test_fault_53_a_training_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """A sample of what `make soak` does a hundred times."""
    assert kills(2, tmp_path, steps=20)["kills"] >= 2


def test_fault_54_damaged_checkpoints_are_what_they_were_or_refused(tmp_path: Path) -> None:
    """A sample of the ten thousand of `make soak`."""
    assert set(damaged(100, tmp_path)) >= {"refused", "loaded, what it was"}


def damage(path: Path, how: str) -> None:
    file = path / ("meta.json" if "meta" in how else "optimizer.safetensors")
    raw = bytearray(file.read_bytes())
    match how.split()[0]:
        case "cut":
            del raw[len(raw) // 2 :]
        case "flipped":
            raw[len(raw) // 2] ^= 1
        case "empty":
            raw.clear()
        case "missing":
            file.unlink()
            return
    file.write_bytes(raw)


def run_of(folder: Path, config: Config, **options: Any) -> Objective:
    torch.manual_seed(0)
    with Run.open(folder, config) as run:
        return train(
            config.objective(), data_of(config), config, run=run, every=4, quiet=True, **options
        )


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "flipped",
        "empty",
        "missing",
        "cut meta",
        "flipped meta",
        "empty meta",
        "missing meta",
    ],
)
def test_fault_54_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    how: str, tmp_path: Path
) -> None:
    config = points()
    run_of(tmp_path, config)
    whole = outcome(tmp_path)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]
    damage(tmp_path / "checkpoints/step-00000012", how)
    with pytest.warns(
        UserWarning, match=r"checkpoint '.*step-00000012' must .*; the one before it is used"
    ):
        run_of(tmp_path, config)
    assert outcome(tmp_path) == whole
    assert (tmp_path / "checkpoints/refused-step-00000012").is_dir()


def test_fault_54_where_none_can_be_used_nothing_starts_again_in_silence(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    for path in checkpoints(tmp_path / "checkpoints"):
        damage(path, "cut")
    for _ in range(2):  # nor at the second attempt
        kept = "step-00000012, step-00000008, step-00000004"
        said = rf"none of the 3 checkpoints in .*to start anew, take another folder.*{kept}"
        with pytest.warns(UserWarning, match="is cut off"), pytest.raises(ValueError, match=said):
            run_of(tmp_path, config)


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """As on a full disk, but for the number of the error: no file can grow beyond so many
    bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_fault_55_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three checkpoints finds no room, the third does; the run is what it would have
    been."""
    config = points()
    run_of(tmp_path / "whole", config)
    store, found = Run.store, []

    def store_without_room(run: Run, state: State) -> bool:
        with files_of_at_most(2000 if state.step == 8 else 10**9):
            written = store(run, state)
        found.append((state.step, written, [path.name for path in run.checkpoints.iterdir()]))
        return written

    monkeypatch.setattr(Run, "store", store_without_room)
    with pytest.warns(
        UserWarning,
        match=(
            r"no checkpoint at step 8: .*File too large.*; [\d,]+ bytes needed, "
            r"[\d,]+ free.*; the older ones are kept"
        ),
    ):
        run_of(tmp_path / "run", config)
    assert found[1] == (8, False, ["step-00000004"])
    assert found[2][1]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_fault_55_safetensors_own_error_is_one_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("vdiff.training.checkpoint.save_file", full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10))
    with pytest.raises(
        OSError, match=r"No space left on device.*; 60 bytes needed, 10 free"
    ) as caught:
        write(tmp_path, 1, small(1), {})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_fault_56_a_run_of_another_config_shows_the_difference(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    changed = replace(config, lr=0.5, network=config.network | {"width": 17})
    with assert_refused_with(
        ValueError,
        "Run.open: config must be that of the run in .. network: { .. lr: 0.5, where "
        "it was 0.002 .. take another folder",
    ):
        Run.open(tmp_path, changed)
    with Run.open(
        tmp_path, replace(config, accumulate=3)
    ) as run:  # computed in another way, and the same
        assert run.config.accumulate == 3
    with assert_refused(
        ValueError,
        "Run.open",
        "folder",
        "hold no run yet",
        "resume='auto' (--resume auto) resumes it",
    ):
        Run.open(tmp_path, config, resume="never")
    with assert_refused(
        ValueError, "Run.open", "resume", "be one of 'auto', 'never'", "did you mean 'auto'?"
    ):
        Run.open(tmp_path, config, resume="atuo")


def test_fault_56_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    config, other = points(), points(steps=16, lr=0.1)
    run_of(tmp_path / "run", config)
    run_of(tmp_path / "other", other)
    shutil.copytree(
        tmp_path / "other/checkpoints/step-00000016", tmp_path / "run/checkpoints/step-00000016"
    )
    whole = outcome(tmp_path / "run")["files"]
    with pytest.warns(
        UserWarning,
        match=(
            r"must be of this run's config; got steps: 12, where it was 16; "
            r"lr: 0\.002, where it was 0\.1"
        ),
    ):
        run_of(tmp_path / "run", config)
    assert outcome(tmp_path / "run")["files"] != whole


def test_fault_56_another_architecture_and_another_version(tmp_path: Path) -> None:
    """As after a change of the code: the config is the same and the tensors are not."""
    path = write(tmp_path, 3, small(3), {})
    into = small(0)
    into["b"] = {"y": torch.zeros(3, 2), "z": torch.zeros(1)}
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path / "b.safetensors"),
        "have the tensors of this architecture",
        "z [1] is missing; n [] is unknown here; y is [2, 3], here [3, 2]",
    ):
        read(path, into)
    assert into["a"]["x"].abs().sum() == 0
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path / "a.safetensors"),
        "have x in torch.float64",
        "torch.float32",
    ):
        read(path, {"a": {"x": torch.zeros(7, dtype=torch.float64)}})
    with assert_refused(
        ValueError,
        "checkpoint",
        str(path),
        "hold c.safetensors",
        "a.safetensors, b.safetensors",
        "no part of this checkpoint",
    ):
        read(path, {"c": {}})
    meta = json.loads((path / "meta.json").read_text())
    reseal(path, meta | {"format": 2})
    with assert_refused(
        ValueError, "checkpoint", str(path), "have format 1", "got 2", "another version of vdiff"
    ):
        read(path, small(0))


def reseal(path: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with its right checksum, as somebody would who means it."""
    meta.pop("sha256", None)
    (path / "meta.json").write_text(json.dumps(meta | {"sha256": checksum(meta)}))


def test_fault_56_other_versions_of_the_libraries_are_warned_of(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    meta = json.loads((path / "meta.json").read_text())
    meta["facts"]["versions"]["torch"] = "1.0"
    reseal(path, meta)
    with pytest.warns(UserWarning, match="'torch': '1.0'}: not bit for bit"):
        run_of(tmp_path, config)


def test_fault_56_the_command_line_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = points()
    run_of(tmp_path, config)
    save_file({"model.network.layers.0.weight": torch.zeros(1)}, tmp_path / "ema.safetensors")
    assert main(["sample", str(tmp_path)]) == 2
    assert "have the tensors of this architecture" in capsys.readouterr().err


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".bin"])
def test_fault_57_a_pickle_is_never_opened(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = points(), tmp_path / "ran"
    run_of(tmp_path / "run", config)
    evil = tmp_path / f"run/model{suffix}"
    evil.write_bytes(pickle.dumps({"model": Evil(trace)}))
    words = (
        "which is never unpickled",
        "unpickling runs whatever code is in it",
        "safetensors.torch.save_file",
    )
    with assert_refused(
        ValueError, "checkpoint", str(evil), "be safetensors", f"a {suffix} file", *words
    ):
        Run(tmp_path / "run").load(evil.name)
    with assert_refused(
        ValueError, "checkpoint", str(evil), "be a folder of safetensors and JSON", *words
    ):
        read(evil, {})
    with assert_refused_with(
        ValueError,
        "Run.open: resume must be one of 'auto', 'never' .. unpickling runs whatever code is "
        "in it",
    ):
        Run.open(tmp_path / "run", config, resume=str(evil))
    assert not trace.exists()


def test_fault_57_a_pickle_in_the_place_of_a_checkpoints_file_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = write(tmp_path, 1, small(1), {})
    raw = pickle.dumps(Evil(trace))
    (path / "a.safetensors").write_bytes(raw)
    with assert_refused(
        ValueError, "checkpoint", str(path), "hold a.safetensors as it was written"
    ):
        read(path, small(0))
    meta = json.loads((path / "meta.json").read_text())
    import hashlib

    meta["files"]["a.safetensors"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    reseal(path, meta)
    with assert_refused(
        ValueError, "checkpoint", str(path / "a.safetensors"), "be in the form of safetensors"
    ):
        read(path, small(0))
    assert not trace.exists()
    pickle.loads(raw)
    assert trace.exists()  # it was malicious


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_fault_59_a_signal_ends_the_run_behind_its_step_with_a_checkpoint(
    name: str, code: int, tmp_path: Path
) -> None:
    """In a process of its own; a second one would end it at once: see below."""
    config = points()

    def child() -> None:
        def log(entry: dict[str, Any]) -> None:
            if entry["step"] == 2:
                os.kill(os.getpid(), getattr(signal, name))

        with Run.open(tmp_path, config) as run:
            train(
                config.objective(),
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=100,
                quiet=True,
            )

    assert exit_code(child) == code
    assert outcome(tmp_path)["state"]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def exit_code(work: Callable[[], object]) -> int:
    """Of a child that does some work."""
    child = os.fork()
    if child == 0:
        code: object = 1
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                work()
            code = 0
        except SystemExit as left:
            code = left.code
        finally:
            os._exit(int(code))  # type: ignore[call-overload]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_fault_59_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    config = points()

    def child() -> None:
        def log(entry: dict[str, Any]) -> None:
            if entry["step"] == 6:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        with Run.open(tmp_path, config) as run:
            train(
                config.objective(),
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=4,
                quiet=True,
            )

    assert exit_code(child) == -signal.SIGINT
    assert outcome(tmp_path)["state"]["step"] == 4


def test_fault_59_without_a_run_signals_are_left_alone() -> None:
    seen = []
    config = points(steps=2)
    handler = signal.getsignal(signal.SIGINT)
    train(
        config.objective(),
        data_of(config),
        config,
        log=lambda entry: seen.append(signal.getsignal(signal.SIGINT)),
        quiet=True,
    )
    assert seen == [handler]


class Random(nn.Module):
    """A network that draws from every global generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(64)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        factor = random.random() + np.random.rand() + torch.rand(1).item()  # noqa: NPY002
        return self.inner(factor * z, time)  # type: ignore[no-any-return]


def test_fault_60_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    config = points()

    def until(folder: Path, stop: int) -> dict[str, Any]:
        def log(entry: dict[str, Any]) -> None:
            random.seed(time.time())
            if entry["step"] == stop - 1:
                signal.raise_signal(signal.SIGTERM)

        torch.manual_seed(0)
        objective = objective_of(Random())
        with Run.open(folder, config) as run, contextlib.suppress(SystemExit):
            train(
                objective,
                data_of(config),
                config,
                run=run,
                log=log,
                every=1,
                store_every=100,
                quiet=True,
            )
        return outcome(folder)

    whole = until(tmp_path / "whole", 0)
    assert until(tmp_path / "stopped", 5)["state"]["step"] == 5
    assert until(tmp_path / "stopped", 0) == whole


def test_fault_61_another_number_of_processes_needs_no_state_of_theirs(tmp_path: Path) -> None:
    """No generator's state is kept: what a rank draws follows from (seed, step, rank,
    micro-batch), so that a run may go on on any number of them (tests/test_ranks.py does)."""
    config = points()
    run_of(tmp_path, config)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    assert sorted(file.name for file in path.iterdir()) == [
        "ema-0.9.safetensors",
        "ema-0.99.safetensors",
        "meta.json",
        "objective.safetensors",
        "optimizer.safetensors",
    ]
    assert not any(
        "rng" in name for file in path.glob("*.safetensors") for name in load_file(file)
    )
    assert "processes" not in read_meta(path)["facts"]["state"]


def test_fault_62_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is given who has it; the lock of one that was killed is free."""
    config = points(steps=10_000)
    first = subprocess.Popen(
        command(tmp_path, {"steps": 10_000, "do": "hang", "at": 3}),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "now\n"
        with assert_refused(
            ValueError,
            "Run.open",
            "folder",
            "be used by one training at a time",
            f"process {first.pid} on {os.uname().nodename} in",
            "stop it, or take another folder",
        ):
            Run.open(tmp_path / "0", config)
        with assert_refused(
            ValueError,
            "Run.create",
            "folder",
            "be used by one training at a time",
            f"process {first.pid}",
        ):
            Run.create(tmp_path / "0", config)
        assert Run(tmp_path / "0").config == config  # to look is free
    finally:
        first.kill()
        first.communicate()
    with (
        Run.open(tmp_path / "0", config),
        assert_refused(
            ValueError, "Run.open", "folder", "be used by one training", f"process {os.getpid()}"
        ),
    ):
        Run.open(tmp_path / "0", config)
    Run.open(tmp_path / "0", config).close()


def test_fault_63_a_clock_that_runs_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = points()
    run_of(tmp_path / "whole", config)
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with Run.open(tmp_path / "run", config) as run:
        torch.manual_seed(0)
        train(config.objective(), data_of(config), config, run=run, every=4)
    for path in checkpoints(tmp_path / "run/checkpoints"):
        os.utime(
            path, (10**9 - int(path.name[5:]),) * 2
        )  # the newest by its step is the oldest by its date
    run_of(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert all(entry["seconds"] >= 0 for entry in Run(tmp_path / "run").history())


def test_fault_64_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", Path("/proc/nothing")):
        for make in (Run.open, Run.create):
            with assert_refused(
                ValueError,
                f"Run.{make.__name__}",
                "folder",
                "be one that can be written to",
                str(folder),
            ):
                make(folder, points())


def test_fault_65_relative_paths_spaces_and_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, name = points(), "mit Leerzeichen und 図形"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Run.open(name, config) as run:
        monkeypatch.chdir(tmp_path / "elsewhere")
        torch.manual_seed(0)
        train(config.objective(), data_of(config), config, run=run, every=4, quiet=True)
    assert run.folder == tmp_path / name
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(run.history()) == 3
    assert not Run(tmp_path / name).load().training
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run(f"~/{name}").folder == run.folder


def test_fault_67_no_two_slots_share_their_noise() -> None:
    """There are no workers whose generators could be copies: a slot's noise is its own, on all
    ranks and in all steps."""
    config = points(augment="none", batch=12)
    noise = torch.cat(
        [
            Batches(data_of(config), config, rank=Rank(i, 2))(step, 0).eps
            for step in range(20)
            for i in range(2)
        ]
    )
    assert len(noise.unique(dim=0)) == 240
    flat = noise.flatten()
    assert flat.mean().abs() < 4 / len(flat) ** 0.5
    assert (flat.var() - 1).abs() < 4 * (2 / len(flat)) ** 0.5


def test_fault_70_a_batch_that_cannot_be_shared_evenly() -> None:
    config = points(batch=12)
    for place, accumulate, words in (
        (
            Rank(0, 5),
            1,
            ("be a multiple of 5", "12 for 5 processes of 1 micro-batches", "batch=10"),
        ),
        (Rank(0, 2), 4, ("be a multiple of 8", "batch=16")),
    ):
        with assert_refused(ValueError, "", "batch", *words):
            Batches(data_of(config), replace(config, accumulate=accumulate), rank=place)


def test_fault_70_every_image_counts_once_in_each_pass() -> None:
    """Of 500 images in batches of 12, over three passes, the last of which ends within a batch."""
    config = points(batch=12)
    batches = Batches(data_of(config), config)
    order = torch.cat([batches.images(step) for step in range(125)]).view(3, 500)
    assert all(len(one.unique()) == 500 for one in order)
    assert not torch.equal(order[0], order[1])


def test_fault_71_out_of_memory_says_what_helps() -> None:
    class Huge(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.inner, self.error = Net(64), error

        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            raise self.error

    config = points(accumulate=3)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"
        ),
    ):
        with pytest.raises(type(error)) as caught:
            train(objective_of(Huge(error)), data_of(config), config, quiet=True)
        assert caught.value is error
        assert caught.value.__notes__ == [
            "train: a batch of 12 in 3 micro-batches on 1 processes is 4 images at a time: "
            "raise accumulate, which leaves the result as it is; "
            "or lower the batch, take more processes, autocast, or a network with checkpoint=True"
        ]
    with pytest.raises(RuntimeError, match="something else") as caught:
        train(
            objective_of(Huge(RuntimeError("something else"))), data_of(config), config, quiet=True
        )
    assert "accumulate" not in "".join(caught.value.__notes__)


def test_fault_72_half_a_line_in_the_log(tmp_path: Path) -> None:
    """And whole ones beyond the checkpoint: the log of a resumed run has every step once."""
    config = points()
    run_of(tmp_path / "whole", config)
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", folder)
    for step in (12,):
        shutil.rmtree(folder / f"checkpoints/step-{step:08d}")
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 13, "train_bi')
    assert [entry["step"] for entry in Run(folder).history()] == [4, 8, 12]
    run_of(folder, config)
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert (folder / "log.jsonl").read_text().count("\n") == 3


def test_fault_73_a_log_that_fails_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own, and TensorBoard."""

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (Path(folder).name, purge_step) == ("tensorboard", 1)
            self.calls = 0

        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise ConnectionError("TensorBoard is down")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )

    def log(entry: dict[str, Any]) -> None:
        raise ConnectionError("wandb is down")

    config = points()
    with (
        pytest.warns(
            UserWarning,
            match="a log failed, training continues: ConnectionError: TensorBoard is down",
        ),
        pytest.warns(UserWarning, match="ConnectionError: wandb is down"),
    ):
        run_of(tmp_path, config, log=log)
    assert outcome(tmp_path)["state"]["step"] == 12
    assert len(Run(tmp_path).history()) == 3


def test_fault_73_tensorboard_gets_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            got.clear()

        def add_scalar(self, name: str, value: float, step: int) -> None:
            got.append((name, value, step))

        def flush(self) -> None:
            pass

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )
    run_of(tmp_path, points(), validate=lambda averaged: 2.0)
    assert {name for name, _, _ in got} >= {
        "train_bits_per_dim",
        "gradient_norm",
        "lr",
        "skipped",
        "selection_bits_per_dim",
    }
    assert [step for name, _, step in got if name == "train_bits_per_dim"] == [4, 8, 12]


def test_fault_73_tensorboard_that_does_not_even_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def fails(name: str, *rest: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError("no module named tensorboard")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fails)
    run_of(tmp_path, points())
    assert outcome(tmp_path)["state"]["step"] == 12


def test_fault_73_tensorboard_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PermissionError("no place for events")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=fails)
    )
    with pytest.warns(
        UserWarning,
        match="TensorBoard failed, training continues: PermissionError: no place for events",
    ):
        run_of(tmp_path, points())
    assert outcome(tmp_path)["state"]["step"] == 12


def test_fault_62_a_run_that_is_only_read_is_not_trained(tmp_path: Path) -> None:
    config = points()
    run_of(tmp_path, config)
    with assert_refused(
        ValueError, "train", "run", "be opened for training", "Run.open(folder, config)"
    ):
        train(config.objective(), data_of(config), config, run=Run(tmp_path), quiet=True)
    other = replace(config, lr=0.1)
    with (
        Run.open(tmp_path, config) as run,
        assert_refused(ValueError, "train", "run", "be of the config that is trained", "lr: 0.1"),
    ):
        train(other.objective(), data_of(other), other, run=run, quiet=True)


def test_averages_in_float32_of_a_network_in_half_precision() -> None:
    objective = objective_of(Net(64).bfloat16())
    averages = EMA(objective, [0.9999])
    averaged = averages.copies[0.9999]
    assert {p.dtype for p in averaged.model.parameters()} == {torch.float32}
    before = {k: v.clone() for k, v in averaged.state_dict().items()}
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(1.0)
    averages.update(10**6)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p, before[name] + 1e-4, rtol=0, atol=2e-6, check_dtype=False)
