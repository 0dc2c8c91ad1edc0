"""The notebooks' stored outputs are of the code that stands there, and a site can show them."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs" / "notebooks"))
import run

NOTEBOOKS = [pytest.param(path, id=path.stem) for path in run.paths()]
LARGEST = 400_000  # bytes
each = pytest.mark.parametrize("path", NOTEBOOKS)


def code_cells(path):
    return [cell for cell in run.read(path)["cells"] if cell["cell_type"] == "code"]


def text_of(path):
    cells = [cell for cell in run.read(path)["cells"] if cell["cell_type"] == "markdown"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def test_there_are_five_notebooks():
    assert [path.name[:3] for path in run.paths()] == [f"0{i}_" for i in range(1, 6)]


@each
def test_stored_outputs_are_of_the_code_that_stands_there(path):
    notebook = run.read(path)
    stale = f"{path.name} has changed since its outputs were stored: make notebooks"
    assert notebook["metadata"].get("code_sha256") == run.code_digest(notebook), stale


def test_the_digest_sees_a_change_of_code_and_no_change_of_text():
    notebook = run.read(run.paths()[0])
    before = run.code_digest(notebook)
    text, code = (
        next(cell for cell in notebook["cells"] if cell["cell_type"] == kind)
        for kind in ("markdown", "code")
    )
    text["source"].append("more text")
    assert run.code_digest(notebook) == before
    code["source"] = "".join(code["source"])  # as one string it is the same code
    assert run.code_digest(notebook) == before
    code["source"] += " "
    assert run.code_digest(notebook) != before


@each
def test_every_cell_ran_in_order_without_a_warning(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)


@each
def test_a_notebook_is_small(path):
    assert path.stat().st_size <= LARGEST


@each
def test_every_figure_has_an_alternative_text(path):
    for cell in code_cells(path):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            assert cell["metadata"]["mystnb"]["image"]["alt"].endswith(".")


@each
def test_headings_are_in_order_and_the_notebook_ends_with_exercises(path):
    text = text_of(path)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[-1] == "Exercises"
    assert len(re.findall(r"^\d\. ", text.rpartition("## Exercises")[2], re.MULTILINE)) == 3


@each
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)\)", text_of(path))
    assert links
    for link in links:
        assert link.startswith("https://") or (run.FOLDER / link).exists(), link
