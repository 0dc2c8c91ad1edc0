"""The best density of the draws: its effect on the variance of the loss, and how a schedule
learns it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vdiff.loss import weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.profile import Profile
from vdiff.schedule import (
    Adaptive,
    Cosine,
    Custom,
    Histogram,
    Linear,
    Normal,
    OptimalTransport,
    Schedule,
    Spline,
)
from vdiff.theorems.integral import (
    QUADRATURE,
    average,
    expected_loss,
    integral,
    levels,
    over_time,
    slope,
    squared,
)
from vdiff.theorems.subject import HIGH, LOW, ORACLE, f64, line
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.weighting import ELBO, Sigmoid, Weighting

SCHEDULES: tuple[Schedule, ...] = (
    *(Linear(HIGH, LOW), Normal(2.4, 2.4, HIGH, LOW)),
    *(Cosine(HIGH, LOW), OptimalTransport(HIGH, LOW)),
)
WEIGHTINGS: tuple[Weighting, ...] = (ELBO(), Sigmoid(0.0))
LINE = line()
BINS = 104  # of 1/8
EDGES = tuple(torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64).tolist())


def loss_variance(
    schedule: Schedule,
    weighting: Weighting = WEIGHTINGS[0],
    corners: Sequence[float] = (),
    oracle: GaussianMixture = ORACLE,
) -> Tensor:
    """Var of one draw of `weighted_elbo`, over t, x and ε."""

    def powers(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        loss = weighted_elbo(oracle, x, schedule=schedule, weighting=weighting, t=t, eps=eps)
        return torch.stack([loss, loss.square()])

    points = 3 if corners else 6
    both = over_time(powers, oracle, schedule, corners=tuple(corners), points=points)
    variance: Tensor = both[1] - both[0].square()
    return variance


def moments(lam: Tensor, oracle: GaussianMixture = ORACLE) -> Tensor:
    """E‖e‖² and E‖e‖⁴ of the exact denoiser."""

    def powers(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        error = squared(oracle)(x, eps, level)
        return torch.stack([error, error.square()])

    return average(oracle, lam, powers)


def fourth(lam: Tensor) -> Tensor:
    """E‖e‖⁴ of the exact denoiser."""
    return moments(lam)[1]


def variance_under(
    density: Callable[[Tensor], Tensor], weighting: Weighting = WEIGHTINGS[0]
) -> Tensor:
    """¼ ∫ w² E‖e‖⁴/p dλ − L²."""
    lam, width = levels(LOW, HIGH)
    found: Tensor = 0.25 * width @ (weighting(lam).square() * fourth(lam) / density(lam))
    return found - integral(weighting).square()


def least_variance(weighting: Weighting = WEIGHTINGS[0]) -> Tensor:
    """¼ (∫ w √E‖e‖⁴ dλ)² − L²."""
    lam, width = levels(LOW, HIGH)
    root: Tensor = 0.5 * width @ (weighting(lam) * fourth(lam).sqrt())
    return root.square() - integral(weighting).square()


def observe(
    observer: Callable[[Tensor, Tensor], None],
    bins: int,
    oracle: GaussianMixture = ORACLE,
    times: int = 1,
) -> None:
    """Pairs of errors at the middle of each bin, with the mean and the mean square that ‖e‖²
    has."""
    lam = LOW + (HIGH - LOW) * (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    mean, square = moments(lam, oracle)
    spread = (square - mean.square()).sqrt()
    for sign in times * (1, -1):
        observer(lam, mean + sign * spread)


@theorem(
    "VDM, arXiv:2107.00630, appendix I; VDM++, arXiv:2303.00848, appendix F",
    without={"p is the schedule's own density": {"own": False}},
)
def variance_of_the_loss(own: bool = True) -> Sides:
    """The schedule changes only the variance of a draw, which is ¼ ∫ w² E‖e‖⁴/p dλ − L²."""
    left, right = [], []
    for weighting in WEIGHTINGS:
        for schedule in SCHEDULES:
            p = schedule.density if own else lambda lam: torch.full_like(lam, 1 / (HIGH - LOW))
            left.append(loss_variance(schedule, weighting))
            right.append(variance_under(p, weighting))
    return equal(torch.stack(left), torch.stack(right), rel=1e-6, why=QUADRATURE)


def _optimal(weighting: Weighting) -> Histogram:
    profile = Profile(logsnr_max=HIGH, logsnr_min=LOW, bins=BINS)
    observe(profile.update, BINS)
    return Histogram.optimal(profile, weighting)


def _proportional(moment: Callable[[Tensor], Tensor]) -> Callable[[Weighting], Histogram]:
    return lambda w: Histogram.proportional(lambda lam: w(lam) * moment(lam), HIGH, LOW, bins=BINS)


@theorem(
    "Cauchy and Schwarz",
    without={
        "p ∝ w √E‖e‖⁴": {"best": _proportional(ORACLE.mmse)},
        "the fourth moment is under the root": {"best": _proportional(fourth)},
    },
)
def least_variance_is_attained(best: Callable[[Weighting], Histogram] = _optimal) -> Sides:
    """No density of the draws has less variance than p ∝ w √E‖e‖⁴: ¼ (∫ w √E‖e‖⁴ dλ)² − L²."""
    left = [loss_variance(best(weighting), weighting, EDGES) for weighting in WEIGHTINGS]
    right = [least_variance(weighting) for weighting in WEIGHTINGS]
    return equal(torch.stack(left), torch.stack(right), rel=1e-3, why="bins of 1/8")


def adapted(oracle: GaussianMixture) -> Schedule:
    """VDM++'s adaptive schedule, p ∝ E‖e‖², after it has observed the errors."""
    schedule = Adaptive(HIGH, LOW, bins=BINS, floor=1e-9, first_moment=True)
    observe(schedule.observe, BINS, oracle, schedule.warmup)
    schedule.update()
    return schedule


ADAPTIVE = "VDM++, arXiv:2303.00848, section 4: the adaptive schedule"


@theorem(
    ADAPTIVE,
    without={
        "p ∝ w E‖e‖²": {"schedule": lambda oracle: Linear(HIGH, LOW)},
        "the error is isotropic Gaussian given λ": {"oracle": ORACLE},
    },
)
def adaptive_density_is_the_best_for_gaussian_errors(
    schedule: Callable[[GaussianMixture], Schedule] = adapted, oracle: GaussianMixture = LINE
) -> Sides:
    """VDM++'s p ∝ w E‖e‖² has the least variance of all where e is isotropic Gaussian given λ: 2
    L²/d, here with d = 1."""
    loss = integral(model=oracle, oracle=oracle)
    left = loss_variance(schedule(oracle), WEIGHTINGS[0], EDGES, oracle)
    return equal(left, 2 * loss.square(), rel=1e-3, why="bins of 1/8")


@theorem(ADAPTIVE, without={"p ∝ w E‖e‖²": {"schedule": lambda oracle: Linear(HIGH, LOW)}})
def adaptive_density_makes_the_loss_even(
    schedule: Callable[[GaussianMixture], Schedule] = adapted,
) -> Sides:
    """Under p ∝ w E‖e‖² the expected loss is the same at every t."""
    oracle, middles = LINE, torch.arange(LOW + 0.5 / 8, HIGH, 1.0, dtype=torch.float64)
    law = schedule(oracle)
    losses = expected_loss(oracle, oracle, law, t=law.inverse(middles))
    return equal(losses, integral(model=oracle, oracle=oracle), rel=1e-3, why="bins of 1/8")


@theorem("VDM, arXiv:2107.00630, appendix I.2", without={"the ends are fixed": {"end": True}})
def gradient_of_the_variance(end: bool = False) -> Sides:
    """With its ends fixed, the derivative of the variance by a schedule's parameter is
    E[2 L̂ dL̂/dη]: the gradient of the mean is zero."""
    oracle = LINE
    t, dt = levels(0.0, 1.0, *torch.linspace(0, 1, 21)[1:-1].tolist())

    def both(eta: Tensor, written_out: bool) -> Tensor:
        def logsnr(t: Tensor) -> Tensor:
            return HIGH - (HIGH - LOW) * t + eta * (t if end else torch.sin(torch.pi * t))

        def rate(t: Tensor) -> Tensor:
            bend = torch.ones_like(t) if end else torch.pi * torch.cos(torch.pi * t)
            return HIGH - LOW - eta * bend

        def powers(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
            if written_out:
                loss = 0.5 * rate(t) * squared(oracle)(x, eps, logsnr(t))
            else:
                loss = weighted_elbo(oracle, x, schedule=Custom(logsnr, rate), t=t, eps=eps)
            return torch.stack([loss, loss.square()])

        return over_time(powers, oracle, Linear(HIGH, LOW), t=t) @ dt

    def variance(eta: Tensor) -> Tensor:
        first, second = both(eta, True).unbind()
        return second - first.square()

    at = f64(0.7)
    with torch.enable_grad():
        eta = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(both(eta, False)[1], eta)
    return equal(gradient, slope(variance, at, 1e-2), rel=1e-5, why="a difference quotient in η")


@theorem(
    "VDM, arXiv:2107.00630, appendix I.2, with the running mean m taken off",
    without={"the shape follows the variance": {"follow_variance": False}},
)
def one_backward_gives_the_gradient_of_the_variance(follow_variance: bool = True) -> Sides:
    """The gradient of a learned shape in `loss.backward()` is ∇Var/m, m the mean loss; the loss
    itself is not changed."""
    schedule = Spline(HIGH, LOW, knots=14, learn_ends=False, follow_variance=follow_variance)
    knots = torch.arange(14, dtype=torch.float64)  # one at each whole λ
    start, direction = 0.5 * torch.sin(2 * knots), torch.cos(knots)

    def bend(along: Tensor | float) -> None:
        schedule.log_density.data.copy_(start + along * direction)

    bend(0.0)
    mean = expected_loss(ORACLE, ORACLE, schedule)
    schedule.mean_loss.copy_(mean)
    with torch.enable_grad():
        loss = expected_loss(ORACLE, ORACLE, schedule, corners=EDGES[::2])
        (gradient,) = torch.autograd.grad(loss, schedule.log_density)

    def variance(along: Tensor) -> Tensor:
        bend(along)
        return variance_under(schedule.density)

    right = slope(variance, f64(0.0))
    return equal(mean * (gradient @ direction), right, rel=1e-6, why="a difference quotient")


@theorem(
    "Cauchy and Schwarz; VDM++, arXiv:2303.00848, has the first moment",
    without={"it follows the second moment": {"first_moment": True}},
)
def adaptive_schedule_finds_the_least_variance(first_moment: bool = False) -> Sides:
    """An adaptive schedule converges to the density with the least variance: p ∝ w √E‖e‖⁴."""
    schedule = Adaptive(HIGH, LOW, bins=520, floor=1e-9, first_moment=first_moment)
    observe(schedule.observe, 520, ORACLE, schedule.warmup)
    schedule.update()
    left = variance_under(schedule.density)
    return equal(left, least_variance(), rel=1e-4, why="bins of 1/40")
