"""The bound in a training loop: one term of a chain at a time, the hybrid loss, and the gradient
of learned ends."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import hybrid_loss, vlb
from vdiff.decoder import Categorical, normal_nodes
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.denoiser import Denoiser
from vdiff.gaussian import alpha, sigma
from vdiff.loss import Model, elbo, predict_at
from vdiff.oracle import Lattice
from vdiff.parameterization import Eps
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, LearnedLinear
from vdiff.theorems.integral import log_normal, panels, slope, squared
from vdiff.theorems.subject import HIGH, LOW, Subject, biased, f64
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.variance import LearnedRange


@theorem(
    "iDDPM, arXiv:2102.09672, sections 3.1 and 3.3",
    without={"all T + 1 levels are equally likely, the decoder's too": {"first": 1}},
)
def one_term_estimates_the_whole_bound(subject: Subject, first: int = 0) -> Sides:
    """The prior and T + 1 times one term of the chain have the mean prior + Σ KL + L₀: over all
    levels, one by one, it is that bound."""
    schedule, steps, variance = Cosine(HIGH, LOW), 6, 0.1
    x, eps, _ = subject.drawn("terms of vlb", 32)
    decoder = GaussianDecoder(variance=variance, uses_network=True)
    options: dict[str, Any] = {
        "schedule": schedule,
        "steps": steps,
        "decoder": decoder,
        "eps": eps,
    }
    times = [torch.full((len(x),), i / steps, dtype=torch.float64) for i in range(steps + 1)]
    terms = [vlb(subject.model, x, t=t, **options).total for t in times[first:]]
    left = [torch.stack(terms).mean(0), elbo(subject.model, x, draws=steps, **options).total]

    lam, zero = schedule(times[steps][0]), torch.zeros_like(x)
    right = kl_divergence(Normal(alpha(lam) * x, sigma(lam)), Normal(zero, zero + 1))
    said = predict_at(subject.model, x, eps, schedule(times[0]), {})
    right = right - log_normal(x, said.x, variance**0.5)
    for s, t in itertools.pairwise(times):
        gain = 0.5 * torch.expm1(schedule(s) - schedule(t))[0]
        right = right + gain * (eps - predict_at(subject.model, x, eps, schedule(t), {}).eps) ** 2
    return equal(torch.stack(left), right.flatten(1).sum(1), rel=1e-8)


@theorem(
    "iDDPM, arXiv:2102.09672, sections 3.1 and 6.1",
    without={"the mean is detached in the bound's term": {"detached": 0.0}},
)
def hybrid_loss_trains_the_variance_by_the_bound(detached: float = 1.0) -> Sides:
    """iDDPM's hybrid loss is ‖ε − ε̂‖² + b T K, and b T K has a gradient with respect to Σ alone:
    K = ½ (u + expm1(−u) + e^{−u} k ‖ε − ε̂‖²), u = v log β/β̃."""
    schedule, steps, b, error = Cosine(HIGH, LOW), 20, 0.01, 0.7
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    one = torch.full((steps, 1), 0.3, dtype=torch.float64)
    rows: dict[str, Any] = {"t": t, "eps": one + error}
    with torch.enable_grad():
        eps, v = one.clone().requires_grad_(), one.clone().requires_grad_()
        model = Denoiser(lambda z, lam: torch.cat([eps, v], 1), Eps(), variance=LearnedRange())
        loss = hybrid_loss(model, 0 * eps, schedule=schedule, steps=steps, bound_weight=b, **rows)
        gradients = torch.autograd.grad(loss.sum(), [eps, v])
    k = torch.expm1(schedule(t - 1 / steps) - schedule(t))
    ratio = torch.log1p(k * torch.sigmoid(schedule(t)))  # log β/β̃
    u = (0.3 + 1) / 2 * ratio  # an output of −1 is β̃, and 1 is β
    kl = 0.5 * (u + torch.expm1(-u) + torch.exp(-u) * k * error**2)
    by_u = 0.5 * (1 - torch.exp(-u) * (1 + k * error**2))
    by_eps = -2 * error - (1 - detached) * b * steps * torch.exp(-u) * k * error
    left = torch.stack([loss, *(gradient[:, 0] for gradient in gradients)])
    right = torch.stack([error**2 + b * steps * kl, by_eps, b * steps * by_u * ratio / 2])
    return equal(left, right, rel=1e-8)


@theorem(
    "iDDPM, arXiv:2102.09672, section 3.3",
    without={"p_i is proportional to √E[L_i²]": {"uniform": 1.0}},
)
def resampled_steps_keep_the_mean(uniform: float = 1e-9) -> Sides:
    """Steps drawn with p_i ∝ √E[L_i²] and weighted by 1/(T p_i) keep the mean loss, with the least
    second moment, (mean of √E[L_i²])²."""
    losses = f64([[1.0, 3.0], [0.2, 0.1], [5.0, 8.0], [0.7, 0.7]])  # two of each of four steps
    sampler = LossSecondMoment(4, memory=2, uniform=uniform)
    for column in losses.T:
        sampler.update(f64([0.25, 0.5, 0.75, 1.0]), column)
    t, weight = sampler.at((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    of_each = losses[(4 * t).round().long() - 1]
    left = [(weight[:, None] * of_each).mean(), (weight[:, None] * of_each).square().mean()]
    right = losses.mean(), losses.square().mean(1).sqrt().mean().square()
    return equal(torch.stack(left), torch.stack(right), rel=1e-4, why="a sum over 200,000 draws")


DATA = Lattice(Categorical(3).level_values, [0.2, 0.5, 0.3])
MODEL = biased(DATA)


class Wide(Categorical):
    """Encoded in float64."""

    def encode(self, data: Tensor) -> Tensor:
        return super().encode(data).double()


@theorem(
    "VDM, arXiv:2107.00630, section 4 and appendix I: the ends follow the bound",
    without={"the errors are those of this model": {"errors_of": DATA}},
)
def gradient_of_learned_ends(errors_of: Model = MODEL) -> Sides:
    """The gradient of `elbo` with respect to learned ends is local: ½ E‖e‖² + dL₀/dλ_max at λ_max,
    and d prior/dλ_min − ½ E‖e‖² at λ_min."""
    ends = f64([3.0, -2.0])
    decoder, schedule = Wide(3), LearnedLinear(*ends.tolist())
    node, mass = normal_nodes()
    level, eps = torch.arange(3).repeat_interleave(len(node))[:, None], node.repeat(3)[:, None]
    weight = DATA.weights.repeat_interleave(len(node)) * mass.repeat(3)
    (t, dt), n = panels(torch.linspace(0, 1, 21, dtype=torch.float64)), len(level)
    rows: dict[str, Any] = {"t": t.repeat_interleave(n), "eps": eps.repeat(len(t), 1)}
    with torch.enable_grad():
        data = level.repeat(len(t), 1)
        bound = elbo(MODEL, data, schedule=schedule, decoder=decoder, **rows).total
        mean = dt @ (bound.view(len(t), n) @ weight)
        by_high, by_low = torch.autograd.grad(mean, [schedule.high, schedule.low])
    # λ_max = low + softplus(high − low), λ_min = low
    share = torch.sigmoid(schedule.high - schedule.low)
    left = torch.stack([by_high / share, by_low - (1 / share - 1) * by_high])

    def reconstruction(lam: Tensor) -> Tensor:
        return torch.stack([DATA.weights @ decoder.table(v) for v in lam.tolist()])

    x = decoder.encode(level)
    error = [weight @ squared(errors_of)(x, eps, v.expand(n)) for v in ends]
    square, signal = weight @ x[:, 0].square(), torch.sigmoid(ends[1])
    prior = 0.5 * (signal * (1 - signal) * (square - 1) + signal)
    by_ends = 0.5 * error[0] + slope(reconstruction, ends[:1])[0], prior - 0.5 * error[1]
    why = "quadrature over t and ε, and a difference quotient of the decoder's"
    return equal(left, torch.stack(by_ends), rel=1e-6, why=why)
