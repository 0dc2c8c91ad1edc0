"""The layers: one total order of modules, each importing only from those before it; and where each
module is tested."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from check_share import check_files, shares

import vdiff

LAYERS = (
    "_version", "errors", "_html", "_validate", "_inputs", "extras", "_precision", "_modules",
    "gaussian", "times", "masks", "resampling", "profile", "variance", "schedule",
    "parameterization", "prediction", "_partial", "reverse", "weighting", "bound", "decoder",
    "_diffusion", "_network", "denoiser", "discrete", "_known_range", "_arguments", "_mixture",
    "_quadrature", "oracle", "loss", "_path_bound", "chain", "flow", "losses", "_fits",
    "objective", "groups", "diagnosis", "sampling", "likelihood", "metrics", "recipes",
    "augmentation", "_describe_tokens", "describe", "interop", "theorems",
    "nn", "disk", "terminal", "plots", "data", "training", "codec", "cli",
)  # fmt: skip
ROOT = Path(vdiff.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
WORLDLY = {
    "argparse",
    "glob",
    "io",
    "json",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "pickle",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "torch.distributed",
    "torch.optim",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "safetensors",
    "sklearn",
    "tqdm",
}


def module_of(path: Path) -> str:
    parts = ("vdiff", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """The modules a file imports, wherever in it, a name of a package resolved to the submodule it
    is."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(
                    [
                        *package.split(".")[: len(package.split(".")) - node.level + 1],
                        *([node.module] if node.module else []),
                    ]
                )
                if node.level
                else node.module
            )
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else str(base)


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_its_place():
    assert {layer(m) for m in MODULES} - {"", "__main__"} <= set(LAYERS)
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in LAYERS])
def test_a_module_imports_only_from_those_before_it(module):
    own = [m for m in imports(MODULES[module]) if m.split(".")[0] == "vdiff"]
    assert "vdiff" not in own, (
        f"{module} imports from the package's front door: import from where the name is defined"
    )
    late = [
        m
        for m in own
        if layer(m) != layer(module) and LAYERS.index(layer(m)) > LAYERS.index(layer(module))
    ]
    assert not late, f"{module} imports from {late}, which come after it"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if layer(m) in LAYERS[: LAYERS.index("nn")]]
)
def test_nothing_before_the_networks_knows_of_files_processes_or_training(module):
    known = {
        m for m in imports(MODULES[module]) if any(f"{m}.".startswith(f"{w}.") for w in WORLDLY)
    }
    assert not known, f"{module} imports {sorted(known)}"


def test_there_are_no_cycles_between_files():
    graph = {
        m: {
            i
            for i in imports(path)
            if i in MODULES and i != m and MODULES[i].name != "__init__.py"
        }
        for m, path in MODULES.items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    package = tmp_path / "schedule"
    package.mkdir()
    source = package / "new.py"
    source.write_text(
        "import vdiff.nn\nfrom vdiff import loss\nfrom vdiff.data import digits\n"
        "from .base import Schedule\nfrom .. import cli\nfrom vdiff import V\n"
        "def f():\n    import json\n"
    )
    monkeypatch.setattr("test_layers.ROOT", tmp_path)
    assert list(imports(source)) == [
        "vdiff.nn",
        "vdiff.loss",
        "vdiff.data.digits",
        "vdiff.schedule.base",
        "vdiff.cli",
        "vdiff",
        "json",
    ]


TESTS = Path(__file__).parent
TEST_FILES = {path.name: path for path in TESTS.rglob("test_*.py")}
# rooms and modules whose tests are not in test_<module>.py or test_<room>_<module>.py
TESTED_IN = {
    "cli.decompress": "test_cli_compress.py",
    "cli.describe": "test_describe.py",
    "cli.method": "test_cli_sample.py",
    "cli.parser": "test_cli.py",
    "cli.pictures": "test_cli_sample.py",
    "cli.progress": "test_cli_evaluate.py",
    "cli.sampler": "test_cli_sample.py",
    "codec": "test_codec.py",
    "data": "test_data.py",
    "decoder": "test_decoder.py",
    "discrete": "test_discrete.py",
    "errors": "faults/test_machine.py",
    "groups": "test_groups.py",
    "interop": "interop/test_interop.py",
    "loss": "oracles/test_oracle_loss.py",
    "losses": "test_objective.py",
    "nn": "test_nn.py",
    "plots": "test_plots.py",
    "schedule": "test_schedule.py",
    "theorems": "theorems/test_evidence.py",
    "training.fields": "test_config.py",
    "training.loop": "test_trainer.py",
    "training.outline": "test_spec_outline.py",
    "weighting": "theorems/test_weighting.py",
}


def file_of_tests(module: str) -> Path | None:
    """The file with the tests of a module: named after it, or in the table."""
    *room, name = module.split(".")[1:]
    own = [f"test_{name}.py", f"test_{'_'.join([*room, name])}.py"]
    found = [TEST_FILES[file] for file in own if file in TEST_FILES]
    listed = TESTED_IN.get(".".join([*room, name])) or TESTED_IN.get(".".join(room))
    return found[0] if found else TESTS / listed if listed else None


@pytest.mark.parametrize("module", [m for m in MODULES if "._" not in m and "." in m])
def test_every_public_module_has_its_test_file(module):
    assert MODULES[module].name == "__init__.py" or file_of_tests(module), (
        f"no tests/**/test_{module.split('.')[-1]}.py"
    )


def test_the_table_of_test_files_names_what_exists():
    assert {f"vdiff.{name}" for name in TESTED_IN} <= set(MODULES)
    assert [file for file in TESTED_IN.values() if not (TESTS / file).exists()] == []


FORMULAS = (
    "times", "gaussian", "bound", "variance", "reverse", "schedule", "parameterization",
    "prediction", "weighting", "decoder", "denoiser", "loss", "losses", "chain", "objective",
    "oracle", "profile", "resampling", "flow", "augmentation", "sampling", "likelihood",
)  # fmt: skip


def test_a_formula_s_file_holds_formulas():
    """Raises, their conditions and texts, rules and constraints, of all lines of code."""
    found = {
        name: (checks, code)
        for name, (checks, code) in shares(ROOT).items()
        if name.replace(".py", "").split("/")[0] in FORMULAS and "/_" not in name
    }
    checks, code = (sum(pair[i] for pair in found.values()) for i in (0, 1))
    assert checks / code < 0.08
    assert max(checks / code for checks, code in found.values() if code > 40) < 0.15


def test_the_files_of_checks_do_not_grow():
    """Lines of code in all of them: a new check replaces another one, or says what it says."""
    files = check_files(ROOT)
    assert {"_validate.py", "_inputs.py", "_arguments.py", "schedule/_check.py"} <= set(files)
    assert sum(files.values()) <= 1390, files
