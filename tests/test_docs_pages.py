"""The pages of docs/: each has its place in the site, and links and anchors between them lead
somewhere. The site itself is checked when it is built, `make docs`."""

import importlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

import vdiff

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
FENCE = re.compile(r"^(```|\$\$).*?^\1$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(page):
    return str(page.relative_to(DOCS))


def toctree(page):
    """The pages that a page lists for the site's navigation."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    names = [line for line in lines if line and not line.startswith(":")]
    paths = [(page.parent / name).resolve() for name in names]
    return [p.with_suffix(".ipynb" if p.parent.name == "notebooks" else ".md") for p in paths]


def prose(page):
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page):
    """Those of its headings, as a repository browser and the site name them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_once_in_the_site():
    listed = [page for parent in PAGES for page in toctree(parent)]
    notebooks = (DOCS / "notebooks").glob("*.ipynb")
    assert sorted([*listed, DOCS / "index.md"]) == sorted([*PAGES, *notebooks])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_anchors_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_headings_begin_with_one_and_go_down_by_one(page):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_api_has_every_room_that_the_door_names():
    rooms = {*vdiff.ROOMS, "schedule", "parameterization", "weighting", "decoder", "variance"}
    assert rooms - {"cli"} <= {page.stem for page in (DOCS / "api").glob("*.md")}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "api" and p.stem != "index"], ids=named
)
def test_a_page_of_the_api_is_of_its_module(page):
    name = "vdiff" if page.stem == "vdiff" else f"vdiff.{page.stem}"
    assert importlib.import_module(name).__doc__
    text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
    assert page.read_text("utf-8") == text
