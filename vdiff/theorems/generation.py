"""From noise to data: the flow and the diffusion that share their marginals, their steps, and the
likelihood along the flow."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.flow import angle
from vdiff.gaussian import alpha, per_example, sigma
from vdiff.loss import Model
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.reverse import reverse_sample
from vdiff.sampling import Memory, ddim, trajectory
from vdiff.schedule import Linear
from vdiff.theorems.chains import drawn
from vdiff.theorems.integral import slope
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.scores import gradient_of_log_density
from vdiff.theorems.subject import HIGH, LOW, Subject, line
from vdiff.theorems.theorem import Sides, equal, sampled, theorem

Drift = Callable[[Tensor, Tensor], Tensor]
POINTS = torch.linspace(-2, 2, 17, dtype=torch.float64)
LAMBDA = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)


def flow(model: Model) -> Drift:
    """The probability-flow ODE's dz/dλ, from dz/dφ = v̂ in the angle that the solver goes by."""
    return lambda z, lam: slope(angle, lam)[:, None] * model(z, lam).v


def diffusion_drift(model: Model) -> Drift:
    """The reverse SDE's drift, ½ σ² z − σ ε̂; its noise is σ dW."""
    return lambda z, lam: sigma(lam)[:, None] * (0.5 * sigma(lam)[:, None] * z - model(z, lam).eps)


def _fokker_planck(oracle: GaussianMixture, drift: Drift, noise: float) -> Sides:
    """∂q/∂λ of the density against −∂(drift q)/∂z + ½ noise σ² ∂²q/∂z²."""
    z, lam, h = POINTS.repeat(len(LAMBDA))[:, None], LAMBDA.repeat_interleave(len(POINTS)), 1e-3

    def q(at: Tensor, level: Tensor) -> Tensor:
        return oracle.noisy_log_prob(at, level).exp()

    def current(at: Tensor) -> Tensor:
        score = gradient_of_log_density(oracle, at, lam)[:, 0]
        return q(at, lam) * (drift(at, lam)[:, 0] - 0.5 * noise * torch.sigmoid(-lam) * score)

    left = (8 * (q(z, lam + h) - q(z, lam - h)) - (q(z, lam + 2 * h) - q(z, lam - 2 * h))) / (
        12 * h
    )
    right = -(
        8 * (current(z + h) - current(z - h)) - (current(z + 2 * h) - current(z - 2 * h))
    ) / (12 * h)
    return equal(left, right, rel=1e-6, atol=1e-8, why="difference quotients of fourth order")


@theorem(source="Score SDE, arXiv:2011.13456, eq. 13", given="the drift has one half of ε̂")
def flow_has_the_marginals(subject: Subject) -> Sides:
    """The flow dz/dλ = ½ σ (σ z − ε̂) carries the density of the noisy data along: ∂q/∂λ = −∂(v
    q)/∂z."""
    return _fokker_planck(subject.oracle, flow(subject.oracle), noise=0.0)


@flow_has_the_marginals.without("the drift has one half of ε̂")
def _(subject: Subject) -> Sides:
    return _fokker_planck(subject.oracle, diffusion_drift(subject.oracle), noise=0.0)


@theorem(source="Score SDE, arXiv:2011.13456, eq. 6", given="the noise is there")
def reverse_diffusion_has_the_marginals(subject: Subject) -> Sides:
    """The reverse SDE dz = (½ σ² z − σ ε̂) dλ + σ dW has the same marginals as the flow."""
    return _fokker_planck(subject.oracle, diffusion_drift(subject.oracle), noise=1.0)


@reverse_diffusion_has_the_marginals.without("the noise is there")
def _(subject: Subject) -> Sides:
    return _fokker_planck(subject.oracle, diffusion_drift(subject.oracle), noise=0.0)


def _euler(subject: Subject, exploding: bool) -> Sides:
    """DDIM against Euler's step of the flow, in z/α over σ/α or in z over λ."""
    x, eps, step = drawn(subject, 64, "ddim")
    z = per_example(alpha(step.logsnr_t), x) * x + per_example(sigma(step.logsnr_t), x) * eps
    left = ddim(subject.model, z, step.logsnr_t, step.logsnr_s)
    if exploding:
        ratio_t, ratio_s = torch.exp(-0.5 * step.logsnr_t), torch.exp(-0.5 * step.logsnr_s)
        moved = (
            z / per_example(alpha(step.logsnr_t), z)
            + per_example(ratio_s - ratio_t, z) * subject.model(z, step.logsnr_t).eps
        )
        right = per_example(alpha(step.logsnr_s), z) * moved
    else:
        right = z + per_example(step.delta, z) * flow(subject.model)(z, step.logsnr_t).view_as(z)
    return equal(left, right, rel=1e-8, atol=1e-9, why="float64 rounding")


@theorem(
    source="DDIM, arXiv:2010.02502, eq. 14",
    given="the coordinates are z/α over σ/α",
    any_network=True,
)
def ddim_is_eulers_step(subject: Subject) -> Sides:
    """A DDIM step is Euler's step of the flow, exactly, in the coordinates z/α over σ/α, whatever
    the network says."""
    return _euler(subject, exploding=True)


@ddim_is_eulers_step.without("the coordinates are z/α over σ/α")
def _(subject: Subject) -> Sides:
    return _euler(subject, exploding=False)


def _transported(
    subject: Subject, model: Callable[[GaussianMixture], Model], extrapolate: bool
) -> Sides:
    """Where DDIM takes quantiles of the noisy end, against the same quantiles of the data end: in
    one dimension the flow keeps order."""
    oracle, high, low = line(), 4.0, -6.0
    ends = torch.tensor([high, low], dtype=torch.float64)
    mean = alpha(ends) * oracle.means[0, 0]
    std = (torch.sigmoid(ends) * oracle.variances[0, 0] + torch.sigmoid(-ends)).sqrt()
    score = torch.tensor([-2.0, -0.5, 1.0], dtype=torch.float64)
    reached = []
    for steps in (160, 320, 640):
        z = (mean[1] + std[1] * score)[:, None]
        lam = Linear(high, low)(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        for now, after in itertools.pairwise(lam):
            z = ddim(model(oracle), z, now.expand(3), after.expand(3))
        reached.append(z[:, 0])
    once = [2 * b - a for a, b in itertools.pairwise(reached)]
    best = (4 * once[1] - once[0]) / 3
    return equal(
        best if extrapolate else reached[0],
        mean[0] + std[0] * score,
        rel=1e-5,
        atol=1e-6,
        why="the third order in the step's length",
    )


@theorem(
    source="DDIM, arXiv:2010.02502; Score SDE, arXiv:2011.13456",
    given="the steps are many; the denoiser is the exact one",
)
def ddim_tends_to_the_flow(subject: Subject) -> Sides:
    """As its steps shrink DDIM tends to the flow, which in one dimension takes quantiles of q(z₁)
    to those of q(z₀)."""
    return _transported(subject, lambda oracle: oracle, extrapolate=True)


@ddim_tends_to_the_flow.without("the steps are many")
def _(subject: Subject) -> Sides:
    return _transported(subject, lambda oracle: oracle, extrapolate=False)


@ddim_tends_to_the_flow.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    wrong = Gaussian([0.3], [0.5])
    return _transported(subject, lambda oracle: wrong, extrapolate=True)


def _stochastic(subject: Subject, eta: float) -> Sides:
    """DDIM's step against the chain's own with the same noise."""
    x, eps, step = drawn(subject, 64, "eta")
    z = per_example(alpha(step.logsnr_t), x) * x + per_example(sigma(step.logsnr_t), x) * eps
    noise = torch.randn(x.shape, generator=subject.generator("noise"), dtype=torch.float64)
    left = ddim(
        subject.model,
        z,
        step.logsnr_t,
        step.logsnr_s,
        Memory(generator=subject.generator("noise")),
        eta=eta,
    )
    return equal(
        left,
        reverse_sample(subject.model(z, step.logsnr_t), step, noise),
        rel=1e-7,
        atol=1e-9,
        why="float64 rounding",
    )


@theorem(source="DDIM, arXiv:2010.02502, eq. 16", given="η = 1", any_network=True)
def ddim_with_noise_is_ancestral(subject: Subject) -> Sides:
    """DDIM with η = 1 is ancestral sampling, step by step."""
    return _stochastic(subject, 1.0)


@ddim_with_noise_is_ancestral.without("η = 1")
def _(subject: Subject) -> Sides:
    return _stochastic(subject, 0.5)


def _sampled_variance(subject: Subject, steps: int, claimed: int) -> Sides:
    """(z₀ − mean)² of sampled trajectories against the variance of the chain's law."""
    path = GaussianPath(line(), HIGH, LOW, steps)
    law = GaussianPath(line(), HIGH, LOW, claimed).reverse()
    z = torch.randn(40_000, 1, generator=subject.generator("start"), dtype=torch.float64)
    chain = trajectory(
        path.oracle,
        z,
        schedule=path.schedule,
        steps=steps + 1,
        generator=subject.generator("ancestral"),
    )
    *_, (last, _) = chain
    return sampled((last[:, 0] - law.mean[0]).square(), law.covariance_matrix[0, 0])


@theorem(source="of affine Gaussian kernels", given="the number of steps is the chain's")
def ancestral_samples_have_the_chains_law(subject: Subject) -> Sides:
    """Ancestral samples have the variance of the chain's own law, which at few steps is less than
    that of the data."""
    return _sampled_variance(subject, 4, claimed=4)


@ancestral_samples_have_the_chains_law.without("the number of steps is the chain's")
def _(subject: Subject) -> Sides:
    return _sampled_variance(subject, 4, claimed=64)


def _likelihood(oracle: GaussianMixture, divergence: bool) -> Sides:
    """log q(z) at the data end against log q(z) at the noisy end plus ∫ div dλ along the flow, by
    Runge-Kutta."""
    steps = 400
    lam = torch.linspace(3.0, -4.0, steps + 1, dtype=torch.float64)
    z = torch.tensor([[-1.2], [0.1], [0.7], [1.5]], dtype=torch.float64)
    start, gained = (
        oracle.noisy_log_prob(z, lam[:1].expand(4)),
        torch.zeros(4, dtype=torch.float64),
    )

    def both(at: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            v = flow(oracle)(at, level.expand(4))
            (div,) = torch.autograd.grad(v.sum(), at)
        return v.detach(), div[:, 0]

    for now, after in itertools.pairwise(lam):
        h = after - now
        v1, d1 = both(z, now)
        v2, d2 = both(z + 0.5 * h * v1, now + 0.5 * h)
        v3, d3 = both(z + 0.5 * h * v2, now + 0.5 * h)
        v4, d4 = both(z + h * v3, after)
        z, gained = (
            z + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4),
            gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4),
        )
    right = oracle.noisy_log_prob(z, lam[-1:].expand(4)) + (gained if divergence else 0.0)
    return equal(start, right, rel=1e-6, atol=1e-6, why="Runge-Kutta with 400 steps")


@theorem(source="Score SDE, arXiv:2011.13456, eq. 39", given="the divergence is counted")
def likelihood_along_the_flow(subject: Subject) -> Sides:
    """log q(z) along the flow changes by −div v: the exact density, from the noisy end and an
    integral."""
    return _likelihood(subject.oracle, divergence=True)


@likelihood_along_the_flow.without("the divergence is counted")
def _(subject: Subject) -> Sides:
    return _likelihood(subject.oracle, divergence=False)


__all__: list[str] = []
