"""The figure of a run: its numbers are those of the run, and equal losses have one line."""

import json
import sys
from pathlib import Path

import pytest
import torch

import vdiff
from vdiff.training import Config, Run

pytest.importorskip("matplotlib")
sys.path.append(str(Path(__file__).parents[1] / "examples"))
import face

BOUND = {"total": {"value": 1.6942, "monte_carlo": 0.002, "images": 0.0141}}
RESULTS = {"bound": BOUND, "baselines": {"uniform": 4.0875, "per-pixel histogram": 2.4311}}


@pytest.fixture
def run(tmp_path):
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "multipliers": [1]}
    run = Run.create(tmp_path / "run", Config(network=network | {"heads": 1}))
    run.save(run.config.objective())
    (run.folder / "results.json").write_text(json.dumps(RESULTS))
    return run


def test_the_bound_has_both_errors_beside_the_baselines():
    _, (ax,) = vdiff.plots.figure()
    face.draw_bits(ax, RESULTS)
    title = " ".join(ax.get_title(loc="left").split())
    errors = "1.694 ± 0.002 (Monte Carlo) ± 0.014 (images)"
    assert title == f"{errors}, 0.74 fewer bits than the best baseline"
    assert ax.lines[0].get_xdata().tolist() == [4.0875, 2.4311]
    lengths = []
    for bars in ax.containers:
        ((start, end),) = bars.lines[2][0].get_segments()
        lengths.append(end[0] - start[0])
    assert lengths == pytest.approx([4 * 0.0141, 4 * 0.002])  # from −2 to 2 standard errors
    assert [text.get_text() for text in ax.texts] == ["4.09", "2.43", "1.69"]


def test_the_loss_of_flow_matching_is_that_of_v():
    logsnr = torch.linspace(-10, 10, 41, dtype=torch.float64)
    v, flow = (vdiff.recipe(name).weighting(logsnr) for name in ("v-prediction", "flow-matching"))
    torch.testing.assert_close(flow / flow[20], v / v[20])


def test_the_figure_of_a_run_is_small(run, tmp_path):
    face.main(["--run", str(run.folder), "--out", str(tmp_path / "figures" / "face.png")])
    assert 20_000 < (tmp_path / "figures" / "face.png").stat().st_size < 300_000
    with pytest.raises(SystemExit):
        face.main(["--run", str(tmp_path / "nothing")])


def test_the_figure_in_the_documentation_is_small():
    assert (Path(__file__).parents[1] / "docs/figures/face.png").stat().st_size < 300_000
