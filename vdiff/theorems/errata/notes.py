"""Errata of the variational chapter and of the note on the simple loss."""

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.decoder import DiscretizedGaussian, normal_nodes
from vdiff.gaussian import Step, diffuse, prior_kl, step_kl
from vdiff.oracle import Gaussian, Lattice
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.schedule import Cosine, Tabulated
from vdiff.theorems.bounds import HIGH, LOW, end_terms, whole
from vdiff.theorems.errata.erratum import (
    CHAPTER,
    NOTE,
    Correction,
    by_theorem,
    compared,
    erratum,
    ordered,
)
from vdiff.theorems.errata.slides import BETAS, DDPM, SIGNAL, steps_to
from vdiff.theorems.integral import expected_loss
from vdiff.theorems.subject import mixture
from vdiff.theorems.theorem import at_least
from vdiff.theorems.variances import mean_kl
from vdiff.theorems.weightings import simple_loss_is_a_weighted_bound
from vdiff.variance import Posterior
from vdiff.weighting import ELBO, MSE, Weighting


def _best_slope(weighting: Weighting) -> Tensor:
    """c with the least weighted loss of ε̂ = c z on N(0, 1): the vertex of a parabola through
    three losses."""
    oracle, schedule = Gaussian([0.0], [1.0]), Cosine(HIGH, LOW)

    def loss(c: float) -> Tensor:
        return expected_loss(
            lambda z, lam: Prediction(z, lam, c * z, Eps()), oracle, schedule, weighting
        )

    zero, half, one = loss(0.0), loss(0.5), loss(1.0)
    return (3 * zero - 4 * half + one) / (4 * (zero - 2 * half + one))


def _weighted_mean(weight: Tensor, lam: Tensor) -> Tensor:
    """The best c in closed form: the exact ε̂ is σ z, so c is the mean of σ under w."""
    return (weight * torch.sigmoid(-lam).sqrt()).sum() / weight.sum()


@erratum(
    source=CHAPTER,
    where="the end of section 14.5.4",
    printed="“the process of maximizing the ELBO is equivalent to minimizing the MSE between the noise predicted by the model and the true noise”",
    right="dropping the weights is another objective, a reweighted bound; minimisers agree only for a network without limits at every t",
)
def mse_is_another_objective() -> Correction:
    """ε̂ = c z on N(0, 1), λ from 4 to −3 with the cosine schedule: the ELBO's best c is 0.592,
    the MSE's 0.635."""
    lam = torch.linspace(LOW, HIGH, 200_001, dtype=torch.float64)
    simple = MSE(Cosine(HIGH, LOW), Eps())
    return compared(
        _weighted_mean(simple(lam), lam),
        _weighted_mean(torch.ones_like(lam), lam),
        _best_slope(ELBO()),
        rel=1e-5,
        why="a sum",
    )


@erratum(
    source=CHAPTER,
    where="section 14.5.4, the KL; also the note on the simple loss, “the same covariance matrix σ_t² I (DDPM fixes the reverse covariance)”",
    printed="“if two Gaussians have the same covariance, the KL reduces to a quadratic term of the means plus a constant”, "
    "said of N(μ̃_t, σ_t² I) and N(μ_θ, σ_t² I)",
    right="with the same covariance they are equal, without a constant; but the posterior's covariance is β̃_t I, as printed above; for σ_t² = β_t "
    "there is the constant ½ d (log(β/β̃) − 1 + β̃/β)",
)
def constant_of_the_large_variance() -> Correction:
    """DDPM at t = 2, error ‖e‖² = 0.7, by the KL of two normal distributions: 0.3123 nats, of
    which the constant is 0.1214."""
    step: Step = steps_to(torch.tensor([2, 10, 100]))
    shift = (step.variance * step.snr_gain * 0.7).sqrt()
    truth = kl_divergence(
        Normal(torch.zeros(3).double(), step.variance.sqrt()),
        Normal(shift, step.forward_variance.sqrt()),
    )
    printed = shift.square() / (2 * step.forward_variance)
    return compared(
        printed,
        step_kl(
            step.snr_gain,
            torch.full((3,), 0.7, dtype=torch.float32).double(),
            step.log_variance_ratio,
        ),
        truth,
    )


@erratum(
    source=CHAPTER,
    where="section 14.5.4, L_{t−1}",
    printed="L_{t−1} = E_{x₀,ε,t}[…]",
    right="E_{x₀,ε}[…]: t is fixed in it",
)
def expectation_over_a_fixed_t() -> Correction:
    """The exact denoiser of N(0, 1) on DDPM's table, t = 2, 100 and 1000: 0.5995, 0.0092 and
    4.1e-7 nats; the mean over t is 0.0051."""
    t = torch.tensor([2, 100, 1000])
    every = steps_to(torch.arange(2, 1001))
    printed = (0.5 * every.snr_gain * torch.sigmoid(every.logsnr_t)).mean()
    beta, before, now = BETAS[t - 1], SIGNAL[t - 2], SIGNAL[t - 1]
    weight = beta.square() / (2 * beta * (1 - before) / (1 - now) * (1 - beta) * (1 - now))
    return compared(
        printed, weight * now, mean_kl(Gaussian([0.0], [1.0]), steps_to(t), Posterior())
    )  # E‖e‖² = ᾱ_t here


def _levels() -> tuple[Tensor, Tensor]:
    """L₀ and the whole bound of sixteen neighbouring levels of 256, exact denoiser, DDPM's table
    with σ_1² = β_1."""
    decoder = DiscretizedGaussian(256, denoise=True, variance=1e-4)
    level = torch.arange(120, 136)
    oracle = Lattice(decoder.grid[level], torch.full((16,), 1 / 16, dtype=torch.float64))
    every = steps_to(torch.arange(2, 1001))
    steps = (0.5 * every.snr_gain * oracle.mmse(every.logsnr_t)).sum()
    (node, mass), lam = normal_nodes(), DDPM.logsnr_max
    data = level.repeat_interleave(len(node))[:, None]
    z = diffuse(
        decoder.grid[data],
        node.repeat(16)[:, None],
        torch.full((len(data),), lam, dtype=torch.float64),
    )
    said = oracle(z, torch.full((len(data),), lam, dtype=torch.float64)).x
    first = -(decoder.log_prob(data, said, lam).view(16, -1) @ mass).mean()
    prior = prior_kl(decoder.grid[level][:, None], DDPM.logsnr_min).mean()
    return first, first + steps + prior


@erratum(
    source=CHAPTER,
    where="section 14.5.5, L₀",
    printed="L₀ and L_T “do not provide a very obvious improvement to final performance”, read as true of a likelihood, too",
    right="it is said of training; in a likelihood L₀ is a main term",
    left_open=True,
)
def reconstruction_is_a_main_term() -> Correction:
    """Sixteen of 256 levels, the exact denoiser, DDPM's table, σ_1² = β_1: L₀ is 1.59 of 3.09
    nats, here against a tenth of them."""
    first, whole_bound = _levels()
    return Correction(
        at_least(0.1 * whole_bound, first, rel=0.0, why="a tenth"),
        at_least(first, 0.1 * whole_bound, rel=0.0, why="a tenth"),
    )


@erratum(
    source=CHAPTER,
    where="section 14.5.5; also the note, “the forward process is fixed and matches the prior by construction”",
    printed="“as long as the noising chain is long enough, q(x_T|x₀) will be very close to the standard Gaussian distribution p(x_T)”",
    right="it depends on Π α_t, not on the number of steps: with β rescaled to the same product a longer chain has the same",
)
def prior_depends_on_the_product() -> Correction:
    """DDPM's table at |x| = 1: 2.02e-5 nats with 1000 steps, 2.12e-5 with 4000 rescaled ones."""
    x = torch.ones(1, 1, dtype=torch.float64)
    long = Tabulated.linear_betas(levels=4000, rescale_from=1000)
    few, many = (prior_kl(x, table.logsnr_min) for table in (DDPM, long))
    return Correction(
        at_least(0.5 * few, many, rel=0.0, why="half of it, at four times the length"),
        at_least(many, 0.9 * few, rel=0.0, why="a tenth"),
    )


@erratum(
    source=NOTE,
    where="The Simple Loss Drops the Weight",
    printed="1/(T w_t^VLB) is “large at intermediate t where w_t^VLB is small, small at the extremes”",
    right="small only at the clean end: for DDPM's table 1/w at t = 1000 is within 2.05 of its largest, at t = 350 (for a cosine schedule it is true)",
)
def inverse_weights() -> Correction:
    """w_t = ½ expm1(λ_{t−1} − λ_t): 0.5997 at t = 2, 0.0864 at 10, 0.01027 at 100, 0.004982 at 350
    (the least), 0.01020 at 1000."""
    w = 0.5 * steps_to(torch.arange(2, 1001)).snr_gain
    last, least, first = w[-1], w.min(), w[0]
    return Correction(
        at_least(last / least, 0.1 * first / least, rel=0.0, why="a tenth of the clean end's"),
        at_least(2.06, last / least, rel=0.0, why=""),
    )


@erratum(
    source=NOTE,
    where="the claim, and The Simple Loss Drops the Weight",
    printed="L_simple = E_t[w_t L_t^VLB] + const; “per-step weights w_t = 1”; w_t = 1/(T w_t^VLB): three weights of one name",
    right="1/w_t^VLB under the mean over t, 1 before ‖ε − ε_θ‖², 1/(T w_t^VLB) under the sum over t; the last one under the mean is "
    "too small by the factor T",
)
def factor_of_t() -> Correction:
    """Steps 2 … 1000 of DDPM, the exact denoiser of N(0, 1): L_simple is the mean of ᾱ_t, 0.2748,
    and 0.000275 with the last weight in the first form.

    The KLs are the library's, averaged over x and ε; w^VLB is that of DDPM's eq. 12, from β
    alone."""
    t = torch.arange(2, 1001)
    beta, before, now = BETAS[t - 1], SIGNAL[t - 2], SIGNAL[t - 1]
    posterior = beta * (1 - before) / (1 - now)
    weight = 2 * posterior * (1 - beta) * (1 - now) / beta.square()
    kl = mean_kl(Gaussian([0.0], [1.0]), steps_to(t), Posterior())
    return compared((weight / 999 * kl).mean(), (weight * kl).mean(), now.mean())


@erratum(
    source=NOTE,
    where="the claim, “+ const”, and The Variational Bound",
    printed="L_simple = E_t[w_t L_t^VLB] + const, where “L₀ is a discretization detail at the boundary”",
    right="with Σ = β̃ no constant for t ≥ 2; the first level is the decoder's term, with its own weight and constant",
)
def first_level_of_the_simple_loss() -> Correction:
    """A small random network: without the decoder's term the sum is up to 34 % short of
    L_simple."""
    return by_theorem(simple_loss_is_a_weighted_bound, "L₀ has its own weight")


@erratum(
    source=NOTE,
    where="Why the Reweighting Helps; also What This Identity Buys You, “a real (if loose) lower bound”",
    printed="of L_VLB beside L_simple: “the latter is a tighter lower bound on log p_θ(x₀)”",
    right="L_simple bounds nothing: it may lie far below −log p; L_VLB = −ELBO is an upper bound of −log p",
)
def simple_loss_is_no_bound() -> Correction:
    """The mixture of the theorems, exact denoiser: entropy 0.700; the bound is 0.814, with
    L_simple for its diffusion term −0.201."""
    oracle = mixture()
    schedule = Cosine(HIGH, LOW)
    simple = end_terms(oracle) + expected_loss(oracle, oracle, schedule, MSE(schedule, Eps()))
    bound = whole(oracle, oracle)
    return Correction(
        at_least(simple, oracle.entropy(), rel=1e-9, why="quadrature"),
        at_least(bound, oracle.entropy(), rel=1e-9, why="quadrature"),
    )


@erratum(
    source=NOTE,
    where="Why the Reweighting Helps",
    printed="“the very-low-noise regime right (where the per-step KL is small but heavily weighted)”",
    right="there the KL is largest; what is small there is the error of x",
)
def kl_is_largest_at_low_noise() -> Correction:
    """The exact denoiser of N(0, 1) on DDPM's table: 0.5995 nats at t = 2, 0.0092 at 100, 4.1e-7
    at 1000."""
    step = steps_to(torch.tensor([2, 10, 100, 350, 700, 1000]))
    kl = step_kl(step.snr_gain, torch.sigmoid(step.logsnr_t))
    return ordered(kl[:-1], kl[1:])


__all__: list[str] = []
