"""What a training leaves, and what is lost: nothing that was trained, whatever it started from,
was interrupted by, or is made of.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch
from points import data_of, outcome, points, run_until
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff.cli import main
from vdiff.decoder import Categorical
from vdiff.likelihood.estimate import Estimate
from vdiff.nn import MLP
from vdiff.objective import VLB
from vdiff.parameterization import V
from vdiff.schedule import Linear
from vdiff.training import Config, Run, train
from vdiff.training.checkpoint import checkpoints, read_meta
from vdiff.training.ema import EMA
from vdiff.training.state import State

CONFIG = points(
    steps=4, schedule={"name": "Linear", "logsnr_max": 10.0, "logsnr_min": -7.0}, ema=[0.9]
)
DIGITS = Config(
    network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}, steps=2, batch=4
)
EVALUATE = ["--data", "digits", "--draws", "1", "--replicates", "2", "--device", "cpu", "--quiet"]


def trained(folder: Path, config: Config = CONFIG, **options: object) -> Objective:
    with Run.open(folder, config) as run:
        return train(config.objective(), data_of(config), config, run=run, quiet=True, **options)


# a run that is there already


@pytest.mark.parametrize("finished", ["saved", "trained", "a link that leads nowhere"])
def test_a_finished_run_without_checkpoints_is_not_trained_anew(finished, tmp_path):
    """What `make demo` leaves; and a run whose checkpoints were deleted."""
    with Run.create(tmp_path, CONFIG) as run:
        averaged = train(
            CONFIG.objective(), data_of(CONFIG), CONFIG, log=run.log, every=1, quiet=True
        )
        run.save(averaged)
    if finished == "trained":
        shutil.rmtree(tmp_path)
        trained(tmp_path, every=1)
        shutil.rmtree(tmp_path / "checkpoints")
    elif finished == "a link that leads nowhere":
        (tmp_path / "ema.safetensors").rename(tmp_path / "weights")
        (tmp_path / "ema.safetensors").symlink_to("moved")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=(
                r"Run.open: argument 'folder' must hold a checkpoint to resume from; got trained "
                r"weights alone, in .* \(they are kept; .*Run.create"
            ),
        ):
            Run.open(tmp_path, CONFIG, resume="auto")
    assert {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()
    } == before
    with pytest.warns(UserWarning, match="replacing the run"):
        Run.create(tmp_path, CONFIG).close()
    trained(tmp_path)


def test_a_log_without_checkpoints_is_kept_when_training_starts_again(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log({"step": 3, "train_bits_per_dim": 2.0})
    for name in ("old-log.jsonl", "old-log.jsonl-1"):
        log = (tmp_path / "log.jsonl").read_text()
        with pytest.warns(
            UserWarning,
            match=(
                rf"has a log and no checkpoint: the training starts again at step 0; the old log "
                rf"is {name}$"
            ),
        ):
            trained(tmp_path, every=1)
        assert (tmp_path / name).read_text() == log
        assert [entry["step"] for entry in Run(tmp_path).history()] == [1, 2, 3, 4]
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "ema.safetensors").unlink()


def test_a_start_that_left_nothing_is_no_run(tmp_path):
    with Run.open(tmp_path, CONFIG):
        pass
    trained(tmp_path)
    trained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "ema.safetensors",
        "log.jsonl",
        "trained_on",
    ]


# validations and disks that fail


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        torch.tensor(math.nan),
        Estimate(math.nan, math.nan, math.nan),
    ],
)
@pytest.mark.parametrize("when", ["first", "later", "always"])
def test_a_validation_that_is_not_finite_is_logged_and_never_the_best(bad, when, tmp_path):
    values = {"first": [bad, 2.0, 1.5, 1.75], "later": [2.0, bad, 1.5, 1.75], "always": [bad] * 4}[
        when
    ]
    left = iter(values)
    with pytest.warns(
        UserWarning,
        match=(
            r"the validation at step \d is -?(nan|inf): it is logged as none, and training "
            r"continues"
        ),
    ):
        trained(tmp_path, every=1, validate=lambda averaged: next(left))
    history, found = Run(tmp_path).history(), outcome(tmp_path)
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert [entry["selection_bits_per_dim"] for entry in history] == [
        None if value is bad else value for value in values
    ]
    assert found["state"]["best"] == (
        None if when == "always" else {"step": 3, "bits_per_dim": 1.5}
    )
    assert len(checkpoints(tmp_path / "checkpoints")) == 3
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (tmp_path / "ema.safetensors").is_file()


@pytest.mark.parametrize("error", ["safetensors", "os"])
def test_the_last_save_on_a_full_disk_says_how_much_is_missing_and_loses_nothing(
    error, tmp_path, monkeypatch
):
    def full(*_: object) -> None:
        text = "No space left on device"
        raise (
            SafetensorError(f"I/O error: {text} (os error 28)")
            if error == "safetensors"
            else OSError(errno.ENOSPC, text)
        )

    monkeypatch.setattr("vdiff.training.weights.save_file", full)
    with pytest.warns(
        UserWarning,
        match=r"no averaged weights: .*No space left.*; [\d,]+ bytes needed, [\d,]+ free",
    ) as said:
        averaged = trained(tmp_path)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert not (tmp_path / "ema.safetensors").exists()
    loaded = Run(tmp_path).load()
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), averaged.state_dict().values(), strict=True)
    )
    monkeypatch.undo()
    trained(tmp_path)  # nothing is left to do but that
    assert (tmp_path / "ema.safetensors").is_file()


def test_a_save_that_fails_keeps_the_weights_that_are_there(tmp_path, monkeypatch):
    with Run.open(tmp_path, CONFIG) as run:
        run.save(CONFIG.objective())
        before = (tmp_path / "ema.safetensors").read_bytes()

        def full(tensors, path, header):
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("vdiff.training.weights.save_file", full)
        with pytest.raises(
            OSError,
            match=(
                r"No space left on device.*; [\d,]+ bytes needed, [\d,]+ "
                r"free: '.*ema.safetensors'"
            ),
        ):
            run.save(CONFIG.objective())
    assert (tmp_path / "ema.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.partial*"))


# which weights are read


@pytest.mark.parametrize("name", ["ema", "ema-0.9"])
@pytest.mark.parametrize("kind", ["broken link", "folder", "pipe"])
def test_what_has_the_name_of_the_weights_and_is_no_file_is_refused(kind, name, tmp_path, capsys):
    """Where older weights are in a checkpoint, which would be evaluated in silence."""
    trained(tmp_path)
    place = tmp_path / f"{name}.safetensors"
    place.unlink(missing_ok=True)
    {
        "broken link": lambda: place.symlink_to("moved"),
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
    }[kind]()
    with pytest.raises(
        ValueError,
        match=(
            rf"Run.load: argument 'folder' must hold {name}.safetensors as a file; got .*delete "
            rf"it: the newest checkpoint"
        ),
    ):
        Run(tmp_path).load(name)
    if name == "ema":
        for words in (
            ["evaluate", str(tmp_path), *EVALUATE],
            ["sample", str(tmp_path), "--quiet"],
        ):
            assert main(words) == 2
            assert "hold ema.safetensors as a file" in capsys.readouterr().err


def test_a_link_to_weights_is_read(tmp_path):
    trained(tmp_path)
    (tmp_path / "ema.safetensors").rename(tmp_path / "moved")
    (tmp_path / "ema.safetensors").symlink_to("moved")
    assert Run(tmp_path).loaded().record["read from"] == "ema.safetensors"


@pytest.mark.parametrize("kind", ["missing", "broken link", "pipe"])
def test_a_newest_checkpoint_without_its_weights_does_not_give_way_to_an_older_one(kind, tmp_path):
    trained(tmp_path, every=1)
    (tmp_path / "ema.safetensors").unlink()
    place = checkpoints(tmp_path / "checkpoints")[-1] / "ema-0.9.safetensors"
    place.unlink()
    if kind != "missing":
        place.symlink_to("moved") if kind == "broken link" else os.mkfifo(place)
    with pytest.raises(
        ValueError,
        match=(
            r"step-00000004' must hold ema-0.9.safetensors as a regular "
            r"file; got none, or a link"
        ),
    ):
        Run(tmp_path).load()


def test_an_evaluation_names_the_file_the_step_and_the_config_of_its_weights(tmp_path):
    with Run.open(tmp_path, DIGITS) as run:
        train(DIGITS.objective(), data_of(DIGITS), DIGITS, run=run, every=1, quiet=True)
    seen = []
    for name, path in (
        ("ema.safetensors", tmp_path / "ema.safetensors"),
        ("checkpoints/step-00000002/ema-0.999.safetensors", None),
    ):
        if path is None:
            (tmp_path / "ema.safetensors").unlink()
        assert main(["evaluate", str(tmp_path), *EVALUATE]) == 0
        protocol = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
        seen.append(protocol)
        assert (protocol["read from"], protocol["step"]) == (name, 2)
        assert (
            protocol["weights file"]
            == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16]
        )
        assert protocol["parameterization"] == "X()"
        assert protocol["trained schedule"] == "Linear(logsnr_max=9.0, logsnr_min=-7.0)"
    assert seen[0]["config"] == seen[1]["config"]
    assert seen[0]["model"] == seen[1]["model"]


def test_the_hash_is_that_of_what_was_loaded_while_a_training_writes(tmp_path):
    """Each load agrees with its record, and none fails, though checkpoints come and go."""
    config = points(steps=60, schedule=CONFIG.schedule, ema=[0.9])
    run_until(tmp_path / "known", config)
    done = threading.Event()

    def work() -> None:
        with Run.open(tmp_path / "run", config, keep=1) as run:
            train(config.objective(), data_of(config), config, run=run, every=1, quiet=True)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not checkpoints(tmp_path / "run" / "checkpoints"):
        pass
    weights: dict[str, Tensor] = {}
    steps: set[object] = set()
    while not done.is_set():
        objective, record, _ = Run(tmp_path / "run").loaded()
        mark, bias = (
            str(record["weights file"]),
            objective.state_dict()["model.network.layers.0.bias"],
        )
        assert torch.equal(weights.setdefault(mark, bias), bias)
        steps.add((record["step"], record["read from"], mark))
    thread.join()
    assert len(steps) > 3
    assert len({mark for *_, mark in steps}) >= len({step for step, *_ in steps})


# what weights can be made of


class Made(nn.Module):
    """A network with weights of some dtype beside its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = MLP(64, width=16, depth=1, features=8), kind
        extra = {
            "complex64": lambda: nn.Parameter(0.1 * torch.randn(33, dtype=torch.complex64)),
            "complex128": lambda: nn.Parameter(0.1 * torch.randn(33, dtype=torch.complex128)),
            "sparse": lambda: nn.Embedding(100, 64, sparse=True),
            "whole numbers": lambda: nn.Parameter(
                torch.ones(64, dtype=torch.int64), requires_grad=False
            ),
            "float64": lambda: nn.Linear(64, 64).double(),
        }
        self.extra = extra[kind]()

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        out = self.inner(z, time)
        if self.kind.startswith("complex"):
            return out + torch.fft.irfft(
                torch.fft.rfft(z.to(self.extra.real.dtype)) * self.extra, 64
            ).to(out.dtype)
        if self.kind == "sparse":
            return out + self.extra((5 * (time + 10)).long().clamp(0, 99))
        if self.kind == "float64":
            return out + self.extra(z.double()).to(out.dtype)
        return out * self.extra


def made(kind: str) -> Objective:
    torch.manual_seed(0)
    return Objective(
        Denoiser(Made(kind), V()), schedule=Linear(10.0, -7.0), loss=VLB(Categorical(17))
    )


KINDS = ["complex64", "complex128", "sparse", "whole numbers", "float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_are_trained_kept_and_loaded(kind, tmp_path):
    """Without a run, with one, stopped and resumed, to the last bit; the extra weights move where
    they can.
    """
    start = made(kind)
    alone = train(made(kind), data_of(CONFIG), CONFIG, quiet=True)
    whole = _in_run(kind, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stop"):
        _in_run(kind, tmp_path / "stopped", stop=2)
    stopped = _in_run(kind, tmp_path / "stopped")
    loaded = Run(tmp_path / "whole").load(objective=made(kind))
    for name, value in alone.state_dict().items():
        for other in (whole, stopped, loaded):
            assert torch.equal(other.state_dict()[name], value), name
            assert other.state_dict()[name].dtype == start.state_dict()[name].dtype
    moved = not torch.equal(_extra(alone), _extra(start))
    assert moved == (kind != "whole numbers")


def _extra(objective: Objective) -> Tensor:
    return torch.cat(
        [p.detach().flatten() for name, p in objective.named_parameters() if "extra" in name]
    )


def _in_run(kind: str, folder: Path, stop: int = 0) -> Objective:
    seen: list[int] = []

    def validate(averaged: Objective) -> float:
        seen.append(1)
        if len(seen) == stop:
            raise RuntimeError("stop")
        return 1.0

    with Run.open(folder, CONFIG) as run:
        return train(
            made(kind), data_of(CONFIG), CONFIG, run=run, every=1, validate=validate, quiet=True
        )


class Sick(nn.Module):
    """A network with a complex weight that at some of its calls returns NaN."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.bad, self.calls = Made("complex64"), bad, 0

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(z, time) + (torch.nan if self.calls in self.bad else 0.0)


def test_a_step_that_is_not_finite_is_left_out_by_the_plain_optimizer_too():
    objective = Objective(
        Denoiser(Sick((2, 3)), V()), schedule=Linear(10.0, -7.0), loss=VLB(Categorical(17))
    )
    seen: list[tuple[dict[str, Tensor], int]] = []

    def log(entry: dict[str, int]) -> None:
        seen.append(
            (
                {name: p.detach().clone() for name, p in objective.named_parameters()},
                entry["skipped"],
            )
        )

    train(objective, data_of(CONFIG), CONFIG, log=log, every=1, quiet=True)
    assert [skipped for _, skipped in seen] == [0, 1, 2, 2]
    for name in seen[0][0]:
        assert torch.equal(seen[2][0][name], seen[0][0][name])
        assert seen[3][0][name].isfinite().all()
    assert not torch.equal(
        seen[3][0]["model.network.inner.extra"], seen[2][0]["model.network.inner.extra"]
    )


def test_complex_weights_take_adamw_s_step():
    """As torch's own, on real and imaginary parts."""
    config = points(
        steps=1, warmup=0, decay="constant", clip=None, schedule=CONFIG.schedule, ema=[0.0]
    )
    objective = made("complex64")
    start = objective.model.network.extra.detach().clone()
    train(objective, data_of(config), config, quiet=True)
    step = objective.model.network.extra.detach() - start * (1 - config.lr * config.weight_decay)
    parts = torch.view_as_real(step)
    moved = parts[parts.abs() > 1e-6]
    assert len(moved) > 60
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, config.lr), rtol=1e-3, atol=0)


def test_nan_in_complex_weights_is_no_checkpoint(tmp_path):
    state = State(made("complex64"), CONFIG)
    with torch.no_grad():
        state.objective.model.network.extra[3] = complex(0.0, math.nan)
    with (
        Run.open(tmp_path, CONFIG) as run,
        pytest.raises(
            ValueError, match=r"must hold no NaN; got one in objective model\.network\.extra"
        ),
    ):
        run.store(state)


def test_only_what_has_a_kernel_is_fused():
    assert State(CONFIG.objective(), CONFIG).fused
    assert State(made("float64"), CONFIG).fused
    assert not State(made("complex64"), CONFIG).fused


def test_weights_without_values_are_named():
    with torch.device("meta"):
        objective = CONFIG.objective()
    with pytest.raises(
        ValueError,
        match=(
            r"train: argument 'objective' must have weights; got the meta device "
            r"\(objective.to_empty"
        ),
    ):
        train(objective, data_of(CONFIG), CONFIG, quiet=True)


# half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["default dtype", "cast"])
@pytest.mark.parametrize("weights", ["averaged", "of a checkpoint"])
def test_a_run_with_weights_in_half_precision_is_loaded_as_it_was_averaged(
    dtype, how, weights, tmp_path
):
    """Averages are in float32, and so is what `load` returns: the numbers that a validation
    saw."""
    config = points(steps=4, schedule=CONFIG.schedule, ema=[0.9], lr=1e-4)
    objective = half(config, dtype, how)
    assert dtype in {p.dtype for p in objective.model.parameters()}
    with Run.open(tmp_path, config) as run:
        averaged = train(objective, data_of(config), config, run=run, quiet=True)
    assert {p.dtype for p in averaged.model.parameters()} == {torch.float32}
    if weights == "of a checkpoint":
        (tmp_path / "ema.safetensors").unlink()
    before = torch.get_default_dtype()
    if how == "default dtype":
        torch.set_default_dtype(dtype)
    try:
        loaded = Run(tmp_path).load()
    finally:
        torch.set_default_dtype(before)
    for name, value in averaged.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(loaded.state_dict()[name], value), name
    x, setting = data_of(config)[:8], {"u": torch.linspace(0.1, 0.9, 8), "eps": torch.randn(8, 64)}
    assert torch.equal(loaded(x, **setting), averaged(x, **setting))
    with Run.open(tmp_path, config) as run:  # and goes on
        again = train(half(config, dtype, how), data_of(config), config, run=run, quiet=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), averaged.state_dict().values(), strict=True)
    )


def half(config: Config, dtype: torch.dtype, how: str) -> Objective:
    torch.manual_seed(0)
    if how == "default dtype":
        torch.set_default_dtype(dtype)
        try:
            objective = config.objective()
        finally:
            torch.set_default_dtype(torch.float32)
        return objective
    objective = config.objective()
    objective.model.to(dtype)
    return objective


def test_weights_come_back_in_the_precision_in_which_they_were_saved(tmp_path):
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        objective = CONFIG.objective()
        objective.model.to(dtype)
        shutil.rmtree(tmp_path, ignore_errors=True)
        with Run.open(tmp_path, CONFIG) as run:
            run.save(objective)
        loaded = Run(tmp_path).load()
        assert {p.dtype for p in loaded.model.parameters()} == {dtype}
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                loaded.state_dict().values(), objective.state_dict().values(), strict=True
            )
        )


def test_another_kind_of_number_is_another_architecture(tmp_path):
    from safetensors.torch import save_file

    trained(tmp_path)
    tensors = load_file(tmp_path / "ema.safetensors")
    name = "model.network.layers.0.bias"
    save_file(tensors | {name: tensors[name].long()}, tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match=rf"must have {name} in torch.float32; got torch.int64"):
        Run(tmp_path).load()


def test_averages_of_every_kind():
    for kind in KINDS:
        objective = made(kind)
        averages = EMA(objective, [0.5])
        before = _extra(averages.copies[0.5]).clone()
        with torch.no_grad():
            for p in objective.parameters():
                p.add_(2)
        averages.update(100)
        grown = _extra(averages.copies[0.5]) - before
        expected = torch.full_like(grown, 2 if kind == "whole numbers" else 1)
        torch.testing.assert_close(grown, expected, rtol=0, atol=1e-6)


def test_a_checkpoint_says_on_what_it_was_trained(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(tmp_path)
    facts = read_meta(checkpoints(tmp_path / "checkpoints")[-1])["facts"]
    assert facts["unlike"] == []
    assert facts["data"] == Run(tmp_path).loaded().data != []
