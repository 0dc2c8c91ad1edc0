"""The variance of the reverse steps: the best one, by how much it exceeds β̃, and what it buys."""

import torch
from torch import Tensor

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.decoder import normal_nodes
from vdiff.gaussian import Step, step_kl
from vdiff.loss import elbo, predict_at
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.reverse import reverse_kl, reverse_sample
from vdiff.schedule import Linear
from vdiff.theorems.integral import average
from vdiff.theorems.subject import Subject, line
from vdiff.theorems.theorem import Sides, at_least, equal, theorem
from vdiff.variance import Forward, LogVariance, Optimal, Posterior, Range, ReverseVariance

HIGH, LOW, STEPS = 6.0, -5.0, 5
SOURCE, ANALYTIC = (
    "Foundations of Diffusion Models, section 6.2, for the best mean",
    "Analytic-DPM, arXiv:2201.06503, theorem 1",
)


def chain_of(steps: int) -> Step:
    """All steps of a linear chain.

    >>> chain_of(2).delta
    tensor([5.5000, 5.5000], dtype=torch.float64)
    """
    schedule, t = Linear(HIGH, LOW), torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Step(schedule(t), schedule.delta(t, steps))


def mean_kl(
    oracle: GaussianMixture,
    step: Step,
    variance: ReverseVariance,
    head: Tensor | None = None,
    knows_x: bool = False,
) -> Tensor:
    """E of each step's KL with the exact denoiser and this variance; `head` is what a network
    would say at each step."""
    rows = len(oracle.nodes(0.0)[2])

    def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        said = predict_at(oracle, x, eps, level, {})
        spoken = None if head is None else head.repeat_interleave(rows)[:, None]
        prediction = Prediction(
            said.z, level, eps if knows_x else said.eps, Eps(), variance, spoken
        )
        return reverse_kl(prediction, x, eps, Step(level, step.delta.repeat_interleave(rows)))

    return average(oracle, step.logsnr_t, of)


def best_log_variance(oracle: GaussianMixture, step: Step, knows_x: bool = False) -> Tensor:
    """u = log Σ − log β̃ with the least mean KL, by ternary search on the library's own KL."""
    low, high = torch.full_like(step.delta, -1.0), torch.full_like(step.delta, 8.0)
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        worse = mean_kl(oracle, step, LogVariance(), step.variance.log() + a, knows_x) > mean_kl(
            oracle, step, LogVariance(), step.variance.log() + b, knows_x
        )
        low, high = torch.where(worse, a, low), torch.where(worse, high, b)
    return 0.5 * (low + high)


def _best(oracle: GaussianMixture, knows_x: bool) -> Sides:
    step = chain_of(STEPS)
    left = best_log_variance(oracle, step, knows_x)
    return Sides(
        left,
        torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t)),
        1e-5,
        "a search for a minimum, to the root of rounding",
    )


@theorem(source=f"{SOURCE}; {ANALYTIC}", given="the mean is E[x | z], not x itself")
def best_variance_exceeds_the_posteriors(subject: Subject) -> Sides:
    """The best Σ of the exact denoiser is β̃ (1 + expm1(Δ) E‖e‖²/d), larger than β̃ at every step:
    the mean does not know x."""
    return _best(subject.oracle, knows_x=False)


@best_variance_exceeds_the_posteriors.without("the mean is E[x | z], not x itself")
def _(subject: Subject) -> Sides:
    return _best(subject.oracle, knows_x=True)


def _at_best(oracle: GaussianMixture, factor: float) -> Sides:
    step = chain_of(STEPS)
    m = oracle.mmse(step.logsnr_t)
    best = step.variance.log() + factor * torch.log1p(step.snr_gain * m)
    return equal(
        mean_kl(oracle, step, LogVariance(), best),
        0.5 * torch.log1p(step.snr_gain * m),
        rel=1e-8,
        why="quadrature over x and ε",
    )


@theorem(source=ANALYTIC, given="the variance is the best")
def kl_at_the_best_variance(subject: Subject) -> Sides:
    """With it the mean KL of a step is ½ d log1p(expm1(Δ) E‖e‖²/d), logarithmic where β̃ has ½
    expm1(Δ) E‖e‖²."""
    return _at_best(subject.oracle, 1.0)


@kl_at_the_best_variance.without("the variance is the best")
def _(subject: Subject) -> Sides:
    return _at_best(subject.oracle, 0.0)


@theorem(
    source="iDDPM, arXiv:2102.09672, figure 2: learned variances matter at few steps",
    given="the mean is E[x | z], not x itself",
)
def best_variance_lowers_the_bound(subject: Subject) -> Sides:
    """The bound with β̃ is never below that with the best variance, at any number of steps."""
    fixed, best = [], []
    for steps in (1, 2, 5, 20):
        step = chain_of(steps)
        fixed.append(mean_kl(subject.oracle, step, Posterior()).sum())
        best.append(0.5 * torch.log1p(step.snr_gain * subject.oracle.mmse(step.logsnr_t)).sum())
    return at_least(torch.stack(fixed), torch.stack(best), rel=1e-9, why="quadrature over x and ε")


@best_variance_lowers_the_bound.without("the mean is E[x | z], not x itself")
def _(subject: Subject) -> Sides:
    step = chain_of(STEPS)
    best = 0.5 * torch.log1p(step.snr_gain * subject.oracle.mmse(step.logsnr_t)).sum()
    return at_least(
        mean_kl(subject.oracle, step, Posterior(), knows_x=True).sum(), best, rel=1e-9, why=""
    )


def _between(oracle: GaussianMixture) -> Sides:
    step = chain_of(STEPS)
    best = torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t))
    bounds = torch.stack([step.log_variance_ratio - best, best])
    return at_least(bounds, torch.zeros(2, STEPS), rel=0.0, why="exact")


@theorem(source=ANALYTIC, given="the data's variance is at most 1")
def best_variance_lies_between_the_two(subject: Subject) -> Sides:
    """β̃ ≤ best Σ ≤ β, the posterior's and the forward step's variance."""
    return _between(subject.oracle)


@best_variance_lies_between_the_two.without("the data's variance is at most 1")
def _(subject: Subject) -> Sides:
    return _between(Gaussian([0.0], [4.0]))


def _tight(oracle: GaussianMixture) -> Sides:
    ends = oracle.mutual_information(torch.tensor([HIGH, LOW], dtype=torch.float64))
    bounds = []
    for steps in (1, 2, 5, 20):
        step = chain_of(steps)
        best = step.variance.log() + torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t))
        bounds.append(mean_kl(oracle, step, LogVariance(), best).sum())
    return equal(torch.stack(bounds), ends[0] - ends[1], rel=1e-8, why="quadrature over x and ε")


def _by_axis(shared: bool) -> Sides:
    """N(0, diag(0.01, 1)): the sum of the steps' KLs, with the best Σ for both dimensions or for
    each, against the information."""
    oracle = Gaussian([0.0, 0.0], [0.01, 1.0])
    ends = oracle.mutual_information(torch.tensor([HIGH, LOW], dtype=torch.float64))
    bounds = []
    for steps in (1, 2, 5, 20):
        step = chain_of(steps)
        error = torch.sigmoid(step.logsnr_t[:, None] + oracle.variances[0].log())  # E e² by axis
        mean = error.mean(1, keepdim=True) if shared else error
        bounds.append(
            step_kl(
                step.snr_gain[:, None], error, torch.log1p(step.snr_gain[:, None] * mean)
            ).sum()
        )
    return equal(torch.stack(bounds), ends[0] - ends[1], rel=1e-8, why="quadrature over x and ε")


@theorem(
    source="of log1p(expm1(Δ) m) and the chain rule of information",
    given="the data is one Gaussian; its dimensions are independent and alike, or Σ is one for each of its axes",
)
def tight_at_every_number_of_steps(subject: Subject) -> Sides:
    """For Gaussian data the best variance makes the bound of T steps that of continuous time, I(x;
    z₀) − I(x; z₁), for every T."""
    whole = [_tight(line()), _by_axis(shared=False)]
    left, right, allowed = (
        torch.cat(part) for part in zip(*(sides.cases for sides in whole), strict=True)
    )
    return Sides(left, right, allowed, whole[0].why)


@tight_at_every_number_of_steps.without("the data is one Gaussian")
def _(subject: Subject) -> Sides:
    return _tight(subject.oracle)


@tight_at_every_number_of_steps.without(
    "its dimensions are independent and alike, or Σ is one for each of its axes"
)
def _(subject: Subject) -> Sides:
    return _by_axis(shared=True)


AT = (-1.3, 0.0, 0.4, 2.0)


def _no_slack(mean: float, variance: ReverseVariance, reads: bool = True) -> Sides:
    """The bound of N(mean, 1) with this Σ at 1, 2 and 6 steps and several x, through the library,
    against −log p(x)."""
    oracle, (node, mass) = Gaussian([mean], [1.0]), normal_nodes()
    decoder = (
        GaussianDecoder(
            variance=torch.sigmoid(torch.tensor(-HIGH, dtype=torch.float32)).item(), denoise=True
        )
        if reads
        else GaussianDecoder()
    )

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, oracle(z, logsnr).eps, Eps(), variance)

    bounds = []
    for steps in (1, 2, 6):
        for x in AT:
            data = torch.full((len(node), 1), x, dtype=torch.float64)
            bound = elbo(
                model,
                data,
                schedule=Linear(HIGH, LOW),
                decoder=decoder,
                steps=steps,
                draws=steps,
                eps=node[:, None],
            )
            bounds.append(mass @ bound.total)
    truth = -oracle.log_prob(torch.tensor(AT, dtype=torch.float64)[:, None]).repeat(3)
    return equal(torch.stack(bounds), truth, rel=1e-8, atol=1e-9, why="quadrature over ε")


@theorem(
    source="of the divergence of the posteriors; Foundations of Diffusion Models, after eq. 2.5",
    given="q(z₁) is the prior; Σ is that of q(z_s | z_t); the decoder is q(x | z₀)",
)
def bound_without_slack(subject: Subject) -> Sides:
    """Where the reverse chain is that of the data, its bound is −log p(x) for each x and any
    number of steps: for N(0, 1), Σ = β."""
    return _no_slack(0.0, Forward())


@bound_without_slack.without("q(z₁) is the prior")
def _(subject: Subject) -> Sides:
    return _no_slack(0.5, Forward())


@bound_without_slack.without("Σ is that of q(z_s | z_t)")
def _(subject: Subject) -> Sides:
    return _no_slack(0.0, Posterior())


@bound_without_slack.without("the decoder is q(x | z₀)")
def _(subject: Subject) -> Sides:
    return _no_slack(0.0, Forward(), reads=False)


def _range(oracle: GaussianMixture, squashed: bool) -> Sides:
    """The best v of log Σ = v log β + (1 − v) log β̃ gives the best Σ's KL; squashed into [0, 1]
    it may not."""
    step = chain_of(STEPS)
    v = torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t)) / step.log_variance_ratio
    v = v.clamp(0, 1) if squashed else v
    best = 0.5 * torch.log1p(step.snr_gain * oracle.mmse(step.logsnr_t))
    return equal(
        mean_kl(oracle, step, Range(), 2 * v - 1), best, rel=1e-8, why="quadrature over x and ε"
    )


@theorem(source="iDDPM, arXiv:2102.09672, eq. 15", given="v may leave [0, 1]")
def learned_range_reaches_the_best(subject: Subject) -> Sides:
    """A range log Σ = v log β + (1 − v) log β̃ reaches the best variance for any data; of variance
    above 1 with v > 1."""
    return _range(Gaussian([0.0], [4.0]), squashed=False)


@learned_range_reaches_the_best.without("v may leave [0, 1]")
def _(subject: Subject) -> Sides:
    return _range(Gaussian([0.0], [4.0]), squashed=True)


def _spread(claimed: ReverseVariance) -> Sides:
    """How far a sample of p(z_s | z_t) moves with its noise, for Σ = β, against the variance that
    was asked for."""
    step, zero = chain_of(STEPS), torch.zeros(STEPS, 1, dtype=torch.float64)
    prediction = Prediction(zero, step.logsnr_t, zero, Eps(), Forward())
    moved = reverse_sample(prediction, step, zero + 2.0) - reverse_sample(prediction, step, zero)
    asked = step.forward_variance if isinstance(claimed, Forward) else step.variance
    return equal((0.5 * moved[:, 0]).square(), asked, rel=1e-9, why="float64 rounding")


@theorem(source="DDPM, arXiv:2006.11239, Algorithm 2", given="Σ is the one asked for")
def samples_have_the_chosen_variance(subject: Subject) -> Sides:
    """A sampled reverse step spreads with the Σ that its model chose: c σ_t² for DDPM's large
    variance."""
    return _spread(Forward())


@samples_have_the_chosen_variance.without("Σ is the one asked for")
def _(subject: Subject) -> Sides:
    return _spread(Posterior())


def _fitted(subject: Subject, scale: float = 1.0) -> Sides:
    """The mean KL of rows at one step, with Σ from a profile of `scale` times the same errors,
    against ½ d log1p(k E‖e‖²/d)."""
    x, n = subject.rows(256), 256
    eps = torch.randn(x.shape, generator=subject.generator("fitted"), dtype=torch.float64)
    step = Step(torch.zeros(n, dtype=torch.float64), torch.full((n,), 1.5, dtype=torch.float64))
    said = predict_at(subject.model, x, eps, step.logsnr_t, {})
    error = said.squared_error(x, eps)
    profile = Profile(-1.0, 1.0, bins=1)
    profile.update(step.logsnr_t, scale * error)
    d = x[0].numel()
    prediction = Prediction(
        said.z, said.logsnr, said.out, said.parameterization, Optimal(profile, d)
    )
    right = 0.5 * d * torch.log1p(step.snr_gain[0] * error.mean() / d)
    return equal(
        reverse_kl(prediction, x, eps, step).mean(), right, rel=1e-9, why="float64 rounding"
    )


@theorem(source=ANALYTIC, given="Σ is shared by all d dimensions", any_network=True)
def best_variance_of_any_network(subject: Subject) -> Sides:
    """A profile of any model's own errors gives its best Σ, and the mean KL ½ d log1p(expm1(Δ)
    E‖e‖²/d)."""
    return _fitted(subject)


@best_variance_of_any_network.without("Σ is shared by all d dimensions")
def _(subject: Subject) -> Sides:
    return _fitted(subject, scale=subject.x[0].numel())


__all__: list[str] = []
