"""What a training loop sees of the bound: one of a chain's terms at a time, and the gradient of
learned ends."""

import itertools

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import vlb
from vdiff.decoder import Categorical, normal_nodes
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import alpha, sigma
from vdiff.loss import Model, elbo, predict_at
from vdiff.oracle import Lattice
from vdiff.schedule import Cosine, LearnedLinear
from vdiff.theorems.integral import panels, slope, squared
from vdiff.theorems.subject import HIGH, LOW, Subject, biased, f64
from vdiff.theorems.theorem import Sides, equal, theorem


@theorem(
    "iDDPM, arXiv:2102.09672, sections 3.1 and 3.3",
    without={"all T + 1 levels are equally likely, the decoder's too": {"first": 1}},
)
def one_term_estimates_the_whole_bound(subject: Subject, first: int = 0) -> Sides:
    """The prior and T + 1 times one term of the chain have the mean prior + Σ KL + L₀: over all
    levels, one by one, it is that bound."""
    schedule, steps, variance = Cosine(HIGH, LOW), 6, 0.1
    x, eps, _ = subject.drawn("terms of vlb", 32)
    decoder = GaussianDecoder(variance=variance, denoise=True)
    options = {"schedule": schedule, "steps": steps, "decoder": decoder, "eps": eps}
    times = [torch.full((len(x),), i / steps, dtype=torch.float64) for i in range(steps + 1)]
    terms = [vlb(subject.model, x, t=t, **options).total for t in times[first:]]
    left = [torch.stack(terms).mean(0), elbo(subject.model, x, draws=steps, **options).total]

    lam, zero = schedule(times[steps][0]), torch.zeros_like(x)
    right = kl_divergence(Normal(alpha(lam) * x, sigma(lam)), Normal(zero, zero + 1))
    said = predict_at(subject.model, x, eps, schedule(times[0]), {})
    right = right - Normal(said.x, variance**0.5).log_prob(x)
    for s, t in itertools.pairwise(times):
        gain = 0.5 * torch.expm1(schedule(s) - schedule(t))[0]
        right = right + gain * (eps - predict_at(subject.model, x, eps, schedule(t), {}).eps) ** 2
    return equal(torch.stack(left), right.flatten(1).sum(1), rel=1e-8)


DATA = Lattice(Categorical(3).grid, [0.2, 0.5, 0.3])
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
    rows = {"t": t.repeat_interleave(n), "eps": eps.repeat(len(t), 1)}
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


__all__: list[str] = []
