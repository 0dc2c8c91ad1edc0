"""A prediction: its conversions, its errors, and its copies."""

import pytest
import torch

from vdiff import Prediction
from vdiff.gaussian import diffuse
from vdiff.parameterization import V, X
from vdiff.variance import LearnedRange

X0, EPS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
LOGSNR = torch.linspace(-3.0, 3.0, 5).double()
Z = diffuse(X0, EPS, LOGSNR)


def of(output, **options):
    return Prediction(Z, LOGSNR, output, V(), **options)


def test_a_perfect_output_is_every_target_and_has_no_error():
    perfect = of(V().target(X0, EPS, LOGSNR))
    for got, expected in ((perfect.x, X0), (perfect.eps, EPS), (perfect.as_target(X()), X0)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert perfect.error(X0, EPS).abs().max() < 1e-12
    assert perfect.squared_error(X0, EPS).max() < 1e-24


def test_the_error_is_that_of_the_noise():
    prediction = of(torch.full_like(Z, 0.3))
    error = prediction.eps - EPS
    torch.testing.assert_close(prediction.error(X0, EPS), error, rtol=1e-10, atol=1e-12)
    factor, weight = torch.arange(1.0, 6.0).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    torch.testing.assert_close(
        prediction.squared_error(X0, EPS, factor, weight), factor * (weight * error**2).sum(1)
    )


def test_a_detached_mean_leaves_the_gradient_of_the_variance():
    output, variance = (torch.ones_like(Z, requires_grad=True) for _ in range(2))
    detached = of(output, variance=LearnedRange(), variance_output=variance).detach_mean()
    (detached.x.sum() + detached.variance_output.sum()).backward()
    assert output.grad is None
    assert torch.equal(variance.grad, torch.ones_like(Z))


def test_a_field_is_replaced_and_an_unknown_one_is_refused():
    changed = of(Z).replace(output=2 * Z)
    assert torch.equal(changed.output, 2 * Z)
    assert changed.z is Z
    with pytest.raises(TypeError, match="out"):
        of(Z).replace(out=Z)
