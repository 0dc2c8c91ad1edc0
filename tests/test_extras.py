"""Without the extras: every module can be imported or says what to install, every command runs or
says it, in one line."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from vdiff.training import Config, Run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = ("train", "ode", "codec")  # those that a user installs


def with_all_they_need(requirements: list[str]) -> set[str]:
    """The distributions that an installer brings, by their normalised names."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        one = left.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if (
            name == "vdiff-torch"
            or name in found
            or (one.marker and not one.marker.evaluate({"extra": ""}))
        ):
            continue
        found.add(name)
        try:
            left += [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        except (
            importlib.metadata.PackageNotFoundError
        ):  # a part of torch's wheel on other machines
            continue
    return found


def modules_of(distributions: set[str]) -> set[str]:
    known = importlib.metadata.packages_distributions()
    return {
        module
        for module, homes in known.items()
        if {re.sub(r"[-_.]+", "-", home).lower() for home in homes} & distributions
    }


PLAIN = modules_of(with_all_they_need(PROJECT["dependencies"]))
MISSING = {name: modules_of(with_all_they_need(EXTRAS[name])) - PLAIN for name in EXTRAS}
ABSENT = sorted(set.union(*MISSING.values()))

BARE = f"""
import json, os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def bare(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python code where no library of an extra can be imported."""
    command = [sys.executable, "-c", BARE + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_list_of_what_is_missing_is_that_of_the_project():
    assert {"safetensors", "tqdm", "matplotlib", "sklearn", "PIL"} <= MISSING["train"]
    assert "torchdiffeq" in MISSING["ode"]
    assert "scipy" in MISSING["test"]
    assert not {"torch", "numpy", "jaxtyping", "einops"} & set(ABSENT)


def optional_imports(
    tree: ast.AST, within: str | None = None
) -> Iterator[tuple[str, str | None, int]]:
    """Module, the extra of the `with extra(…)` around it, and line, of each import of what an
    installation may lack."""
    for node in ast.iter_child_nodes(tree):
        inside = within
        if (
            isinstance(node, ast.With)
            and isinstance(call := node.items[0].context_expr, ast.Call)
            and ast.unparse(call.func) == "extra"
        ):
            inside = ast.literal_eval(call.args[0])
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            if name.split(".")[0] in ABSENT:
                yield name.split(".")[0], inside, node.lineno
        yield from optional_imports(node, inside)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "vdiff").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_optional_import_says_its_extra(path):
    """`vdiff.training` says it once, for all its files, which are imported after it."""
    behind_its_door = path.parent.name == "training" and path.name != "__init__.py"
    known = list(optional_imports(ast.parse(path.read_text(encoding="utf-8"))))
    for module, within, line in known:
        wanted = [name for name in OURS if module in MISSING[name]]
        if behind_its_door or (
            path.name == "evaluate.py" and module == "safetensors"
        ):  # after its import of vdiff.training
            assert "train" in wanted, f"{path}:{line}"
        else:
            assert within in wanted, (
                f"{path}:{line}: put the import of {module} into `with extra({wanted}):`"
            )


def test_what_training_imports_is_asked_for_at_its_door():
    door = ROOT / "vdiff" / "training" / "__init__.py"
    asked = {
        module for module, _, _ in optional_imports(ast.parse(door.read_text(encoding="utf-8")))
    }
    used = {
        m
        for path in door.parent.glob("*.py")
        for m, _, _ in optional_imports(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert used <= asked


def test_every_module_can_be_imported_or_says_what_to_install():
    done = bare(
        "import importlib, pkgutil, vdiff\n"
        "said = {}\n"
        "for info in pkgutil.walk_packages(vdiff.__path__, 'vdiff.', onerror=lambda name: None):\n"
        "    try: importlib.import_module(info.name); said[info.name] = ''\n"
        "    except ImportError as error: said[info.name] = str(error)\n"
        "print(json.dumps(said))"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["vdiff.cli.evaluate"] == said["vdiff.plots"] == said["vdiff.data.download"] == ""
    assert (
        said["vdiff.training"] == "safetensors is not installed: pip install 'vdiff-torch[train]'"
    )
    assert not [
        name
        for name, text in said.items()
        if text and not (name.startswith("vdiff.training") and text == said["vdiff.training"])
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    with Run.create(tmp_path_factory.mktemp("bare") / "run", config) as made:
        made.save(config.objective())
    return made.folder


COMMANDS: dict[
    str, tuple[int, str]
] = {  # what a plain installation answers: exit code, and the extra that is named
    "--help": (0, ""),
    "describe --help": (0, ""),
    "evaluate --help": (0, ""),
    "sample --help": (0, ""),
    "verify --help": (0, ""),
    "describe edm": (0, ""),
    "describe edm --compare vdm": (0, ""),
    "describe --all": (0, ""),
    "describe edm --figure FOLDER/figure.png": (2, "train"),
    "verify tweedie": (0, ""),
    "verify samplers-follow-the-flow": (0, ""),
    "verify --estimators gaussian --points 4": (1, ""),  # its table names the extra
    "evaluate RUN": (2, "train"),
    "evaluate RUN --ode": (2, "train"),
    "evaluate RUN --against RUN": (2, "train"),
    "compress --help": (0, ""),
    "compress RUN images.npz FOLDER/out.vdiff": (2, "codec"),
    "decompress RUN out.vdiff FOLDER/images.npz": (2, "codec"),
    "sample RUN": (2, "train"),
    "sample RUN --step ode": (2, "train"),
}


def test_every_command_runs_or_says_what_to_install(run, tmp_path):
    code = (
        "import contextlib, io\n"
        "from vdiff.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try: rc = main(line.split('|'))\n"
        "        except SystemExit as ended: rc = ended.code\n"
        "    print(json.dumps([rc, out.getvalue(), err.getvalue()]))\n"
    )
    before = sorted(run.rglob("*"))
    lines = [
        text.replace("RUN", str(run)).replace("FOLDER", str(tmp_path)).replace(" ", "|")
        for text in COMMANDS
    ]
    done = bare(code, *lines)
    assert done.returncode == 0, done.stderr
    for (text, (wanted, extra)), answer in zip(
        COMMANDS.items(), map(json.loads, done.stdout.splitlines()), strict=True
    ):
        rc, out, err = answer
        assert rc == wanted, f"{text}: {answer}"
        if extra:
            said = (
                rf"vdiff {text.split()[0]}: \w+ is not installed: pip install "
                rf"'vdiff-torch\[{extra}\]'\n"
            )
            assert re.fullmatch(said, err), f"{text}: {err}"
        if text.startswith("verify --estimators"):
            assert (
                "ImportError: torchdiffeq is not installed: pip install 'vdiff-torch[ode]'" in out
            )
    assert list(tmp_path.iterdir()) == []
    assert sorted(run.rglob("*")) == before


CALLS: dict[str, str] = {
    "import vdiff.training": "train",
    "from vdiff.training import train": "train",
    "from vdiff.training.checkpoint import load": "train",
    "from vdiff.data import dataset; dataset('digits', FOLDER)": "train",
    "from vdiff.data import splits; splits('digits', FOLDER)": "train",
    "from vdiff.data import dataset; dataset('patches', FOLDER)": "train",
    "from vdiff.plots import figure; figure()": "train",
    "from vdiff.plots import animation; animation('x.gif', None, None, 1)": "train",
    "from vdiff.cli.load import parse_device; parse_device(None)": "train",
    "ode_likelihood(oracle, torch.zeros(1, 1), schedule=vdiff.schedule.Linear())": "ode",
    (
        "vdiff.sample(oracle, torch.zeros(1, 1), schedule=vdiff.schedule.Linear(), steps=2, "
        "step=vdiff.sampling.ode)"
    ): "ode",
    "vdiff.sampling.invert(oracle, torch.zeros(1, 1), schedule=vdiff.schedule.Linear())": "ode",
}


def test_every_function_says_what_to_install(tmp_path):
    code = (
        "import torch, vdiff\nfrom vdiff.likelihood import ode_likelihood\n"
        "oracle = vdiff.oracle.GaussianMixture([1.0], [[0.0]], [[0.25]])\n"
        "for line in sys.argv[1:]:\n"
        "    try: exec(line, dict(globals())); said = 'nothing'\n"
        "    except ImportError as error: said = str(error)\n"
        "    print(said)\n"
    )
    done = bare(code, *(line.replace("FOLDER", repr(str(tmp_path))) for line in CALLS))
    assert done.returncode == 0, done.stderr
    for (line, extra), said in zip(CALLS.items(), done.stdout.splitlines(), strict=True):
        assert re.fullmatch(
            rf"\w+ is not installed: pip install 'vdiff-torch\[{extra}\]'", said
        ), f"{line}: {said}"


def test_a_library_that_is_there_and_broken_keeps_its_own_words(tmp_path):
    (tmp_path / "safetensors.py").write_text("raise ImportError('built for another numpy')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vdiff.training"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ImportError: built for another numpy: pip install 'vdiff-torch[train]'" in done.stderr


@pytest.mark.parametrize("options", [["--ode"], []])
def test_what_is_missing_is_said_before_anything_is_computed(run, options, monkeypatch, capsys):
    from vdiff.cli import evaluate, main

    gone: dict[str, Any] = {"evaluate": "torchdiffeq", "sample": "PIL"}
    command = "evaluate" if options else "sample"
    monkeypatch.setitem(sys.modules, gone[command], None)
    monkeypatch.setattr(evaluate, "evaluate_bound", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr("vdiff.cli.sample.trajectory", lambda *_, **__: pytest.fail("sampled"))
    assert main([command, str(run), *options]) == 2
    assert "pip install 'vdiff-torch[" in capsys.readouterr().err
