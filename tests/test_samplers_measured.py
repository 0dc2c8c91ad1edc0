"""What the samplers' benchmark and example say, measured again where that is quick."""

import importlib.util
import sys
from pathlib import Path

import pytest

from vdiff.sampling import logistic

ROOT = Path(__file__).parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_few_evaluations_to_one_percent(monkeypatch):
    """On a ring that nothing was chosen on: as many as the page says, and fewer than the plain
    rule on the rectified path."""
    step_order = load(ROOT / "benchmarks" / "step_order.py")
    monkeypatch.setattr(step_order, "COUNTS", range(6, 25))
    ring = step_order.Problem.of("ring of 8", step_order.ring(8, 1.0, 0.1), seed=77, n=256)
    ours = step_order.needed(
        ring, step_order.STEPS["adams_bashforth 3, u"], logistic(step_order.HIGH, step_order.LOW)
    )
    plain = step_order.needed(
        ring, step_order.STEPS["adams_bashforth 3, u"], step_order.GRIDS["rectified t"]
    )
    assert (ours, plain) == (10, 17)
    row = next(
        line
        for line in (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8").splitlines()
        if "(the default)" in line
    )
    assert f"| {ours} |" in row


def test_the_example_prints_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["samplers.py", "--out", str(tmp_path / "figure.png")])
    example = load(ROOT / "examples" / "samplers.py")
    example.main()
    rows = dict(
        line.split()[::2]
        for line in capsys.readouterr().out.splitlines()
        if line.split()[0] in ("ddim", "heun", "dpmpp_2m", "adams_bashforth")
    )
    for name, says in {
        "adams_bashforth": 0.008,
        "ddim": 0.04,
        "dpmpp_2m": 0.06,
        "heun": 0.16,
    }.items():
        assert float(rows[name]) == pytest.approx(says, rel=0.15)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
