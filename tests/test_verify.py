"""The validity suite itself: it passes what is right, and says what is wrong with a class of models."""

import pytest
import torch
from torch import nn

from vdiff import Denoiser, Eps, V
from vdiff.likelihood.verify import Row, cases, verify_estimators


class Told(nn.Module):
    """A network that returns an oracle's exact answer for a target."""

    def __init__(self, oracle, target):
        super().__init__()
        self.oracle, self.target = oracle, target

    def forward(self, z, logsnr):
        return self.oracle(z, logsnr).read(self.target)


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
    wrong = verify_estimators(lambda oracle: Denoiser(Told(oracle, Eps()), Eps(), output=lambda out: 0.7 * out), points=32)
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
    table = verify_estimators(lambda oracle: Denoiser(Weighted(oracle), V()), names=["mixture", "lattice"], points=32)
    assert not table.failed, str(table)
    assert {row.case for row in table.rows} == {"mixture", "lattice"}
    with pytest.raises(ValueError, match=r"'names' must be of gaussian, .*; got 'latice' \(did you mean 'lattice'\?\)"):
        verify_estimators(names=["latice"])


def test_a_row_without_a_number_has_failed():
    assert not Row("a", "b", float("nan"), float("nan"), 1.0, 1.0, "it raised").passed
    assert Row("a", "b", 1.0005, 0.0, 1.0, 1.0).passed
    assert not Row("a", "b", 1.005, 0.0, 1.0, 1.0).passed
