"""Errata of the book's first chapters: the forward process, the bound, the loss."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.decoder import normal_nodes
from vdiff.gaussian import Step, alpha, sigma, step_kl
from vdiff.loss import elbo, predict_at
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.schedule import Tabulated
from vdiff.theorems.bounds import CHAINS, chain_bound
from vdiff.theorems.chains import kernels, total
from vdiff.theorems.errata.erratum import BOOK, Correction, by_theorem, compared, erratum, ordered
from vdiff.theorems.errata.slides import BETAS, DDPM, SIGNAL, steps_to
from vdiff.theorems.estimators import HERMITE
from vdiff.theorems.forward import naive_walk_is_variance_exploding
from vdiff.theorems.integral import average_noise, log_normal, panels
from vdiff.theorems.subject import line

X = 0.4


@erratum(
    source=BOOK,
    where="section 1.2.4",
    printed="“the naive process yields an uncontrolled explosion that makes denoising impossible”",
    right="the variance exploding process does just this: its prior is N(0, 1 + t), and only log-SNR matters",
)
def growing_variance_is_not_fatal() -> Correction:
    """The prior term of the walk with its own prior is that of the variance preserving process;
    with N(0, 1) it is 496 nats at t = 1000."""
    return by_theorem(naive_walk_is_variance_exploding, "the prior is the walk's own, N(0, 1 + t)")


@erratum(
    source=BOOK,
    where="Hypothesis 2, section 1.3.1 and eq. 1.23",
    printed="α_t in (0, 1) “ensures convergence to pure Gaussian noise N(0, I) as t → ∞”: lim Π α_t = 0",
    right="only if Σ β_t = ∞; otherwise Π α_t has a limit above zero, and x_t keeps a part of x₀",
)
def betas_may_fall_too_fast() -> Correction:
    """β_t = 2^−t lies in (0, 1) for every t, and Π α_t tends to 0.2888: by Euler's series for the
    product, and of a table of 50 levels."""
    table = Tabulated.from_betas(0.5 ** torch.arange(1, 51, dtype=torch.float64))
    k = torch.arange(-5, 6, dtype=torch.float64)
    series = (torch.cos(torch.pi * k) * 2 ** (-k * (3 * k - 1) / 2)).sum()
    return compared(0.0, alpha(table.table[-1]).square(), series, rel=1e-12)


@erratum(
    source=BOOK,
    where="eq. 1.25 and before it",
    printed="with β → β T/T', “the same characteristics can be preserved when increasing the number of steps”",
    right="it nearly keeps λ_min but moves the first level: λ_1 grows by log(T'/T), so that the bound is divided differently between chain and decoder",
)
def rescaled_betas() -> Correction:
    """λ_1 of DDPM's table: 9.210 at 1000 levels, 10.597 at 4000, 11.513 at 10000."""
    moved = torch.tensor(
        [Tabulated.linear_betas(levels=n, rescale_from=1000).logsnr_max for n in (4000, 10_000)],
        dtype=torch.float64,
    )
    right = DDPM.logsnr_max + torch.tensor([4.0, 10.0], dtype=torch.float64).log()
    return compared(
        torch.full((2,), DDPM.logsnr_max, dtype=torch.float32),
        right,
        moved,
        rel=1e-4,
        why="log(1 − β) in place of −β",
    )


@erratum(
    source=BOOK,
    where="from eq. 2.2 to eq. 2.3",
    printed="−log E[p/q] = log E[q/p]",
    right="−log E Z ≤ E[−log Z] ≤ log E[1/Z], with equality only where Z is constant",
)
def logarithm_of_a_mean() -> Correction:
    """log Z normal with standard deviation ½: −0.125, 0 and +0.125."""
    node, mass = normal_nodes()
    truth = -(mass @ torch.exp(0.5 * node)).log()
    return compared((mass @ torch.exp(-0.5 * node)).log(), -0.125, truth)


@erratum(
    source=BOOK,
    where="eq. 2.5, and section 2.1.1, “the variational lower bound (VLB) on the negative log-likelihood”",
    printed="L_CE = log E[q/p] ≥ L_VLB",
    right="L_CE = −log p(x) ≤ L_VLB, an upper bound, tight where q(x_1…x_T | x₀) = p(x_1…x_T | x₀)",
)
def order_of_the_bound() -> Correction:
    """A chain of 6 steps on N(0.3, ¼) at x = 0.4: −log p(x) = 0.097, the bound is 0.650 nats."""
    log_p, _ = CHAINS[2].given(X)
    return ordered(chain_bound(CHAINS[2], X), -log_p)


@erratum(
    source=BOOK,
    where="eq. 2.22",
    printed="the expectation of Σ_{t≥2} log q(x_{t−1} | x_t, x₀)/p is over x_2 … x_T",
    right="over x_1 … x_T: the term t = 2 contains x_1, and given x_2 it still varies",
)
def expectation_contains_the_first_level() -> Correction:
    """N(0.3, ¼) at x₀ = 1, DDPM's step t = 2, the mean over x_2: at the x_1 one σ above its mean
    given x_2 and x₀, and over x_1 as well."""

    def ratio(noise: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
            step = Step(level, steps_to(torch.tensor([2])).delta.expand(len(level)))
            return reverse_log_ratio(
                predict_at(line(), x, eps, level, {}), x, eps, step, noise.expand_as(x)
            )

        return of

    def divergence(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        step = Step(level, steps_to(torch.tensor([2])).delta.expand(len(level)))
        return total(
            kl_divergence(*kernels(predict_at(line(), x, eps, level, {}), x, step, step.variance))
        )

    level = steps_to(torch.tensor([2])).logsnr_t
    each = torch.stack([average_noise(1.0, level, ratio(noise)) for noise in HERMITE[0]])
    return compared(
        average_noise(1.0, level, ratio(torch.ones(1).double())),
        HERMITE[1] @ each,
        average_noise(1.0, level, divergence),
    )


def _terms() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prior, steps and reconstruction of a chain's bound at one x, averaged over ε, and −log p +
    the divergence: the truth."""
    path = CHAINS[2]
    node, mass = normal_nodes()
    data = torch.full((len(node), 1), X, dtype=torch.float64)
    bound = elbo(
        path.oracle,
        data,
        schedule=path.schedule,
        decoder=GaussianDecoder(),
        steps=path.steps,
        draws=path.steps,
        eps=node[:, None],
    )
    log_p, posterior = path.given(X)
    return (
        mass @ bound.prior,
        mass @ bound.diffusion,
        mass @ bound.reconstruction,
        kl_divergence(path.forward(X), posterior) - log_p,
    )


@erratum(
    source=BOOK,
    where="eq. 2.22 and 2.24",
    printed="L_T + L_t − L₀ by the braces, with “L₀ = −log p_θ(x₀|x₁)”",
    right="L_T + L_t + L₀, as section 3.2 has it",
)
def sign_of_the_first_term() -> Correction:
    """A chain of 6 steps on N(0.3, ¼) at x = 0.4: 0.650 nats, as printed 1.813. The truth is −log
    p(x) and the divergence of the posteriors."""
    prior, steps, first, truth = _terms()
    return compared(prior + steps - first, prior + steps + first, truth)


@erratum(
    source=BOOK,
    where="eq. 2.24",
    printed="a sum of KL divergences, without an expectation",
    right="each KL depends on x_t: E over q(x_t | x₀) stands before it",
)
def divergences_depend_on_the_sample() -> Correction:
    """The same chain, at the x_t without noise: −0.543 nats for the bound of 0.650."""
    path = CHAINS[2]
    prior, steps, first, truth = _terms()
    one = torch.full((1, 1), X, dtype=torch.float64)
    plain = elbo(
        path.oracle,
        one,
        schedule=path.schedule,
        decoder=GaussianDecoder(),
        steps=path.steps,
        draws=path.steps,
        eps=0 * one,
    )
    return compared(plain.total[0], prior + steps + first, truth)


@erratum(
    source=BOOK,
    where="eq. 2.35",
    printed="a x² − b x + C becomes a (x + b/2a)² + C",
    right="a (x − b/2a)² + C; eq. 2.36 has the sign of a x² + b x, and the results 2.39 and 2.41 are right",
)
def completing_the_square() -> Correction:
    """The mean of q(x_{t−1} | x_t, x₀) for DDPM at t = 100, x_t = 1, x₀ = 1, from the terms of eq.
    2.32: 0.99997, not −0.99997."""
    beta, before = BETAS[99], SIGNAL[98]
    a = (1 - beta) / beta + 1 / (1 - before)
    b = 2 * (1 - beta).sqrt() / beta + 2 * before.sqrt() / (1 - before)
    step = steps_to(torch.tensor([100]))
    return compared(-b / (2 * a), b / (2 * a), step.coefficient_z[0] + step.coefficient_x[0])


@erratum(
    source=BOOK,
    where="section 3.1",
    printed="“since the true posterior is Gaussian, our neural network approximation p_θ(x_{t−1}|x_t) should also be Gaussian”",
    right="q(x_{t−1}|x_t, x₀) is Gaussian; p_θ stands for q(x_{t−1}|x_t), a mixture of these over x₀, which is close to a Gaussian only for small steps",
)
def the_reverse_is_no_gaussian() -> Correction:
    """x₀ = ±1, a step from λ = −1 to 2, x_t = 0: q(x_{t−1}|x_t) at 0, 0.5 and 0.9 is 0.035, 0.301
    and 0.593 by Bayes' rule; the Gaussian of its mean and variance is 0.419, 0.365 and 0.268."""
    low, high = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    step, signs = Step(low, high - low), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    at = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)

    def marginal(z: Tensor, level: Tensor) -> Tensor:
        return log_normal(z, signs * alpha(level), sigma(level)).exp().mean(0)

    zero = torch.zeros(1, dtype=torch.float64)
    means, spread = step.mean(zero.expand(2, 1), signs), step.variance.sqrt()
    both = log_normal(at, means, spread).exp().mean(0)
    matched = log_normal(at, 0.0, (step.variance + means.square().mean()).sqrt()).exp()
    forward = log_normal(zero, alpha(low) / alpha(high) * at, step.forward_variance.sqrt()).exp()
    return compared(matched, both, forward * marginal(at, high) / marginal(zero, low))


@erratum(
    source=BOOK,
    where="Algorithm 1",
    printed="the loss of one drawn t is L_VLB; “posterior-mean(x₀, t)”",
    right="T times it estimates L_VLB; the posterior's mean needs x_t as well as x₀, and t = 1 has the decoder's term",
)
def one_drawn_step() -> Correction:
    """The same chain: 0.205 nats is the mean of one term, 1.227 the sum."""
    _, steps, _, _ = _terms()
    path = CHAINS[2]
    t = torch.arange(1, 7, dtype=torch.float64) / 6
    node, mass = normal_nodes()
    mean = torch.zeros((), dtype=torch.float64)
    for time in t:
        level = path.schedule(time[None])
        x = torch.full((len(node), 1), X, dtype=torch.float64)
        z = level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * node[:, None]
        step = Step(level.expand(len(node)), path.schedule.delta(time[None], 6).expand(len(node)))
        mean = mean + mass @ reverse_kl(path.oracle(z, step.logsnr_t), x, node[:, None], step) / 6
    return compared(mean, 6 * mean, steps)


MEAN, VARIANCE, OTHER_MEAN, OTHER_VARIANCE = 0.3, 0.01, 0.1, 0.02  # of q and of p


def _kl() -> Tensor:
    """KL(q ‖ p) by integration."""
    z, dz = panels(torch.linspace(-0.9, 1.5, 97, dtype=torch.float64))
    q, p = (
        log_normal(z, mean, variance**0.5)
        for mean, variance in ((MEAN, VARIANCE), (OTHER_MEAN, OTHER_VARIANCE))
    )
    found: Tensor = (q.exp() * (q - p)) @ dz
    return found


def _right() -> Tensor:
    """KL(q ‖ p) by the library."""
    u = torch.tensor([math.log(OTHER_VARIANCE / VARIANCE)], dtype=torch.float64)
    return step_kl(
        torch.ones(1).double(),
        torch.tensor([(MEAN - OTHER_MEAN) ** 2 / VARIANCE], dtype=torch.float32).double(),
        u,
    )[0]


@erratum(
    source=BOOK,
    where="section 3.2.2, beside eq. 3.11",
    printed="the KL is “evaluated elementwise for each pixel and then averaged across the image”, log p_θ(x₀|x₁) is summed",
    right="both are summed: the KL of Gaussians with diagonal covariances is the sum of those of their pixels",
)
def pixels_are_summed() -> Correction:
    """The same chain on three pixels, each 0.4: 1.951 nats; −0.503 where the steps' KLs are
    averaged."""
    prior, steps, first, truth = _terms()
    return compared(3 * prior + steps + 3 * first, 3 * (prior + steps + first), 3 * truth)


@erratum(
    source=BOOK,
    where="eq. 3.7, from eq. 3.5 and 3.6",
    printed="½ [log σ̂² − log σ_θ² − 1 + e^{log σ_θ² − log σ̂²} + δ²/σ̂²]",
    right="½ [log σ_θ² − log σ̂² − 1 + e^{log σ̂² − log σ_θ²} + δ² e^{−log σ_θ²}], from eq. 3.4; eq. 3.5 takes the logarithm of the inverse of the "
    "ratio there, and the result is KL(p ‖ q)",
)
def kl_of_log_variances() -> Correction:
    """q = N(0.3, 0.01), p = N(0.1, 0.02): 1.0966 nats by integration, 2.1534 as printed."""
    printed = 0.5 * (
        math.log(VARIANCE / OTHER_VARIANCE)
        - 1
        + OTHER_VARIANCE / VARIANCE
        + (MEAN - OTHER_MEAN) ** 2 / VARIANCE
    )
    return compared(printed, _right(), _kl())


__all__: list[str] = []
