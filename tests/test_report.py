"""A report: other estimates of −log p beside the bound, the gap with both of its errors, as text and as plain data."""

import json
import math

import pytest
import torch

from vdiff import Categorical, Lattice, Linear
from vdiff.likelihood import Estimate, TruncatedNormal, dequantized_ode, evaluate
from vdiff.likelihood.estimate import difference
from vdiff.likelihood.replicated import Replicated

DECODER = Categorical(levels=4)
ORACLE = Lattice(DECODER.grid, [0.5, 0.3, 0.15, 0.05])
MODEL = Lattice(DECODER.grid, [0.4, 0.3, 0.2, 0.1])
DATA = torch.multinomial(ORACLE.weights, 60, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
SCHEDULE = Linear(7.0, -9.0)


@pytest.fixture(scope="module")
def bound():
    return evaluate(MODEL, DATA, schedule=SCHEDULE, decoder=DECODER, draws=16, replicates=8)


@pytest.fixture(scope="module")
def flow():
    return dequantized_ode(MODEL, DATA, dequantization=TruncatedNormal(DECODER, 7.0), schedule=SCHEDULE, audit=True)


def test_the_gap_is_paired_by_image_and_has_both_errors(bound, flow):
    report = bound.beside("ODE", flow)
    assert not bound.others
    other = report.others["ODE"]
    off = bound.by_image - flow.bits_per_dim
    assert bound.by_image.mean().item() == pytest.approx(bound.total.value)
    assert other.estimate.value == pytest.approx(flow.mean / math.log(2))
    assert other.gap.value == pytest.approx(bound.total.value - other.estimate.value)
    assert other.gap.images == pytest.approx((off.std() / math.sqrt(60)).item())
    assert other.gap.images < 0.5 * bound.total.images  # what an image does to both cancels
    assert other.gap.monte_carlo == pytest.approx(math.hypot(bound.total.monte_carlo, flow.mean_error / math.log(2)))
    truth = -MODEL.log_prob(DECODER.encode(DATA)).mean().item() / math.log(2)
    assert abs(other.gap.value) < 4 * other.gap.monte_carlo + 2e-3  # a perfect denoiser: both are −log p
    assert abs(other.estimate.value - truth) < 4 * other.estimate.monte_carlo + 1e-3


def test_the_gap_of_another_seed_is_within_its_monte_carlo_error():
    found = []
    for seed in range(40):
        report = evaluate(MODEL, DATA, schedule=SCHEDULE, decoder=DECODER, draws=4, replicates=6, seed=seed)
        noise = torch.randn(5, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.5
        found.append(report.beside("noisy", Replicated(1.0 + noise, 1, torch.ones(60))).others["noisy"].gap)
    spread = torch.tensor([gap.value for gap in found]).std().item()
    claimed = torch.tensor([gap.monte_carlo for gap in found]).square().mean().sqrt().item()
    assert spread == pytest.approx(claimed, rel=4 / math.sqrt(2 * 40))


def test_it_is_printed_and_written_with_its_protocol(bound, flow):
    report = bound.beside("ODE, truncated normal dequantisation", flow)
    text, known = str(report), json.loads(json.dumps(report.asdict(), allow_nan=False))
    other = known["others"]["ODE, truncated normal dequantisation"]
    for word in ("bound minus this", "NFE ", "half the tolerance changes the mean", "trace Exact()", "another model than the bound's"):
        assert word in text
    assert other["estimate"]["value"] == pytest.approx(report.others["ODE, truncated normal dequantisation"].estimate.value)
    assert other["protocol"]["data"] == known["protocol"]["data"]
    assert other["protocol"]["NFE"] > 10
    assert abs(other["protocol"]["half the tolerance changes the mean"]) < 1e-3
    one_probe = Replicated(torch.ones(1, 60), 1, torch.ones(60))
    written = bound.beside("one probe", one_probe).asdict()["others"]["one probe"]
    assert written["estimate"]["monte_carlo"] is None
    assert written["gap"]["monte_carlo"] is None


def test_what_is_not_of_these_images_is_refused(bound, flow):
    with pytest.raises(ValueError, match=r"Report.beside: argument 'found' must be of the report's images, 60; got 59"):
        bound.beside("ODE", Replicated(torch.ones(2, 59), 1, torch.ones(59)))
    with pytest.raises(ValueError, match=r"be of the same shape, 1; got 2"):
        bound.beside("ODE", Replicated(torch.ones(2, 60), 2, torch.ones(60)))
    other = dequantized_ode(MODEL, DATA.flip(0), dequantization=TruncatedNormal(DECODER, 7.0), schedule=SCHEDULE)
    with pytest.raises(ValueError, match=r"be of the same data, .*; got .* \(continuous x of the same images has another hash"):
        bound.beside("ODE", other)


def test_the_freedom_of_a_difference_is_satterthwaites():
    one, other = Estimate(1.0, 0.3, None, freedom=10, count=5), Estimate(0.0, 0.4, None, freedom=4, count=5)
    found = difference(one, other, 1.0, None)
    assert found.monte_carlo == pytest.approx(0.5)
    assert found.freedom == pytest.approx(0.25**2 / (0.3**4 / 10 + 0.4**4 / 4))
    assert difference(Estimate(1.0, 0.0, None), Estimate(1.0, 0.0, None), 0.0, None).freedom is None
