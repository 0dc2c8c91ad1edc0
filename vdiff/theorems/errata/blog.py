"""Errata of the article on Rao-Blackwellisation."""

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.decoder import normal_nodes
from vdiff.gaussian import Step, alpha, diffuse
from vdiff.oracle import Gaussian
from vdiff.theorems.errata.erratum import BLOG, Correction, compared, erratum, ordered
from vdiff.theorems.estimators import HERMITE, REDUCED, STEP, path_variances, step_variances
from vdiff.theorems.integral import average, average_noise, log_normal, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.theorem import at_least, equal
from vdiff.variance import Posterior

UNIT = Gaussian([0.0], [1.0])


@erratum(
    source=BLOG,
    where="section Variance Evolution, and the conclusion",
    printed="“variance on the order of 10² lower … across all diffusion timesteps”; “the variance reduction (∼10² lower)”",
    right="this is one network at one T, and T is not given; with Σ = β̃ the ratio is 1 + 2 E[K]/Var K, which is of order T and grows without "
    "bound towards noise",
)
def reduction_is_no_constant() -> Correction:
    """N(0, 1) from λ = 13.3 to −5, at λ = 8, 0 and −4: 109, 218 and 6022 with 1000 steps, 11.0,
    20.9 and 554.7 with 100."""
    ratio, law = [], []
    for delta in (STEP, 10 * STEP):
        sampled, closed, _ = step_variances(UNIT, UNIT, Posterior(), REDUCED, delta)
        ratio.append(sampled / closed)
        law.append(1 + 2 / (math.expm1(delta) * torch.sigmoid(REDUCED)))
    return compared(100.0, torch.stack(law), torch.stack(ratio))


@erratum(
    source=BLOG,
    where="section The Hidden Variance Reduction",
    printed="“By analytically computing the KL divergence, we reduce the variance of the loss estimator compared to a naive Monte Carlo "
    "approximation”",
    right="its theorem proves this for each term by itself; along one path, as in line 2, the sum of the log-ratios has less variance, O(1/T) at "
    "the exact denoiser",
)
def not_along_one_path() -> Correction:
    """N(0, 1), x = ½, 100 steps from λ = 13.3 to −5: variance 13.2 of the KLs' sum, 1.34 of the
    log-ratio."""
    log_ratio, closed = path_variances(GaussianPath(UNIT, 13.3, -5.0, 100), 0.5)
    return ordered(closed, log_ratio)


@erratum(
    source=BLOG,
    where="section The Evidence Lower Bound",
    printed="“Maximizing L(θ; x) tightens the lower bound on the log-likelihood log p_θ(x)”",
    right="it raises the bound; the gap is KL(q(z|x) ‖ p_θ(z|x)), which may grow at the same time",
)
def raising_the_bound_may_widen_the_gap() -> Correction:
    """z ~ N(0, 1), x|z ~ N(θ z, 1), q(z|x) = N(0.5, 0.3), x = 2: from θ = ½ to 1 the bound rises
    from −2.865 to −2.571, the gap from 0.234 to 0.305."""
    theta, x, q = (
        torch.tensor([0.5, 1.0], dtype=torch.float64),
        2.0,
        Normal(torch.tensor(0.5).double(), 0.3**0.5),
    )
    node, mass = normal_nodes()
    z = q.mean + q.stddev * node
    bound = log_normal(x, theta[:, None] * z, 1.0) @ mass - kl_divergence(
        q, Normal(torch.zeros(()).double(), 1.0)
    )
    spread = 1 + theta.square()
    gap = log_normal(x, 0.0, spread.sqrt()) - bound
    divergence = kl_divergence(q, Normal(theta * x / spread, spread.rsqrt()))
    return Correction(
        at_least(gap[0], gap[1], rel=1e-9, why="rounding"),
        equal(gap, divergence, rel=1e-9, why="rounding"),
    )


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
            forward, reverse = (
                log_normal(z, shrink * z_s, spread),
                log_normal(z_s, step.mean(z, said), step.variance.sqrt()),
            )
            draws.append((forward - reverse)[:, 0])
        return torch.stack(draws, 1) @ HERMITE[1]

    return average(UNIT, lam, of)[0]


@erratum(
    source=BLOG,
    where="section But Why?, and the experiments",
    printed="“in line 2 of the loss derivation, every term can already be computed”; what the KL is then compared with is "
    "log q(x_{t−1}|x_t, x₀)/p_θ(x_{t−1}|x_t)",
    right="line 2's term, log q(x_t|x_{t−1})/p_θ(x_{t−1}|x_t), is another estimator; its mean at each step is lower by ½ d log(σ_t²/σ_s²), "
    "so that the comparison does not answer for it",
    left_open=True,
)
def line_two_has_another_mean() -> Correction:
    """N(0, 1), 100 steps, λ_t = 7.803: the KL's mean is 0.1004, that of line 2 is 0.0089."""
    level, delta = torch.tensor([7.803], dtype=torch.float64), 0.183
    step = Step(level, torch.tensor([delta], dtype=torch.float64))
    kl = 0.5 * math.expm1(delta) * average(UNIT, level, squared(UNIT))[0]
    return compared(kl, kl - 0.5 * step.log_variance_ratio[0], _line_two(level.item(), delta))


@erratum(
    source=BLOG,
    where="section Variance Evolution, step 2",
    printed="“Estimated the variance of each estimator by repeating this process multiple times”: of one x₀, or of one drawn anew",
    right="two variances: the second is larger by the variance of E[K | x₀]",
    left_open=True,
)
def variance_over_what() -> Correction:
    """N(0, 1), a step of Δ = 0.5 at λ = −4, the KL in closed form: 2.4e-6 given x₀ (its mean over
    x₀), 6.8e-5 over everything."""
    lam, (node, mass) = torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64), normal_nodes()
    kl = 0.5 * math.expm1(0.5)

    def square(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return squared(UNIT)(x, eps, level).square()

    first = kl * torch.stack([average_noise(x, lam, squared(UNIT)) for x in node.tolist()])
    second = kl**2 * torch.stack([average_noise(x, lam, square) for x in node.tolist()])
    of_each = mass @ (second - first.square())
    between = mass @ first.square() - (mass @ first).square()
    return compared(
        of_each,
        of_each + between,
        step_variances(UNIT, UNIT, Posterior(), lam, 0.5)[1],
        why="quadrature",
    )


__all__: list[str] = []
