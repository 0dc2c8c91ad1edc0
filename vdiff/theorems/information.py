"""Information and estimation: I-MMSE, the density as an integral of errors, what an inexact
denoiser adds."""

import math

import torch
from torch import Tensor

from vdiff.loss import Model
from vdiff.oracle import GaussianMixture
from vdiff.theorems.integral import average, average_noise, levels, slope, squared
from vdiff.theorems.subject import Altered, Subject, biased, scaled_x
from vdiff.theorems.theorem import Sides, at_least, equal, theorem

LAMBDA = torch.tensor([-4.0, -1.0, 0.0, 2.0, 6.0], dtype=torch.float64)
QUADRATURE = "quadrature over x and ε"


def _i_mmse(subject: Subject, model: Model) -> Sides:
    left = slope(subject.oracle.mutual_information, LAMBDA, 1e-2)
    return equal(
        left,
        0.5 * average(subject.oracle, LAMBDA, squared(model)),
        rel=1e-6,
        why="a difference quotient in λ",
    )


@theorem(
    source="Guo, Shamai & Verdú 2005, Mutual information and minimum mean-square error",
    given="the denoiser is the exact one",
)
def i_mmse(subject: Subject) -> Sides:
    """dI(x; z)/dλ = ½ E‖ε − ε̂‖² of the exact denoiser."""
    return _i_mmse(subject, subject.oracle)


@i_mmse.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _i_mmse(subject, biased(subject.oracle))


POINTS = (-1.3, 0.0, 0.4, 2.0)
ENDS = 24.0  # |λ| beyond which the integrand is below 1e-8


def _density(subject: Subject, model: Model) -> Sides:
    lam, width = levels(-ENDS, ENDS)
    x = torch.tensor(POINTS, dtype=torch.float64)
    error = torch.stack([average_noise(v, lam, squared(model)) for v in POINTS])
    nll = 0.5 * math.log(2 * math.pi * math.e) - 0.5 * (torch.sigmoid(lam) - error) @ width
    return equal(
        nll,
        -subject.oracle.log_prob(x[:, None]),
        rel=1e-6,
        atol=1e-6,
        why="the integral's ends, |λ| = 24",
    )


@theorem(
    source="Kong, Brekelmans & Ver Steeg, arXiv:2302.03792, eq. 9",
    given="the denoiser is the exact one",
)
def density_is_an_integral_of_errors(subject: Subject) -> Sides:
    """−log p(x) = ½ d log 2πe − ½ ∫ (d sigmoid(λ) − E[‖ε − ε̂‖² | x]) dλ, over all of λ."""
    return _density(subject, subject.oracle)


@density_is_an_integral_of_errors.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _density(subject, biased(subject.oracle))


def _adds(subject: Subject, base: Model) -> Sides:
    m, rho = average(subject.oracle, LAMBDA, squared(base)), LAMBDA.exp()
    square = (
        subject.oracle.weights @ (subject.oracle.means.square() + subject.oracle.variances)
    ).sum()
    scaled, moved = Altered(base, lambda p: 0.8 * p.eps), Altered(base, lambda p: p.eps + 0.3)
    left = torch.stack(
        [
            average(subject.oracle, LAMBDA, squared(model))
            for model in (scaled, moved, scaled_x(base, 0.7))
        ]
    )
    right = torch.stack([m + 0.2**2 * (1 - m), m + 0.3**2, m + 0.3**2 * (rho * square - m)])
    return equal(left, right, rel=1e-8, why=QUADRATURE)


@theorem(source="orthogonality of the conditional mean", given="the base is the exact denoiser")
def what_an_inexact_denoiser_adds(subject: Subject) -> Sides:
    """With m = E‖ε − ε*‖² of the exact one: ε̂ = cε* has m + (1−c)²(d − m), a bias b adds ‖b‖², x̂
    = cx* (1−c)²(SNR E‖x‖² − m)."""
    return _adds(subject, subject.oracle)


@what_an_inexact_denoiser_adds.without("the base is the exact denoiser")
def _(subject: Subject) -> Sides:
    return _adds(subject, biased(subject.oracle))


def gauss_bound(oracle: GaussianMixture) -> Tensor:
    """E‖e‖² of a Gaussian with the data's variance.

    >>> from vdiff.theorems.subject import line
    >>> gauss_bound(line()).shape
    torch.Size([5])
    """
    mean = oracle.weights @ oracle.means
    variance = (oracle.weights @ (oracle.means.square() + oracle.variances) - mean.square()).sum()
    return torch.sigmoid(LAMBDA + variance.log())


@theorem(source="the best affine denoiser", given="the error is of the exact denoiser")
def gaussian_data_is_the_hardest(subject: Subject) -> Sides:
    """Of all data of one variance, Gaussian data has the largest error: E‖ε − ε̂‖² ≤ d sigmoid(λ +
    log Var x)."""
    return at_least(
        gauss_bound(subject.oracle), subject.oracle.mmse(LAMBDA), rel=1e-9, why=QUADRATURE
    )


@gaussian_data_is_the_hardest.without("the error is of the exact denoiser")
def _(subject: Subject) -> Sides:
    return at_least(
        gauss_bound(subject.oracle),
        average(subject.oracle, LAMBDA, squared(scaled_x(subject.oracle, 0.0))),
        rel=1e-9,
        why="",
    )


def _falls(oracle: GaussianMixture, model: Model) -> Sides:
    """E‖x − x̂‖² = e^{−λ} E‖e‖² at rising λ."""
    lam = torch.linspace(-6, 8, 15, dtype=torch.float64)
    error = torch.exp(-lam) * average(oracle, lam, squared(model))
    return at_least(error[:-1], error[1:], rel=1e-9, why=QUADRATURE)


@theorem(source="Guo, Shamai & Verdú 2005", given="the denoiser is the exact one")
def error_of_x_falls_with_snr(subject: Subject) -> Sides:
    """E‖x − x̂‖² of the exact denoiser never rises with SNR; its slope is −E‖Cov(x | z)‖²."""
    return _falls(subject.oracle, subject.oracle)


@error_of_x_falls_with_snr.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _falls(
        subject.oracle,
        Altered(
            subject.oracle,
            lambda p: (
                p.eps
                + 0.5
                * torch.exp(0.5 * p.logsnr.clamp(min=0))[:, None]
                * p.logsnr.clamp(min=0)[:, None]
            ),
        ),
    )


__all__: list[str] = []
