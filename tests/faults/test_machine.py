"""Faults 74 to 76: the machine it runs on. And that every fault has its test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from points import data_of, points

from vdiff.errors import OLDEST_TORCH, check_torch
from vdiff.training import train

from .covered import ALL, covered


def in_a_bare_place(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command without a display, a terminal, colors, or letters beyond ASCII."""
    bare = {
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "MPLBACKEND": "TkAgg",
        "OMP_NUM_THREADS": "1",
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "LANG")
    }
    code = "import sys; from vdiff.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=kept | bare,
        capture_output=True,
        text=True,
    )


def test_fault_74_figures_without_a_display(tmp_path: Path) -> None:
    done = in_a_bare_place(tmp_path, "describe", "edm", "--figure", "f.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_fault_75_an_old_torch() -> None:
    with pytest.raises(
        ImportError,
        match=(
            r"vdiff needs torch 2\.10 or newer; found 2\.9\.1\+cu121 \(pip install --upgrade "
            r"torch\)"
        ),
    ):
        check_torch("2.9.1+cu121")
    for version in ("2.10.0", "2.13.0a0+git1234", "3.0"):
        check_torch(version)
    said = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={".".join(map(str, OLDEST_TORCH))}"' in said


def test_fault_76_a_terminal_with_nothing_but_ascii(tmp_path: Path) -> None:
    done = in_a_bare_place(tmp_path, "describe", "edm")
    assert done.returncode == 0, done.stderr
    assert "no likelihood, not even of noisier data" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_fault_76_without_a_terminal_training_prints_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = points()
    train(config.objective(), data_of(config), config, every=6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 6", "step 12"]
    assert all("train_bits_per_dim" in line and line.isascii() for line in lines)
    train(config.objective(), data_of(config), config, every=6, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_every_fault_has_its_test() -> None:
    assert set(covered()) == set(ALL)
