"""The validity suite itself: it passes what is right, and says what is wrong with a class of models."""

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


def test_a_row_without_a_number_has_failed():
    assert not Row("a", "b", float("nan"), float("nan"), 1.0, 1.0, "it raised").passed
    assert Row("a", "b", 1.0005, 0.0, 1.0, 1.0).passed
    assert not Row("a", "b", 1.005, 0.0, 1.0, 1.0).passed
