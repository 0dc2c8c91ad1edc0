"""What people who train met: folders, weights and logs that are damaged, commands that ask for
what a run has not."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vdiff import Objective
from vdiff.cli import COMMANDS, main
from vdiff.cli.resume import StateFile
from vdiff.training import Config, Run, train
from vdiff.training import ranks as ranks_module
from vdiff.training.weights import save_tensors

NETWORK = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
CONFIG = Config(network=NETWORK, steps=2, batch=4)
IMAGES = torch.randint(0, 17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def trained(folder: Path, config: Config = CONFIG) -> Run:
    with Run.open(folder, config) as run:
        train(
            config.objective(),
            IMAGES,
            config,
            run=run,
            every=1,
            quiet=True,
            labels=IMAGES[:, 0, 0, 0] % 3 if config.conditional else None,
        )
    return run


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_weights_that_are_not_as_they_were_written_are_refused(tmp_path):
    run = trained(tmp_path)
    flip(tmp_path / "ema.safetensors")
    with pytest.raises(
        ValueError, match=r"ema.safetensors' must be as it was written; got another checksum"
    ):
        run.load()
    (tmp_path / "ema.safetensors").unlink()
    run.load()  # of the newest checkpoint
    flip(run.weights())
    with pytest.raises(ValueError, match="as it was written; got another checksum"):
        run.load()


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


def test_a_damaged_log_does_not_stop_a_run(tmp_path):
    run = trained(tmp_path)
    entries = run.history()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\x00rubbish\n[1]\n3\n")
    assert run.history() == entries
    with Run.open(tmp_path, CONFIG) as again:
        train(CONFIG.objective(), IMAGES, CONFIG, run=again, quiet=True)


@pytest.mark.parametrize(("text", "came"), [("{", "damaged"), ("[1]", "list"), ("", "damaged")])
def test_a_damaged_config_is_named_by_its_file(tmp_path, text, came):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"Run: argument '.*config.json' must .*{came}"):
        Run(tmp_path)


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


EVALUATE = ["--data", "digits", "--draws", "2", "--replicates", "2", "--device", "cpu", "--quiet"]


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


def test_a_state_that_is_rubbish_is_set_aside(tmp_path):
    trained(tmp_path)
    (tmp_path / "evaluation.bound.0.safetensors").write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="is damaged; it is kept as old-evaluation.bound.0"):
        assert main(["evaluate", str(tmp_path), *EVALUATE]) == 0
    assert (tmp_path / "old-evaluation.bound.0.safetensors").read_bytes() == b"rubbish"


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


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line in which `vdiff evaluate` and `vdiff sample` refuse a run."""
    lines = set()
    for words in (["evaluate", str(folder), *EVALUATE], ["sample", str(folder), "--count", "1"]):
        assert main(words) == 2
        lines.add(capsys.readouterr().err.partition(": ")[2])
    (line,) = lines
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"width": 10**9}, "'network.width' must be at most 1,048,576; got 1000000000"),
        ({"blocks": 10**6}, "'network' must have at most 16,384 tensors"),
        ({"width": 2**20}, "'network' must have at most 16,384 tensors"),
        ({"width": 2**12}, "'config' must be the one that "),
        ({"labels": 2**20}, "'config' must be the one that "),
    ],
)
def test_a_config_that_asks_for_more_than_its_weights_is_refused_before_it_is_built(
    network, says, tmp_path, capsys, monkeypatch
):  # fmt: skip
    trained(tmp_path)
    config = CONFIG.asdict() | {"network": NETWORK | network}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", of_no_memory)
    monkeypatch.setattr(torch.nn.init, "normal_", of_no_memory)
    assert says in refused(tmp_path, capsys)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()  # and with the weights of a checkpoint
    assert says in refused(tmp_path, capsys)


@pytest.mark.parametrize("network", [{"width": 2**12}, {"labels": 2**20}])
def test_weights_that_name_no_config_are_compared_before_anything_is_built(
    network, tmp_path, capsys, monkeypatch
):
    trained(tmp_path)
    weights = tmp_path / "ema.safetensors"
    save_tensors(weights, load_file(weights), {})
    config = CONFIG.asdict() | {"network": NETWORK | network}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", of_no_memory)
    monkeypatch.setattr(torch.nn.init, "normal_", of_no_memory)
    assert "must have the tensors of this architecture" in refused(tmp_path, capsys)


@pytest.mark.parametrize("place", ["run", "checkpoint"])
def test_a_file_that_is_larger_than_its_weights_can_be_is_not_read(place, tmp_path, capsys):
    trained(tmp_path)
    path = tmp_path / "ema.safetensors"
    if place == "checkpoint":
        path.unlink()
        path = max((tmp_path / "checkpoints").iterdir()) / "ema-0.999.safetensors"
    os.truncate(path, 1 << 40)  # without blocks on the disk
    assert f"'{path}' must have at most " in refused(tmp_path, capsys)


def test_nor_is_that_of_a_saved_objective(tmp_path):
    CONFIG.objective().save_pretrained(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 1 << 40)
    with pytest.raises(ValueError, match=r"must have at most .* bytes; got 1,099,511,6"):
        Objective.from_pretrained(tmp_path)


def test_a_state_that_is_larger_than_any_is_set_aside(tmp_path):
    path = tmp_path / "evaluation.bound.0.safetensors"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.warns(UserWarning, match="is damaged; it is kept as old-evaluation"):
        assert StateFile(path).read() is None


@pytest.mark.parametrize(
    "facts",
    [{"data": 5}, {"data": None}, {"data": [[1]]}, {"unlike": 5}, {"unlike": [1]}],
    ids=str,
)
def test_facts_of_another_type_are_damage(facts, tmp_path, capsys):
    trained(tmp_path)
    path = tmp_path / "ema.safetensors"
    (name,) = facts
    save_tensors(path, load_file(path), {"config": CONFIG.asdict(), **facts})
    says = f"must hold a list of texts as its {name}; got "
    assert says in refused(tmp_path, capsys)


def test_weights_that_name_no_config_are_said_to_be_taken_for_those_of_the_run(tmp_path):
    run = trained(tmp_path)
    path = tmp_path / "ema.safetensors"
    save_tensors(path, load_file(path), {})
    says = "ema.safetensors does not say with which config it was trained"
    with pytest.warns(UserWarning, match=says):
        run.load()
    path.unlink()
    path.symlink_to(max((tmp_path / "checkpoints").iterdir()) / "ema-0.999.safetensors")
    with pytest.warns(UserWarning, match=says):  # the facts of a checkpoint are in another file
        run.load()


def of_no_memory(value: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """In place of initial weights: nothing may be built."""
    assert value.is_meta
    return value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 2000 + "]" * 2000, "must be JSON; got a value that is nested more than 32 deep"),
        ('{"network": ' * 2000, "must be JSON; got a value that is nested more than 32 deep"),
        ('{"network": ' + '{"base": ' * 900 + "1" + "}" * 901, "nested more than 32 deep"),
        (" " * (1 << 25), "must have at most 16,777,216 bytes"),
        ('{"x\\u001b[2J": 1, "network": {}}', r"'x\x1b[2J' must be a field; got 1"),
        (json.dumps({"x": "y" * 10**6, "network": NETWORK}), "'x' must be a field; got 'yyyy"),
    ],
    ids=["brackets", "half", "nested", "large", "escape", "long"],
)
def test_a_config_beyond_all_bounds_is_refused_in_one_line(text, says, tmp_path, capsys):
    trained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    line = refused(tmp_path, capsys)
    assert says in line
    assert len(line) < 1000


DAMAGED = [
    "[" * 2000 + "]" * 2000,
    '{"step": ' * 2000,
    '{"step": "two"}',
    '{"step": null, "loss": 1}',
    '{"step": 1.5}',
    '{"step": [1]}',
    '{"step": true}',
    '{"step": 1e999}',
    '{"step": ' + "9" * 5000 + "}",
    '{"step": 1, "x": "' + "x" * (1 << 21) + '"}',
]


def test_a_log_line_that_is_damaged_is_left_out(tmp_path):
    run = trained(tmp_path)
    entries = run.history()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write("\n".join(DAMAGED) + "\n" + json.dumps(entries[-1]))
    assert run.history() == [*entries, entries[-1]]
    with Run.open(tmp_path, CONFIG) as again:
        train(CONFIG.objective(), IMAGES, CONFIG, run=again, quiet=True)
    assert run.history() == [*entries, entries[-1]]


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
