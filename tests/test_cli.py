"""Every option of every command with values that cannot be meant: exit code 2, one line that says
why, nothing written."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import code_of
from hostile_options import CASES, EVALUATE, HOSTILE

import vdiff
from vdiff import Denoiser, elbo
from vdiff.cli import COMMANDS, main
from vdiff.cli.parser import parser_of
from vdiff.decoder import Gaussian
from vdiff.errors import out_of_memory
from vdiff.likelihood import evaluate
from vdiff.parameterization import V
from vdiff.sampling import Guided
from vdiff.schedule import Linear
from vdiff.training import Config, Run

SECONDS = 20

BUILDS = """
import torch
def build(): return torch.nn.Conv2d(1, 1, 1)
def raises(): raise RuntimeError("a line\\nand another")
def number(): return 3
def needs(argument): return build()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and with what else a name can stand for."""
    root = tmp_path_factory.mktemp("hostile")
    for name, labels in (("RUN", None), ("CLASSES", 4)):
        network = {
            "name": "UNet",
            "channels": 1,
            "channels_out": 17,
            "width": 8,
            "multipliers": [1],
            "heads": 1,
            "labels": labels,
        }
        with Run.create(root / name, config := Config(network=network)) as run:
            run.save(config.objective())
    np.save(root / "IMAGES.npy", np.zeros((2, 8, 8), np.uint8))
    command = ["compress", root / "RUN", root / "IMAGES.npy", root / "IMAGES.vdiff"]
    assert main([*map(str, command), "--steps", "1", "--quiet", "--no-bound"]) == 0
    (root / "FOLDER").mkdir()
    (root / "DRAWN.png").mkdir()
    (root / "FILE").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    (root / "LOOP").symlink_to(root / "POOL")
    (root / "POOL").symlink_to(root / "LOOP")
    (root / "PROGRAM").write_text("x = 1\n")
    (root / "BUILDS").write_text(BUILDS)
    (root / "BROKEN.json").write_text("{")
    (root / "CONFIG.json").write_text(json.dumps(config.asdict()))
    own = replace(config, network={"name": "BUILDS:build"}, level_head=False)
    (root / "OWN.json").write_text(json.dumps(own.asdict()))
    (root / "FAILS").write_text("x = 1\nx = 1 / 0\n")
    (root / "EXITS").write_text("import sys\nsys.exit(3)\n")
    return root


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise BaseException(
            f"it took more than {seconds} s"
        )  # no error that a command could take for its own

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def everything(root: Path) -> dict[Path, int]:
    return {path: path.lstat().st_size for path in root.rglob("*")}


def options_of(command: str) -> set[str]:
    commands = next(
        action
        for action in parser_of(COMMANDS)._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    known = commands.choices[command]._actions
    return {
        next((word for word in one.option_strings if word.startswith("--")), one.dest)
        for one in known
    } - {"--help"}


def test_every_option_of_every_command_has_hostile_values():
    assert set(HOSTILE) == set(COMMANDS)
    for command in COMMANDS:
        assert set(HOSTILE[command]) == options_of(command), command


@pytest.mark.skipif(os.name != "posix", reason="links and alarms of POSIX")
@pytest.mark.parametrize(("command", "option", "value"), CASES)
def test_what_cannot_be_meant_is_refused_in_a_line(
    command, option, value, place, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    right, _ = HOSTILE[command][option]
    given = (
        [value]
        if not option.startswith("--")
        else [option + value]
        if value == "=x"
        else [f"{option}={value}"]
    )
    given = [option, value, "-20"] if option == "--interval" else given
    before = everything(place)
    with within(SECONDS):
        code = code_of([*right, *given])
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert err.startswith(f"vdiff {command}: "), err
    assert err.endswith("\n")
    lines = err[:-1].split("\n")  # one line, and below it those of a program that fails
    assert all(line.isprintable() for line in lines), repr(err)
    assert len(lines) == 1 or value.partition(":")[0] in ("BUILDS", "FAILS", "EXITS"), err
    assert out == ""
    assert everything(place) == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["descirbe"],
        ["describe", "--figur"],
        ["evaluate"],
        ["evaluate", "RUN", "more"],
        ["--verison"],
    ],
)
def test_a_command_that_is_wrong_is_said_in_a_line_too(words, capsys):
    assert code_of(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("vdiff")
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["evalate", "RUN"], "did you mean 'evaluate'?"),
        (["evaluate", "--tolerence", "0.1"], "option --tolerence; did you mean '--tolerance'?"),
        (["evaluate", "RUN", "--split=tst"], "did you mean 'test'?"),
        (["sample", "RUN", "--stpes=4"], "option --stpes; did you mean '--steps'?"),
        (["verify", "--point", "4"], "did you mean '--points'?"),  # no abbreviations
        (["--verison"], "did you mean '--version'?"),
    ],
)
def test_what_is_unknown_is_answered_with_the_nearest(words, near, capsys):
    assert code_of(words) == 2
    assert near in capsys.readouterr().err


def test_the_version(capsys):
    assert code_of(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"vdiff {vdiff.__version__}, torch {torch.__version__}, Python 3.")


def test_a_completion_needs_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert code_of(["--completion", "bash"]) == 2
    assert "pip install 'vdiff-torch[completion]'" in capsys.readouterr().err
    of_shtab = SimpleNamespace(complete=lambda parser, shell: f"{shell} of {parser.prog}")
    monkeypatch.setitem(sys.modules, "shtab", of_shtab)
    assert code_of(["--completion", "zsh"]) == 0
    assert capsys.readouterr().out == "zsh of vdiff\n"


TABLES = (
    ("describe", "--all"),
    ("describe", "edm", "--compare", "vdm"),
    ("verify", "tweedie", "kl-of-equal-covariances"),
    ("verify", "--estimators", "gaussian", "lattice", "--points", "4"),
    EVALUATE,
)


@pytest.mark.parametrize("words", TABLES)
def test_a_table_has_at_most_80_columns_and_is_json_where_asked(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main([*words]) == 0
    out = capsys.readouterr().out
    longest = max(out.splitlines(), key=len)
    assert len(longest) <= 80 or " " not in longest.strip(), longest
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    (place / "RUN" / "evaluation.json").unlink(missing_ok=True)


def test_the_help_has_at_most_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        assert code_of([command, "--help"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80, command


@pytest.mark.parametrize(
    "words", [("tweedie", "forward"), ("--estimators", "gaussian", "--points", "4")]
)
def test_a_verification_shows_how_far_it_is(words, capsys, monkeypatch):
    monkeypatch.setattr("vdiff.terminal.SOON", 0.0)
    assert main(["verify", *words]) == 0
    assert re.search(r"verify: \d+ %, \d+ of \d+ ", capsys.readouterr().err)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 7999999999992 bytes."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:86] DefaultCPUAllocator: not enough memory: you tried to "
        "allocate 8 bytes."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 7.28 TiB for an array"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_fault_71_out_of_memory_is_a_line_that_names_the_batch(
    command, error, place, monkeypatch, capsys
):
    def full(*_: object, **__: object) -> None:
        error.add_note("a note")
        raise error

    monkeypatch.setattr("vdiff.cli.evaluate.evaluate_bound", full)
    monkeypatch.setattr("vdiff.cli.sample.trajectory", full)
    assert main([command, str(place / "RUN"), "--batch", "7", "--quiet"]) == 2
    assert capsys.readouterr().err == f"vdiff {command}: out of memory: lower --batch (now 7)\n"


def test_memory_that_something_else_takes_is_named_too(place, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vdiff.cli.sample.trajectory", full)
    assert main(["sample", str(place / "RUN"), "--steps", "1000000", "--quiet"]) == 2
    assert "lower --batch (now 64) or --steps (now 1000000)" in capsys.readouterr().err


def test_a_runtime_error_that_is_none_of_these_keeps_its_traceback(place, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of vdiff")

    monkeypatch.setattr("vdiff.cli.evaluate.evaluate_bound", broken)
    with pytest.raises(RuntimeError, match="a bug of vdiff"):
        main(["evaluate", str(place / "RUN"), "--quiet"])


def test_a_network_without_memory_is_not_taken_for_one_that_is_not_wrapped():
    class Wide(torch.nn.Module):
        def forward(self, z, logsnr):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        elbo(Wide(), torch.zeros(1, 2), schedule=Linear(), decoder=Gaussian())
    assert not getattr(caught.value, "__notes__", [])
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 must have the same dtype"))


MODEL = Denoiser(lambda z, logsnr: 0.1 * z, V())


@pytest.mark.parametrize("tolerance", [1e-300, 1e-13, 1e13, 1e300])
def test_a_tolerance_that_nothing_can_be_computed_with(tolerance):
    with pytest.raises(
        ValueError, match=r"evaluate: argument 'tolerance' must lie in \[1e-12, 1e\+12\]; got"
    ):
        evaluate(
            MODEL, torch.zeros(4, 2), schedule=Linear(), decoder=Gaussian(), tolerance=tolerance
        )


def test_a_tolerance_that_nobody_can_wait_for():
    words = r"must be within reach of 1e\+15 network evaluations; got 1e-12 bits/dim \(it takes "
    with within(SECONDS), pytest.raises(ValueError, match=words):
        evaluate(MODEL, torch.zeros(4, 2), schedule=Linear(), decoder=Gaussian(), tolerance=1e-12)


def test_a_guidance_that_no_float32_holds():
    with pytest.raises(ValueError, match=r"Guided: argument 'scale' must lie in .*; got 1e\+300"):
        Guided(MODEL, 1e300, {"label": 0})


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "LOOP"])
def test_a_path_that_leads_nowhere_is_said_from_python_too(folder, place, monkeypatch):
    from vdiff.data import dataset

    monkeypatch.chdir(place)
    with pytest.raises(
        ValueError, match="argument 'folder' must be a path that leads somewhere; got"
    ):
        Run(folder)
    for name in ("cifar10", "patches"):
        with pytest.raises(
            ValueError, match="dataset: argument 'folder' must be a path that leads somewhere; got"
        ):
            dataset(name, folder)
