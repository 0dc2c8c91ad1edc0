"""Training: the loop, its averages and its folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from points import data_of, points, run_until, tensors
from safetensors.torch import load_file, save_file

from vdiff import Denoiser, Objective
from vdiff.data.digits import LEVELS, digits
from vdiff.decoder import Categorical
from vdiff.likelihood import evaluate
from vdiff.nn import UNet
from vdiff.objective import VLB
from vdiff.parameterization import X
from vdiff.schedule import LearnedLinear
from vdiff.training import Config, Run, Validation, parameter_groups, train
from vdiff.training.batches import Batches
from vdiff.training.config import build
from vdiff.training.ema import EMA
from vdiff.training.trainer import lr_lambda

TINY = Config(
    network={
        "name": "UNet",
        "channels": 1,
        "channels_out": LEVELS,
        "width": 8,
        "multipliers": [1],
        "heads": 1,
    },
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
    assert all(
        torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True)
    )
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
        match=(
            r"train: the loss or its gradient was NaN or infinity in 10 steps in a row, up to "
            r"step 9 of seed 0"
        ),
    ):
        train(objective, digits().train, TINY, quiet=True)
    assert all(
        torch.equal(v.nan_to_num(), before[k].nan_to_num())
        for k, v in objective.state_dict().items()
    )


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
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), objective.state_dict().values(), strict=True)
    )
    assert sorted(p.name for p in run.folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "ema.safetensors",
        "log.jsonl",
    ]
    with pytest.raises(ValueError, match=r"Run: argument 'folder' must hold a config\.json"):
        Run(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"name": "LearnedLinear"}, "accumulate": 3},
        {"schedule": {"name": "Spline", "knots": 5}},
        {"schedule": {"name": "Monotone", "hidden": 7, "learn_ends": False}, "clip": None},
        {
            "schedule": {"name": "Adaptive", "bins": 6, "warmup": 2},
            "decay": "constant",
            "autocast": True,
        },
        {"schedule": {"name": "LearnedLinear"}, "weighting": {"name": "Sigmoid"}, "accumulate": 2},
        {"schedule": {"name": "Linear"}, "chain": 4, "resampling": True},
        TINY.asdict()
        | {
            "network": TINY.network | {"dropout": 0.5},
            "ema": [0.5, 0.9],
            "channels_last": True,
            "augment": "flip",
        },
    ],
    ids=[
        "learned ends",
        "spline",
        "monotone",
        "adaptive",
        "weighted",
        "resampled",
        "images, dropout",
    ],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(changes, tmp_path):
    config = points(**changes)
    whole = run_until(tmp_path / "whole", config)
    first = run_until(tmp_path / "stopped", config, 5)
    assert first["state"]["step"] == 5
    assert first["files"].keys() == whole["files"].keys()
    assert all(first["files"][name] != whole["files"][name] for name in whole["files"])
    run_until(tmp_path / "stopped", config, 7)
    assert run_until(tmp_path / "stopped", config) == whole
    assert [entry["step"] for entry in whole["history"]] == list(range(1, 13))


def test_a_run_stopped_between_two_entries_of_the_log_has_the_same_log(tmp_path):
    """With the best validation and the steps that were left out among what is kept."""
    values = iter([3.0, 1.0, 2.0])
    whole = run_until(
        tmp_path / "whole", points(), every=5, validate=lambda averaged: next(values)
    )
    assert [entry["step"] for entry in whole["history"]] == [5, 10, 12]
    assert whole["state"]["best"] == {"step": 10, "bits_per_dim": 1.0}
    values = iter([3.0, 1.0, 2.0])
    for stop in (3, 7, 11, None):
        stopped = run_until(
            tmp_path / "stopped", points(), stop, every=5, validate=lambda averaged: next(values)
        )
    assert stopped == whole


def test_numbers_that_are_read_late_change_nothing(tmp_path, monkeypatch):
    """On a GPU a step's numbers are read when the next is under way: a signal is seen one step
    later, and all else is the same."""
    options = {"every": 5, "store_every": 3}
    whole = run_until(tmp_path / "whole", points(), **options)
    monkeypatch.setattr("vdiff.training.trainer.DELAY", {"cpu": 1})
    assert run_until(tmp_path / "stopped", points(), 4, **options)["state"]["step"] == 5
    assert run_until(tmp_path / "stopped", points(), **options) == whole


def test_a_run_that_is_done_is_only_read_again(tmp_path):
    first = run_until(tmp_path, points())
    assert (
        run_until(tmp_path, points(), validate=lambda averaged: pytest.fail("trained again"))
        == first
    )


def test_the_step_does_not_depend_on_accumulation(tmp_path):
    """Weights, averages and the schedule, to rounding; dropout, if there is any, has other
    masks."""
    whole, parts = (
        tensors_after(points(accumulate=accumulate), tmp_path / str(accumulate))
        for accumulate in (1, 4)
    )
    for name, value in whole.items():
        torch.testing.assert_close(
            parts[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def tensors_after(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    run_until(folder, config)
    return tensors(folder)


def test_labels_and_flags_go_with_their_images():
    """Every image is its own number in each pixel but two, which tell how it lies."""
    number = torch.arange(20)
    data = number.view(20, 1, 1, 1).expand(20, 3, 4, 4).clone()
    data[:, :, 0, 0] += 100
    data[:, :, 0, 1] += 50
    network = {"name": "VDMUNet", "width": 32, "depth": 1}
    config = replace(
        TINY,
        network=network,
        shape=[3, 4, 4],
        level_head=False,
        augment="flip-turn",
        batch=12,
        accumulate=3,
    )
    batches = Batches(data, config)
    parts = [batches(step, part) for step in range(40) for part in range(3)]
    pixels, flags = (
        torch.cat([part.data for part in parts]),
        torch.cat([part.condition["augmented"] for part in parts]),
    )
    assert torch.equal(pixels[:, 0].amin((1, 2)), torch.cat([part.images for part in parts]))
    assert torch.equal(flags == 0, (pixels[:, 0, 0, 0] >= 100) & (pixels[:, 0, 0, 1] >= 50))
    assert 0.6 < flags.mean() < 0.9  # three quarters

    network = {"name": "UNet", "channels": 3, "labels": 20, "width": 8}
    config = replace(
        TINY,
        network=network,
        shape=[3, 4, 4],
        level_head=False,
        augment="flip",
        conditional=True,
        accumulate=4,
    )
    for part in (Batches(data, config, labels=number + 7)(5, i) for i in range(4)):
        assert torch.equal(part.condition["label"], part.images + 7)
        assert part.condition.keys() == {"label"}
    with pytest.raises(
        ValueError,
        match=r"argument 'labels' must be given, \(20,\), for a conditional network; got None",
    ):
        Batches(data, config)
    with pytest.raises(
        ValueError,
        match=(
            r"argument 'data' must be \(n, \*shape\) with the config's shape \[3, 4, 4\]; got "
            r"\(20, 4, 4, 3\)"
        ),
    ):
        Batches(data.permute(0, 2, 3, 1), config, labels=number)


def test_averages_leave_the_start_behind_soon():
    """With a decay of 0.9999 one tenth of the first weights is left after the first update, and a
    thousandth after nine more; without the warm-up it would be 0.999."""
    objective = TINY.objective()
    with torch.no_grad():
        for p in objective.parameters():
            p.fill_(1.0)
    averages = EMA(objective, [0.9999, 0.5])
    with torch.no_grad():
        for p in objective.parameters():
            p.zero_()
    left, kept = {0.9999: 1.0, 0.5: 1.0}, []
    for n in range(10):
        averages.update(n)
        for decay, averaged in averages.copies.items():
            left[decay] *= min(decay, (1 + n) / (10 + n))
            for p in averaged.parameters():
                torch.testing.assert_close(p, torch.full_like(p, left[decay]), rtol=1e-5, atol=0)
        kept.append(left[0.9999])
    assert kept[0] == 0.1
    assert kept[-1] < 1.1e-5


def test_averages_have_the_buffers_of_now():
    config = points(schedule={"name": "Adaptive", "bins": 6, "warmup": 2})
    objective = config.objective()
    averaged = train(objective, data_of(config), config, quiet=True)
    assert objective.schedule.mass.max() > 1.1 / 6
    for now, mean in zip(objective.buffers(), averaged.buffers(), strict=True):
        assert torch.equal(now, mean)
    averaged(data_of(config)[:4]).mean().backward()  # an objective as any other


def test_validation_is_the_bound_on_the_same_grid_each_time():
    images = digits()
    objective = TINY.objective().eval()
    validate = Validation(images.selection[:40], draws=16)
    first = validate(objective)
    torch.manual_seed(5)
    assert validate(objective) == first
    exact = evaluate(
        objective.model,
        images.selection[:40],
        schedule=objective.schedule,
        decoder=objective.decoder,
        draws=256,
    ).total
    assert (
        abs(first.value - exact.value) < 4 * (first.monte_carlo**2 + exact.monte_carlo**2) ** 0.5
    )
    log: list[dict[str, float]] = []
    train(
        TINY.objective(),
        images.train,
        TINY,
        validate=validate,
        log=log.append,
        every=12,
        quiet=True,
    )
    assert (
        0
        < log[-1]["selection_error"]
        < log[-1]["selection_error_over_images"]
        < log[-1]["selection_bits_per_dim"]
    )


def test_configs_name_classes_and_unknown_ones_get_the_nearest():
    from vdiff import schedule

    assert json.loads(json.dumps(TINY.asdict())) == TINY.asdict()
    assert build(schedule, {"name": "Normal", "mean": 1.0, "std": 2.0})(torch.tensor(0.5)) == 1.0
    with pytest.raises(ValueError, match="did you mean 'Cosine'"):
        build(schedule, {"name": "Cosin"})


def test_schedules_never_decay_and_learn_at_their_own_pace():
    objective = Objective(
        Denoiser(UNet(1, width=8), X()), schedule=LearnedLinear(), loss=VLB(Categorical(LEVELS))
    )
    model, schedule = parameter_groups(objective, lr=1e-3, weight_decay=0.1, schedule_lr=1e-2)
    assert {id(p) for p in schedule["params"]} == {id(p) for p in objective.schedule.parameters()}
    assert (schedule["weight_decay"], schedule["lr"], model["weight_decay"]) == (0.0, 1e-2, 0.1)
    assert len(model["params"]) + 2 == len(list(objective.parameters()))


def test_the_pace_of_the_learning_rate():
    assert [lr_lambda(step, 10, 110) for step in (0, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5, 0.0]
    )


def test_the_ends_of_a_schedule_are_kept_with_its_weights_and_older_files_lack_them(tmp_path):
    config = points(schedule={"name": "Adaptive", "bins": 6, "warmup": 2}, steps=2)
    with Run.open(tmp_path, config) as run:
        train(config.objective(), data_of(config), config, run=run, quiet=True)
    kept = load_file(tmp_path / "ema.safetensors")
    assert kept["schedule.fixed_ends"].tolist() == [15.0, -15.0]
    save_file(
        {name: value for name, value in kept.items() if not name.endswith("ends")},
        tmp_path / "ema.safetensors",
    )
    with pytest.warns(UserWarning, match="does not say with which config"):
        assert torch.equal(run.load().schedule.mass, kept["schedule.mass"])
    save_file(
        kept | {"schedule.fixed_ends": torch.tensor([8.0, -8.0], dtype=torch.float64)},
        tmp_path / "ema.safetensors",
    )
    with pytest.raises(
        ValueError, match=r"must have schedule.fixed_ends = \[15.0, -15.0\]; got \[8.0, -8.0\]"
    ):
        run.load()
