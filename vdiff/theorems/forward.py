"""The forward process: marginals, consistency, the walk that never settles and the one that
does."""

import torch

from vdiff.gaussian import Step, alpha, kl_to_normal, prior_kl, sigma
from vdiff.oracle import Gaussian
from vdiff.schedule import Tabulated
from vdiff.theorems.subject import Subject
from vdiff.theorems.theorem import Sides, equal, sampled, theorem

DDPM, SOURCE = "DDPM, arXiv:2006.11239", "Foundations of Diffusion Models"
ROUNDING = "float64 rounding, added up over the steps"
BETAS = torch.linspace(2e-3, 0.4, 50, dtype=torch.float64)
WALK, WALKERS = 30, 20_000


def steps() -> Step:
    """Steps of many lengths at many noise levels."""
    at, by = torch.meshgrid(
        torch.linspace(-9, 9, 13, dtype=torch.float64),
        torch.tensor([1e-3, 0.1, 1.0, 4.0], dtype=torch.float64),
        indexing="ij",
    )
    return Step(at.flatten(), by.flatten())


def _composed(betas: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Signal and variance after each step x_t = √keep_t x_{t−1} + √β_t ε."""
    signal, variance, seen = (
        torch.ones((), dtype=torch.float64),
        torch.zeros((), dtype=torch.float64),
        [],
    )
    for beta, kept in zip(betas, keep, strict=True):
        signal, variance = kept.sqrt() * signal, kept * variance + beta
        seen.append(torch.stack([signal, variance]))
    return torch.stack(seen)


def _marginal() -> torch.Tensor:
    table = Tabulated.from_betas(BETAS).table
    return torch.stack([alpha(table), sigma(table).square()], 1)


@theorem(
    source=f"{DDPM}, eq. 4; {SOURCE}, eq. 1.21", given="each step keeps √(1 − β) of what it finds"
)
def forward_marginal(subject: Subject) -> Sides:
    """Composing x_t = √(1 − β_t) x_{t−1} + √β_t ε gives q(z_t | x) = N(α_t x, σ_t²), with α² + σ²
    = 1."""
    return equal(_composed(BETAS, 1 - BETAS), _marginal(), rel=1e-12, why=ROUNDING)


@forward_marginal.without("each step keeps √(1 − β) of what it finds")
def _(subject: Subject) -> Sides:
    return equal(_composed(BETAS, torch.ones_like(BETAS)), _marginal(), rel=1e-12, why=ROUNDING)


@theorem(source="VDM, arXiv:2107.00630, appendix A.1", given="the transition's variance is c σ_t²")
def markov_consistency(subject: Subject) -> Sides:
    """A step from z_s to z_t, N(α_t/α_s z_s, c σ_t²), leads from the marginal of s to that of
    t."""
    step = steps()
    shrink = (alpha(step.logsnr_t) / alpha(step.logsnr_s)).square()
    return equal(
        shrink * torch.sigmoid(-step.logsnr_s) + step.forward_variance,
        torch.sigmoid(-step.logsnr_t),
        rel=1e-12,
        why=ROUNDING,
    )


@markov_consistency.without("the transition's variance is c σ_t²")
def _(subject: Subject) -> Sides:
    step = steps()
    shrink = (alpha(step.logsnr_t) / alpha(step.logsnr_s)).square()
    return equal(
        shrink * torch.sigmoid(-step.logsnr_s) + step.variance,
        torch.sigmoid(-step.logsnr_t),
        rel=1e-12,
        why=ROUNDING,
    )


def _bayes(step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Variance and the coefficients of z_t and x of q(z_t | z_s) q(z_s | x) as a density of z_s,
    by adding precisions."""
    shrink = alpha(step.logsnr_t) / alpha(step.logsnr_s)
    spread = torch.sigmoid(-step.logsnr_t) - shrink.square() * torch.sigmoid(-step.logsnr_s)
    before = torch.sigmoid(-step.logsnr_s)
    variance = 1 / (shrink.square() / spread + 1 / before)
    return variance, variance * shrink / spread, variance * alpha(step.logsnr_s) / before


@theorem(
    source=f"{DDPM}, eq. 6-7; {SOURCE}, eq. 2.39 and 2.41",
    given="Bayes' rule for the two Gaussians of z_s",
)
def posterior(subject: Subject) -> Sides:
    """q(z_s | z_t, x), by adding the precisions of q(z_t | z_s) and q(z_s | x), is what `Step`
    says in λ alone."""
    step = steps()
    ours = torch.stack([step.variance, step.coefficient_z, step.coefficient_x])
    return equal(
        ours, torch.stack(_bayes(step)), rel=1e-9, why="differences of variances on the right side"
    )


@posterior.without("Bayes' rule for the two Gaussians of z_s")
def _(subject: Subject) -> Sides:
    step = steps()
    variance, of_z, of_x = _bayes(step)
    rooted = (
        step.forward_variance * (1 - alpha(step.logsnr_s)) / torch.sigmoid(-step.logsnr_t)
    )  # a root too many
    return equal(
        torch.stack([rooted, of_z, of_x]), torch.stack([variance, of_z, of_x]), rel=1e-9, why=""
    )


@theorem(source="VDM, arXiv:2107.00630, appendix A.2", given="its variance is the posterior's")
def posterior_marginal(subject: Subject) -> Sides:
    """Averaged over q(z_t | x), the posterior q(z_s | z_t, x) gives q(z_s | x) back: mean,
    variance, and the mean through ε."""
    step = steps()
    mean = step.coefficient_z * alpha(step.logsnr_t) + step.coefficient_x
    variance = step.coefficient_z.square() * torch.sigmoid(-step.logsnr_t) + step.variance
    grow = alpha(step.logsnr_s) / alpha(
        step.logsnr_t
    )  # the posterior's mean of z_t = α x + σ ε is grow·z_t − coefficient·ε
    noise = grow * sigma(step.logsnr_t) - step.coefficient_eps
    left = torch.stack([mean, variance, noise])
    right = torch.stack(
        [
            alpha(step.logsnr_s),
            torch.sigmoid(-step.logsnr_s),
            step.coefficient_z * sigma(step.logsnr_t),
        ]
    )
    return equal(
        left, right, rel=1e-9, atol=1e-12, why="a difference of two coefficients at long steps"
    )


@posterior_marginal.without("its variance is the posterior's")
def _(subject: Subject) -> Sides:
    step = steps()
    variance = step.coefficient_z.square() * torch.sigmoid(-step.logsnr_t) + step.forward_variance
    return equal(variance, torch.sigmoid(-step.logsnr_s), rel=1e-9, why="")


def _walk(subject: Subject, keep: float) -> torch.Tensor:
    generator = subject.generator("walk")
    x, seen = torch.randn(WALKERS, generator=generator, dtype=torch.float64), []
    for _ in range(WALK):
        noise = torch.randn(WALKERS, generator=generator, dtype=torch.float64)
        x = keep**0.5 * x + noise
        seen.append(x.square())
    return torch.stack(seen, 1)


@theorem(source=f"{SOURCE}, section 1.2.4", given="nothing shrinks on the way")
def naive_walk(subject: Subject) -> Sides:
    """The walk x_t = x_{t−1} + ε from data of unit variance has variance 1 + t: it never
    settles."""
    return sampled(_walk(subject, 1.0), torch.arange(2.0, WALK + 2, dtype=torch.float32))


@naive_walk.without("nothing shrinks on the way")
def _(subject: Subject) -> Sides:
    return sampled(_walk(subject, 0.9), torch.arange(2.0, WALK + 2, dtype=torch.float32))


SIZES = torch.tensor([0.01, 0.25, 1.0, 9.0], dtype=torch.float64)
NOISE = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)


@theorem(source="EDM, arXiv:2206.00364, table 1", given="the prior is the walk's own, N(0, 1 + t)")
def naive_walk_is_variance_exploding(subject: Subject) -> Sides:
    """The naive walk is the variance exploding process at λ = −log t: with its own prior its bound
    has the same prior term."""
    left = torch.stack([kl_to_normal(SIZES, t.item(), 1 + t.item()) for t in NOISE])
    right = torch.stack([prior_kl(SIZES.sqrt()[:, None], -torch.log(t).item()) for t in NOISE])
    return equal(left, right, rel=1e-9, why="float64 rounding")


@naive_walk_is_variance_exploding.without("the prior is the walk's own, N(0, 1 + t)")
def _(subject: Subject) -> Sides:
    left = torch.stack([kl_to_normal(SIZES, t.item(), 1.0) for t in NOISE])
    right = torch.stack([prior_kl(SIZES.sqrt()[:, None], -torch.log(t).item()) for t in NOISE])
    return equal(left, right, rel=1e-9, why="")


def _settling(keep: torch.Tensor) -> Sides:
    variance, seen = torch.tensor(4.0, dtype=torch.float64), []
    for beta, kept in zip(BETAS, keep, strict=True):
        variance = kept * variance + beta
        seen.append(variance - 1)
    return equal(
        torch.stack(seen),
        3 * torch.sigmoid(Tabulated.from_betas(BETAS).table),
        rel=1e-9,
        why=ROUNDING,
        atol=1e-12,
    )


@theorem(source=f"{SOURCE}, eq. 1.23", given="each step keeps √(1 − β) of what it finds")
def scheduled_walk(subject: Subject) -> Sides:
    """The scheduled walk settles: what the variance of the data differs from 1 is multiplied by
    ᾱ_t = Π (1 − β)."""
    return _settling(1 - BETAS)


@scheduled_walk.without("each step keeps √(1 − β) of what it finds")
def _(subject: Subject) -> Sides:
    return _settling(torch.ones_like(BETAS))


def _rate(data: Gaussian) -> Sides:
    levels = (-10.0, -11.0, -12.0)
    gaps = [data.prior_gap(level).item() for level in levels]
    ratios = torch.tensor([gaps[0] / gaps[1], gaps[1] / gaps[2]], dtype=torch.float64)
    return equal(
        ratios,
        torch.full((2,), torch.e, dtype=torch.float64),
        rel=1e-3,
        why="the next order, e^λ, is 5e-5 of the first",
    )


@theorem(
    source="of the Gaussian's divergence, to first order in ᾱ",
    given="the mean of the data is not zero",
)
def scheduled_walk_rate(subject: Subject) -> Sides:
    """KL(q(z_t) ‖ N(0, I)) falls like ᾱ_t: by the factor e for each unit of λ."""
    return _rate(Gaussian([1.0], [0.25]))


@scheduled_walk_rate.without("the mean of the data is not zero")
def _(subject: Subject) -> Sides:
    return _rate(Gaussian([0.0], [0.25]))  # then like ᾱ²


__all__: list[str] = []
