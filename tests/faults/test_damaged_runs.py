"""What people who train met: weights, states and logs that are damaged or too large."""

import json
import os
from pathlib import Path

import pytest
import torch
from image_runs import CONFIG, EVALUATE, IMAGES, NETWORK, trained
from safetensors.torch import load_file

from vdiff import Objective
from vdiff.cli import main
from vdiff.cli.resume import StateFile
from vdiff.training import Run, train
from vdiff.training.weights import save_tensors


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


@pytest.mark.parametrize(("text", "came"), [("{", "damaged"), ("[1]", "list"), ("", "damaged")])
def test_a_damaged_config_is_named_by_its_file(tmp_path, text, came):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"Run: argument '.*config.json' must .*{came}"):
        Run(tmp_path)


def test_a_state_that_is_rubbish_is_set_aside(tmp_path):
    trained(tmp_path)
    (tmp_path / "evaluation.bound.0.safetensors").write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="is damaged; it is kept as old-evaluation.bound.0"):
        assert main(["evaluate", str(tmp_path), *EVALUATE]) == 0
    assert (tmp_path / "old-evaluation.bound.0.safetensors").read_bytes() == b"rubbish"


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


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe\x00rubbish\n[1]\n3", "\n".join(DAMAGED).encode()],
    ids=["no text", "no JSON of an entry"],
)
def test_a_log_line_that_is_damaged_is_left_out(tmp_path, damage):
    run = trained(tmp_path)
    entries = run.history()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(damage + b"\n" + json.dumps(entries[-1]).encode())
    assert run.history() == [*entries, entries[-1]]
    with Run.open(tmp_path, CONFIG) as again:
        train(CONFIG.objective(), IMAGES, CONFIG, run=again, quiet=True)
    assert run.history() == [*entries, entries[-1]]
