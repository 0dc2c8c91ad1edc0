"""The other name of the same loss: scores, Tweedie's formula, denoising score matching."""

import torch
from torch import Tensor

from vdiff.gaussian import alpha, diffuse, sigma
from vdiff.loss import Model, predict_at
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, PosteriorMean, Score, V
from vdiff.schedule import Cosine, Linear
from vdiff.theorems.integral import average, average_noise, expected_loss, levels, log_normal
from vdiff.theorems.subject import HIGH, LOW, Subject, biased
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.weighting import MSE

LAMBDA = torch.tensor([-4.0, -1.0, 0.0, 2.0, 6.0], dtype=torch.float64)
QUADRATURE = "quadrature over x and ε"


def gradient_of_log_density(oracle: GaussianMixture, z: Tensor, logsnr: Tensor) -> Tensor:
    """∇ log q(z) of the noisy data, by automatic differentiation of its density.

    >>> from vdiff.theorems.subject import line
    >>> gradient_of_log_density(line(), torch.zeros(1, 1), torch.zeros(1)).shape
    torch.Size([1, 1])
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (score,) = torch.autograd.grad(oracle.noisy_log_prob(z, logsnr).sum(), z)
    return score


@theorem(
    source="Tweedie's formula; Score SDE, arXiv:2011.13456",
    given="the density is that of the noisy data, not of z given x",
)
def tweedie(subject: Subject) -> Sides:
    """The exact denoiser is the score of the noisy data: E[ε | z] = −σ ∇ log q(z)."""
    z = torch.linspace(-3, 3, 25, dtype=torch.float64).repeat(len(LAMBDA))[:, None]
    lam = LAMBDA.repeat_interleave(25)
    score = gradient_of_log_density(subject.oracle, z, lam)
    return equal(subject.oracle(z, lam).score, score, rel=1e-9, atol=1e-9, why="float64 rounding")


@tweedie.without("the density is that of the noisy data, not of z given x")
def _(subject: Subject) -> Sides:
    z, lam = (
        torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None],
        torch.zeros(25, dtype=torch.float64),
    )
    one = (z - 0.5**0.5 * 0.5) / -0.5  # of q(z | x = ½) at λ = 0
    return equal(subject.oracle(z, lam).score, one, rel=1e-9, why="")


def _by_derivative(subject: Subject, turned: float) -> Sides:
    """Targets by what they are derivatives of, at single points (x, ε) of the subject's data."""
    x, h, chain = subject.x, 1e-5, Linear(HIGH, LOW)
    generator = subject.generator("targets")
    eps, lam = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64),
        chain(torch.rand(len(x), generator=generator, dtype=torch.float32).double()),
    )
    a, s = (v.view(-1, *(1 for _ in x.shape[1:])) for v in (alpha(lam), sigma(lam)))
    angle, straight = torch.atan(s / a), s / (a + s)

    def on_the_circle(phi: Tensor) -> Tensor:
        return torch.cos(phi) * x + torch.sin(phi) * eps

    def on_the_line(t: Tensor) -> Tensor:
        return (1 - t) * x + t * eps

    with torch.enable_grad():
        z = (a * x + s * eps).requires_grad_()
        (score,) = torch.autograd.grad(log_normal(z, a * x, s).sum(), z)
    target = PosteriorMean(chain, 6)
    right = [
        (on_the_circle(angle + h) - on_the_circle(angle - h)) / (2 * h),
        (on_the_line(straight + h) - on_the_line(straight - h)) / (2 * h),
        turned * score,
        target.step(lam).mean(z.detach(), x),
    ]
    left = [one.target(x, eps, lam) for one in (V(), Flow(), Score(), target)]
    return equal(
        torch.stack(left), torch.stack(right), rel=1e-6, atol=1e-6, why="difference quotients"
    )


@theorem(
    source="Salimans & Ho 2022, appendix D; Flow matching, arXiv:2210.02747",
    given="the score is ∇ log q(z|x), not its negative",
)
def targets_are_derivatives(subject: Subject) -> Sides:
    """v = dz/dφ on the circle tan φ = σ/α, u = dz/dt on the straight path, the score ∇ log q(z|x),
    the mean that of q(z_s | z_t, x)."""
    return _by_derivative(subject, 1.0)


@targets_are_derivatives.without("the score is ∇ log q(z|x), not its negative")
def _(subject: Subject) -> Sides:
    return _by_derivative(subject, -1.0)


def _distances(
    oracle: GaussianMixture, model: Model, x: Tensor, eps: Tensor, level: Tensor
) -> Tensor:
    """‖s − ∇ log q(z|x)‖², ‖s − ∇ log q(z)‖², ‖∇ log q(z|x)‖² and ‖∇ log q(z)‖², by row."""
    z = diffuse(x, eps, level)
    said, conditional = model(z, level).score, -eps / sigma(level)[:, None]
    explicit = gradient_of_log_density(oracle, z, level)
    return torch.stack(
        [v.square().sum(1) for v in (said - conditional, said - explicit, conditional, explicit)]
    )


def _vincent(subject: Subject, averaged: bool) -> Sides:
    model = biased(subject.oracle)
    parts = []
    for i in range(4):

        def one(x: Tensor, eps: Tensor, level: Tensor, i: int = i) -> Tensor:
            return _distances(subject.oracle, model, x, eps, level)[i]

        parts.append(
            average(subject.oracle, LAMBDA, one) if averaged else average_noise(0.4, LAMBDA, one)
        )
    denoising, explicit, conditional, marginal = parts
    return equal(denoising, explicit + conditional - marginal, rel=1e-8, why=QUADRATURE)


@theorem(
    source="Vincent 2011, A connection between score matching and denoising autoencoders",
    given="x is averaged over",
)
def denoising_score_matching(subject: Subject) -> Sides:
    """E‖s(z) − ∇ log q(z|x)‖² = E‖s(z) − ∇ log q(z)‖² + a constant, that of the exact score, for
    any model s."""
    return _vincent(subject, averaged=True)


@denoising_score_matching.without("x is averaged over")
def _(subject: Subject) -> Sides:
    return _vincent(subject, averaged=False)


def _multi_scale(subject: Subject, scale: bool) -> Sides:
    schedule, model, oracle = Cosine(HIGH, LOW), biased(subject.oracle), subject.oracle
    simple = [expected_loss(m, oracle, schedule, MSE(schedule, Eps())) for m in (model, oracle)]
    lam, width = levels(LOW, HIGH)
    distance = average(
        oracle, lam, lambda x, eps, level: _distances(oracle, model, x, eps, level)[1]
    )
    weight = torch.sigmoid(-lam) if scale else torch.ones_like(lam)
    return equal(
        simple[0] - simple[1],
        width @ (schedule.density(lam) * weight * distance),
        rel=1e-6,
        why="quadrature over λ, x and ε",
    )


@theorem(
    source="Song & Ermon, arXiv:1907.05600, with σ² for its weight; DDPM, arXiv:2006.11239, section 3.2",
    given="each scale counts σ²",
)
def simple_loss_is_multi_scale_score_matching(subject: Subject) -> Sides:
    """L_simple less that of the exact denoiser is ∫ p(λ) σ² E‖s(z) − ∇ log q(z)‖² dλ: score
    matching at all scales at once."""
    return _multi_scale(subject, scale=True)


@simple_loss_is_multi_scale_score_matching.without("each scale counts σ²")
def _(subject: Subject) -> Sides:
    return _multi_scale(subject, scale=False)


def _orthogonal(subject: Subject, model: Model) -> Sides:
    """ε = ε̂ + what is left: g(z) ε splits its second moment between the two."""

    def moments(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        said = predict_at(model, x, eps, level, {})
        g = 1 + diffuse(x, eps, level).square()
        return torch.stack(
            [
                (g * eps).square()[:, 0],
                (g * said.eps).square()[:, 0] + (g * (eps - said.eps)).square()[:, 0],
            ]
        )

    parts = [average(subject.oracle, LAMBDA, lambda *at, i=i: moments(*at)[i]) for i in (0, 1)]
    return equal(parts[0], parts[1], rel=1e-8, why=QUADRATURE)


@theorem(source="the law of total variance", given="ε̂ is the conditional mean")
def conditioning_reduces_variance(subject: Subject) -> Sides:
    """Var f = Var E[f | z] + E Var[f | z], so conditioning never adds variance; here f = (1 + z²)
    ε and E[f | z] = (1 + z²) ε̂."""
    return _orthogonal(subject, subject.oracle)


@conditioning_reduces_variance.without("ε̂ is the conditional mean")
def _(subject: Subject) -> Sides:
    return _orthogonal(subject, biased(subject.oracle))


__all__: list[str] = []
