"""The package as a stranger starts it: as a module, room by room, and from the folder above a
clone."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import vdiff

ROOT = Path(__file__).parent.parent


def python(
    *words: str, cwd: Path = ROOT, path: Path | None = ROOT
) -> subprocess.CompletedProcess[str]:
    """A new interpreter, with `path` alone on PYTHONPATH."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1"
    }
    known |= {} if path is None else {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=known, capture_output=True, text=True, timeout=300
    )


def test_the_command_line_is_a_module_too():
    done = python("-m", "vdiff", "describe", "edm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("edm (arXiv:2206.00364)")
    done = python("-m", "vdiff", "describe", "edn")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'edm'?" in done.stderr


@pytest.mark.parametrize("room", vdiff.ROOMS)
def test_every_room_is_there_without_an_import_of_its_own(room):
    """And nothing of it before it is asked for."""
    code = f"""
import sys, vdiff
assert "vdiff.{room}" not in sys.modules
assert "{room}" in dir(vdiff)
assert vdiff.{room}.__name__ == "vdiff.{room}"
assert vdiff.{room} is vars(vdiff)["{room}"]
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_rooms_are_all_packages_and_modules_that_the_door_does_not_import():
    inner = {
        path.stem
        for path in (ROOT / "vdiff").iterdir()
        if path.stem[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    code = (
        "import vdiff, sys; print(*(name.split('.')[1] for name in sys.modules if "
        "name.startswith('vdiff.')))"
    )
    imported = set(python("-c", code).stdout.split())
    assert inner - imported - {"disk", "groups", "terminal"} == set(vdiff.ROOMS)


def test_a_name_that_is_not_there_is_an_error_with_the_nearest():
    with pytest.raises(AttributeError, match="module 'vdiff' has no attribute 'Cosin'"):
        vdiff.Cosin
    assert "Did you mean: 'elbo'?" in python("-c", "import vdiff; vdiff.elb").stderr
    with pytest.raises(AttributeError, match=r"did you mean vdiff\.schedule\.Cosine"):
        vdiff.Cosine


def test_an_editable_install_is_found_from_the_folder_above_a_clone(tmp_path):
    """Where Python starts, a folder named vdiff is a package without content, unless the real one
    is on the path.

    An install through a hook comes after the path; one by a line in a .pth file is on it.
    """
    clone = tmp_path / "vdiff"
    (clone / "vdiff" / "inner").mkdir(parents=True)
    (clone / "vdiff" / "__init__.py").write_text("elbo = 1\n")
    (clone / "vdiff" / "_version.py").write_text('__version__ = "1.0"\n')
    (clone / "vdiff" / "inner" / "__init__.py").write_text("")
    (clone / "tests").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("the build needs setuptools 77")
    built = python(
        "-c", "import setuptools.build_meta as b; print(b.build_editable('.'))", cwd=clone
    )
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(clone / built.stdout.split()[-1]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        wheel.extractall(site)
    assert [name for name in names if name.endswith(".py")] == []  # no hook
    look = (
        f"import site; site.addsitedir({str(site)!r}); import vdiff, vdiff.inner; "
        f"print(vdiff.elbo, vdiff.__file__)"
    )
    done = python("-S", "-c", look, cwd=tmp_path, path=None)  # without this interpreter's installs
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", str(clone / "vdiff" / "__init__.py")]


def test_this_very_package_is_found_from_a_folder_above_a_clone(tmp_path):
    (tmp_path / "vdiff" / "vdiff").mkdir(parents=True)
    done = python(
        "-c", "import vdiff; print(vdiff.elbo.__name__, vdiff.nn.MLP.__name__)", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "elbo MLP\n"), done.stderr


def test_the_commands_of_the_readme_start_where_the_package_is():
    """In the clone itself, where the folder `vdiff` is the package: `make` and the example scripts
    say so by their paths."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in readme.splitlines():
        if line.startswith("    python "):
            assert (ROOT / line.split()[1]).is_file(), line
    assert (ROOT / "Makefile").is_file()
    assert (ROOT / "vdiff" / "__init__.py").is_file()
