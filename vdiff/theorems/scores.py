"""The same loss in other terms: scores, Tweedie's formula, denoising score matching."""

import torch
from torch import Tensor

from vdiff.gaussian import alpha, diffuse, sigma
from vdiff.loss import Model, predict_at
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, PosteriorMean, Score, V
from vdiff.schedule import Cosine, Linear
from vdiff.theorems.integral import (
    QUADRATURE,
    average,
    average_noise,
    expected_loss,
    levels,
    log_normal,
    squared,
)
from vdiff.theorems.subject import HIGH, LOW, ORACLE, Subject, biased, f64
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.weighting import MSE

LAMBDA = f64([-4.0, -1.0, 0.0, 2.0, 6.0])
BIASED = biased(ORACLE)


def gradient_of_log_density(oracle: GaussianMixture, z: Tensor, logsnr: Tensor) -> Tensor:
    """∇ log q(z) of the noisy data, by automatic differentiation of its density."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (score,) = torch.autograd.grad(oracle.noisy_log_prob(z, logsnr).sum(), z)
    return score


@theorem(
    "Tweedie's formula; Score SDE, arXiv:2011.13456",
    without={"the density is that of the noisy data, not of z given x": {"given": 0.5}},
)
def tweedie(given: float | None = None) -> Sides:
    """The exact denoiser is the score of the noisy data: E[ε | z] = −σ ∇ log q(z)."""
    z, lam = f64([-3.0, -1.2, -0.1, 0.4, 2.5]).repeat(5)[:, None], LAMBDA.repeat_interleave(5)
    score = gradient_of_log_density(ORACLE, z, lam)
    if given is not None:
        score = (alpha(lam)[:, None] * given - z) / torch.sigmoid(-lam)[:, None]
    return equal(ORACLE(z, lam).score, score, rel=1e-9, atol=1e-9)


@theorem(
    "Salimans & Ho 2022, appendix D; Flow matching, arXiv:2210.02747",
    without={"the score is ∇ log q(z|x), not its negative": {"sign": -1.0}},
)
def targets_are_derivatives(subject: Subject, sign: float = 1.0) -> Sides:
    """v = dz/dφ on the circle tan φ = σ/α, u = dz/dt on the straight path, the score ∇ log q(z|x),
    the mean that of q(z_s | z_t, x)."""
    chain, steps, h = Linear(HIGH, LOW), 6, 1e-5
    x, eps, t = subject.drawn("targets", len(subject.x))
    lam = chain((1 + (steps - 1) * t) / steps)  # a whole step away from λ_max
    wide = (-1, *(1 for _ in x.shape[1:]))
    a, s = alpha(lam).view(wide), sigma(lam).view(wide)
    angle, straight = torch.atan(s / a), s / (a + s)
    circle = [torch.cos(angle + d) * x + torch.sin(angle + d) * eps for d in (h, -h)]
    line = [(1 - straight - d) * x + (straight + d) * eps for d in (h, -h)]
    with torch.enable_grad():
        z = (a * x + s * eps).requires_grad_()
        (score,) = torch.autograd.grad(log_normal(z, a * x, s).sum(), z)
    before = (lam + (HIGH - LOW) / steps).view(wide)  # q(z_s | z, x) by Bayes' rule
    shrink, var = a / alpha(before), sigma(before).square()
    new = s.square() - shrink.square() * var
    mean = (shrink * var * z.detach() + new * alpha(before) * x) / s.square()
    right = [(circle[0] - circle[1]) / (2 * h), (line[0] - line[1]) / (2 * h), sign * score, mean]
    targets = V(), Flow(), Score(), PosteriorMean(chain, steps)
    left = torch.stack([target.target(x, eps, lam) for target in targets])
    return equal(left, torch.stack(right), rel=1e-6, atol=1e-6, why="difference quotients")


def _distances(model: Model, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
    """‖s − ∇ log q(z|x)‖², ‖s − ∇ log q(z)‖², ‖∇ log q(z|x)‖² and ‖∇ log q(z)‖², by row."""
    z = diffuse(x, eps, level)
    said, conditional = model(z, level).score, -eps / sigma(level)[:, None]
    explicit = gradient_of_log_density(ORACLE, z, level)
    parts = said - conditional, said - explicit, conditional, explicit
    return torch.stack([v.square().sum(1) for v in parts])


@theorem(
    "Vincent 2011, A connection between score matching and denoising autoencoders",
    without={"x is averaged over": {"x": 0.4}},
)
def denoising_score_matching(x: float | None = None) -> Sides:
    """E‖s(z) − ∇ log q(z|x)‖² = E‖s(z) − ∇ log q(z)‖² + a constant, that of the exact score, for
    any model s."""

    def distances(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return _distances(BIASED, x, eps, level)

    mean = average(ORACLE, LAMBDA, distances) if x is None else average_noise(x, LAMBDA, distances)
    # the left side through the ε-loss: s − ∇ log q(z|x) = (ε − ε̂)/σ
    loss = squared(BIASED)
    eps_loss = average(ORACLE, LAMBDA, loss) if x is None else average_noise(x, LAMBDA, loss)
    left = torch.stack([mean[0], eps_loss / torch.sigmoid(-LAMBDA)])
    return equal(left, mean[1] + mean[2] - mean[3], rel=1e-8, why=QUADRATURE)


@theorem(
    "Song & Ermon, arXiv:1907.05600, with σ² for its weight; DDPM, arXiv:2006.11239, section 3.2",
    without={"each scale counts σ²": {"power": 0}},
)
def simple_loss_is_multi_scale_score_matching(power: int = 1) -> Sides:
    """L_simple less that of the exact denoiser is ∫ p(λ) σ² E‖s(z) − ∇ log q(z)‖² dλ: score
    matching at all scales at once."""
    schedule = Cosine(HIGH, LOW)
    w = MSE(schedule, Eps())
    loss, least = (expected_loss(model, ORACLE, schedule, w) for model in (BIASED, ORACLE))
    lam, width = levels()
    distance = average(ORACLE, lam, lambda *at: _distances(BIASED, *at)[1])
    by_scale = schedule.density(lam) * torch.sigmoid(-lam) ** power * distance
    return equal(loss - least, width @ by_scale, rel=1e-6, why=QUADRATURE)


@theorem("the law of total variance", without={"ε̂ is the conditional mean": {"model": BIASED}})
def conditioning_reduces_variance(model: Model = ORACLE) -> Sides:
    """Var f = Var E[f | z] + E Var[f | z], so conditioning never adds variance; here f = (1 + z²)
    ε and E[f | z] = (1 + z²) ε̂."""

    def moments(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        said = predict_at(model, x, eps, level, {})
        g = 1 + said.z[:, 0].square()
        left = g**2 * eps[:, 0].square()
        return torch.stack([left, g**2 * (said.eps[:, 0] ** 2 + said.squared_error(x, eps))])

    left, right = average(ORACLE, LAMBDA, moments)
    return equal(left, right, rel=1e-8, why=QUADRATURE)
