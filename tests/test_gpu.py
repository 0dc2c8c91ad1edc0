"""`make gpu` in small on a CPU: every part runs, a part that fails or hangs stops no other."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import recipe_steps
import recipes

ROOT = Path(__file__).parents[1]

PNG = b"\x89PNG\r\n\x1a\n"


def test_all_of_it_in_small(tmp_path):
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "benchmarks/gpu.py --device $(DEVICE) $(if $(QUICK),--quick)" in make
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--out", str(tmp_path / "results"), "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=500)
    shutil.rmtree(tmp_path / "data")  # 184 MB
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    text = (tmp_path / "results" / "gpu_cpu.txt").read_text(encoding="utf-8")
    assert done.stdout == text
    for words in (*gpu.FEW, *gpu.CURVES, "training over bare step", "peak memory of a step"):
        assert re.search(rf"^{words}.* \d", text, re.M), words
    assert re.search(r"^\d.*% of this device's bf16 matrices at", text, re.M)
    assert re.search(r"^1 graph in the bare step and in training$", text, re.M)
    assert re.search(r"^\d+ passed", text, re.M)
    assert "no number means anything" in text
    assert text.endswith("failed: nothing\n")
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == ["gpu_cpu.png", "gpu_cpu.txt"]
    assert (tmp_path / "results" / "gpu_cpu.png").read_bytes().startswith(PNG)


def test_a_part_that_lacks_a_package_names_it_and_so_does_the_figure(tmp_path):
    for name in ("sklearn", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name='{name}')")
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--only", "curves", "--out", str(tmp_path), "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | paths)
    assert done.returncode == 1
    text = (tmp_path / "gpu_cpu.txt").read_text(encoding="utf-8")
    assert "FAILED: ImportError: sklearn is not installed: pip install" in text
    assert "FAILED: figure, ImportError: matplotlib is not installed: pip install" in text
    assert text.endswith("failed: curves, figure\n")


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """`gpu.main` with parts of our own, each a line of Python in its process."""
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(tmp_path)])
    whole = gpu.subprocess.Popen

    def run(code, *more):
        def popen(command, **options):
            name, file = (command[command.index(w) + 1] for w in ("--part", "--file"))
            return whole([sys.executable, "-c", code[name], file], **options)

        monkeypatch.setattr(gpu.subprocess, "Popen", popen)
        monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(code, (gpu.vdm, 1.0)))
        gpu.sys.argv.extend(["--only", *code, *more])
        return gpu.main(), (tmp_path / "gpu_cpu.txt").read_text(encoding="utf-8")

    return run


def test_a_part_that_fails_or_hangs_stops_no_other(parts, tmp_path):
    kept = json.dumps({"steps": {"edm": [2.0, 1.0]}})
    code, text = parts(
        {
            "broken": "print('before'); raise SystemExit(3)",
            "hanging": (
                "import sys, time; print('begun', flush=True);"
                f"open(sys.argv[1], 'w').write('{kept}'); time.sleep(60)"
            ),
            "good": "print('after λ')",
        },
        "--budget",
        str(gpu.END + 6),
    )
    assert code == 1
    lines = text.splitlines()
    assert "before" in lines
    assert "FAILED: broken, code 3" in lines
    assert "begun" in lines
    assert re.search(r"^FAILED: hanging, ended after [23] s$", text, re.M)
    assert "after λ" in lines
    assert lines[-1].endswith("s; failed: broken, hanging")
    assert (tmp_path / "gpu_cpu.png").read_bytes().startswith(PNG)  # of what the hanging one kept


def test_without_a_card_it_says_how_to_run_in_small(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "has", lambda device: False)
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "make gpu DEVICE=cpu QUICK=1" in capsys.readouterr().err


@pytest.fixture
def part(tmp_path):
    options = ["--device", "cpu", "--quick", "--part", "recipes", "--seconds", "100"]
    options += ["--file", str(tmp_path / "kept.json")]
    return gpu.Part(gpu.parse(options))


ROW = recipe_steps.Row(0.001, 0.01, 1, True, (0.002, 0.001), (1.0, 1.0))


def test_a_recipe_that_fails_is_named_and_the_others_run(part, monkeypatch, capsys):
    def compare(config, *_):
        if config == recipes.load("edm"):
            raise RuntimeError("out of\nmemory")
        return ROW

    monkeypatch.setattr(recipe_steps, "compare", compare)
    gpu.steps_of_recipes(part)
    assert not part.well
    assert re.search(r"^edm +FAILED: RuntimeError: out of memory$", capsys.readouterr().out, re.M)
    kept = json.loads(part.file.read_text(encoding="utf-8"))
    assert kept["steps"] == {name: [2.0, 1.0] for name in gpu.FEW if name != "edm"}


def test_a_recipe_that_is_wrong_fails(part, monkeypatch, capsys):
    monkeypatch.setattr(recipe_steps, "compare", lambda *_: ROW._replace(right=False))
    gpu.steps_of_recipes(part)
    assert not part.well
    assert capsys.readouterr().out.count("FAILED: too far apart, or not compiled") == len(gpu.FEW)


def test_recipes_for_which_there_is_no_time_are_counted(part, monkeypatch, capsys):
    def compare(*_):
        part.stop -= 1000
        return ROW

    monkeypatch.setattr(recipe_steps, "compare", compare)
    gpu.steps_of_recipes(part)
    assert part.well
    assert f"short of time: 1 of {len(gpu.FEW)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factor", "graphs", "right"), [(1.01, 1, True), (1.2, 1, False), (1.0, 0, False)]
)
def test_a_step_is_right_if_it_is_near_and_compiled(factor, graphs, right, monkeypatch):
    def steps(config, device, count):
        gradient = torch.ones(3) * (factor if config.autocast else 1.0)
        return SimpleNamespace(loss=1.0, gradient=gradient, seconds=1.0, memory=1.0, finite=True)

    counts = {"unique_graphs": graphs}
    monkeypatch.setattr(recipe_steps, "Steps", steps)
    monkeypatch.setattr(recipe_steps, "compiling", lambda quick: nullcontext(counts))
    row = recipe_steps.compare(recipes.load("small"), torch.device("cpu"), quick=True)
    assert row.right == right
    assert row.gradient == pytest.approx(factor - 1, rel=1e-4)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_shortened_recipe_is_the_recipe_with_fewer_blocks(name):
    config = recipes.load(name)
    shorter = [recipe_steps.shortened(config, quick) for quick in (True, False)]
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in each.objective().parameters()) for each in (*shorter, config)
        ]
    assert sizes == sorted(sizes)
    same = {"network", "batch", "warmup", "clip"}
    for short in shorter:
        values = short.asdict()
        assert all(values[key] == v for key, v in config.asdict().items() if key not in same)
        assert short.network["dropout"] == 0.0
