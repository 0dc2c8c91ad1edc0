"""The code of the README and of docs/ runs and prints what stands under it, and links lead
somewhere."""

import contextlib
import io
import re
import textwrap
from pathlib import Path

import pytest
from test_public_api import NAMESPACE

from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule, Tabulated
from vdiff.weighting import ELBO, Weighting

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_prints_what_it_says(page):
    names: dict[str, object] = {}
    text = (ROOT / page).read_text(encoding="utf-8")
    for code, says in re.findall(r"```python\n(.*?)```\n(\n    .*?\n\n)?", text, re.DOTALL):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue().strip() == textwrap.dedent(says).strip()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


def test_every_row_of_the_method_table_is_code():

    choosing = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[2:6]
        for line in (README + choosing).splitlines()
        if line.count("|") in (5, 6) and "`" in line
    ]
    assert len(rows) >= 17
    for *row, bound in rows:
        names = dict(NAMESPACE)
        schedule, parameterization, weighting = (re.findall(r"`([^`]+)`", cell) for cell in row)
        names["schedule"] = eval(schedule[0], names)
        assert isinstance(names["schedule"], Schedule)
        assert all(isinstance(eval(code, names), Parameterization) for code in parameterization)
        weights = [eval(code, names) for code in weighting]
        assert all(isinstance(w, Weighting) for w in weights)
        if bound.strip():
            assert (bound.strip() != "no") == weights[0].monotone
            assert (bound.strip() == "yes") == isinstance(weights[0], ELBO)


def test_every_network_of_the_table_becomes_a_model():
    import torch
    from torch import nn

    import vdiff

    names = dict(NAMESPACE) | {"torch": torch, "table": Tabulated.linear_betas()}
    names |= {name: nn.Linear(2, 2) for name in ("network", "unet", "F", "D")}
    codes = [
        line.split("|")[2]
        for line in (ROOT / "docs/porting.md").read_text(encoding="utf-8").splitlines()
        if line.count("|") == 3 and "`Denoiser(" in line
    ]
    assert len(codes) == 9
    for code in codes:
        assert isinstance(eval(re.findall(r"`(Denoiser[^`]+)`", code)[0], names), vdiff.Denoiser)


def test_the_readme_is_short():
    words = [word for word in README.split() if re.search(r"\w", word)]
    assert len(words) <= 700, len(words)
