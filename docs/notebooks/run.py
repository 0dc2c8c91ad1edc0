"""Run the notebooks of this folder from top to bottom: `make notebooks`.

    python docs/notebooks/run.py            # in full; the outputs are stored
    python docs/notebooks/run.py --quick    # small, with QUICK=1; nothing is stored

A full run stores the digest of the code that made the outputs. `tests/test_notebooks.py` compares
it with the code that stands there.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LONGEST = 1800  # seconds of one cell


def paths() -> list[Path]:
    """The notebooks, in the order of their numbers."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    """A notebook as plain data."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_digest(notebook: dict[str, Any]) -> str:
    """The SHA-256 of the sources of all code cells."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def execute(path: Path, *, store: bool) -> None:
    """Run a notebook in a kernel of its own. Raises at the first cell that fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=LONGEST, startup_timeout=LONGEST, record_timing=False,
        coalesce_streams=True, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    client.execute(cwd=str(path.parent))
    if store:
        notebook.metadata["language_info"] = {"name": "python"}  # not this machine's version
        notebook.metadata["code_sha256"] = code_digest(notebook)
        nbformat.write(notebook, path)


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run small, and store nothing")
    parser.add_argument("names", nargs="*", help="beginnings of names (default: all notebooks)")
    options = parser.parse_args()
    os.environ["QUICK"] = "1" if options.quick else ""
    for path in paths():
        if path.name.startswith(tuple(options.names) or ""):
            started = time.time()
            execute(path, store=not options.quick)
            print(f"{path.name}: {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
