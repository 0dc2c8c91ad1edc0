"""Information and estimation: I-MMSE, the density as an integral of errors, inexact denoisers."""

import torch

from vdiff.likelihood import immse
from vdiff.loss import Model
from vdiff.schedule import Normal
from vdiff.theorems.integral import QUADRATURE, average, slope, squared
from vdiff.theorems.subject import ORACLE, Altered, biased, f64, line, scaled_x
from vdiff.theorems.theorem import ERRORS, Sides, at_least, equal, theorem

LAMBDA = f64([-4.0, -1.0, 0.0, 2.0, 6.0])
POINTS = f64([[-1.3], [0.0], [2.0]])
SQUARE = (ORACLE.weights @ (ORACLE.means.square() + ORACLE.variances)).sum()  # E‖x‖²
EXACT = "the denoiser is the exact one"


@theorem(
    "Guo, Shamai & Verdú 2005, Mutual information and minimum mean-square error",
    without={EXACT: {"model": biased(ORACLE)}},
)
def i_mmse(model: Model = ORACLE) -> Sides:
    """dI(x; z)/dλ = ½ E‖ε − ε̂‖² of the exact denoiser."""
    errors = average(ORACLE, LAMBDA, squared(model))
    information = slope(ORACLE.mutual_information, LAMBDA, 1e-2)
    return equal(information, 0.5 * errors, rel=1e-6, why="a difference quotient in λ")


@theorem(
    "Kong, Brekelmans & Ver Steeg, arXiv:2302.03792, eq. 9",
    without={EXACT: {"model": biased(ORACLE)}},
)
def density_is_an_integral_of_errors(model: Model = ORACLE) -> Sides:
    """−log p(x) = ½ d log 2πe − ½ ∫ (d sigmoid(λ) − E[‖ε − ε̂‖² | x]) dλ, over all of λ."""
    schedule, gaussian = Normal(0.0, 3.0, 15.0, -15.0), ORACLE.matched()
    found = immse(model, POINTS, schedule=schedule, gaussian=gaussian, draws=2048, replicates=32)
    allowed = ERRORS * found.standard_error + 1e-5
    why = f"{ERRORS:g} standard errors, and the tails beyond |λ| = 15"
    return Sides(found.nats, -ORACLE.log_prob(POINTS), allowed, why)


@theorem(
    "orthogonality of the conditional mean",
    without={"the base is the exact denoiser": {"base": biased(ORACLE)}},
)
def what_an_inexact_denoiser_adds(base: Model = ORACLE) -> Sides:
    """With m = E‖ε − ε*‖² of the exact one: ε̂ = cε* has m + (1−c)²(d − m), a bias b adds ‖b‖², x̂
    = cx* (1−c)²(SNR E‖x‖² − m)."""
    scaled, moved = Altered(base, lambda p: 0.8 * p.eps), Altered(base, lambda p: p.eps + 0.3)
    models = scaled, moved, scaled_x(base, 0.7)
    left = [average(ORACLE, LAMBDA, squared(model)) for model in models]
    m = ORACLE.mmse(LAMBDA)
    adds = [0.2**2 * (1 - m), torch.full_like(m, 0.3**2), 0.3**2 * (LAMBDA.exp() * SQUARE - m)]
    return equal(torch.stack(left), m + torch.stack(adds), rel=1e-8, why=QUADRATURE)


@theorem(
    "the best affine denoiser",
    without={"the error is of the exact denoiser": {"model": scaled_x(ORACLE, 0.0)}},
)
def gaussian_data_is_the_hardest(model: Model = ORACLE) -> Sides:
    """Of all data of one variance, Gaussian data has the largest error: E‖ε − ε̂‖² ≤ d sigmoid(λ +
    log Var x), with equality for it."""
    hardest = torch.stack([data.matched().mmse(LAMBDA) for data in (ORACLE, line())])
    errors = [average(data, LAMBDA, squared(m)) for data, m in ((ORACLE, model), (line(), line()))]
    return at_least(hardest, torch.stack(errors), rel=1e-9, why=QUADRATURE)
