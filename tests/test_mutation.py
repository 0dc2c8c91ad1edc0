"""The tool that breaks the core: a mutant differs in one place, is installed everywhere, and is
killed by a test that sees it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_mutants_of_a_module_are_killed_by_its_tests(tmp_path):
    command = [
        sys.executable,
        "tests/mutation.py",
        "--only",
        "vdiff/resampling.py",
        "--tests",
        "tests/test_objective_terms.py",
        "--sample",
        "8",
        "--jobs",
        "1",
    ]
    run = subprocess.run(
        [*command, "--map", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    found = re.search(r"^8 mutants, (\d) killed", run.stdout, re.MULTILINE)
    assert found, run.stdout + run.stderr
    assert 4 <= int(found[1]) <= 7  # some lines of it are reached by other tests alone
    assert run.returncode == 1  # fewer than nine in ten
    assert "0 left out" in run.stdout


def test_every_file_of_the_core_is_found():
    count = subprocess.run(
        [sys.executable, "tests/mutation.py", "--count"], capture_output=True, text=True, cwd=ROOT
    )
    assert int(count.stdout) > 3000, count.stderr
