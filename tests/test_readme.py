"""The README's own code runs and prints what the README says."""

import contextlib
import io
import re
import textwrap
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_code_of_the_readme_prints_what_it_says():
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```\n(\n    .*?\n\n)?", README, re.DOTALL)
    assert sum(bool(says) for _, says in blocks) >= 2
    for code, says in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue().strip() == textwrap.dedent(says).strip()


def test_every_row_of_the_method_table_is_code():
    import vdiff

    rows = [line.split("|")[2:5] for line in README.splitlines() if line.count("|") == 5 and "`" in line]
    assert len(rows) >= 11
    for row in rows:
        names = {name: getattr(vdiff, name) for name in vdiff.__all__}
        schedule, parameterization, weighting = (re.findall(r"`([^`]+)`", cell) for cell in row)
        names["schedule"] = eval(schedule[0], names)
        assert isinstance(names["schedule"], vdiff.Schedule)
        assert all(isinstance(eval(code, names), vdiff.Parameterization) for code in parameterization)
        assert all(isinstance(eval(code, names), vdiff.Weighting) for code in weighting)


def test_every_network_of_the_readme_becomes_a_model():
    import torch
    from torch import nn

    import vdiff

    names = {name: getattr(vdiff, name) for name in vdiff.__all__} | {"torch": torch, "table": vdiff.Tabulated.linear_betas()}
    names |= {name: nn.Linear(2, 2) for name in ("network", "unet", "F", "D")}
    codes = [line.split("|")[2] for line in README.splitlines() if line.count("|") == 3 and "`Denoiser(" in line]
    assert len(codes) == 8
    for code in codes:
        assert isinstance(eval(re.findall(r"`(Denoiser[^`]+)`", code)[0], names), vdiff.Denoiser)
