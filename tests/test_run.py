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

import pytest
import torch
from points import data_of, outcome, points, run_until
from safetensors import SafetensorError
from short_runs import CONFIG, trained
from torch import Tensor

from vdiff.cli import main
from vdiff.likelihood.estimate import Estimate
from vdiff.training import Config, Run, train
from vdiff.training.checkpoint import checkpoints, read_meta

DIGITS = Config(
    network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}, steps=2, batch=4
)
EVALUATE = ["--data", "digits", "--draws", "1", "--replicates", "2", "--device", "cpu", "--quiet"]


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


def test_a_checkpoint_says_on_what_it_was_trained(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(tmp_path)
    facts = read_meta(checkpoints(tmp_path / "checkpoints")[-1])["facts"]
    assert facts["unlike"] == []
    assert facts["data"] == Run(tmp_path).loaded().data != []
