"""Errata of the article on Rao-Blackwellisation."""

import math

import torch
from torch import Tensor

from vdiff.decoder import normal_nodes
from vdiff.gaussian import Step, alpha, diffuse, sigma
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps, Prediction
from vdiff.theorems.errata.erratum import BLOG, Correction, compared, erratum, ordered
from vdiff.theorems.estimators import HERMITE, REDUCED, STEP, path_variances, reductions, step_variances
from vdiff.theorems.integral import average, average_noise, log_normal, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import mixture
from vdiff.theorems.theorem import at_least, equal
from vdiff.variance import Posterior

UNIT = Gaussian([0.0], [1.0])


@erratum(
    source=BLOG,
    where="section Variance Evolution, and the conclusion",
    printed="the variance is about 10² lower, across all timesteps",
    right="the ratio is 1 + 2 E[K]/Var K: of order T, and without bound towards noise",
)
def reduction_is_no_constant() -> Correction:
    """N(0, 1) with 1000 steps from λ = 13.3 to −5: 109 at λ = 8, 218 at 0, 6022 at −4; a tenth of each with 100 steps."""
    return compared(torch.full((3,), 100.0), 1 + 2 / (math.expm1(STEP) * torch.sigmoid(REDUCED)), reductions())


@erratum(
    source=BLOG,
    where="the whole argument, read for evaluation",
    printed="the sum of KLs is the estimator of lower variance",
    right="true term by term with times of their own; along one path the sum of log-ratios has less, O(1/T) at the exact denoiser",
)
def not_along_one_path() -> Correction:
    """N(0, 1), x = ½, 100 steps from λ = 13.3 to −5: variance 13.2 of the KLs' sum, 1.34 of the log-ratio."""
    log_ratio, closed = path_variances(GaussianPath(UNIT, 13.3, -5.0, 100), 0.5)
    return ordered(closed, log_ratio)


@erratum(
    source=BLOG,
    where="after its theorem: strictly lower variance",
    printed="strictly lower variance, since f depends on x_{t−1}",
    right="lower by 2 E[K] exactly: not at all where the model's mean is the posterior's",
)
def strictly_only_where_the_kl_is_positive() -> Correction:
    """A model whose ε̂ is ε itself: both variances are zero. The exact ε̂ of the mixture, at λ = 0: 0.2471 and 0.0246, with E[K] = 0.1112."""
    sampled, closed, _ = step_variances(Gaussian([0.0], [1e-24]), _knows_that_x_is_zero, Posterior())
    more, less, mean = step_variances(mixture(), mixture(), Posterior())
    return Correction(at_least(sampled - closed, 1e-9, rel=0.0, why="strictly"), equal(more - less, 2 * mean, rel=1e-8, why="quadrature"))


def _knows_that_x_is_zero(z: Tensor, logsnr: Tensor) -> Prediction:
    return Prediction(z, logsnr, z / sigma(logsnr)[:, None], Eps())


def _line_two(level: float, delta: float) -> Tensor:
    """E[log q(z_t | z_s) − log p(z_s | z_t)] of N(0, 1), with both densities written out."""
    lam = torch.tensor([level], dtype=torch.float64)
    step = Step(lam, torch.tensor([delta], dtype=torch.float64))
    shrink, spread = alpha(lam) / alpha(step.logsnr_s), step.forward_variance.sqrt()

    def of(x: Tensor, eps: Tensor, _: Tensor) -> Tensor:
        z = diffuse(x, eps, lam.expand(len(x)))
        said = UNIT(z, lam.expand(len(x))).x
        draws = []
        for n in HERMITE[0]:
            z_s = step.mean(z, x) + step.variance.sqrt() * n
            forward, reverse = log_normal(z, shrink * z_s, spread), log_normal(z_s, step.mean(z, said), step.variance.sqrt())
            draws.append((forward - reverse)[:, 0])
        return torch.stack(draws, 1) @ HERMITE[1]

    return average(UNIT, lam, of)[0]


@erratum(
    source=BLOG,
    where="the Monte Carlo baseline of the experiment",
    printed="the baseline is the naive estimator of line 2, log q(x_t | x_{t−1})/p",
    right="it is log q(x_{t−1} | x_t, x₀)/p, of another mean at each step: that of line 2 is lower by ½ d log(σ_t²/σ_s²)",
)
def line_two_has_another_mean() -> Correction:
    """N(0, 1), 100 steps, λ_t = 7.8: the KL's mean is 0.1003, that of line 2 is 0.0088."""
    level, delta = torch.tensor([7.803], dtype=torch.float64), 0.183
    step = Step(level, torch.tensor([delta], dtype=torch.float64))
    kl = 0.5 * math.expm1(delta) * average(UNIT, level, squared(UNIT))[0]
    return compared(kl, kl - 0.5 * step.log_variance_ratio[0], _line_two(level.item(), delta))


@erratum(
    source=BLOG,
    where="the experiment: the variance over repeats",
    printed="one variance, without a word on whether x₀ is one image or drawn anew",
    right="two: that of one x₀, and that over the data, larger by the variance of E[K | x₀]",
)
def variance_over_what() -> Correction:
    """N(0, 1), a step of Δ = 0.5 at λ = −4, 0 and 5, the KL in closed form: on average over x₀, and over everything."""
    lam, (node, mass) = torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64), normal_nodes()
    kl = 0.5 * math.expm1(0.5)

    def square(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return squared(UNIT)(x, eps, level).square()

    first = kl * torch.stack([average_noise(x, lam, squared(UNIT)) for x in node.tolist()])
    second = kl**2 * torch.stack([average_noise(x, lam, square) for x in node.tolist()])
    of_each = mass @ (second - first.square())
    between = mass @ first.square() - (mass @ first).square()
    return compared(of_each, of_each + between, step_variances(UNIT, UNIT, Posterior(), lam, 0.5)[1], why="quadrature")


__all__: list[str] = []
