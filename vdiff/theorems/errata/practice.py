"""Errata of the book's later chapters: the decoder, its experiments with the variance, the hybrid
loss."""

import torch
from torch import Tensor

from vdiff.chain import hybrid
from vdiff.decoder import DiscretizedGaussian, log_normal_interval
from vdiff.denoiser import Denoiser
from vdiff.gaussian import step_kl
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps
from vdiff.schedule import Linear
from vdiff.theorems.errata.erratum import BOOK, COMMON, Correction, by_theorem, compared, erratum
from vdiff.theorems.errata.slides import steps_to
from vdiff.theorems.integral import log_normal, panels
from vdiff.theorems.limits import refinement
from vdiff.theorems.subject import mixture
from vdiff.theorems.theorem import at_least, equal
from vdiff.theorems.variances import (
    best_variance_exceeds_the_posteriors,
    best_variance_lies_between_the_two,
    chain_of,
    mean_kl,
)
from vdiff.variance import LogVariance, Posterior, Range

LEVEL = torch.arange(256)
GRID = 2 * LEVEL.double() / 255 - 1
HALF = 1 / 255


def _tanh_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@erratum(
    source=BOOK,
    where="eq. 3.9",
    printed="Φ(x) = ½ (1 + tanh(√(2/π) (x + 0.044715 x³))), by which “the CDF can be efficiently approximated”, for the decoder's bins",
    right="log Φ itself; the approximation is useless in the tails, where the decoder needs it",
)
def approximate_normal_distribution() -> Correction:
    """Its ratio to Φ is 0.898 at −3, 0.554 at −4, 0.160 at −5 and 0.014 at −6."""
    x = torch.tensor([-3.0, -4.0, -5.0, -6.0], dtype=torch.float64)
    density, width = panels(torch.linspace(-40, 0, 161, dtype=torch.float64), 10)
    truth = torch.stack([log_normal(density + v, 0.0, 1.0).exp() @ width for v in x])
    return compared(
        _tanh_cdf(x),
        log_normal_interval(torch.full_like(x, -40.0), x).exp(),
        truth,
        rel=1e-9,
        why="quadrature",
    )


def _printed_masses(mean: float, std: float) -> Tensor:
    """The book's Algorithm 2, with its tests for an edge on x − μ."""
    centered = GRID - mean
    upper, lower = (torch.special.ndtr((centered + side) / std) for side in (HALF, -HALF))
    inner = torch.where(centered > 0.999, 1 - lower, upper - lower)
    return torch.where(centered < -0.999, upper, inner)


CASES = ((0.9, 0.3), (0.98, 0.02), (-1.0, 0.05))


@erratum(
    source=BOOK,
    where="Algorithm 2, lines 2, 5 and 7",
    printed="x = x − μ, and then x < −0.999 and x > 0.999 as tests for the edges",
    right="the tests are on the x that came in: only the first and the last level have bins that reach to infinity",
)
def edges_of_the_decoder() -> Correction:
    """The sum over the 256 levels: 0.639 at μ = 0.9, σ = 0.3; 0.884 at 0.98, 0.02; 0.531 at −1,
    0.05; it is 1 when right."""
    printed = torch.stack([_printed_masses(mean, std).sum() for mean, std in CASES])
    right = []
    for mean, std in CASES:
        decoder = DiscretizedGaussian(256, variance=std**2)
        right.append(
            decoder.log_prob(LEVEL[:, None], torch.full((256, 1), mean, dtype=torch.float64), 0.0)
            .exp()
            .sum()
        )
    return compared(printed, torch.stack(right), 1.0)


@erratum(
    source=BOOK,
    where="section 3.2.4",
    printed="“edge bins are narrower since they extend only to the domain boundary”",
    right="they extend to ±∞, as in its own Algorithm 2; otherwise the probabilities do not sum to one",
)
def edge_bins_reach_to_infinity() -> Correction:
    """μ = 0.9, σ = 0.3: with bins that end at ±1 the levels sum to 0.631."""
    mean, std = CASES[0]
    edges = torch.cat(
        [torch.tensor([-1.0]).double(), GRID[:-1] + HALF, torch.tensor([1.0]).double()]
    )
    decoder = DiscretizedGaussian(256, variance=std**2)
    right = (
        decoder.log_prob(LEVEL[:, None], torch.full((256, 1), mean, dtype=torch.float64), 0.0)
        .exp()
        .sum()
    )
    return compared(torch.special.ndtr((edges - mean) / std).diff().sum(), right, 1.0)


@erratum(
    source=BOOK,
    where="Algorithm 2, last line",
    printed="log(clamp(L₀, 10⁻¹²)), L₀ being the probability",
    right="the logarithm of the interval: the clamp floors it at −27.63 without a gradient, and the result is no bound",
)
def clamped_probability() -> Correction:
    """σ² = 5.4532e-5, DDPM's own: eight levels off −34.74 by integration, −27.63 as printed;
    twelve levels off −78.02."""
    std, level = 5.4532e-5**0.5, torch.tensor([136, 140])
    center = GRID[level] - GRID[128]
    node, width = panels(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 16)
    truth = torch.logsumexp(
        log_normal(center[:, None] + HALF * node, 0.0, std) + (HALF * width).log(), 1
    )
    mean = GRID[128].expand(2)[:, None]
    right = DiscretizedGaussian(256, variance=std**2).log_prob(level[:, None], mean, 0.0)
    upper, lower = (0.5 * torch.erfc(-(center + side) / std / 2**0.5) for side in (HALF, -HALF))
    return compared((upper - lower).clamp(min=1e-12).log(), right, truth)


@erratum(
    source=BOOK,
    where="section 4.2, the example after eq. 4.2",
    printed="∂L/∂σ_θ² = −2.995 × 10⁶ “where the network outputs σ_θ² = 0.001”",
    right="−2.95 × 10⁴; the example computes with 0.0001",
)
def gradient_of_the_variance_at_a_thousandth() -> Correction:
    """σ̂² = 0.01, (μ̂ − μ)² = 0.05, by automatic differentiation of the library's KL."""
    posterior, error = 0.01, 0.05
    with torch.enable_grad():
        variance = torch.tensor([0.001], dtype=torch.float64, requires_grad=True)
        loss = step_kl(
            torch.ones(1).double(),
            torch.full((1,), error / posterior, dtype=torch.float32).double(),
            (variance / posterior).log(),
        )
        (gradient,) = torch.autograd.grad(loss.sum(), variance)
    v = 0.001
    return compared(-2.995e6, 0.5 * (1 / v - (posterior + error) / v**2), gradient)


@erratum(
    source=BOOK,
    where="section 4.3, after eq. 4.4",
    printed="∂L_t/∂σ_θ² = … = −299.5",
    right="−299.5 is ∂L_t/∂ log σ_θ², that of eq. 4.4; ∂L_t/∂σ_θ² is 1/σ_θ² times as much, −2.995 × 10⁶ as before",
)
def gradient_of_the_log_variance() -> Correction:
    """σ̂² = 0.01, (μ̂ − μ)² = 0.05, σ_θ² = 0.0001, by automatic differentiation of the library's
    KL."""
    posterior, error = torch.tensor([0.01], dtype=torch.float64), 0.05
    with torch.enable_grad():
        variance = torch.tensor([1e-4], dtype=torch.float64, requires_grad=True)
        loss = step_kl(torch.ones(1).double(), error / posterior, variance.log() - posterior.log())
        (gradient,) = torch.autograd.grad(loss.sum(), variance)
    return compared(-299.5, -299.5 / 1e-4, gradient)


@erratum(
    source=BOOK,
    where="section 4.5 and figure 4.9",
    printed="“Weighting factor σ̂²”, of a “wide range of approximately [50, 10⁵]”",
    right="1/2σ̂², the weight of eq. 4.6, ranges over [25.0, 9168.9] for t = 2 … 1000, and is infinite at t = 1",
)
def range_of_the_mean_weight() -> Correction:
    """DDPM's table; 1/σ̂² itself ranges over [50.0, 18337.9]."""
    weight = 1 / (2 * steps_to(torch.arange(2, 1001)).variance)
    truth = torch.stack([weight.min(), weight.max()])
    return compared(
        torch.tensor([50.0, 1e5], dtype=torch.float32),
        torch.tensor([25.0, 9168.9], dtype=torch.float32),
        truth,
        rel=2e-3,
        why="the digits given",
    )


@erratum(
    source=BOOK,
    where="section 5.3, after figure 5.5",
    printed="“up to t = 10 … values ranging from 3000 to 100”",
    right="½ (SNR_{t−1} − SNR_t) is 2726 at t = 2 and 45.5 at t = 10 (and 0.646 at t = 50, where it says “around 0.6”)",
)
def weight_of_the_x_loss() -> Correction:
    """DDPM's table, from log-SNR without a difference of SNRs, at t = 10; it is 109 at t = 7."""
    step = steps_to(torch.tensor([10]))
    return compared(
        100.0, 45.5, 0.5 * step.logsnr_t.exp() * step.snr_gain, rel=2e-3, why="the digits given"
    )


@erratum(
    source=BOOK,
    where="section 6.2; also section 6.1, “only the optimal choice when the mean is optimal too”",
    printed="“fixed variance is ideal only when the mean is optimal”, with “optimal” read as the best mean that a network can give, E[μ̂|x_t]",
    right="this is true of μ̂(x_t, x₀) itself, as section 4.4 says (“perfectly predicted, which never occurs”); with E[μ̂|x_t] the best variance "
    "is β̃ (1 + expm1(Δ) E‖e‖²/d), larger at every step",
    left_open=True,
)
def best_reverse_variance() -> Correction:
    """The mixture of the theorems, 5 steps from λ = 6 to −5: log(Σ/β̃) is 1.98 at its largest, and
    0 only where the mean knows x."""
    return by_theorem(best_variance_exceeds_the_posteriors, "the mean is E[x | z], not x itself")


@erratum(
    source=BOOK,
    where="Hypothesis 4, which its Experiment 3 leaves undecided",
    printed="“There is no need to optimise the variance, as it is sufficient to use the known posterior variance”, read as a claim about the bound",
    right="at few steps the bound is far looser with it",
    left_open=True,
)
def what_a_fixed_variance_costs() -> Correction:
    """The mixture, 5 steps from λ = 6 to −5: 6.49 nats with β̃, 2.50 with the best variance."""
    oracle, step = mixture(), chain_of(5)
    best = step.variance.log() + torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t))
    fixed, optimal = (
        mean_kl(oracle, step, Posterior()).sum(),
        mean_kl(oracle, step, LogVariance(), best).sum(),
    )
    return Correction(
        at_least(1.01 * optimal, fixed, rel=0.0, why="nothing lost, to a hundredth"),
        at_least(fixed, optimal, rel=0.0, why="exact"),
    )


@erratum(
    source=BOOK,
    where="section 6.2 and figure 6.4",
    printed="β and β̃ as “variance bounds”, “both theoretical bounds”",
    right="β bounds the best Σ from above only for data of variance at most one",
)
def forward_variance_is_no_upper_bound() -> Correction:
    """N(0, 4), 5 steps from λ = 6 to −5: log β − log Σ of the best Σ, and for the mixture of the
    theorems log Σ − log β̃ too."""
    return by_theorem(best_variance_lies_between_the_two, "the data's variance is at most 1")


def _bound_part(bound_weight: float) -> Tensor:
    """What iDDPM's hybrid loss adds to the simple one, averaged over every step of a chain of 20,
    from the library."""
    schedule, steps, oracle = Linear(6.0, -5.0), 20, Gaussian([0.3], [0.25])
    model = Denoiser(
        lambda z, logsnr: torch.cat([oracle(z, logsnr).eps, 0 * z], 1), Eps(), variance=Range()
    )
    t, one = (
        torch.arange(1, steps + 1, dtype=torch.float64) / steps,
        torch.ones(steps, 1, dtype=torch.float64),
    )
    whole, simple = (
        hybrid(
            model, 0.7 * one, schedule=schedule, steps=steps, t=t, eps=0.4 * one, bound_weight=w
        )
        for w in (bound_weight, 0.0)
    )
    return (whole - simple).mean()


@erratum(
    source=BOOK,
    where="eq. 6.1",
    printed="L_MSE + λ L_VLB with “λ = 0.001”, read as a factor of one drawn step's term, which Algorithm 1 calls L_VLB",
    right="0.001 multiplies the sum over t: on one drawn step the factor is 0.001 T",
    left_open=True,
)
def weight_of_the_hybrid_loss() -> Correction:
    """A chain of 20 steps: the mean over t of what is added, against 0.001 of the sum of KLs."""
    schedule, steps, oracle = Linear(6.0, -5.0), 20, Gaussian([0.3], [0.25])
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    lam, delta = schedule(t), schedule.delta(t, steps)
    z = (lam.sigmoid().sqrt() * 0.7 + (-lam).sigmoid().sqrt() * 0.4)[:, None]
    error = (0.4 - oracle(z, lam).eps[:, 0]).square()
    half = 0.5 * torch.log1p(torch.expm1(delta) * lam.sigmoid())  # v = ½ of the range
    kl = step_kl(torch.expm1(delta), error, half)
    return compared(0.001 * kl.mean(), _bound_part(0.001), 0.001 * kl.sum())


def _gradient_of_the_mean(bound_weight: float) -> Tensor:
    """Of iDDPM's hybrid loss by what the network says of ε, on a chain of 20 steps."""
    steps, schedule, one = 20, Linear(6.0, -5.0), torch.ones(20, 1, dtype=torch.float64)
    with torch.enable_grad():
        said = (0.1 * one).requires_grad_()
        model = Denoiser(
            lambda z, logsnr: torch.cat([said, 0.3 * one], 1), Eps(), variance=Range()
        )
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        loss = hybrid(
            model,
            0.7 * one,
            schedule=schedule,
            steps=steps,
            t=t,
            eps=0.4 * one,
            bound_weight=bound_weight,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), said)
    return gradient


@erratum(
    source=BOOK,
    where="section 6.2, the result",
    printed="“trained variance can act as a regulariser” of the mean, read as an effect through the loss",
    right="in the loss the mean is detached (section 6.1): only layers that both share can couple them",
    left_open=True,
)
def variance_regularises_no_mean() -> Correction:
    """A chain of 20 steps: the gradient by the mean's output with λ = 0.001 less that without the
    bound, and both."""
    simple, both = _gradient_of_the_mean(0.0), _gradient_of_the_mean(0.001)
    return Correction(
        at_least((both - simple).abs(), 1e-9, rel=0.0, why="any at all"),
        equal(both, simple, rel=1e-12, why="rounding"),
    )


@erratum(
    source=COMMON,
    where="of the number of steps",
    printed="L_T falls with every step that is added",
    right="it falls where each step is divided, T → kT, and for the exact denoiser; from T to T + 1 it may rise",
)
def more_steps_may_cost() -> Correction:
    """x = ±1, λ linear from 12 to −6: L_2 = 10.95, L_3 = 90.96, L_4 = 8.21 nats, of which L_∞ =
    0.692 is left."""
    return by_theorem(refinement, "each step is divided")


__all__: list[str] = []
