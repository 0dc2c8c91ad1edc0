"""Where best to look: what the density of the draws does to the variance of the loss, and how a
schedule learns it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.loss import weighted_elbo
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
from vdiff.theorems.estimators import HERMITE
from vdiff.theorems.integral import average, expected_loss, levels, panels, slope, squared
from vdiff.theorems.subject import HIGH, LOW, Subject, line
from vdiff.theorems.theorem import Sides, at_least, equal, theorem
from vdiff.weighting import ELBO, Sigmoid, Weighting

SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(HIGH, LOW),
    "normal": Normal(2.4, 2.4, HIGH, LOW),
    "cosine": Cosine(HIGH, LOW),
    "flow": OptimalTransport(HIGH, LOW),
}


WEIGHTINGS: tuple[Weighting, ...] = (ELBO(), Sigmoid(0.0))


def _variance(
    subject: Subject, schedule: Schedule, weighting: Weighting, *corners: float
) -> Tensor:
    oracle = subject.oracle
    first, second = (
        expected_loss(oracle, oracle, schedule, weighting, corners=corners, power=power)
        for power in (1, 2)
    )
    return second - first.square()


def _variances(subject: Subject, weighting: Weighting) -> Tensor:
    return torch.stack(
        [_variance(subject, schedule, weighting) for schedule in SCHEDULES.values()]
    )


def _fourth(subject: Subject, lam: Tensor) -> Tensor:
    """E‖e‖⁴ at each λ."""
    return average(
        subject.oracle, lam, lambda x, eps, level: squared(subject.oracle)(x, eps, level).square()
    )


def _moments(
    subject: Subject, weighting: Weighting = WEIGHTINGS[0]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """λ, its measure, w² E‖e‖⁴ and L²."""
    lam, width = levels(LOW, HIGH)
    fourth = weighting(lam).square() * _fourth(subject, lam)
    return lam, width, fourth, (0.5 * width @ (weighting(lam) * subject.oracle.mmse(lam))).square()


def _variance_law(subject: Subject, own: bool) -> Sides:
    left, right = [], []
    for weighting in WEIGHTINGS:
        lam, width, fourth, square = _moments(subject, weighting)
        densities = [
            s.density(lam) if own else torch.full_like(lam, 1 / (HIGH - LOW))
            for s in SCHEDULES.values()
        ]
        left.append(_variances(subject, weighting))
        right.append(torch.stack([0.25 * width @ (fourth / p) - square for p in densities]))
    return equal(torch.stack(left), torch.stack(right), rel=1e-6, why="quadrature")


@theorem(
    source="VDM, arXiv:2107.00630, appendix I; VDM++, arXiv:2303.00848, appendix F",
    given="p is the schedule's own density",
)
def variance_of_the_loss(subject: Subject) -> Sides:
    """The schedule moves the variance of a draw alone: it is ¼ ∫ w² E‖e‖⁴/p dλ − L²."""
    return _variance_law(subject, own=True)


@variance_of_the_loss.without("p is the schedule's own density")
def _(subject: Subject) -> Sides:
    return _variance_law(subject, own=False)


def _least(subject: Subject, weighting: Weighting = WEIGHTINGS[0]) -> Tensor:
    _, width, fourth, square = _moments(subject, weighting)
    return 0.25 * (width @ fourth.sqrt()).square() - square


@theorem(source="Cauchy and Schwarz", given="the fourth moment is under the root")
def least_variance_of_the_loss(subject: Subject) -> Sides:
    """No density of the draws has less variance than ¼ (∫ w √E‖e‖⁴ dλ)² − L², that of p ∝ w
    √E‖e‖⁴."""
    left, right = (
        torch.stack(list(v))
        for v in zip(
            *((_variances(subject, w), _least(subject, w).expand(4)) for w in WEIGHTINGS),
            strict=True,
        )
    )
    return at_least(left, right, rel=1e-6, why="quadrature")


@least_variance_of_the_loss.without("the fourth moment is under the root")
def _(subject: Subject) -> Sides:
    _, width, fourth, square = _moments(subject)
    return at_least(
        _variances(subject, WEIGHTINGS[0]),
        0.25 * (width @ fourth).square() - square,
        rel=1e-6,
        why="",
    )


def _attained(subject: Subject, importance: Callable[[Weighting, Tensor], Tensor]) -> Sides:
    """The variance of the loss under a histogram of 104 bins with this density, against the
    least."""
    edges = torch.linspace(LOW, HIGH, 105, dtype=torch.float64).tolist()
    found = []
    for weighting in WEIGHTINGS:

        def density(lam: Tensor, weighting: Weighting = weighting) -> Tensor:
            return importance(weighting, lam)

        schedule = Histogram.proportional(density, HIGH, LOW, bins=104)
        found.append(_variance(subject, schedule, weighting, *edges))
    return equal(
        torch.stack(found),
        torch.stack([_least(subject, w) for w in WEIGHTINGS]),
        rel=1e-3,
        why="bins of 1/8",
    )


@theorem(source="Cauchy and Schwarz", given="p ∝ w √E‖e‖⁴")
def least_variance_is_attained(subject: Subject) -> Sides:
    """Under p ∝ w √E‖e‖⁴ the variance of the loss is the least of all, ¼ (∫ w √E‖e‖⁴ dλ)² − L²."""
    return _attained(subject, lambda w, lam: w(lam) * _fourth(subject, lam).sqrt())


@least_variance_is_attained.without("p ∝ w √E‖e‖⁴")
def _(subject: Subject) -> Sides:
    return _attained(subject, lambda w, lam: w(lam) * subject.oracle.mmse(lam))


def adapted() -> Schedule:
    """The schedule with p(λ) ∝ E‖e‖² of `line`, a Gaussian: λ from the equidistant values of log(1
    + s² e^λ).

    >>> adapted().logsnr_max
    8.0
    """
    shift = line().variances.log().item()
    ends = [math.log1p(math.exp(level + shift)) for level in (HIGH, LOW)]
    return Custom(
        lambda t: torch.log(torch.expm1(ends[0] + (ends[1] - ends[0]) * t)) - shift,
        lambda t: (ends[0] - ends[1]) / -torch.expm1(-(ends[0] + (ends[1] - ends[0]) * t)),
    )


def _adapted_variance(schedule: Schedule) -> Sides:
    """One Gaussian on the line: E‖e‖⁴ = 3 (E‖e‖²)², so the least variance is twice L²."""
    oracle = line()
    loss = expected_loss(oracle, oracle, schedule)
    return equal(
        expected_loss(oracle, oracle, schedule, power=2) - loss.square(),
        2 * loss.square(),
        rel=1e-7,
        why="quadrature",
    )


@theorem(
    source="VDM++, arXiv:2303.00848, section 4: the adaptive schedule",
    given="p ∝ w E‖e‖²; the error is isotropic Gaussian given λ",
)
def adaptive_density_is_the_best_for_gaussian_errors(subject: Subject) -> Sides:
    """VDM++'s p ∝ w E‖e‖² has the least variance of all where e is isotropic Gaussian given λ: 2
    L²/d, here with d = 1."""
    return _adapted_variance(adapted())


@adaptive_density_is_the_best_for_gaussian_errors.without("p ∝ w E‖e‖²")
def _(subject: Subject) -> Sides:
    return _adapted_variance(Linear(HIGH, LOW))


@adaptive_density_is_the_best_for_gaussian_errors.without(
    "the error is isotropic Gaussian given λ"
)
def _(subject: Subject) -> Sides:
    lam, width = levels(LOW, HIGH)
    error = torch.sigmoid(
        lam[:, None] + torch.tensor([0.01, 1.0], dtype=torch.float64).log()
    )  # of N(0, diag(0.01, 1)), by dimension
    mean, fourth = error.sum(1), error.sum(1).square() + 2 * error.square().sum(1)
    loss = 0.5 * width @ mean
    under = (
        0.5 * loss * width @ (fourth / mean) - loss.square()
    )  # ¼ ∫ E‖e‖⁴/p − L² with p = E‖e‖²/2L
    return equal(under, 0.25 * (width @ fourth.sqrt()).square() - loss.square(), rel=1e-7, why="")


def _constant_loss(schedule: Schedule) -> Sides:
    """E[loss | t] at many t against their mean."""
    t = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    error = average(line(), schedule(t), squared(line()))
    return equal(
        0.5 * schedule.rate(t) * error,
        expected_loss(line(), line(), schedule),
        rel=1e-7,
        why="quadrature",
    )


@theorem(source="VDM++, arXiv:2303.00848, section 4: the adaptive schedule", given="p ∝ w E‖e‖²")
def adaptive_density_makes_the_loss_even(subject: Subject) -> Sides:
    """Under p ∝ w E‖e‖² the expected loss is the same at every t."""
    return _constant_loss(adapted())


@adaptive_density_makes_the_loss_even.without("p ∝ w E‖e‖²")
def _(subject: Subject) -> Sides:
    return _constant_loss(Linear(HIGH, LOW))


def _variance_gradient(move_an_end: bool) -> Sides:
    """d Var[L̂]/dη by differences against E[2 L̂ dL̂/dη], for λ(t) bent by η; x and ε by
    Gauss-Hermite, exactly."""
    oracle = line()
    grid = torch.cartesian_prod(HERMITE[0], HERMITE[0])
    mass = torch.cartesian_prod(HERMITE[1], HERMITE[1]).prod(1)
    x, eps = oracle.means[0] + oracle.variances[0].sqrt() * grid[:, :1], grid[:, 1:]
    node, width = levels(0.0, 20.0)
    t, dt = node / 20.0, width / 20.0

    def draws(eta: Tensor) -> Tensor:
        def logsnr(v: Tensor) -> Tensor:
            return HIGH - (HIGH - LOW) * v + eta * (v if move_an_end else torch.sin(torch.pi * v))

        def rate(v: Tensor) -> Tensor:
            return (
                HIGH
                - LOW
                - eta * (torch.ones_like(v) if move_an_end else torch.pi * torch.cos(torch.pi * v))
            )

        n = len(mass)
        schedule = Custom(logsnr, rate)
        loss = weighted_elbo(
            oracle,
            x.repeat(len(t), 1),
            schedule=schedule,
            t=t.repeat_interleave(n),
            eps=eps.repeat(len(t), 1),
        )
        return loss.view(len(t), n)

    def mean(v: Tensor) -> Tensor:
        return (v @ mass) @ dt

    at, h = torch.tensor(0.7, dtype=torch.float64), 1e-4
    with torch.no_grad():
        after, before = (
            mean(draws(at + s * h).square()) - mean(draws(at + s * h)).square() for s in (1, -1)
        )
    with torch.enable_grad():
        eta = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mean(draws(eta).square()), eta)
    return equal(gradient, (after - before) / (2 * h), rel=1e-5, why="a difference quotient in η")


@theorem(source="VDM, arXiv:2107.00630, appendix I.2", given="the ends are fixed")
def gradient_of_the_variance(subject: Subject) -> Sides:
    """With its ends fixed, a schedule's parameter moves the variance by E[2 L̂ dL̂/dη]: the
    gradient of the mean is zero."""
    return _variance_gradient(move_an_end=False)


@gradient_of_the_variance.without("the ends are fixed")
def _(subject: Subject) -> Sides:
    return _variance_gradient(move_an_end=True)


def _variance_under(subject: Subject, schedule: Schedule) -> Tensor:
    """¼ ∫ E‖e‖⁴/p dλ − L²."""
    lam, width, fourth, square = _moments(subject)
    found: Tensor = 0.25 * width @ (fourth / schedule.density(lam)) - square
    return found


def _one_backward(subject: Subject, follow_variance: bool) -> Sides:
    """The derivative of the variance in a direction of a shape's parameters: times m, what one
    backward pass of the loss leaves in them; and the difference quotient of the variance's
    integral over λ."""
    schedule = Spline(
        HIGH, LOW, knots=14, learn_ends=False, follow_variance=follow_variance
    )  # a knot at each whole λ
    knots = torch.arange(14, dtype=torch.float64)
    start, direction = 0.5 * torch.sin(2 * knots), torch.cos(knots)
    schedule.log_density.copy_(start)
    t, dt = panels(
        schedule.inverse(torch.linspace(HIGH, LOW, 53, dtype=torch.float64), clamp=True)
    )

    def loss(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        given = t.repeat_interleave(len(level) // len(t))
        return weighted_elbo(subject.oracle, x, schedule=schedule, t=given, eps=eps)

    mean = average(subject.oracle, schedule(t), loss) @ dt
    schedule.mean_loss.copy_(mean)
    with torch.enable_grad():
        whole = average(subject.oracle, schedule(t).detach(), loss) @ dt
        (gradient,) = torch.autograd.grad(whole, schedule.log_density)

    def variance(along: Tensor) -> Tensor:
        schedule.log_density.copy_(start + along * direction)
        return _variance_under(subject, schedule)

    right = slope(variance, torch.zeros((), dtype=torch.float64))
    return equal(
        mean * (gradient @ direction),
        right,
        rel=1e-6,
        why="a difference quotient of fourth order; quadrature",
    )


@theorem(
    source="VDM, arXiv:2107.00630, appendix I.2, with the running mean m taken off",
    given="the shape follows the variance",
)
def one_backward_gives_the_gradient_of_the_variance(subject: Subject) -> Sides:
    """What a learned shape gets from `loss.backward()` is ∇Var/m, m the mean loss: the loss is
    passed on as it is."""
    return _one_backward(subject, follow_variance=True)


@one_backward_gives_the_gradient_of_the_variance.without("the shape follows the variance")
def _(subject: Subject) -> Sides:
    return _one_backward(subject, follow_variance=False)


def _told(subject: Subject, first_moment: bool) -> Sides:
    """An adaptive schedule that has seen the errors at every λ against the least variance of all
    densities."""
    schedule = Adaptive(HIGH, LOW, bins=520, floor=1e-9, first_moment=first_moment)
    lam = (
        LOW + (HIGH - LOW) * (torch.arange(520, dtype=torch.float64) + 0.5) / 520
    )  # the middle of each bin
    mean = subject.oracle.mmse(lam)
    square = average(
        subject.oracle, lam, lambda x, eps, level: squared(subject.oracle)(x, eps, level).square()
    )
    spread = (
        square - mean.square()
    ).sqrt()  # two observations with the mean and the mean square that ‖e‖² has
    for _ in range(schedule.warmup):
        schedule.observe(lam, mean + spread)
        schedule.observe(lam, mean - spread)
    schedule.update()
    return equal(_variance_under(subject, schedule), _least(subject), rel=1e-4, why="bins of 1/40")


@theorem(
    source="Cauchy and Schwarz; VDM++, arXiv:2303.00848, has the first moment",
    given="it follows the second moment",
)
def adaptive_schedule_finds_the_least_variance(subject: Subject) -> Sides:
    """An adaptive schedule that has seen enough has the least variance of all: p ∝ w √E‖e‖⁴."""
    return _told(subject, first_moment=False)


@adaptive_schedule_finds_the_least_variance.without("it follows the second moment")
def _(subject: Subject) -> Sides:
    return _told(subject, first_moment=True)


__all__: list[str] = []
