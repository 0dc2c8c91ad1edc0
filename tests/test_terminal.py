"""Errors, names and warnings are printed in a line; so is a full disk or a closed pipe."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from printing import ROOT, VDIFF, made

from vdiff.cli import main
from vdiff.errors import InvalidValue, printable
from vdiff.terminal import say
from vdiff.training import Run
from vdiff.training.logger import Logger


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["describe", "edm"], ["verify", "tweedie"]])
def test_a_disk_without_room_for_the_output_is_said_in_a_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*VDIFF, *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr.endswith("[Errno 28] No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["describe", "--all", "--figure", "f.png"],
        ["evaluate", "RUN", "--draws", "2", "--replicates", "2"],
    ],
)
def test_a_reader_that_has_gone_away_stops_no_command(words, tmp_path):
    """As `| head` does, from the first line on; files are written, and a state of the evaluation
    is not left behind."""
    run = made(tmp_path / "RUN")
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [*VDIFF, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "roken" not in done.stderr
    if "--figure" in words:
        assert (tmp_path / "f.png").is_file()
    if "evaluate" in words:
        assert [path.name for path in run.iterdir() if path.name.startswith("evaluation")] == [
            "evaluation.json"
        ]


ESCAPES = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "back\b\b",
    "over\rwritten",
    "two\nlines",
    "\x9b31m",
    "left\u202eright",
    "\x00",
    "tab\t",
    "\udcff",
    "\x7f",
    "\u2028",
]


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_an_error_is_one_line_without_control_characters(name):
    assert str(InvalidValue(name, name, name, name)).isprintable()
    assert printable(f"λ x̂ ± … é {name}").startswith("λ x̂ ± … é ")
    assert printable(name).encode("ascii").decode("unicode_escape").encode(
        "utf-16", "surrogatepass"
    ) == name.encode("utf-16", "surrogatepass")


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_what_is_said_keeps_its_lines_and_nothing_else(name, capsys):
    say(f"before {name} behind", "next")
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert out.count("\n") == 2 + name.count("\n")


def hostile_run(folder: Path, **changes: object) -> Path:
    run = made(folder)
    known = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps(known | changes), encoding="utf-8")
    return run


@pytest.mark.parametrize("command", ["evaluate", "sample"])
@pytest.mark.parametrize(
    "name", ["\x1b[31mred\x07", "a\r\nvdiff evaluate: all is well", "\u202egnp"], ids=ascii
)
def test_names_from_files_do_not_reach_the_terminal_as_they_are(command, name, tmp_path, capsys):
    from safetensors.torch import save_file

    runs = [
        hostile_run(tmp_path / "field", **{name: 1}),
        hostile_run(tmp_path / "class", network={"name": name}),
        hostile_run(tmp_path / "argument", network={"name": "UNet", "channels": 1, name: 1}),
        hostile_run(tmp_path / "data", data=name),
        made(tmp_path / "tensor"),
        tmp_path / name.replace("/", "-"),
    ]
    save_file({name: torch.zeros(1)}, runs[4] / "ema.safetensors")
    for run in runs:
        assert main([command, str(run), "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err[:-1].isprintable(), repr(err)
        assert err.startswith(f"vdiff {command}: ")


def test_the_name_of_a_users_recipe_and_of_a_file_are_shown_escaped(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    text = (
        "from vdiff.weighting import ELBO\nfrom vdiff.schedule import Cosine\nfrom "
        "vdiff.parameterization import V\nfrom vdiff.recipes import Recipe\nrecipe = "
        "Recipe('\\x1b[31mmine', Cosine(), V(), ELBO())\n"
    )
    mine.write_text(text, encoding="utf-8")
    figure = tmp_path / "\x1b[31mfigure\n.png"
    assert main(["describe", f"{mine}:recipe", "--compare", "edm", "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mmine" in out
    assert out.splitlines()[-1].endswith(r"\x1b[31mfigure\n.png")
    assert figure.is_file()


def test_a_warning_of_a_command_is_one_line_too(monkeypatch, capsys):
    def warn(options: object) -> int:
        sys.stderr.write(
            warnings.formatwarning("a \x1b[31mred\nwarning", UserWarning, __file__, 1)
        )  # as Python writes it
        return 0

    monkeypatch.setattr("vdiff.cli.describe.run", warn)
    before = warnings.formatwarning
    assert main(["describe", "edm"]) == 0
    assert warnings.formatwarning is before
    assert capsys.readouterr().err == "vdiff describe: warning: a \\x1b[31mred; warning\n"


def test_a_training_goes_on_where_its_output_cannot_be_printed(monkeypatch):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    entries: list[dict[str, object]] = []
    monkeypatch.setattr(sys, "stdout", Full())
    with Logger(2, "loss", listeners=[entries.append]) as logger:
        logger.advance(1.0)
        with pytest.warns(UserWarning, match="a log failed, training continues: OSError"):
            logger.write({"step": 1, "train_loss": 1.0})
    assert entries[0]["step"] == 1


def test_fault_55_a_line_cut_off_by_a_full_disk_costs_no_other(tmp_path):
    run = Run(made(tmp_path / "run"))
    run.log({"step": 1, "loss": 0.5})
    for torn in ('{"step": 2, "lo', "{", "3", '"', "\x00\x00\x00"):
        with (run.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(torn)
        run.log({"step": 3, "loss": 0.4})
    assert [entry["step"] for entry in run.history()] == [1, 3, 3, 3, 3, 3]
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8").count("\n") == 11


def test_the_first_line_of_a_log_and_one_behind_an_empty_file(tmp_path):
    run = Run(made(tmp_path / "run"))
    run.log({"step": 1})
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n'
    (run.folder / "log.jsonl").write_text("", encoding="utf-8")
    run.log({"step": 2})
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8") == '{"step": 2}\n'
