"""Control variates have mean zero given the image, and are what their formulas say."""

import math

import pytest
import torch

from vdiff._partial import Partial
from vdiff.data.digits import LEVELS, digits
from vdiff.decoder import Categorical
from vdiff.likelihood import (
    GaussianError,
    NoiseNorm,
    VarianceReduction,
)
from vdiff.oracle import Gaussian as OneGaussian
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
WRONG = GaussianMixture(
    [0.6, 0.4], [[-1.2, 0.5], [0.6, 0.0]], [[0.06, 0.2], [0.09, 0.3]]
)  # a model that is not the data's
X = DATA.sample(24, torch.Generator().manual_seed(3))
SCHEDULE = Linear(9.0, -7.0)
PLAIN = VarianceReduction.plain()


@pytest.mark.parametrize(
    "control",
    [NoiseNorm(), GaussianError(), GaussianError(X[:5]), GaussianError(full=1)],
    ids=repr,
)
@pytest.mark.parametrize("level", [-6.0, 0.0, 3.0, 9.0])
def test_a_control_has_mean_zero_given_the_image(control, level):
    n = 40_000
    fitted, eps = (
        control.fit(X),
        torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    for row in (0, 7):
        values = fitted.centered(
            torch.full((n,), row), eps, torch.full((n,), level, dtype=torch.float64)
        )
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


def test_the_gaussians_error_is_that_of_the_gaussians_denoiser():
    """‖ε − ε̂‖² of the Gaussian's own denoiser minus E[‖e‖² | x] = ‖I − σ²C⁻¹‖² + α²σ²‖C⁻¹(x −
    m)‖²."""
    x = DATA.sample(5000, torch.Generator().manual_seed(0))
    covariance = x.T.cov(correction=0)
    covariance = torch.lerp(
        covariance, covariance.diagonal().mean() * torch.eye(2, dtype=x.dtype), 1e-3
    )
    fitted, gaussian = (
        GaussianError().fit(x),
        GaussianMixture([1.0], x.mean(0)[None], covariance[None]),
    )
    eps = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for level in (-4.0, 1.0, 6.0):
        logsnr = torch.full((50,), level, dtype=torch.float64)
        a2, s2 = logsnr[0].sigmoid(), (-logsnr[0]).sigmoid()
        error = (eps - gaussian(a2.sqrt() * x[:50] + s2.sqrt() * eps, logsnr).eps).square().sum(1)
        inverse = torch.linalg.inv(a2 * covariance + s2 * torch.eye(2))
        given = (torch.eye(2) - s2 * inverse).square().sum() + a2 * s2 * (
            (x[:50] - x.mean(0)) @ inverse
        ).square().sum(1)
        torch.testing.assert_close(
            fitted.centered(torch.arange(50), eps, logsnr), error - given, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("held_out", "ridge", "bias"),
    [
        ("test", 1e-4, 0.0183),
        ("test and selection", 1e-4, 0.0370),
        ("test", 1e-6, 0.0780),
        ("test", 1e-3, -0.0783),
        ("train", 1e-9, 0.0),
    ],
)
def test_a_mean_over_data_in_place_of_that_given_the_image_biases_held_out_digits(
    held_out, ridge, bias
):
    """½ ∫ of the Gaussian's E[‖e_g‖² | x] over held-out images less that over the Gaussian's own
    law, λ from −7 to 9, coefficient one.

    The Gaussian is fitted to the 1,300 training images, `ridge` added to its variances. Directions
    in which training images hardly vary and others do make a bias that grows as the ridge falls; a
    large ridge makes one of the other sign.
    """
    split, decoder = digits(), Categorical(LEVELS)
    train = decoder.encode(split.train).double().flatten(1)
    parts = {
        "test": split.test,
        "test and selection": torch.cat([split.test, split.selection]),
        "train": split.train,
    }
    x = decoder.encode(parts[held_out]).double().flatten(1)
    gaussian = OneGaussian(train.mean(0), train.T.cov(correction=0) + ridge * torch.eye(64))
    ends = torch.tensor([9.0, -7.0], dtype=torch.float64)
    given, over_data = (
        (gaussian.information(x, end.expand(len(x))).mean() for end in ends),
        gaussian.mutual_information(ends),
    )
    bits = (next(given) - next(given) - (over_data[0] - over_data[1])) / (64 * math.log(2))
    assert bits.item() == pytest.approx(bias, abs=6e-4)


def test_a_mean_given_the_image_biases_no_held_out_digits():
    split, decoder = digits(), Categorical(LEVELS)
    test = decoder.encode(split.test)
    fitted, n = GaussianError(decoder.encode(split.train)).fit(test), 20_000
    rows, eps = (
        torch.arange(n) % len(test),
        torch.randn(n, 64, generator=torch.Generator().manual_seed(0)),
    )
    for level in (-1.0, 3.0, 7.0):
        values = fitted.centered(rows, eps, torch.full((n,), level))
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)


def test_the_norm_of_noise_minus_its_mean():
    eps = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    assert NoiseNorm().fit(eps).centered(torch.tensor([0, 1]), eps, torch.zeros(2)).tolist() == [
        1 + 4 - 2,
        9 - 2,
    ]


def test_images_that_are_all_the_same_give_a_control_that_is_zero():
    """No variance: σ²C⁻¹ = I, and the Gaussian's denoiser knows x."""
    fitted = GaussianError().fit(torch.full((4, 2), 3.0))
    assert (
        fitted.centered(torch.arange(4), torch.randn(4, 2), torch.zeros(4)).abs() < 1e-12
    ).all()


def test_many_dimensions_have_a_diagonal_covariance():
    """Correlated data: from one dimension more than `full` on the control is that of each
    dimension by itself."""
    x = (
        torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * torch.tensor([1.0, 1.0])
        + 0.1 * X[:1]
    )
    x = x + 0.1 * torch.randn(
        200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    rows, eps, level = (
        torch.arange(3),
        torch.tensor([[1.0, -1.0], [0.5, 0.5], [2.0, 0.0]], dtype=torch.float64),
        torch.zeros(3),
    )
    whole, two, one = (
        GaussianError(full=full).fit(x).centered(rows, eps, level) for full in (4096, 2, 1)
    )
    assert torch.equal(two, whole)
    apart = [
        GaussianError().fit(x[:, i : i + 1]).centered(rows, eps[:, i : i + 1], level)
        for i in range(2)
    ]
    torch.testing.assert_close(one, apart[0] + apart[1], rtol=1e-3, atol=1e-3)
    assert ((one - whole).abs() > 0.1).any()


def test_a_control_of_other_data_is_fitted_to_them():
    other = DATA.sample(50, torch.Generator().manual_seed(8)) * 2 + 1
    mean, covariance = other.mean(0), other.T.cov(correction=0)
    covariance = torch.lerp(
        covariance, covariance.diagonal().mean() * torch.eye(2, dtype=other.dtype), 1e-3
    )
    inverse = torch.linalg.inv(0.5 * covariance + 0.5 * torch.eye(2))  # λ = 0
    eps = torch.randn(len(X), 2, dtype=X.dtype, generator=torch.Generator().manual_seed(2))
    error = eps - math.sqrt(0.5) * (math.sqrt(0.5) * (X - mean) + math.sqrt(0.5) * eps) @ inverse
    given = (torch.eye(2) - 0.5 * inverse).square().sum() + 0.25 * (
        (X - mean) @ inverse
    ).square().sum(1)
    found = (
        GaussianError(other)
        .fit(X)
        .centered(torch.arange(len(X)), eps, torch.zeros(len(X), dtype=X.dtype))
    )
    torch.testing.assert_close(found, error.square().sum(1) - given, rtol=1e-5, atol=1e-6)


MASKS = {
    "shared": torch.tensor([True, False, True]),
    "by image": torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) < 0.6,
}
TABLE = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
TABLE = TABLE @ torch.tensor([[1.0, 0.5, 0.2], [0, 1.0, 0.6], [0, 0, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    "control", [NoiseNorm(), GaussianError(), GaussianError(full=1)], ids=repr
)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("by_dim", [False, True], ids=["one level", "a field"])
def test_a_masked_control_has_mean_zero_given_the_image(control, mask, by_dim):
    """It sees no noise of what is given."""
    n = 40_000
    fitted = control.fit(TABLE, Partial.of(TABLE, MASKS[mask]), by_dim)
    eps = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    field = torch.tensor([[2.0, -3.0, 0.5]], dtype=torch.float64).expand(n, 3)
    rate = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).expand(n, 3)
    levels = (field, rate) if by_dim else (field[:, 2],)
    for row in (2, 7):
        rows = torch.full((n,), row)
        values = fitted.centered(rows, eps, *levels)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(n)
        modelled = MASKS[mask].expand(20, 3)[row]
        other = fitted.centered(rows, torch.where(modelled, eps, 9.0), *levels)
        assert torch.equal(other, values)


def test_a_shared_mask_gives_the_error_of_the_conditional_gaussian():
    """ε − ε̂ of the denoiser of x₀ and x₂ given x₁, minus its mean given the image."""
    mask, mean = MASKS["shared"], TABLE.mean(0)
    covariance = TABLE.T.cov(correction=0)
    covariance = torch.lerp(
        covariance, covariance.diagonal().mean() * torch.eye(3, dtype=torch.float64), 1e-3
    )
    slope = covariance[mask][:, ~mask] / covariance[1, 1]
    left = covariance[mask][:, mask] - slope @ covariance[~mask][:, mask]
    off = TABLE[:, mask] - mean[mask] - (TABLE[:, ~mask] - mean[~mask]) @ slope.T
    inverse = torch.linalg.inv(0.5 * left + 0.5 * torch.eye(2))  # λ = 0
    eps = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    error = eps[:, mask] - 0.5 * (off + eps[:, mask]) @ inverse
    given = (torch.eye(2) - 0.5 * inverse).square().sum()
    given = given + 0.25 * (off @ inverse).square().sum(1)
    fitted = GaussianError().fit(TABLE, Partial.of(TABLE, mask))
    found = fitted.centered(torch.arange(20), eps, torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(found, error.square().sum(1) - given, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("full", [1, 4096])
def test_a_field_that_is_constant_is_one_level(full):
    """The diagonal Gaussian along a path of one λ is that of the λ, times its rate."""
    rows, eps = torch.arange(20), TABLE.flip(0)
    level, rate = torch.linspace(-5, 8, 20).double(), torch.linspace(1, 2, 20).double()
    for control, line in (
        (NoiseNorm(), NoiseNorm()), (GaussianError(full=full), GaussianError(full=1)),
    ):  # fmt: skip
        path = control.fit(TABLE, Partial(), True).centered(
            rows, eps, level[:, None].expand(20, 3), rate[:, None].expand(20, 3)
        )
        line = (
            (control if full == 1 else GaussianError(full=1)) if "G" in repr(control) else control
        )
        one = line.fit(TABLE).centered(rows, eps, level)
        torch.testing.assert_close(path, rate * one, rtol=1e-9, atol=1e-9)
