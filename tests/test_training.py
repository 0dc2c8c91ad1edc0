"""Training: the loop, its averages and its folder."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vdiff import Categorical, Denoiser, LearnedLinear, Objective, X
from vdiff.data.digits import LEVELS, digits
from vdiff.nn import UNet
from vdiff.training import Config, Run, parameter_groups, train
from vdiff.training.checkpoint import checkpoints, read_meta
from vdiff.training.config import build
from vdiff.training.loop import pace

TINY = Config(
    network={"name": "UNet", "channels": 1, "channels_out": LEVELS, "width": 8, "multipliers": [1], "heads": 1},
    steps=12,
    batch=16,
    warmup=4,
    ema=[0.5],
)


def test_digits_are_split_by_the_rule():
    from numpy.random import RandomState
    from sklearn.datasets import load_digits

    images = digits()
    order = RandomState(0).permutation(1797)
    raw = torch.from_numpy(load_digits().images).long()
    assert torch.equal(images.test[:, 0], raw[order[-297:]])
    assert (len(images.train), len(images.selection), len(images.test)) == (1300, 200, 297)
    assert (images.train.min(), images.train.max()) == (0, LEVELS - 1)
    assert len(images.train_labels) == 1300


def test_training_lowers_the_loss_and_is_a_function_of_its_seed(tmp_path):
    images = digits().train
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        log: list[dict[str, float]] = []
        trained = train(TINY.objective(), images, TINY, log=log.append, every=3, quiet=True)
        runs.append((trained.state_dict(), log))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True))
    first, last = runs[0][1][0], runs[0][1][-1]
    assert last["train_bits_per_dim"] < first["train_bits_per_dim"]
    assert [entry["step"] for entry in runs[0][1]] == [3, 6, 9, 12]


def test_a_loss_that_stays_nan_stops_the_run_and_never_reaches_the_weights():
    objective = TINY.objective()
    with torch.no_grad():
        next(objective.parameters()).fill_(torch.nan)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"train: argument 'objective' must have a finite loss; got NaN or infinity in 10 steps in a row, up to step 9 of seed 0",
    ):
        train(objective, digits().train, TINY, quiet=True)
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in objective.state_dict().items())


def test_a_run_folder_gives_back_what_was_saved(tmp_path):
    run = Run.create(tmp_path / "läuft mit Leerzeichen", TINY)
    objective = TINY.objective()
    run.save(objective)
    run.log({"step": 1, "train_bits_per_dim": 2.5})
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "train')  # cut off by a crash
    again = Run(run.folder)
    assert again.config == TINY
    assert again.history() == [{"step": 1, "train_bits_per_dim": 2.5}]
    loaded = again.load()
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), objective.state_dict().values(), strict=True))
    assert sorted(p.name for p in run.folder.iterdir()) == [".lock", "checkpoints", "config.json", "ema.safetensors", "log.jsonl"]
    with pytest.raises(ValueError, match=r"Run: argument 'folder' must hold a config\.json"):
        Run(tmp_path)


POINTS = Config(  # digits as points
    network={"name": "MLP", "dims": 64, "width": 16, "depth": 1, "features": 8},
    shape=[64],
    parameterization={"name": "V"},
    level_head=False,
    steps=12,
    batch=8,
    accumulate=2,
    warmup=3,
    ema=[0.9, 0.99],
)


def run_until(folder: Path, config: Config, stop: int | None = None, **options: Any) -> dict[str, Any]:
    """What the newest checkpoint says after training to the end, or until a signal is sent during step `stop`."""

    def log(entry: dict[str, Any]) -> None:
        if stop is not None and entry["step"] == stop - 1:
            signal.raise_signal(signal.SIGTERM)

    data = digits().train.view(-1, *config.shape)
    torch.manual_seed(int(folder.exists()))  # other weights, from which a resumed run must not start
    with Run.open(folder, config) as run:
        if stop is None:
            train(config.objective(), data, config, run=run, every=1, quiet=True, **{"store_every": 100, **options})
        else:
            with pytest.raises(SystemExit) as left:
                train(config.objective(), data, config, run=run, every=1, log=log, quiet=True, **{"store_every": 100, **options})
            assert left.value.code == 128 + signal.SIGTERM
        meta = read_meta(checkpoints(run.checkpoints)[-1])
        history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history()]
    return {"files": meta["files"], "state": meta["facts"]["state"], "history": history}


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "Linear"},
        {"name": "LearnedLinear"},
        {"name": "Spline", "knots": 5},
        {"name": "Monotone", "hidden": 7, "learn_ends": False},
        {"name": "Adaptive", "bins": 6, "warmup": 2},
    ],
    ids=lambda spec: spec["name"],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(schedule, tmp_path):
    config = replace(POINTS, schedule=schedule)
    whole = run_until(tmp_path / "whole", config)
    first = run_until(tmp_path / "stopped", config, 5)
    assert first["state"]["step"] == 5
    assert first["files"] != whole["files"]
    run_until(tmp_path / "stopped", config, 7)
    assert run_until(tmp_path / "stopped", config) == whole
    assert [entry["step"] for entry in whole["history"]] == list(range(1, 13))


def test_configs_name_classes_and_unknown_ones_get_the_nearest():
    from vdiff import schedule

    assert json.loads(json.dumps(TINY.asdict())) == TINY.asdict()
    assert build(schedule, {"name": "Normal", "mean": 1.0, "std": 2.0})(torch.tensor(0.5)) == 1.0
    with pytest.raises(ValueError, match="did you mean 'Cosine'"):
        build(schedule, {"name": "Cosin"})


def test_schedules_never_decay_and_learn_at_their_own_pace():
    objective = Objective(Denoiser(UNet(1, width=8), X()), schedule=LearnedLinear(), decoder=Categorical(LEVELS))
    model, schedule = parameter_groups(objective, lr=1e-3, weight_decay=0.1, schedule_lr=1e-2)
    assert {id(p) for p in schedule["params"]} == {id(p) for p in objective.schedule.parameters()}
    assert (schedule["weight_decay"], schedule["lr"], model["weight_decay"]) == (0.0, 1e-2, 0.1)
    assert len(model["params"]) + 2 == len(list(objective.parameters()))


def test_the_pace_of_the_learning_rate():
    assert [pace(step, 10, 110) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
