"""The forward process: marginals, consistency, posteriors, and how the data converges to noise."""

import torch
from torch import Tensor

from vdiff.gaussian import Step, alpha, kl_to_normal, prior_kl, sigma
from vdiff.oracle import Gaussian
from vdiff.schedule import Tabulated
from vdiff.theorems.subject import f64
from vdiff.theorems.theorem import Sides, equal, theorem

DDPM, BOOK = "DDPM, arXiv:2006.11239", "Foundations of Diffusion Models"
ROUNDING = "float64 rounding, added up over the steps"
BETAS = torch.linspace(2e-3, 0.4, 50, dtype=torch.float64)
STEPS = Step(  # of many lengths at many noise levels
    torch.linspace(-9, 9, 13, dtype=torch.float64).repeat_interleave(4),
    f64([1e-3, 0.1, 1.0, 4.0]).repeat(13),
)
A_S, A_T = alpha(STEPS.logsnr_s), alpha(STEPS.logsnr_t)
VAR_S, VAR_T = torch.sigmoid(-STEPS.logsnr_s), torch.sigmoid(-STEPS.logsnr_t)


@theorem(
    f"{DDPM}, eq. 4; {BOOK}, eq. 1.21",
    without={"each step keeps √(1 − β) of its input": {"keep": torch.ones_like(BETAS)}},
)
def forward_marginal(keep: Tensor = 1 - BETAS) -> Sides:
    """Composing x_t = √(1 − β_t) x_{t−1} + √β_t ε gives q(z_t | x) = N(α_t x, σ_t²), with α² + σ²
    = 1."""
    signal, variance, composed = f64(1.0), f64(0.0), []
    for beta, kept in zip(BETAS, keep, strict=True):
        signal, variance = kept.sqrt() * signal, kept * variance + beta
        composed.append(torch.stack([signal, variance]))
    table = Tabulated.from_betas(BETAS).table
    marginal = torch.stack([alpha(table), sigma(table).square()], 1)
    return equal(torch.stack(composed), marginal, rel=1e-12, why=ROUNDING)


@theorem(
    "VDM, arXiv:2107.00630, appendix A.1",
    without={"the transition's variance is c σ_t²": {"variance": "variance"}},
)
def markov_consistency(variance: str = "forward_variance") -> Sides:
    """A step from z_s to z_t, N(α_t/α_s z_s, c σ_t²), leads from the marginal of s to that of
    t."""
    composed = (A_T / A_S).square() * VAR_S + getattr(STEPS, variance)
    return equal(composed, VAR_T, rel=1e-12, why=ROUNDING)


@theorem(
    f"{DDPM}, eq. 6-7; {BOOK}, eq. 2.39 and 2.41",
    without={"q(z_s | x) is one of the two Gaussians of z_s": {"prior": 0.0}},
)
def posterior(prior: float = 1.0) -> Sides:
    """q(z_s | z_t, x), by adding the precisions of q(z_t | z_s) and q(z_s | x), is what `Step`
    computes from λ alone."""
    shrink = A_T / A_S
    spread = VAR_T - shrink.square() * VAR_S
    variance = 1 / (shrink.square() / spread + prior / VAR_S)
    bayes = torch.stack([variance, variance * shrink / spread, prior * variance * A_S / VAR_S])
    ours = torch.stack([STEPS.variance, STEPS.coefficient_z, STEPS.coefficient_x])
    return equal(ours, bayes, rel=1e-9, why="differences of variances on the right side")


@theorem(
    "VDM, arXiv:2107.00630, appendix A.2",
    without={"its variance is the posterior's": {"variance": "forward_variance"}},
)
def posterior_marginal(variance: str = "variance") -> Sides:
    """Averaged over q(z_t | x), the posterior q(z_s | z_t, x) gives q(z_s | x) back: mean,
    variance, and the mean through ε."""
    mean = STEPS.coefficient_z * A_T + STEPS.coefficient_x
    spread = STEPS.coefficient_z.square() * VAR_T + getattr(STEPS, variance)
    # for z_t = α x + σ ε the posterior's mean is α_s/α_t z_t − coefficient·ε
    noise = A_S / A_T * VAR_T.sqrt() - STEPS.coefficient_eps
    right = torch.stack([A_S, VAR_S, STEPS.coefficient_z * VAR_T.sqrt()])
    why = "a difference of two coefficients at long steps"
    return equal(torch.stack([mean, spread, noise]), right, rel=1e-9, atol=1e-12, why=why)


@theorem(
    f"EDM, arXiv:2206.00364, table 1; {BOOK}, section 1.2.4",
    without={"the prior is the walk's own, N(0, 1 + t)": {"grows": 0.0}},
)
def naive_walk_is_variance_exploding(grows: float = 1.0) -> Sides:
    """The naive walk x_t = x_{t−1} + ε is the variance exploding process at λ = −log t: with its
    own prior its bound has the same prior term."""
    squares, times = f64([0.01, 0.25, 1.0, 9.0]), (1.0, 10.0, 1000.0)
    left = [kl_to_normal(squares, t, 1 + grows * t) for t in times]
    right = [prior_kl(squares.sqrt()[:, None], -f64(t).log().item()) for t in times]
    return equal(torch.stack(left), torch.stack(right), rel=1e-9)


@theorem(
    f"{BOOK}, eq. 1.23",
    without={"each step keeps √(1 − β) of its input": {"keep": torch.ones_like(BETAS)}},
)
def scheduled_walk(keep: Tensor = 1 - BETAS) -> Sides:
    """The scheduled walk converges: the difference of the data's variance from 1 is multiplied by
    ᾱ_t = Π (1 − β)."""
    variances = [f64(4.0)]
    for beta, kept in zip(BETAS, keep, strict=True):
        variances.append(kept * variances[-1] + beta)
    right = 3 * torch.sigmoid(Tabulated.from_betas(BETAS).table)
    return equal(torch.stack(variances[1:]) - 1, right, rel=1e-9, why=ROUNDING, atol=1e-12)


@theorem(
    "from the Gaussian's divergence, to first order in ᾱ",
    without={"the mean of the data is not zero": {"mean": 0.0}},
)
def scheduled_walk_rate(mean: float = 1.0) -> Sides:
    """KL(q(z_t) ‖ N(0, I)) falls like ᾱ_t: it is ½ ᾱ_t ‖E x‖² to first order."""
    levels = f64([-10.0, -11.0, -12.0])
    gaps = [Gaussian([mean], [0.25]).prior_gap(level) for level in levels.tolist()]
    why = "the next order, e^λ, is 5e-5 of the first"
    return equal(torch.stack(gaps), 0.5 * levels.exp(), rel=1e-4, why=why)
