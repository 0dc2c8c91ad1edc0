"""The variance of the reverse steps: the best one, its distance from β̃, and what it saves."""

from typing import Any

import torch
from torch import Tensor

from vdiff.decoder import Decoder, normal_nodes
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step, step_kl
from vdiff.loss import elbo, predict_at
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.reverse import reverse_kl, reverse_sample
from vdiff.schedule import Linear
from vdiff.theorems.integral import average
from vdiff.theorems.subject import ORACLE, Subject, f64, line
from vdiff.theorems.theorem import Sides, at_least, equal, theorem
from vdiff.variance import (
    AnalyticVariance,
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    ReverseVariance,
)

BOOK, ANALYTIC = "Foundations of Diffusion Models", "Analytic-DPM, arXiv:2201.06503, theorem 1"
SCHEDULE = Linear(6.0, -5.0)
ENDS = f64([SCHEDULE.logsnr_max, SCHEDULE.logsnr_min])
QUADRATURE = "quadrature over x and ε"
LINE = line()
SMALL, LARGE, LOG, RANGE = FixedSmall(), FixedLarge(), LearnedLogVariance(), LearnedRange()


def chain_of(steps: int) -> Step:
    """All steps of a linear chain."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Step(SCHEDULE(t), SCHEDULE.delta(t, steps))


def mean_kl(
    oracle: GaussianMixture,
    step: Step,
    variance: ReverseVariance = SMALL,
    variance_output: Tensor | None = None,
    knows_x: bool = False,
) -> Tensor:
    """E of each step's KL with the exact denoiser and this variance, from the network's
    `variance_output` at each step."""
    rows = len(oracle.nodes(0.0)[2])

    def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        said = predict_at(oracle, x, eps, level, {})
        output = (
            None if variance_output is None else variance_output.repeat_interleave(rows)[:, None]
        )
        e = eps if knows_x else said.eps
        at = Step(level, step.delta.repeat_interleave(rows))
        return reverse_kl(Prediction(said.z, level, e, Eps(), variance, output), x, eps, at)

    return average(oracle, step.logsnr_t, of)


def best_log_variance_ratio(oracle: GaussianMixture, step: Step) -> Tensor:
    """u = log Σ/β̃ of the best Σ, by the theorem: log1p(expm1(Δ) E‖e‖²/d)."""
    return torch.log1p(torch.expm1(step.delta) * oracle.mmse(step.logsnr_t))


@theorem(
    f"{BOOK}, section 6.2, for the best mean; {ANALYTIC}",
    without={"the mean is E[x | z], not x itself": {"knows_x": True}},
)
def best_variance_exceeds_the_posteriors(knows_x: bool = False) -> Sides:
    """The best Σ of the exact denoiser is β̃ (1 + expm1(Δ) E‖e‖²/d), larger than β̃ at every step:
    the mean does not know x."""
    step = chain_of(5)
    low, high = torch.full_like(step.delta, -1.0), torch.full_like(step.delta, 8.0)
    for _ in range(60):  # a ternary search for the least mean KL
        a, b = low + (high - low) / 3, high - (high - low) / 3
        kl_a, kl_b = (mean_kl(ORACLE, step, LOG, step.variance.log() + u, knows_x) for u in (a, b))
        low, high = torch.where(kl_a > kl_b, a, low), torch.where(kl_a > kl_b, high, b)
    why = "a search for a minimum, to the root of rounding"
    return Sides(0.5 * (low + high), best_log_variance_ratio(ORACLE, step), 1e-5, why)


@theorem(
    ANALYTIC,
    without={
        "the variance is the best": {"factor": 0.5},
        "the mean is E[x | z], not x itself": {"knows_x": True},
    },
)
def kl_at_the_best_variance(factor: float = 1.0, knows_x: bool = False) -> Sides:
    """With it the mean KL of a step is ½ d log1p(expm1(Δ) E‖e‖²/d), logarithmic where β̃ has ½
    expm1(Δ) E‖e‖²: lower at every step."""
    step = chain_of(5)
    best = best_log_variance_ratio(ORACLE, step)
    variance_output = step.variance.log() + factor * best
    kls = [
        mean_kl(ORACLE, step, LOG, variance_output, knows_x),
        mean_kl(ORACLE, step, SMALL, None, knows_x),
    ]
    right = 0.5 * torch.stack([best, best.expm1()])
    return equal(torch.stack(kls), right, rel=1e-8, why=QUADRATURE)


@theorem(ANALYTIC, without={"the data's variance is at most 1": {"data": Gaussian([0.0], [4.0])}})
def best_variance_lies_between_the_two(data: GaussianMixture = ORACLE) -> Sides:
    """β̃ ≤ best Σ ≤ β, the posterior's and the forward step's variance; for N(0, 1) it is β."""
    step, best = chain_of(5), best_log_variance_ratio(data, chain_of(5))
    of_unit = step.log_variance_ratio - best_log_variance_ratio(Gaussian([0.0], [1.0]), step)
    gaps = torch.stack([step.log_variance_ratio - best, best, of_unit, -of_unit])
    return at_least(gaps, 0.0, rel=0.0, atol=1e-12)


@theorem(
    "from log1p(expm1(Δ) m) and the chain rule of information",
    without={
        "the data is one Gaussian": {"data": ORACLE},
        "its dimensions are independent and alike, or Σ is one for each of its axes": {
            "shared": True
        },
    },
)
def tight_at_every_number_of_steps(data: GaussianMixture = LINE, shared: bool = False) -> Sides:
    """For Gaussian data the best variance makes the bound of T steps that of continuous time, I(x;
    z₀) − I(x; z₁), for every T."""
    axes = Gaussian([0.0, 0.0], [0.01, 1.0])
    left = []
    for step in map(chain_of, (1, 2, 5, 20)):
        one = mean_kl(data, step, LOG, step.variance.log() + best_log_variance_ratio(data, step))
        error = torch.sigmoid(step.logsnr_t[:, None] + axes.variances[0].log())  # E e² by axis
        mean, gain = error.mean(1, keepdim=True) if shared else error, step.snr_gain[:, None]
        left.append(torch.stack([one.sum(), step_kl(gain, error, torch.log1p(gain * mean)).sum()]))
    ends = [oracle.mutual_information(ENDS) for oracle in (data, axes)]
    right = torch.stack([at[0] - at[1] for at in ends])
    return equal(torch.stack(left), right, rel=1e-8, why=QUADRATURE)


AT = (-1.3, 0.0, 0.4, 2.0)
LEAST = torch.sigmoid(torch.tensor(-SCHEDULE.logsnr_max)).item()
OF_Z0 = GaussianDecoder(variance=LEAST, uses_network=True)


@theorem(
    f"of the divergence of the posteriors; {BOOK}, after eq. 2.5",
    without={
        "q(z₁) is the prior": {"mean": 0.5},
        "Σ is that of q(z_s | z_t)": {"variance": SMALL},
        "the decoder is q(x | z₀)": {"decoder": GaussianDecoder()},
    },
)
def bound_without_slack(
    mean: float = 0.0, variance: ReverseVariance = LARGE, decoder: Decoder = OF_Z0
) -> Sides:
    """Where the reverse chain is that of the data, its bound is −log p(x) for each x and any
    number of steps: for N(0, 1), Σ = β."""
    oracle, (node, mass) = Gaussian([mean], [1.0]), normal_nodes()

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, oracle(z, logsnr).eps, Eps(), variance)

    x = f64(AT).repeat_interleave(len(node))[:, None]
    options: dict[str, Any] = {
        "schedule": SCHEDULE,
        "decoder": decoder,
        "eps": node.repeat(len(AT))[:, None],
    }
    bounds = [elbo(model, x, steps=n, draws=n, **options).total for n in (1, 2, 6)]
    left = torch.stack(bounds).view(3, len(AT), -1) @ mass
    truth = -oracle.log_prob(f64(AT)[:, None])
    return equal(left, truth, rel=1e-8, atol=1e-9, why="quadrature over ε")


@theorem("iDDPM, arXiv:2102.09672, eq. 15", without={"v may leave [0, 1]": {"most": 1.0}})
def learned_range_reaches_the_best(most: float = 10.0) -> Sides:
    """A range log Σ = v log β + (1 − v) log β̃ reaches the best variance for any data; of variance
    above 1 with v > 1."""
    data, step = Gaussian([0.0], [4.0]), chain_of(5)
    best = best_log_variance_ratio(data, step)
    ratio = (step.forward_variance / step.variance).log()
    v = (best / ratio).clamp(0, most)
    return equal(mean_kl(data, step, RANGE, 2 * v - 1), 0.5 * best, rel=1e-8, why=QUADRATURE)


@theorem(
    "DDPM, arXiv:2006.11239, Algorithm 2",
    without={"Σ is the one that the model chose": {"variance": SMALL}},
)
def samples_have_the_chosen_variance(variance: ReverseVariance = LARGE) -> Sides:
    """A sampled reverse step has the variance Σ that its model chose: c σ_t² for DDPM's large
    variance."""
    step, zero = chain_of(5), torch.zeros(5, 1, dtype=torch.float64)
    prediction = Prediction(zero, step.logsnr_t, zero, Eps(), variance)
    moved = reverse_sample(prediction, step, zero + 1.0) - reverse_sample(prediction, step, zero)
    fresh = 1 - torch.exp(-step.delta)
    return equal(moved[:, 0].square(), fresh * torch.sigmoid(-step.logsnr_t), rel=1e-9)


@theorem(ANALYTIC, without={"Σ is shared by all d dimensions": {"shared": False}})
def best_variance_of_any_network(subject: Subject, shared: bool = True) -> Sides:
    """A profile of any model's own errors gives its best Σ, and the mean KL ½ d log1p(expm1(Δ)
    E‖e‖²/d)."""
    x, eps, zero = subject.drawn("fitted", 256)
    step, d = Step(0 * zero, torch.full_like(zero, 1.5)), x[0].numel()
    said = predict_at(subject.model, x, eps, step.logsnr_t, {})
    error = said.squared_error(x, eps)
    profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
    profile.update(step.logsnr_t, error if shared else d * error)
    best = AnalyticVariance(profile, d)
    prediction = said.replace(variance=best)
    square = (eps - said.eps).flatten(1).square().sum(1).mean()
    right = 0.5 * d * torch.log1p(torch.expm1(f64(1.5)) * square / d)
    return equal(reverse_kl(prediction, x, eps, step).mean(), right, rel=1e-9)
