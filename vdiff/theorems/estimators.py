"""Variances: what conditioning buys at a step, what it costs along a path, where best to look."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step
from vdiff.loss import Model, predict_at, weighted_elbo
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.theorems.chains import CHAIN, STEPS, drawn
from vdiff.theorems.integral import average
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import Subject, line
from vdiff.theorems.theorem import Sides, at_least, equal, paired, sampled, theorem
from vdiff.variance import Forward, Posterior, ReverseVariance

SOURCE = "The Hidden Variance Reduction in Diffusion Loss"
LAMBDA = torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64)
HERMITE = (
    torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64),
    torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64),
)


def step_variances(
    oracle: GaussianMixture,
    model: Model,
    variance: ReverseVariance,
    logsnr: Tensor = LAMBDA,
    delta: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Var of the sampled log-ratio, Var of the KL, and E of the KL, of one step at each λ, over
    data, noise and z_s.

    >>> len(step_variances(line(), line(), Posterior()))
    3
    """

    def moment(power: int, sample: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
            said = predict_at(model, x, eps, level, {})
            prediction = Prediction(said.z, level, said.out, said.parameterization, variance)
            step = Step(level, torch.full_like(level, delta))
            if not sample:
                return reverse_kl(prediction, x, eps, step) ** power
            draws = [
                reverse_log_ratio(prediction, x, eps, step, torch.full_like(x, n.item())) ** power
                for n in HERMITE[0]
            ]
            return torch.stack(draws, 1) @ HERMITE[1]  # exact: the ratio is quadratic in the noise

        return of

    first, second, closed, square = (
        average(oracle, logsnr, moment(p, s)) for s in (True, False) for p in (1, 2)
    )
    return second - first.square(), square - closed.square(), closed


def _law(subject: Subject, variance: ReverseVariance) -> Sides:
    sampled_step, closed, mean = step_variances(subject.oracle, subject.oracle, variance)
    return equal(sampled_step, closed + 2 * mean, rel=1e-8, why="quadrature over x, ε and z_s")


@theorem(
    source=f"{SOURCE}, its theorem, with the difference worked out", given="Σ is the posterior's"
)
def rao_blackwell_law(subject: Subject) -> Sides:
    """At each step Var of the sampled log-ratio = Var of the KL + 2 E[KL]: equal only where the KL
    is zero."""
    return _law(subject, Posterior())


@rao_blackwell_law.without("Σ is the posterior's")
def _(subject: Subject) -> Sides:
    return _law(subject, Forward())


@theorem(source=f"{SOURCE}, its theorem", given="each step is taken by itself")
def rao_blackwell_never_adds_variance(subject: Subject) -> Sides:
    """Step by step the KL in closed form has no more variance than the sampled log-ratio, with Σ =
    β̃ and with Σ = β."""
    found = [
        step_variances(subject.oracle, subject.oracle, variance)[:2]
        for variance in (Posterior(), Forward())
    ]
    return at_least(
        torch.stack([a for a, _ in found]),
        torch.stack([b for _, b in found]),
        rel=1e-9,
        why="quadrature",
    )


@rao_blackwell_never_adds_variance.without("each step is taken by itself")
def _(subject: Subject) -> Sides:
    log_ratio, closed = zip(
        *(path_variances(GaussianPath(line(), 13.3, -5.0, steps), 0.5) for steps in (10, 100)),
        strict=True,
    )
    return at_least(torch.stack(log_ratio), torch.stack(closed), rel=1e-9, why="")


@theorem(source=f"{SOURCE}, its theorem", given="Σ is the posterior's", any_network=True)
def rao_blackwell_law_of_any_network(subject: Subject) -> Sides:
    """Given z_t, the sampled log-ratio spreads about the KL with variance 2 KL, whatever the
    network says."""
    x, eps, step = drawn(subject, 64, "law")
    prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
    mean, generator = reverse_kl(prediction, x, eps, step), subject.generator("z_s")
    draws = torch.stack(
        [
            (
                reverse_log_ratio(
                    prediction,
                    x,
                    eps,
                    step,
                    torch.randn(x.shape, generator=generator, dtype=torch.float64),
                )
                - mean
            ).square()
            / mean
            for _ in range(2048)
        ]
    )
    return sampled(draws.mean(1), 2.0)


def _nothing_taken_off(variance: ReverseVariance, guess: float) -> Sides:
    """Var of the sampled log-ratio and of the KL where all data is 0.7 and the model says x̂ =
    guess, to the digits of x."""

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        eps = (z - logsnr.sigmoid().sqrt()[:, None] * guess) / logsnr.neg().sigmoid().sqrt()[
            :, None
        ]
        return Prediction(z, logsnr, eps, Eps())

    sampled_step, closed, _ = step_variances(Gaussian([0.7], [1e-24]), model, variance)
    return equal(sampled_step, closed, rel=1e-8, atol=1e-12, why="float64 rounding")


@theorem(
    source=f"{SOURCE}, its theorem: strictly, where the ratio depends on z_s",
    given="x̂ is x itself; Σ is the posterior's",
)
def rao_blackwell_takes_nothing_off_where_x_is_known(subject: Subject) -> Sides:
    """Where x̂ = x and Σ = β̃ the log-ratio is zero for every z_s: both estimators have the same
    variance, none."""
    return _nothing_taken_off(Posterior(), 0.7)


@rao_blackwell_takes_nothing_off_where_x_is_known.without("x̂ is x itself")
def _(subject: Subject) -> Sides:
    return _nothing_taken_off(Posterior(), 0.6)


@rao_blackwell_takes_nothing_off_where_x_is_known.without("Σ is the posterior's")
def _(subject: Subject) -> Sides:
    return _nothing_taken_off(Forward(), 0.7)


def reductions() -> Tensor:
    """Var of the sampled log-ratio over Var of the KL, at λ = 8, 0 and −4, of one of 1000 steps of
    N(0, 1) from λ = 13.3 to −5.

    >>> reductions().round()
    tensor([ 109.,  218., 6022.], dtype=torch.float64)
    """
    oracle = Gaussian([0.0], [1.0])
    sampled_step, closed, _ = step_variances(oracle, oracle, Posterior(), REDUCED, STEP)
    return sampled_step / closed


REDUCED, STEP = torch.tensor([8.0, 0.0, -4.0], dtype=torch.float64), 18.3 / 1000


def _ratio(constant: bool) -> Sides:
    law = (
        torch.full((3,), 100.0)
        if constant
        else 1 + 2 / (math.expm1(STEP) * torch.sigmoid(REDUCED))
    )
    return equal(reductions(), law, rel=1e-8, why="quadrature")


@theorem(source=f"{SOURCE}, its experiment", given="the ratio may depend on λ and T")
def order_of_the_reduction(subject: Subject) -> Sides:
    """For N(0, 1) the reduction at a step is 1 + 2/(expm1(Δ) sigmoid(λ)): of order T, and without
    bound at the noisy end."""
    return _ratio(constant=False)


@order_of_the_reduction.without("the ratio may depend on λ and T")
def _(subject: Subject) -> Sides:
    return _ratio(constant=True)


def path_variances(path: GaussianPath, x: float) -> tuple[Tensor, Tensor]:
    """Var of the log-ratio of a path, and of the sum of its KLs, exactly: both are quadratic in a
    Gaussian vector."""
    q, (_, posterior) = path.forward(x), path.given(x)
    curve = posterior.precision_matrix - q.precision_matrix
    tilt = posterior.precision_matrix @ (q.mean - posterior.mean)
    spread = q.covariance_matrix
    log_ratio = 0.5 * torch.trace(curve @ spread @ curve @ spread) + tilt @ spread @ tilt

    lam = path.logsnr[1:]
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, len(lam), 1)
    at_zero, at_one = (path.oracle(z, lam).eps[:, 0] for z in probe)
    noise = torch.sigmoid(-lam).rsqrt()
    slope, fixed = (
        noise - (at_one - at_zero),
        -noise * torch.sigmoid(lam).sqrt() * x - at_zero,
    )  # e = slope·z + fixed
    mean, cov = slope * q.mean[1:] + fixed, slope[:, None] * spread[1:, 1:] * slope
    gain = torch.expm1(path.logsnr[:-1] - lam)
    weighed = gain[:, None] * cov
    return log_ratio, 0.5 * torch.trace(weighed @ weighed) + (gain * mean) @ cov @ (gain * mean)


@theorem(source="of Gaussian quadratic forms", given="the variances are those of paths")
def variances_along_a_path(subject: Subject) -> Sides:
    """Sampled paths have the variances that the two Gaussian laws of (z₀ … z_T) say, of both
    estimators of the bound."""
    return _sampled_paths(subject, independent=False)


@variances_along_a_path.without("the variances are those of paths")
def _(subject: Subject) -> Sides:
    return _sampled_paths(subject, independent=True)


def _sampled_paths(subject: Subject, independent: bool) -> Sides:
    path, n = GaussianPath(line(), 6.0, -5.0, 8), 40_000
    data = torch.full((n, 1), 0.5, dtype=torch.float64)
    generator = subject.generator("paths")
    if independent:  # each step with noise of its own
        parts = [
            weighted_elbo(
                path.oracle,
                data,
                schedule=path.schedule,
                steps=8,
                t=torch.full((n,), i / 8, dtype=torch.float64),
                generator=generator,
            )
            / 8
            for i in range(1, 9)
        ]
        draws = torch.stack([sum(parts, torch.zeros(n)), sum(parts, torch.zeros(n))], 1)
    else:
        draws = torch.stack(
            path_bound(
                path.oracle,
                data,
                schedule=path.schedule,
                decoder=GaussianDecoder(),
                steps=8,
                generator=generator,
            ),
            1,
        )
    return sampled((draws - draws.mean(0)).square(), torch.stack(path_variances(path, 0.5)))


@theorem(source=f"against {SOURCE}, for evaluation", given="the terms lie on one path")
def order_reverses_along_a_path(subject: Subject) -> Sides:
    """Summed along one path, the log-ratios have less variance than the KLs: their errors cancel,
    those of the KLs add up."""
    log_ratio, closed = zip(
        *(path_variances(GaussianPath(line(), 13.3, -5.0, steps), 0.5) for steps in (10, 30, 100)),
        strict=True,
    )
    return at_least(torch.stack(closed), torch.stack(log_ratio), rel=1e-9, why="float64 rounding")


@order_reverses_along_a_path.without("the terms lie on one path")
def _(subject: Subject) -> Sides:
    sampled_step, closed, _ = step_variances(subject.oracle, subject.oracle, Posterior())
    return at_least(closed, sampled_step, rel=1e-9, why="")


def _variance_times_steps(which: int) -> Sides:
    """lim T·Var as T = 100 and 200 see it, against what T = 50 and 100 do, to first order."""
    scaled = torch.stack(
        [
            steps * path_variances(GaussianPath(line(), 6.0, -5.0, steps), 0.5)[which]
            for steps in (50, 100, 200)
        ]
    )
    limits = 2 * scaled[1:] - scaled[:-1]
    return equal(limits[1], limits[0], rel=0.05, why="the second order in 1/T at T = 50")


@theorem(source="of Gaussian quadratic forms", given="the estimator is the log-ratio")
def path_variance_vanishes(subject: Subject) -> Sides:
    """At the exact denoiser the log-ratio of a path has variance O(1/T): T·Var tends to a
    number."""
    return _variance_times_steps(0)


@path_variance_vanishes.without("the estimator is the log-ratio")
def _(subject: Subject) -> Sides:
    return _variance_times_steps(1)


def _paths(subject: Subject, inside: bool) -> Sides:
    """Both estimators on the same paths, in groups of 8."""
    x = subject.rows(max(16, subject.draws))
    path = path_bound(
        subject.model,
        x,
        schedule=CHAIN,
        decoder=GaussianDecoder(),
        steps=STEPS,
        generator=subject.generator("both"),
    )
    log_ratio, closed = path.log_ratio.view(-1, 8), path.rao_blackwell.view(-1, 8).mean(1)
    return paired(
        log_ratio.mean(1) if inside else math.log(8) - torch.logsumexp(-log_ratio, 1), closed
    )


@theorem(
    source=f"{SOURCE}, both estimators are unbiased",
    given="the logarithm stands inside the mean",
    any_network=True,
)
def path_estimators_share_their_mean(subject: Subject) -> Sides:
    """The log-ratio of a path and the sum of the KLs along it have one mean, the bound, whatever
    the network says."""
    return _paths(subject, inside=True)


@path_estimators_share_their_mean.without("the logarithm stands inside the mean")
def _(subject: Subject) -> Sides:
    return _paths(subject, inside=False)


__all__: list[str] = []
