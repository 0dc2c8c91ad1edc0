"""The source distribution holds all tests, and what they read."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import vdiff

ROOT = Path(__file__).parent.parent
FOLDERS = ("vdiff", "tests", "docs", "examples", "benchmarks")
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "Makefile")
BUILD = ("MANIFEST.in", "pyproject.toml", "constraints.txt", ".ci/run")
GENERATED = shutil.ignore_patterns("__pycache__", "_build")


def test_the_source_distribution_holds_all_tests_and_what_they_read(tmp_path):
    pytest.importorskip("setuptools.build_meta")
    copy = tmp_path / "copy"
    copy.mkdir()  # a build leaves files where it runs
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=GENERATED)
    (copy / ".ci").mkdir()
    for file in (*FILES, *BUILD):
        shutil.copy(ROOT / file, copy / file)
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    code = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        packed = {name.partition("/")[2] for name in members.getnames()}
    assert there <= packed, sorted(there - packed)
    assert not any(name.endswith(".pyc") for name in packed)


def test_the_version_stands_in_one_place_and_the_citation_follows():
    assert 'attr = "vdiff._version.__version__"' in (ROOT / "pyproject.toml").read_text(
        encoding="utf-8"
    )
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {vdiff.__version__}\n" in citation
