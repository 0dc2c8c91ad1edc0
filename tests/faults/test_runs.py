"""What people who train met: folders that cannot be used, commands that ask for what a run has
not."""

import json
import os
import warnings

import pytest
import torch
from image_runs import CONFIG, EVALUATE, IMAGES, NETWORK, trained

from vdiff.cli import COMMANDS, main
from vdiff.training import Config, Run, train
from vdiff.training import ranks as ranks_module


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_a_run_writes_can_be_read_by_those_who_may(tmp_path):
    before = os.umask(0o022)
    try:
        run = trained(tmp_path)
    finally:
        os.umask(before)
    for path in (tmp_path / "ema.safetensors", run.checkpoints):
        for file in [path] if path.is_file() else path.rglob("*.safetensors"):
            assert file.stat().st_mode & 0o777 == 0o644, file


def test_a_start_that_failed_does_not_block_its_folder(tmp_path):
    wrong = Config(network=NETWORK | {"width": 16}, steps=2, batch=4)
    with Run.open(tmp_path, wrong):
        pass  # and nothing trained
    with Run.open(tmp_path, CONFIG, resume="never") as run:
        assert run.config == CONFIG
    assert Run(tmp_path).config.network == NETWORK
    trained(tmp_path)
    with pytest.raises(ValueError, match="hold no run yet"):
        Run.open(tmp_path, CONFIG, resume="never")


def test_a_validation_that_fails_loses_no_training(tmp_path):
    def validate(objective):
        raise RuntimeError("out of memory")

    with Run.open(tmp_path, CONFIG) as run, pytest.raises(RuntimeError, match="out of memory"):
        train(CONFIG.objective(), IMAGES, CONFIG, run=run, validate=validate, every=1, quiet=True)
    assert [folder.name for folder in run.checkpoints.iterdir() if folder.is_dir()] == [
        "step-00000001"
    ]


@pytest.mark.parametrize("arguments", [["sample", "RUN"], ["evaluate", "RUN"]])
def test_fault_59_ctrl_c_ends_a_command_in_a_line(arguments, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[arguments[0]], "run", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"vdiff {arguments[0]}: interrupted\n"


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks_module.own_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError,
        match=(
            r"'LOCAL_RANK' must be below the number of GPUs, 2; got 2 \(torchrun --nproc-per-node "
            r"2"
        ),
    ):
        ranks_module.own_device()


def test_two_runs_are_compared_where_their_bounds_are_of_one_kind(tmp_path, capsys):
    trained(tmp_path / "one")
    trained(
        tmp_path / "narrow",
        Config(
            network=NETWORK,
            steps=2,
            batch=4,
            schedule={"name": "Linear", "logsnr_max": 5.0, "logsnr_min": -3.0},
        ),
    )
    trained(tmp_path / "chain", Config(network=NETWORK, steps=2, batch=4, chain=4))
    assert (
        main(["evaluate", str(tmp_path / "one"), "--against", str(tmp_path / "chain"), *EVALUATE])
        == 2
    )
    assert (
        "'against' must be a run with the same chain, None; got 4 (evaluate each of the two "
        "by itself)"
    ) in capsys.readouterr().err
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "one"),
                "--against",
                str(tmp_path / "chain"),
                "--steps",
                "3",
                *EVALUATE,
            ]
        )
        == 0
    )  # of one kind
    assert (
        main(["evaluate", str(tmp_path / "one"), "--against", str(tmp_path / "narrow"), *EVALUATE])
        == 0
    )


@pytest.mark.parametrize(("high", "low"), [(5.0, -5.0), (13.3, -3.0), (14.0, -6.0)])
def test_each_network_is_asked_between_its_own_ends(tmp_path, recwarn, high, low):
    for name, ends in (("one", (13.3, -5.0)), ("other", (high, low))):
        schedule = {"name": "Linear", "logsnr_max": ends[0], "logsnr_min": ends[1]}
        trained(tmp_path / name, Config(network=NETWORK, steps=2, batch=4, schedule=schedule))
    recwarn.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert (
            main(
                [
                    "evaluate",
                    str(tmp_path / "one"),
                    "--against",
                    str(tmp_path / "other"),
                    *EVALUATE,
                ]
            )
            == 0
        )
    assert not any("trained between" in str(one.message) for one in recwarn)
    known = json.loads((tmp_path / "one" / "comparison.json").read_text())["protocol"]
    assert known["logsnr"] == [-5.0, 13.3]
    assert known["logsnr, second"] == [low, high]


def test_where_nothing_can_be_written_nothing_is_computed(tmp_path, capsys):
    trained(tmp_path)
    assert (
        main(["evaluate", str(tmp_path), *EVALUATE, "--out", str(tmp_path / "none" / "x.json")])
        == 2
    )
    assert "'out' must be in a folder that can be written to" in capsys.readouterr().err


def test_data_of_another_shape_is_named(tmp_path, capsys):
    config = json.loads(json.dumps(CONFIG.asdict())) | {
        "shape": [3, 32, 32],
        "network": NETWORK | {"channels": 3, "channels_out": 51},
    }
    config = Config.from_dict(config)
    with Run.open(tmp_path, config) as run:
        run.save(config.objective())
    assert main(["evaluate", str(tmp_path), *EVALUATE]) == 2
    assert "'data' must be images of shape [3, 32, 32]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [(["--label", "3"], "label"), (["--guidance", "1", "--null-label", "7"], "null-label")],
)
def test_fault_15_a_label_that_the_network_has_not(tmp_path, capsys, words, name):
    trained(tmp_path, Config(network=NETWORK | {"labels": 3}, steps=2, batch=4, conditional=True))
    assert (
        main(["sample", str(tmp_path), "--count", "2", "--steps", "2", "--device", "cpu", *words])
        == 2
    )
    assert (
        f"'{name}' must lie in 0 … 2, the labels of this run's network" in capsys.readouterr().err
    )


def test_a_run_with_a_long_table_goes_on(tmp_path):
    """Its config.json and meta.json have a megabyte: what can be written can be read."""
    betas = torch.linspace(1e-6, 1e-4, 60_000, dtype=torch.float64).tolist()
    table = {"name": "Tabulated.from_betas", "betas": betas}
    config = Config(network=NETWORK, steps=1, batch=4, schedule=table)
    run = trained(tmp_path, config)
    assert (next(run.checkpoints.iterdir()) / "meta.json").stat().st_size > 1 << 20
    with Run.open(tmp_path, config) as again:
        train(config.objective(), IMAGES, config, run=again, quiet=True)
    (tmp_path / "ema.safetensors").unlink()
    assert len(Run(tmp_path).load().schedule.table) == 60_000
