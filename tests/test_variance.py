"""Reverse variances: which there are, their ratio u, and what they refuse."""

import inspect

import pytest
import torch

import vdiff.variance
from vdiff import Denoiser, elbo
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step
from vdiff.parameterization import Eps
from vdiff.profile import Profile
from vdiff.schedule import Linear
from vdiff.variance import (
    AnalyticVariance,
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
    ReverseVariance,
)

STEP = Step(torch.tensor([-1.0, 0.5], dtype=torch.float64), torch.tensor([0.3, 2.0]).double())
OUTPUT = torch.tensor([[-1.0, 0.2], [1.0, 3.0]], dtype=torch.float64)


def sigma2(variance):
    """Σ = e^u c σ_s², of each step and dimension."""
    u = torch.as_tensor(variance.log_variance_ratio(STEP, OUTPUT))
    return torch.exp(u if u.ndim == 2 else u.expand(2)[:, None]) * STEP.variance[:, None]


@pytest.mark.parametrize(
    ("variance", "wanted"),
    [
        (FixedSmall(), STEP.variance[:, None]),
        (FixedLarge(), STEP.forward_variance[:, None]),
        (LearnedLogVariance(), OUTPUT.exp()),
        (LearnedVariance(), torch.nn.functional.softplus(OUTPUT)),
    ],
    ids=repr,
)
def test_the_variance_is_what_its_ratio_says(variance, wanted):
    torch.testing.assert_close(sigma2(variance), wanted, rtol=1e-12, atol=0.0)


def test_a_learned_range_lies_between_the_two_fixed_ones():
    small, large, share = STEP.variance[:, None], STEP.forward_variance[:, None], (OUTPUT + 1) / 2
    wanted = small ** (1 - share) * large**share
    torch.testing.assert_close(sigma2(LearnedRange()), wanted, rtol=1e-12, atol=0.0)


def test_the_analytic_variance_is_that_of_the_models_error():
    profile = Profile(logsnr_max=2.0, logsnr_min=-2.0, bins=1)
    profile.update(torch.zeros(2), torch.tensor([1.0, 3.0]))
    variance = AnalyticVariance(profile, dims=4)
    profile.update(torch.zeros(1), torch.tensor([1000.0]))  # the variance has its own copy
    u = torch.log1p(STEP.delta.expm1() * 2.0 / 4)
    torch.testing.assert_close(variance.log_variance_ratio(STEP), u, rtol=1e-12, atol=0.0)


def test_a_direct_variance_is_finite_where_its_softplus_underflows():
    output = torch.tensor(
        [[-300.0, -15.001, -14.999, 3.0]], dtype=torch.float32, requires_grad=True
    )
    step = Step(torch.zeros(1), torch.ones(1))
    u = LearnedVariance().log_variance_ratio(step, output)
    (slope,) = torch.autograd.grad(u.sum(), output)
    assert torch.isfinite(u).all()
    assert torch.allclose(slope[0, :3], torch.ones(3, dtype=torch.float32), atol=1e-5)
    assert u[0, 0].item() == pytest.approx(-300.0 - step.variance.log().item(), rel=1e-6)


def test_a_fitted_variance_is_checked():
    profile = Profile(logsnr_max=12.0, logsnr_min=-12.0, bins=1)
    profile.update(torch.zeros(2), torch.tensor([1.0, torch.nan]))
    with pytest.raises(
        ValueError,
        match=r"'profile' must have a finite squared error in every bin; got 1 bins without",
    ):
        AnalyticVariance(profile, dims=1)
    profile = Profile(logsnr_max=12.0, logsnr_min=-12.0, bins=1)
    profile.update(torch.zeros(2), torch.ones(2))
    model = Denoiser(lambda z, logsnr: z, Eps(), variance=AnalyticVariance(profile, dims=64))
    with pytest.raises(
        ValueError,
        match=r"argument 'dims' must be the dimensions of an example, 3; got 64",
    ):
        elbo(model, torch.zeros(2, 3), schedule=Linear(6.0, -5.0), steps=4, decoder=Gaussian())


def test_a_learned_variance_needs_its_output():
    for variance in (LearnedRange(), LearnedLogVariance(), LearnedVariance()):
        with pytest.raises(ValueError, match="come with the prediction; got None"):
            variance.log_variance_ratio(STEP)


def test_what_learns_says_so():
    classes = [v for v in vars(vdiff.variance).values() if inspect.isclass(v)]
    final = {v for v in classes if issubclass(v, ReverseVariance) and v is not ReverseVariance}
    assert {v for v in final if v.learned} == {LearnedRange, LearnedLogVariance, LearnedVariance}
