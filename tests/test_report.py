"""A report: other estimates of −log p beside the bound, the gap with both of its errors, as text
and as plain data."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from registry import ORACLES

from vdiff.decoder import Categorical
from vdiff.likelihood import (
    Comparison,
    Estimate,
    Report,
    TruncatedNormal,
    VarianceReduction,
    dequantized_ode,
    evaluate,
)
from vdiff.likelihood._tables import by_logsnr, spans, table, trust
from vdiff.likelihood.diagnostics import Curve, Diagnostics, relative_costs
from vdiff.likelihood.estimate import difference
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.likelihood.tally import Tally
from vdiff.oracle import Lattice
from vdiff.schedule import Linear

DECODER = Categorical(levels=4)
ORACLE = Lattice(DECODER.level_values, [0.5, 0.3, 0.15, 0.05])
MODEL = ORACLES["lattice"]()
DATA = torch.multinomial(
    ORACLE.weights, 60, replacement=True, generator=torch.Generator().manual_seed(0)
)[:, None]
SCHEDULE = Linear(7.0, -9.0)


@pytest.fixture(scope="module")
def bound():
    return evaluate(MODEL, DATA, schedule=SCHEDULE, decoder=DECODER, draws=16, replicates=8)


@pytest.fixture(scope="module")
def flow():
    return dequantized_ode(
        MODEL, DATA, dequantization=TruncatedNormal(DECODER, 7.0), schedule=SCHEDULE, audit=True
    )


def test_the_gap_is_paired_by_image_and_has_both_errors(bound, flow):
    report = bound.with_reference("ODE", flow)
    assert not bound.references
    other = report.references["ODE"]
    off = bound.by_image - flow.bits_per_dim
    assert bound.by_image.mean().item() == pytest.approx(bound.total.value)
    assert other.estimate.value == pytest.approx(flow.mean / math.log(2))
    assert other.gap.value == pytest.approx(bound.total.value - other.estimate.value)
    assert other.gap.images == pytest.approx((off.std() / math.sqrt(60)).item())
    assert other.gap.images < 0.5 * bound.total.images  # what an image does to both cancels
    assert other.gap.monte_carlo == pytest.approx(
        math.hypot(bound.total.monte_carlo, flow.mean_error / math.log(2))
    )
    truth = -MODEL.log_prob(DECODER.encode(DATA)).mean().item() / math.log(2)
    assert (
        abs(other.gap.value) < 4 * other.gap.monte_carlo + 2e-3
    )  # a perfect denoiser: both are −log p
    assert abs(other.estimate.value - truth) < 4 * other.estimate.monte_carlo + 1e-3


def test_the_gap_of_another_seed_is_within_its_monte_carlo_error():
    found = []
    for seed in range(40):
        report = evaluate(
            MODEL, DATA, schedule=SCHEDULE, decoder=DECODER, draws=4, replicates=6, seed=seed
        )
        noise = (
            torch.randn(5, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            * 0.5
        )
        found.append(
            report.with_reference("noisy", Replicated(1.0 + noise, 1, torch.ones(60)))
            .references["noisy"]
            .gap
        )
    spread = torch.tensor([gap.value for gap in found]).std().item()
    claimed = torch.tensor([gap.monte_carlo for gap in found]).square().mean().sqrt().item()
    assert spread == pytest.approx(claimed, rel=4 / math.sqrt(2 * 40))


def test_it_is_printed_and_written_with_its_protocol(bound, flow):
    report = bound.with_reference("ODE, truncated normal dequantisation", flow)
    text, known = str(report), json.loads(json.dumps(report.asdict(), allow_nan=False))
    other = known["references"]["ODE, truncated normal dequantisation"]
    for word in (
        "bound minus this",
        "NFE ",
        "half the tolerance changes the mean",
        "  trace ",
        "another model than the bound's",
    ):
        assert word in text
    assert other["estimate"]["value"] == pytest.approx(
        report.references["ODE, truncated normal dequantisation"].estimate.value
    )
    assert other["protocol"]["data"] == known["protocol"]["data"]
    assert other["protocol"]["NFE"] > 10
    assert abs(other["protocol"]["half the tolerance changes the mean"]) < 1e-3
    one_probe = Replicated(torch.ones(1, 60), 1, torch.ones(60))
    written = bound.with_reference("one probe", one_probe).asdict()["references"]["one probe"]
    assert written["estimate"]["monte_carlo"] is None
    assert written["gap"]["monte_carlo"] is None


def test_what_is_not_of_these_images_is_refused(bound, flow):
    with pytest.raises(
        ValueError,
        match=r"with_reference: argument 'estimate' must be of the report's images, 60; got 59",
    ):
        bound.with_reference("ODE", Replicated(torch.ones(2, 59), 1, torch.ones(59)))
    with pytest.raises(ValueError, match=r"be of the report's images, no images; got 60"):
        replace(bound, by_image=None).with_reference("ODE", flow)
    with pytest.raises(ValueError, match=r"be of the same shape, 1; got 2$"):
        bound.with_reference("ODE", Replicated(torch.ones(2, 60), 2, torch.ones(60)))
    other = dequantized_ode(
        MODEL, DATA.flip(0), dequantization=TruncatedNormal(DECODER, 7.0), schedule=SCHEDULE
    )
    with pytest.raises(
        ValueError,
        match=(
            r"be of the same data, .*; got .* \(continuous x of the "
            r"same images has another hash"
        ),
    ):
        bound.with_reference("ODE", other)


def test_the_freedom_of_a_difference_is_satterthwaites():
    one, other = (
        Estimate(1.0, 0.3, None, freedom=10, count=5),
        Estimate(0.0, 0.4, None, freedom=4, count=5),
    )
    found = difference(one, other, 1.0, None)
    assert found.monte_carlo == pytest.approx(0.5)
    assert found.freedom == pytest.approx(0.25**2 / (0.3**4 / 10 + 0.4**4 / 4))
    assert (
        difference(Estimate(1.0, 0.0, None), Estimate(1.0, 0.0, None), 0.0, None).freedom is None
    )


def test_a_table_has_a_column_for_the_longest_name():
    parts = {
        "prior": Estimate(0.5, 0.001, None),
        "a name of twenty-one!": Estimate(-1.25, 0.0, 0.02),
    }
    assert table(parts).splitlines() == [
        "bits/dim                  value   Monte Carlo SE   SE over images",
        "prior                    0.5000           0.0010        one image",
        "a name of twenty-one!   -1.2500           0.0000           0.0200",
    ]
    assert (
        table({"prior": parts["prior"]}, head=False)
        == "prior              0.5000           0.0010        one image"
    )


def test_a_report_is_lines_of_eighty_columns(bound, flow):
    report = bound.with_reference("ODE, truncated normal dequantisation", flow)
    report = replace(report, warnings=["beware of " + "many " * 30])
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert "protocol" in lines
    facts = {line[2:].split("  ")[0] for line in lines if line.startswith("  ")}
    assert {"images", "draws", "seed", "decoder", "torch"} <= facts


def test_a_report_shows_itself_in_a_notebook(bound, flow):
    report = replace(bound.with_reference("ODE <of it>", flow), warnings=["a < b"])
    root = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>")
    text = " ".join(root.itertext())
    for part in (report.total, report.references["ODE <of it>"].gap):
        assert f"{part.value:.4f}" in text
        assert f"{part.monte_carlo:.4f}" in text
    assert "ODE <of it>" in text
    assert "WARNING: a < b" in text
    (line,) = root.findall(".//polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    curve = report.diagnostics.curve.value
    assert len(points) == len(curve)
    assert min(range(len(points)), key=lambda i: points[i][1]) == curve.argmax()
    assert {row[0].text for row in root.find("details/table")} >= {"seed", "draws", "images"}
    one_image = replace(report, total=Estimate(1.0, 0.1, None, count=1))
    assert "one image" in one_image._repr_html_()


def test_a_comparison_shows_itself_in_a_notebook():
    seen, part = Diagnostics(123.4, 0.0456, 256, curve(8)), Estimate(-0.25, 0.01, 0.02)
    root = ElementTree.fromstring(
        f"<div>{Comparison(part, {'draws': 8}, seen)._repr_html_()}</div>"
    )
    text = " ".join(root.itertext())
    assert "first − second -0.2500 0.0100 0.0200" in text
    assert "-0.2696 to -0.2304 on these images" in text


def test_intervals_as_text():
    assert (
        spans(Estimate(1.0, 0.1, 0.2))
        == "0.8040 to 1.1960 on these images, 0.6080 to 1.3920 over images"
    )
    assert spans(Estimate(1.0, 0.1, None)) == "0.8040 to 1.1960 on these images"


def curve(bins):
    edges, value = torch.arange(bins + 1.0), torch.arange(1.0, bins + 1)
    error = torch.full((bins,), torch.nan)
    return Curve(logsnr_max=edges[1:] - 4, logsnr_min=edges[:-1] - 4, value=value, error=error)


def test_a_curve_is_told_in_eight_pieces():
    """Of sixteen bins two in each; of twenty, by the nearest place, two or three."""
    assert by_logsnr("by log-SNR", curve(16)) == [
        "by log-SNR",
        *(f"  {f'{2 * i - 4}.0 to {2 * i - 2}.0':<16}{4 * i + 3:>9.4f}" for i in range(8)),
    ]
    assert [line.split()[-1] for line in by_logsnr("a", curve(20), 4)[1:]] == [
        "15.0000", "40.0000", "65.0000", "90.0000",
    ]  # fmt: skip
    assert by_logsnr("a", curve(3), 2)[1:] == [
        "  -4.0 to -2.0       3.0000",
        "  -2.0 to -1.0       3.0000",
    ]


def test_diagnostics_and_savings_as_text_and_as_data():
    seen, part = Diagnostics(123.4, 0.0456, 256, curve(8)), Estimate(0.5, math.nan, None)
    assert trust(seen, {"plain Monte Carlo": 14.4321, "stratified times": 3.0, "all": 1.0}) == [
        "cost for the same error with plain Monte Carlo: 14.4×, with stratified times: 3×",
        "effective sample size 123 of 256 draws; largest draw 4.6 % of the sum",
    ]
    assert trust(None, {}) == []
    comparison = Comparison(part, {"draws": 8}, seen, warnings=["beware"])
    assert "\n".join(by_logsnr("difference by log-SNR", seen.curve)) in str(comparison)
    assert str(comparison).splitlines()[-1] == "WARNING: beware"
    known = comparison.asdict()
    assert known["difference"] == {
        "value": 0.5,
        "monte_carlo": None,
        "images": None,
        "freedom": None,
        "count": None,
    }
    assert (known["unit"], known["warnings"], known["protocol"]) == (
        "bits/dim",
        ["beware"],
        {"draws": 8},
    )
    assert known["diagnostics"]["effective"] == 123.4
    assert known["diagnostics"]["curve"]["error"] == [None] * 8
    assert known["diagnostics"]["curve"]["value"] == list(range(1, 9))
    assert Comparison(part, {}).asdict()["diagnostics"] is None
    assert Comparison(part, {}).curve is None


def test_savings_have_the_noise_that_was_measured_beyond_the_pilots():
    """Variances 1 and 3 of the diffusion term of a replicate of 8 draws: 16 for one draw, 15.6
    more than the pilot's last."""
    run = Evaluation(
        Integrand(MODEL, DATA[:2], SCHEDULE, DECODER),
        VarianceReduction.plain(),
        Budget(draws=8, replicates=3),
    )
    found = Tally.empty(2)
    found.terms.count += 3
    found.terms.spread[:] = 100.0
    found.terms.spread[1] = 2 * torch.tensor([1.0, 3.0])
    assert relative_costs(run, found) == {}
    run.fitted = replace(
        run.fitted,
        variance={"plain Monte Carlo": 10.0, "stratified times": 5.0, "control variates": 0.4},
    )
    assert relative_costs(run, found) == pytest.approx(
        {"plain Monte Carlo": 25.6 / 16, "stratified times": 20.6 / 16, "control variates": 1.0}
    )
    found.terms.spread[1] = 0.0  # less than was expected is luck
    assert relative_costs(run, found) == pytest.approx(
        {"plain Monte Carlo": 25.0, "stratified times": 12.5, "control variates": 1.0}
    )
    run.fitted = replace(run.fitted, variance={"plain Monte Carlo": 0.0})
    assert relative_costs(run, found) == {}


def test_one_image_has_a_gap_without_an_error_over_images():
    for bits in ([1.5], [1.0, 2.0]):
        total, by_image = (
            Estimate(1.5, 0.3, None, count=len(bits)),
            torch.tensor(bits, dtype=torch.float64),
        )
        report = Report(total, total, total, total, {}, by_image=by_image)
        nats = torch.tensor([0.25, 0.5], dtype=torch.float64)[: len(bits)] * math.log(2)
        gap = (
            report.with_reference(
                "other", Replicated(nats.expand(3, -1), 1, torch.ones(len(bits)))
            )
            .references["other"]
            .gap
        )
        assert gap.value == pytest.approx(1.25 if len(bits) == 1 else 1.5 - 0.375)
        assert gap.monte_carlo == pytest.approx(0.3)
        assert gap.images == (
            None if len(bits) == 1 else pytest.approx((1.5 - 0.75) / 2)
        )  # of 0.75 and 1.5
