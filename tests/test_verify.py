"""The validity suite itself: it passes what is right, and says what is wrong with a class of
models."""

import math

import pytest
import torch
from torch import nn

from vdiff import Denoiser
from vdiff.likelihood.verify import Row, Verification, cases, verify_estimators
from vdiff.parameterization import Eps, V
from vdiff.times import generator_of


class Told(nn.Module):
    """A network that returns an oracle's exact answer for a target."""

    def __init__(self, oracle, target):
        super().__init__()
        self.oracle, self.target = oracle, target

    def forward(self, z, logsnr):
        return self.oracle(z, logsnr).as_target(self.target)


def test_every_estimator_meets_the_known_bits():
    table = verify_estimators(points=64)
    assert not table.failed, str(table)
    assert {row.case for row in table.rows} == set(cases())
    names = {row.estimator for row in table.rows}
    assert {"bound", "ODE, exact trace", "ODE, Hutchinson", "I-MMSE", "dequantised ODE"} < names
    assert all(row.evaluations > 0 for row in table.rows)
    assert str(table).endswith(f"{len(table.rows)} of {len(table.rows)} passed")


def test_a_class_of_models_is_verified_and_its_fault_is_told():
    assert not verify_estimators(lambda oracle: Denoiser(Told(oracle, V()), V()), points=8).failed
    wrong = verify_estimators(
        lambda oracle: Denoiser(Told(oracle, Eps()), Eps(), output=lambda out: 0.7 * out),
        points=32,
    )
    assert {row.case for row in wrong.failed} == set(cases())
    broken = verify_estimators(lambda oracle: lambda z, logsnr: 1 / 0, points=4)
    assert len(broken.failed) == len(broken.rows)
    assert "FAILED: ZeroDivisionError: division by zero" in str(broken)
    unbuilt = verify_estimators(lambda oracle: Denoiser(None, V()), names=["gaussian"], points=4)
    assert len(unbuilt.failed) == len(unbuilt.rows)


class Weighted(nn.Module):
    """The same around weights in float32, as a network has them."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.scale = oracle, nn.Parameter(torch.ones(1))

    def forward(self, z, logsnr):
        assert z.dtype == torch.float32
        return self.scale * self.oracle(z, logsnr).v


def test_a_class_with_weights_in_float32_is_asked_in_float32():
    table = verify_estimators(
        lambda oracle: Denoiser(Weighted(oracle), V()), names=["mixture", "lattice"], points=32
    )
    assert not table.failed, str(table)
    assert {row.case for row in table.rows} == {"mixture", "lattice"}
    with pytest.raises(
        ValueError,
        match=r"'names' must be of gaussian, .*; got 'latice' \(did you mean 'lattice'\?\)",
    ):
        verify_estimators(names=["latice"])


def test_a_row_without_a_number_has_failed():
    assert not Row("a", "b", float("nan"), float("nan"), 1.0, 1.0, "it raised").passed
    assert Row("a", "b", 1.0005, 0.0, 1.0, 1.0).passed
    assert not Row("a", "b", 1.005, 0.0, 1.0, 1.0).passed


def test_a_row_says_how_many_errors_it_is_off_and_large_numbers_stay_short():
    """The error is the standard error and a thousandth together."""
    assert Row("a", "b", 1.004, 0.003, 1.0, 1.0).z == pytest.approx(0.004 / 0.00001**0.5)
    below = Row("case", "bound", 1.5 - 0.0055, 0.001, 1.5, 320.4)
    assert below.z == pytest.approx(-0.0055 / 0.000002**0.5)
    assert below.passed
    assert not Row("case", "bound", 1.5 - 0.0057, 0.001, 1.5, 1.0).passed
    far, raised = (
        Row("case", "ODE", 12345.0, 9999.0, 1.0, 2.0),
        Row("case", "I-MMSE", math.nan, math.nan, 1.5, 1.0, "E: why"),
    )
    lines = str(
        Verification((below, Row("case", "paths", 9999.0, 0.0, 1.5, 9.6), far, raised))
    ).split("\n")
    assert [line.split() for line in lines] == [
        ["nats", "estimate", "±", "truth", "z", "calls"],
        ["case"],
        ["bound", "1.49450", "0.00100", "1.50000", "-3.89", "320"],
        ["paths", "9999.00000", "0.00000", "1.50000", "1.00e+07", "10", "FAILED"],
        ["ODE", "1.23e+04", "9999.00000", "1.00000", "1.23", "2"],
        ["I-MMSE", "FAILED:", "E:", "why"],
        ["2", "of", "4", "passed"],
    ]
    assert len(lines[0]) == len(lines[2]) <= 80


def test_rows_are_in_nats_and_count_the_evaluations_of_a_point():
    """Of three dimensions, of one and of levels: the truth is the mean over the suite's own
    points, but for a chain its own."""
    table = verify_estimators(
        names=["correlated gaussian", "mixture", "lattice"], points=3, seed=1
    )
    of_density = ["bound", "ODE, exact trace", "ODE, Hutchinson", "I-MMSE"]
    found = {(row.case, row.estimator): row for row in table.rows}
    assert list(found) == [
        *(("correlated gaussian", name) for name in of_density),
        *(
            ("mixture", name)
            for name in ["bound", "ODE, exact trace", "I-MMSE", "paths, T = 16, K = 256"]
        ),
        *(("lattice", name) for name in ["bound", "dequantised ODE", "I-MMSE"]),
    ]
    for (case, estimator), row in found.items():
        oracle = cases()[case]
        truth = -oracle.log_prob(oracle.sample(3, generator_of(1, 0, case))).mean().item()
        paths = estimator.startswith(
            "paths"
        )  # three points and two replicates know little of their error
        assert (row.truth == pytest.approx(truth)) == (not paths)
        assert abs(row.estimate - row.truth) < 0.1 if paths else row.passed
        count = {"I-MMSE": 2 * 4 * (32 + 2), "paths, T = 16, K = 256": 2 * 256 * 16}.get(estimator)
        assert count in (None, row.evaluations)
        if estimator.startswith("ODE"):
            assert row.evaluations == int(row.evaluations) > 20
    untold = verify_estimators(lambda oracle: 1 / 0, names=["lattice"], points=2)
    assert {row.evaluations for row in untold.rows} == {0.0}
