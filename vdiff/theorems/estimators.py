"""Variances: what conditioning saves at a step, and what it costs along a path."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step
from vdiff.loss import elbo, predict_at
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.theorems.chains import BLOG, CHAIN, STEPS, predicted
from vdiff.theorems.integral import average
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import ORACLE, Subject, f64, line
from vdiff.theorems.theorem import ERRORS, Sides, equal, paired, sampled, theorem
from vdiff.variance import FixedLarge, FixedSmall, ReverseVariance

LAMBDA, DELTA = f64([-4.0, 0.0, 5.0]), 0.5
HERMITE = f64([-(3**0.5), 0.0, 3**0.5]), f64([1 / 6, 2 / 3, 1 / 6])
QUADRATURE = "quadrature over x, ε and z_s"


def step_moments(
    variance: ReverseVariance,
    oracle: GaussianMixture = ORACLE,
    logsnr: Tensor = LAMBDA,
    delta: float = DELTA,
) -> tuple[Tensor, Tensor, Tensor]:
    """Var of the sampled log-ratio, Var of the KL, and E of the KL, of one step of the exact
    denoiser at each λ, over data, noise and z_s."""

    def powers(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        said = predict_at(oracle, x, eps, level, {})
        prediction = said.replace(variance=variance)
        step = Step(level, torch.full_like(level, delta))
        kl = reverse_kl(prediction, x, eps, step)
        draws = torch.stack(  # exact: the ratio is quadratic in the noise
            [
                reverse_log_ratio(prediction, x, eps, step, torch.full_like(x, n))
                for n in HERMITE[0].tolist()
            ],
            1,
        )
        return torch.stack([draws @ HERMITE[1], draws.square() @ HERMITE[1], kl, kl.square()])

    ratio, ratio_2, kl, kl_2 = average(oracle, logsnr, powers)
    return ratio_2 - ratio.square(), kl_2 - kl.square(), kl


@theorem(
    f"{BLOG}, its theorem, with the difference worked out",
    without={"Σ is the posterior's": {"variance": FixedLarge()}},
)
def rao_blackwell_law(variance: ReverseVariance | None = None) -> Sides:
    """At each step Var of the sampled log-ratio = Var of the KL + 2 E[KL]: equal only where the KL
    is zero."""
    ratio, closed, kl = step_moments(variance or FixedSmall())
    return equal(ratio, closed + 2 * kl, rel=1e-8, why=QUADRATURE)


@theorem(f"{BLOG}, its theorem", without={"each step is taken by itself": {"along_a_path": True}})
def rao_blackwell_never_adds_variance(along_a_path: bool = False) -> Sides:
    """Step by step the KL in closed form has no more variance than the sampled log-ratio, with Σ =
    β̃ and with Σ = β = e^u β̃: less by E[½ d expm1(−u)² + e^{−2u} expm1(Δ) ‖ε − ε̂‖²]."""
    ratio, less = [], []
    for variance, u in ((FixedSmall(), f64([0.0])), (FixedLarge(), _log_ratio(LAMBDA, DELTA))):
        found, closed, _ = step_moments(variance)
        squares = torch.exp(-2 * u) * math.expm1(DELTA) * ORACLE.mmse(LAMBDA)
        ratio.append(found)
        less.append(closed + 0.5 * torch.expm1(-u).square() + squares)
    if along_a_path:
        ratio, less = (list(v) for v in zip(*(path_variances(LONG, 0.5),), strict=True))
    return equal(torch.stack(ratio), torch.stack(less), rel=1e-8, why=QUADRATURE)


def _log_ratio(logsnr: Tensor, delta: float) -> Tensor:
    """log β/β̃ = log σ_t²/σ_s²."""
    return torch.log(torch.sigmoid(-logsnr) / torch.sigmoid(-logsnr - delta))


@theorem(f"{BLOG}, its theorem", without={"Σ is the posterior's": {"variance": FixedLarge()}})
def rao_blackwell_law_of_any_network(
    subject: Subject, variance: ReverseVariance | None = None
) -> Sides:
    """Given z_t, the sampled log-ratio has mean KL and variance 2 KL, whatever the network
    predicts."""
    prediction, x, eps, step = predicted(subject, 64, "law", variance)
    with torch.enable_grad():  # the ratio is linear in the noise: Var = ‖slope‖²
        noise = torch.zeros_like(x, requires_grad=True)
        ratio = reverse_log_ratio(prediction, x, eps, step, noise)
        (slope,) = torch.autograd.grad(ratio.sum(), noise)
    spread = slope.square().flatten(1).sum(1)
    return equal(spread, 2 * reverse_kl(prediction, x, eps, step), rel=1e-8)


REDUCED, STEP = f64([8.0, 0.0, -4.0]), 18.3 / 1000


@theorem(
    f"{BLOG}, its experiment", without={"the ratio may depend on λ and T": {"constant": 100.0}}
)
def order_of_the_reduction(constant: float | None = None) -> Sides:
    """For N(0, 1) the reduction at a step is 1 + 2/(expm1(Δ) sigmoid(λ)): of order T, and without
    bound at the noisy end; 109, 218 and 6022 at λ = 8, 0 and −4 of 1000 steps."""
    ratio, closed, _ = step_moments(FixedSmall(), Gaussian([0.0], [1.0]), REDUCED, STEP)
    law = 1 + 2 / (math.expm1(STEP) * torch.sigmoid(REDUCED))
    return equal(ratio / closed, constant or law, rel=1e-8, why="quadrature")


def path_variances(path: GaussianPath, x: float) -> tuple[Tensor, Tensor]:
    """Var of the log-ratio of a path, and of the sum of its KLs, exactly: both are quadratic in a
    Gaussian vector."""
    q, (_, posterior) = path.forward(x), path.given(x)
    curve = posterior.precision_matrix - q.precision_matrix
    tilt = posterior.precision_matrix @ (q.mean - posterior.mean)
    spread = q.covariance_matrix
    log_ratio = 0.5 * torch.trace(curve @ spread @ curve @ spread) + tilt @ spread @ tilt

    lam = path.logsnr[1:]
    probe = f64([0.0, 1.0])[:, None, None].expand(2, len(lam), 1)
    at_zero, at_one = (path.oracle(z, lam).eps[:, 0] for z in probe)
    noise = torch.sigmoid(-lam).rsqrt()  # ε − ε̂ = slope · z + fixed
    slope, fixed = noise - (at_one - at_zero), -noise * torch.sigmoid(lam).sqrt() * x - at_zero
    mean, cov = slope * q.mean[1:] + fixed, slope[:, None] * spread[1:, 1:] * slope
    gain = torch.expm1(path.logsnr[:-1] - lam)
    weighed = gain[:, None] * cov
    return log_ratio, 0.5 * torch.trace(weighed @ weighed) + (gain * mean) @ cov @ (gain * mean)


def sampled_paths(path: GaussianPath, n: int) -> Tensor:
    """Log-ratios and sums of KLs of sampled paths of x = ½."""
    found = path_bound(
        path.oracle, torch.full((n, 1), 0.5, dtype=torch.float64), schedule=path.schedule,
        decoder=GaussianDecoder(), steps=path.steps, generator=Subject().generator("paths"),
    )  # fmt: skip
    return torch.stack([found.log_ratio, found.rao_blackwell], 1)


def sampled_steps(path: GaussianPath, n: int) -> Tensor:
    """Sums of KLs, each with noise of its own, in the place of both."""
    bound = elbo(
        path.oracle, torch.full((n * path.steps, 1), 0.5, dtype=torch.float64),
        schedule=path.schedule, decoder=GaussianDecoder(), steps=path.steps,
        t=torch.arange(1, path.steps + 1, dtype=torch.float64).repeat(n) / path.steps,
        generator=Subject().generator("steps"),
    )  # fmt: skip
    return (bound.diffusion.view(n, -1).mean(1))[:, None].expand(n, 2)


SHORT, LONG = GaussianPath(line(), 6.0, -5.0, 8), GaussianPath(line(), 13.3, -5.0, 30)


@theorem(
    f"of Gaussian quadratic forms; against {BLOG}, for evaluation",
    without={"the terms lie on one path": {"draw": sampled_steps}},
)
def variances_along_a_path(draw: Callable[[GaussianPath, int], Tensor] = sampled_paths) -> Sides:
    """Summed along one path, the log-ratios have less variance than the KLs: their errors cancel,
    those of the KLs add up. Sampled paths have the two variances that the Gaussian laws of
    (z₀ … z_T) say."""
    draws = draw(LONG, 2**16)
    found = (draws - draws.mean(0)).square()
    exact = torch.stack(path_variances(LONG, 0.5))
    assert exact[0] < exact[1]
    return sampled(found, exact)


@theorem(
    "from Gaussian quadratic forms", without={"the estimator is the log-ratio": {"estimator": 1}}
)
def path_variance_vanishes(estimator: int = 0) -> Sides:
    """At the exact denoiser the log-ratio of a path has variance O(1/T): T·Var tends to a
    number."""
    paths = [GaussianPath(line(), 6.0, -5.0, steps) for steps in (32, 500, 1000)]
    exact = [path.steps * path_variances(path, 0.5)[estimator] for path in paths]
    draws = sampled_paths(paths[0], 2**15)[:, estimator]
    found = sampled(32 * (draws - draws.mean()).square(), exact[0])
    limit = 2 * exact[2] - exact[1]
    left = torch.stack([torch.as_tensor(found.left), exact[2]])
    right = torch.stack([exact[0], limit])
    allowed = torch.stack([torch.as_tensor(found.allowed), 0.05 * limit.abs()])
    return Sides(left, right, allowed, f"{ERRORS:g} standard errors; the next order in 1/T")


@theorem(
    f"{BLOG}, both estimators are unbiased",
    without={"the logarithm stands inside the mean": {"inside": False}},
)
def path_estimators_share_their_mean(subject: Subject, inside: bool = True) -> Sides:
    """The log-ratio of a path and the sum of the KLs along it have the same mean, the bound,
    whatever the network predicts."""
    x, decoder = subject.rows(max(16, subject.draws)), GaussianDecoder()
    generator = subject.generator("both")
    path = path_bound(
        subject.model, x, schedule=CHAIN, decoder=decoder, steps=STEPS, generator=generator
    )
    log_ratio, closed = path.log_ratio.view(-1, 8), path.rao_blackwell.view(-1, 8).mean(1)
    outside = math.log(8) - torch.logsumexp(-log_ratio, 1)
    return paired(log_ratio.mean(1) if inside else outside, closed)
