"""The numbers of `docs/errata.md` on the book, in the order of each entry."""

import math

import torch
from errata_values import (
    BETA,
    DDPM,
    KEPT,
    LINE,
    MASS,
    MIXTURE,
    NODE,
    X0,
    ddpm,
    f64,
    integral,
    linear_chain,
    same,
    weights,
)
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import hybrid_loss
from vdiff.decoder import DiscretizedGaussian, log_normal_interval
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.denoiser import Denoiser
from vdiff.gaussian import Step, alpha, prior_kl, sigma, step_kl
from vdiff.loss import elbo, predict_at
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps
from vdiff.reverse import reverse_log_ratio
from vdiff.schedule import Linear, Tabulated
from vdiff.theorems.integral import average_noise, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.variance import LearnedRange


def prior_of_the_walk():
    x = torch.ones(1, 1, dtype=torch.float64)
    own = kl_divergence(Normal(f64(1.0), f64(1000**0.5)), Normal(f64(0), f64(1001**0.5)))
    fixed = kl_divergence(Normal(f64(1.0), f64(1000**0.5)), Normal(f64(0), f64(1)))
    return fixed, same(prior_kl(x, -math.log(1000)), own)


def falling_betas():
    table = Tabulated.from_betas(0.5 ** torch.arange(1, 51, dtype=torch.float64)).table
    k = torch.arange(-5, 6, dtype=torch.float64)
    euler = (torch.cos(torch.pi * k) * 2 ** (-k * (3 * k - 1) / 2)).sum()
    return [same(alpha(table[-1]) ** 2, euler)]


def rescaled_betas():
    for n in (1000, 4000, 10_000):
        moved = Tabulated.linear_betas(levels=n, rescale_from=1000).logsnr_max
        yield same(moved, DDPM.logsnr_max + math.log(n / 1000), rel=1e-4)


def chain_terms(eps=NODE, mass=MASS):
    """Prior, steps and reconstruction of a chain of 6 steps on N(0.3, ¼) at x = 0.4."""
    x = torch.full((len(eps), 1), X0, dtype=torch.float64)
    bound = elbo(
        LINE, x, schedule=Linear(4.0, -3.0), decoder=GaussianDecoder(), steps=6, draws=6,
        eps=eps[:, None],
    )  # fmt: skip
    return tuple(mass @ part for part in (bound.prior, bound.diffusion, bound.reconstruction))


def mean_over_the_first_level():
    """At x₀ = 1, DDPM's step t = 2, the noise of x_1 fixed at 1 and averaged over three nodes."""

    def of(x, eps, level):
        step = Step(level, ddpm(2).delta.expand(len(level)))
        said = predict_at(LINE, x, eps, level, {})
        ratios = [
            reverse_log_ratio(said, x, eps, step, torch.full_like(x, n))
            for n in (1.0, -(3**0.5), 0.0, 3**0.5)
        ]
        std = step.variance.sqrt()[:, None]
        posterior, model = (Normal(step.mean(said.z, v), std) for v in (x, said.x))
        return torch.stack([*ratios, kl_divergence(posterior, model)[:, 0]])

    one, *three, kl = average_noise(1.0, ddpm(2).logsnr_t, of)[:, 0]
    return one, same(f64(1 / 6, 2 / 3, 1 / 6) @ torch.stack(three), kl)


def completed_square():
    beta, before = BETA[99], KEPT[98]
    a = (1 - beta) / beta + 1 / (1 - before)
    b = 2 * (1 - beta).sqrt() / beta + 2 * before.sqrt() / (1 - before)
    one = torch.ones(1, 1, dtype=torch.float64)
    return same(ddpm(100).mean(one, one)[0, 0], b / (2 * a)), -b / (2 * a)


def reverse_of_two_points():
    (low, high), at = f64(-1.0, 2.0)[:, None], f64(0.0, 0.5, 0.9)
    step, signs, zero = Step(low, high - low), f64(1.0, -1.0)[:, None], f64(0.0)

    def marginal(z, level):
        return Normal(signs * alpha(level), sigma(level)).log_prob(z).exp().mean(0)

    means, variance = step.mean(zero.expand(2, 1), signs), step.variance
    mixed = Normal(means, variance.sqrt()).log_prob(at).exp().mean(0)
    forward = Normal(alpha(low) / alpha(high) * at, step.forward_variance.sqrt())
    bayes = forward.log_prob(zero).exp() * marginal(at, high) / marginal(zero, low)
    matched = Normal(zero, (variance + (means**2).mean()).sqrt())
    return *same(mixed, bayes), *matched.log_prob(at).exp()


def one_random_step():
    chain = linear_chain(6, 4.0, -3.0)
    kls = step_kl(chain.snr_gain, average_noise(X0, chain.logsnr_t, squared(LINE)))
    return kls.mean(), same(chain_terms()[1], kls.sum())


def kl_of_log_variances():
    q, p = Normal(f64(0.3), f64(0.1)), Normal(f64(0.1), f64(0.02**0.5))
    truth = integral(lambda z: q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), -0.9, 1.5)
    library = step_kl(f64(1.0), f64(0.04 / 0.01), f64(math.log(2)))[0]
    return same(library, truth), 0.5 * (math.log(0.5) - 1 + 2 + 0.04 / 0.01)


def tanh_distribution():
    for x in f64(-3.0, -4.0, -5.0, -6.0):
        truth = integral(lambda v: Normal(0.0, 1.0).log_prob(v).exp(), x.item() - 30, x.item())
        same(log_normal_interval(f64(-40.0), x[None]).exp()[0], truth)
        yield 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / truth


GRID, HALF = 2 * torch.arange(256).double() / 255 - 1, 1 / 255


def levels_of_the_decoder():
    for mean, std in ((0.9, 0.3), (0.98, 0.02), (-1.0, 0.05)):
        upper, lower = (torch.special.ndtr((GRID - mean + side) / std) for side in (HALF, -HALF))
        inner = torch.where(GRID - mean > 0.999, 1 - lower, upper - lower)
        yield torch.where(GRID - mean < -0.999, upper, inner).sum()
        decoder = DiscretizedGaussian(256, variance=std**2)
        x_hat = torch.full((256, 1), mean, dtype=torch.float64)
        right = decoder.log_prob(torch.arange(256)[:, None], x_hat, 0.0).exp().sum()
        same(right, 1.0)
    yield right


def bins_that_end():
    edges = torch.cat([f64(-1.0), GRID[:-1] + HALF, f64(1.0)])
    return [torch.special.ndtr((edges - 0.9) / 0.3).diff().sum()]


def clamped_probability():
    std, found = 5.4532e-5**0.5, []
    for level in (136, 140):
        away = (GRID[level] - GRID[128]).item()
        law = Normal(f64(0.0), f64(std))
        near = law.log_prob(f64(away))  # a unit for the integral, which underflows
        mass = integral(lambda v: (law.log_prob(v) - near).exp(), away - HALF, away + HALF)  # noqa: B023
        decoder = DiscretizedGaussian(256, variance=std**2)
        library = decoder.log_prob(torch.tensor([[level]]), GRID[128].view(1, 1), 0.0)
        found.append(same(library[0], near[0] + mass.log()))
    return found[0], math.log(1e-12), found[1]


def variance_gradient(variance: float, by_log: bool) -> Tensor:
    value = f64(math.log(variance) if by_log else variance).requires_grad_()
    log = value if by_log else value.log()
    step_kl(f64(1.0), f64(0.05 / 0.01), log - math.log(0.01)).sum().backward()
    slope = 0.5 * (1 / variance - (0.01 + 0.05) / variance**2)
    return same(value.grad[0], slope * variance if by_log else slope)


def best_variances(data, steps: int = 5) -> tuple[Tensor, Step]:
    """log Σ/β̃ of the best Σ, at which the mean KL's derivative is zero."""
    step = linear_chain(steps)
    best = torch.log1p(step.snr_gain * data.mmse(step.logsnr_t)).requires_grad_()
    step_kl(step.snr_gain, data.mmse(step.logsnr_t), best).sum().backward()
    assert best.grad.abs().max() < 1e-9
    return best.detach(), step


def variance_bounds():
    for data in (Gaussian([0.0], [4.0]), MIXTURE):
        best, step = best_variances(data)
        yield (step.log_variance_ratio - best).min()


def fixed_variance():
    best, step = best_variances(MIXTURE)
    m = MIXTURE.mmse(step.logsnr_t)
    return step_kl(step.snr_gain, m).sum(), step_kl(step.snr_gain, m, best).sum()


def hybrid_losses(says, weights=(0.0, 0.001)):
    """Of each weight of the bound: the loss of 20 steps at x = 0.7 and ε = 0.4."""
    t, one = torch.arange(1, 21, dtype=torch.float64) / 20, torch.ones(20, 1, dtype=torch.float64)
    model = Denoiser(lambda z, lam: torch.cat(says(z, lam), 1), Eps(), variance=LearnedRange())
    return [
        hybrid_loss(
            model, 0.7 * one, schedule=Linear(6.0, -5.0), steps=20, t=t, eps=0.4 * one,
            bound_weight=weight,
        )
        for weight in weights
    ]  # fmt: skip


def weight_of_the_hybrid_loss():
    simple, both = hybrid_losses(lambda z, lam: [LINE(z, lam).eps, 0 * z])
    step = linear_chain(20)
    z = (0.7 * alpha(step.logsnr_t) + 0.4 * sigma(step.logsnr_t))[:, None]
    error = (0.4 - LINE(z, step.logsnr_t).eps[:, 0]) ** 2
    kl = step_kl(step.snr_gain, error, 0.5 * step.log_variance_ratio)
    return same((both - simple).mean(), 0.001 * kl.sum()), 0.001 * kl.mean()


def mean_of_the_hybrid_loss():
    for i in (1, 0):
        eps = torch.full((20, 1), 0.1, dtype=torch.float64, requires_grad=True)
        loss = hybrid_losses(lambda z, lam: [eps, 0.3 + 0 * z])[i]  # noqa: B023
        (gradient,) = torch.autograd.grad(loss.sum(), eps)
        yield same(gradient, torch.full((20, 1), 2 * (0.1 - 0.4), dtype=torch.float64))[0, 0]


def mean_weights():
    inverse = 1 / ddpm().variance
    least, most = inverse.min(), inverse.max()
    return least / 2, most / 2, least, most


NUMBERS = {
    "section 1.2.4": prior_of_the_walk,
    "Hypothesis 2": falling_betas,
    "eq. 1.25 and before it": rescaled_betas,
    "from eq. 2.2 to eq. 2.3": lambda: (
        -(MASS @ (NODE / 2).exp()).log(), MASS @ NODE, (MASS @ (-NODE / 2).exp()).log()
    ),
    "eq. 2.5": lambda: (-GaussianPath(LINE, 4.0, -3.0, 6).given(X0)[0], sum(chain_terms())),
    "eq. 2.22": mean_over_the_first_level,
    "eq. 2.22 and 2.24": lambda: (sum(chain_terms()), sum(chain_terms()) - 2 * chain_terms()[2]),
    "eq. 2.24": lambda: (sum(chain_terms(f64(0.0), f64(1.0))), sum(chain_terms())),
    "eq. 2.35": completed_square,
    "section 3.1": reverse_of_two_points,
    "Algorithm 1": one_random_step,
    "section 3.2.2": lambda: (3 * sum(chain_terms()),
    3 * sum(chain_terms()) - 2 * chain_terms()[1]),
    "eq. 3.7": kl_of_log_variances,
    "eq. 3.9": tanh_distribution,
    "Algorithm 2, lines 2, 5 and 7": levels_of_the_decoder,
    "section 3.2.4": bins_that_end,
    "Algorithm 2, last line": clamped_probability,
    "section 4.2": lambda: (variance_gradient(1e-3, False), variance_gradient(1e-4, False)),
    "section 4.3": lambda: (variance_gradient(1e-4, True), variance_gradient(1e-4, False)),
    "section 4.5": mean_weights,
    "section 5.3": lambda: weights(2, 7, 10, 50),
    "section 6.2 and figure 6.4": variance_bounds,
    "section 6.2; also section 6.1": lambda: [best_variances(MIXTURE)[0].max()],
    "Hypothesis 4": fixed_variance,
    "eq. 6.1": weight_of_the_hybrid_loss,
    "section 6.2, the result": mean_of_the_hybrid_loss,
}  # fmt: skip
