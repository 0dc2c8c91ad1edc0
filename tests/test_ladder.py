"""The ladder's example: its units and figures against known numbers, its verdicts on made-up
results, and a quick run twice."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from vdiff import Prediction
from vdiff.decoder import DiscretizedGaussian
from vdiff.gaussian import diffuse
from vdiff.parameterization import Eps
from vdiff.reverse import reverse_mean

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import ladder
import ladder_chain
import ladder_figures as figures
import ladder_findings
from ladder import ROWS, Ladder, Row, Setting
from ladder_parts import Output

SMALL = Setting(levels=25, steps=4, batch=8, draws=4, samples=8)


def test_the_weights_of_ddpms_steps_have_their_ranges():
    weights = ladder_chain.step_weights(ladder_chain.DDPM)  # entry i is that of level i + 2
    mean, x, eps = weights["posterior mean"], weights["x"], weights["ε"]
    assert (mean.max().item(), mean.min().item()) == pytest.approx((9168.9, 25.0), rel=1e-4)
    assert [x[level - 2].item() for level in (2, 7, 10, 50, 1000)] == pytest.approx(
        [2726, 109, 45.5, 0.646, 4.1e-7], rel=6e-3
    )
    assert [eps[level - 2].item() for level in (2, 10, 100, 350, 1000)] == pytest.approx(
        [0.5997, 0.0864, 0.01027, 0.004982, 0.0102], rel=1e-3
    )
    assert eps.argmin() == 350 - 2


def test_autograd_finds_the_closed_form_of_a_variances_gradient():
    found = ladder_chain.variance_gradients(torch.logspace(-5, 1, 50, dtype=torch.float64))
    for by_autograd, closed in found.values():
        torch.testing.assert_close(by_autograd, closed, rtol=1e-9, atol=1e-9)
    at = ladder_chain.variance_gradients(torch.tensor([1e-3, 1e-4], dtype=torch.float64))
    assert at["Σ"][1].tolist() == pytest.approx([-2.95e4, -2.995e6])
    assert at["log Σ"][1].tolist() == pytest.approx([-29.5, -299.5])


def test_probabilities_add_up_where_edges_are_told_by_the_data_alone():
    for mean, std, wrong in ((0.9, 0.3, 0.639), (0.98, 0.02, 0.884), (-1.0, 0.05, 0.531)):
        decoder, at = DiscretizedGaussian(256, variance=std**2), torch.tensor([mean])
        assert ladder_chain.total_mass(decoder, at).item() == pytest.approx(1.0, abs=1e-9)
        shifted = ladder_chain.mass_of_shifted_edges(decoder, at).item()
        assert shifted == pytest.approx(wrong, abs=1e-3)


def test_the_posterior_over_the_forward_variance_is_close_to_one_from_level_100():
    ratio = torch.exp(-ladder_chain.chain_steps(ladder_chain.DDPM).log_variance_ratio)
    assert ratio[100 - 2].item() == pytest.approx(0.982, abs=1e-3)


def test_mean_mse_is_that_of_the_posterior_mean_in_every_row():
    one = Ladder(replace(SMALL, draws=64))
    model = one.model(Row("ε", "small", "MSE"))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    step = ladder_chain.chain_steps(one.table)
    square = step.coefficient_eps.square()  # ε̂ = 0, so that E e² = 1 and Var e² = 2
    error = (2 * square.square().sum() / (297 * 64 * 64 * len(square))).sqrt()
    assert one.mean_mse(model, 0) == pytest.approx(square.mean().item(), abs=4 * error.item())


@pytest.mark.parametrize("row", [row for row in ROWS if row.loss == "MSE"], ids=str)
def test_the_squared_error_is_that_of_the_rows_own_target(row):
    one = Ladder(SMALL)
    torch.manual_seed(0)
    model, images = one.model(row), one.images.train[:24]
    x, eps = one.decoder.encode(images), torch.randn(24, 1, 8, 8)
    t = torch.arange(1, 25, dtype=torch.float64) / one.chain
    logsnr = one.table(t)
    prediction = model(diffuse(x, eps, logsnr), logsnr)
    plain = (
        (prediction.output - prediction.parameterization.target(x, eps, logsnr))
        .square()
        .mean()
        .item()
    )
    assert one.loss(row, model, images, t=t, eps=eps).item() == pytest.approx(
        plain * one.chain / SMALL.levels, rel=1e-5
    )
    if row.mean == "mean":  # what it says is the mean of the reverse step
        torch.testing.assert_close(
            reverse_mean(prediction, one.mean.step(logsnr)),
            prediction.output,
            rtol=1e-3,
            atol=1e-3,
        )


def test_an_output_that_is_the_variance_is_taken_as_it_is():
    step = ladder_chain.chain_steps(ladder_chain.DDPM)
    head = torch.full((999, 1), -0.3)
    prediction = Prediction(head, step.logsnr_t, head, Eps(), Output(), head)
    u = prediction.variance.log_variance_ratio(step, prediction.variance_output)[:, 0]
    torch.testing.assert_close(
        torch.exp(u) * step.variance,
        torch.full((999,), 0.3, dtype=torch.float64),
        rtol=1e-5,
        atol=0,
    )


def test_a_run_that_diverges_is_recorded_with_its_step_and_the_next_begins(tmp_path):
    wild = Ladder(replace(SMALL, lr=1e30))
    rows = [Row("x", "small", "VLB"), Row("ε", "range", "hybrid_loss")]
    results = wild.run(rows, 2, tmp_path)
    for row in rows:
        for record, tensors in results[row]:
            assert 1 < record["diverged"] <= SMALL.steps
            assert len(tensors["loss"]) in (record["diverged"] - 1, record["diverged"])
            assert torch.isfinite(tensors["loss"]).all()
            assert record["bits"] is None
    assert "at step 2" in ladder_findings.render(results)


@pytest.mark.filterwarnings("ignore:evaluate")  # a few draws of a few images
def test_a_row_is_a_function_of_its_seed():
    first, again, other = (
        Ladder(SMALL).train(ROWS[0], seed, tqdm(disable=True))[1]["loss"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore:evaluate")
def test_a_run_keeps_its_curves_of_the_loss_the_bound_and_the_mean_mse():
    one = Ladder(replace(SMALL, steps=10))
    _, tensors = one.train(Row("ε", "small", "MSE"), 0, tqdm(disable=True))
    assert len(tensors["loss"]) == 10
    assert tensors["curve"][:, 0].tolist() == [5, 10]
    model = figures._model(one, Row("ε", "small", "MSE"), tensors)
    images = one.images.selection
    assert tensors["curve"][-1, 1] == pytest.approx(one.bound(model, images, 0, draws=2)[0])
    assert tensors["curve"][-1, 2] == pytest.approx(one.mean_mse(model, 0, images, 2))


def test_blocks_of_a_trace_end_where_they_say():
    at, blocks = figures._blocks([torch.arange(100.0), torch.arange(95.0)])
    assert blocks.shape == (2, 47, 2)
    assert torch.equal(at, blocks[0, :, -1] + 1)


def made_up(bits, mmd):
    norm = {"median": 1.0, "99 %": 2.0, "max": 3.0}
    return [
        (
            {"bits": b, "mmd": m, "mean_mse": 0.1, "runaway": 0.0, "norm": norm, "diverged": None},
            {},
        )
        for b, m in zip(bits, mmd, strict=True)
    ]


def test_the_verdict_on_likelihood_and_samples_follows_the_results():
    results = {row: made_up((9.0, 9.1, 9.05), (0.5, 0.51, 0.52)) for row in ROWS}
    results[ROWS[3]] = made_up((2.0, 2.1, 2.05), (0.4, 0.41, 0.42))
    results[ROWS[5]] = made_up((4.0, 4.1, 4.0), (0.1, 0.11, 0.13))
    assert ladder_findings.findings(results)[0].startswith(
        f"Likelihood and samples part ways: {ROWS[3]} has the best bound and {ROWS[5]} the best"
    )
    results[ROWS[5]] = made_up((4.0, 4.1, 4.0), (0.1, 0.1, 0.9))
    assert ladder_findings.findings(results)[0].startswith(
        "Likelihood and samples do not clearly part ways"
    )
    results[ROWS[3]][0][0]["bits"] = None
    assert ladder_findings.over_seeds(results, "bits", ROWS[3], ROWS[5]) == pytest.approx(
        (-1.975, 0.025)
    )


def test_an_error_has_two_digits_and_the_mean_as_many_places():
    assert ladder_findings.shown((3.14159, 0.0234)) == "3.142 ± 0.023"
    assert ladder_findings.shown((315.4, 70.0)) == "315 ± 70"
    assert ladder_findings.shown(None) == "–"


@pytest.mark.filterwarnings("ignore:evaluate")
def test_a_quick_run_ends_and_the_next_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        ladder,
        "winners",
        lambda _: {"bits": Row("x", "small", "MSE"), "mmd": Row("x", "small", "MSE")},
    )  # one, to be quick
    ladder.main(["--quick", "--long", "--out", str(tmp_path)])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert all(f"| {row} |" in table for row in ROWS)
    assert "×14" in table
    assert "| ε/small/VLB ×3 |" in table
    assert "trained for longer, ε/small/MSE ×3 − ε/small/VLB ×3: bits/dim" in table
    assert [row["variance"] for row in report["rows"][: len(ROWS)]] == [
        row.variance for row in ROWS
    ]
    assert all(len(row["seeds"]) == 2 for row in report["rows"])
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        "chain.png",
        "curves.png",
        "decoder.png",
        "samples.png",
        "strips.png",
        "variance_gradient.png",
    }
    monkeypatch.setattr(Ladder, "train", lambda *_: pytest.fail("trained again"))
    ladder.main(["--quick", "--long", "--out", str(tmp_path)])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table
    assert "table, results and figures in" in capsys.readouterr().out
