"""The losses of other libraries: what is installed is measured, what is not is named."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import loss_overhead
import peers

from vdiff.nn import MLP

MATCHER = """
import ot.bregman
import torch

class ConditionalFlowMatcher:
    def __init__(self, sigma):
        assert sigma == 0.0

    def sample_location_and_conditional_flow(self, x0, x1):
        t = torch.rand(len(x0))
        return t, t[:, None] * x1 + (1 - t[:, None]) * x0, x1 - x0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One library that imports, of a module that is not there; one that is broken."""
    for name in ("torchcfm", "k_diffusion"):
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
    (tmp_path / "torchcfm.py").write_text(MATCHER, encoding="utf-8")
    (tmp_path / "k_diffusion.py").write_text("import nothing_of_that_name", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_imports_is_a_step_and_what_does_not_is_named(folder, monkeypatch):
    chosen = {name: peers.PEERS[name] for name in ("torchcfm", "k-diffusion", "flow-matching")}
    monkeypatch.setattr(peers, "PEERS", chosen)
    network = MLP(2, width=8, depth=1)
    found, missing = peers.steps(network, torch.randn(8, 2), folder)
    assert list(found) == ["torchcfm 1.2, flow matching"]
    loss = found["torchcfm 1.2, flow matching"]()
    loss.backward()
    assert loss.shape == ()
    assert [text.split(":")[:2] for text in missing] == [
        ["k-diffusion", " ModuleNotFoundError"],
        ["flow-matching", " ModuleNotFoundError"],
    ]
    assert "nothing_of_that_name" in missing[0]
    assert "ot" not in sys.modules  # a stand-in does not stay
    assert not [finder for finder in sys.meta_path if isinstance(finder, peers._StandIns)]


def test_a_module_that_is_installed_gets_no_stand_in():
    with peers.stand_ins("json not_installed_anywhere"):
        import json

        import not_installed_anywhere.inner

    assert json.loads("1") == 1
    assert not_installed_anywhere.inner.anything() is not None


def test_the_table_has_both_sides(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loss_overhead.py", "--peers", str(folder), "--pairs", "2"])
    loss_overhead.main()
    out = capsys.readouterr().out
    for words in ("torchcfm 1.2, flow matching", "vdiff, flow matching", "vdiff, DDPM"):
        assert words in out
    assert out.count("missing: ") == len(peers.PEERS) - 1
