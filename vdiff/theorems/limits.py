"""Steps and their limit: what T steps cost, with which rate, and what does not follow."""

from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.decoder import normal_nodes
from vdiff.loss import Model, weighted_elbo
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.schedule import Cosine, Custom, Linear, OptimalTransport, Schedule
from vdiff.theorems.integral import average, expected_loss, levels, log_normal, slope, squared
from vdiff.theorems.subject import Subject, biased, line, scaled_x
from vdiff.theorems.theorem import Sides, at_least, equal, theorem

HIGH, LOW = 5.0, -5.0
DOUBLINGS = (1, 2, 4, 8, 16, 32, 64)
SCHEDULES: tuple[Schedule, ...] = (
    Linear(HIGH, LOW),
    Cosine(HIGH, LOW),
    OptimalTransport(HIGH, LOW),
)
QUADRATURE = "quadrature over x and ε"


def limit(model: Model, oracle: GaussianMixture, high: float = HIGH, low: float = LOW) -> Tensor:
    """L_∞ = ½ ∫ E‖e‖² dλ."""
    lam, width = levels(low, high)
    return 0.5 * width @ average(oracle, lam, squared(model))


def _doubled(
    model: Model, oracle: GaussianMixture, schedule: Schedule, counts: tuple[int, ...] = DOUBLINGS
) -> Tensor:
    return torch.stack([expected_loss(model, oracle, schedule, steps=n) for n in counts])


@theorem(
    source="VDM, arXiv:2107.00630, section 5.1 and appendix F",
    given="each step is divided; the denoiser is the exact one",
)
def refinement(subject: Subject) -> Sides:
    """Dividing each step of a chain never raises the bound of the exact denoiser: L_T ≥ L_2T."""
    losses = torch.stack(
        [_doubled(subject.oracle, subject.oracle, schedule) for schedule in SCHEDULES]
    )
    return at_least(losses[:, :-1], losses[:, 1:], rel=1e-9, why=QUADRATURE)


def _coin(schedule: Schedule, steps: int) -> Tensor:
    """L_T of x = ±1, by nodes of ε alone."""
    oracle, (node, mass) = Lattice([-1.0, 1.0], [0.5, 0.5]), normal_nodes()
    x, eps = (
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat_interleave(len(node), 0),
        node.repeat(2)[:, None],
    )
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    each = [
        0.5
        * mass.repeat(2)
        @ weighted_elbo(oracle, x, schedule=schedule, steps=steps, t=t.expand(len(x)), eps=eps)
        for t in times
    ]
    return torch.stack(each).mean()


@refinement.without("each step is divided")
def _(subject: Subject) -> Sides:
    losses = torch.stack(
        [_coin(Linear(12.0, -6.0), steps) for steps in (1, 2, 3, 4, 5)]
    )  # 8e4, 11, 91, 8.2, 7.6
    return at_least(losses[:-1], losses[1:], rel=1e-9, why=QUADRATURE)


@refinement.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    losses = _doubled(scaled_x(subject.oracle, 3.0), subject.oracle, Linear(13.3, -5.0))
    return at_least(losses[:-1], losses[1:], rel=1e-9, why=QUADRATURE)


@theorem(source="VDM, arXiv:2107.00630, section 5.1", given="the denoiser is the exact one")
def discrete_bound_is_looser(subject: Subject) -> Sides:
    """With the exact denoiser a chain of any number of steps has a looser bound than continuous
    time: L_T ≥ L_∞."""
    counts = (1, 2, 3, 5, 7, 30)
    losses = torch.stack(
        [_doubled(subject.oracle, subject.oracle, schedule, counts) for schedule in SCHEDULES]
    )
    return at_least(losses, limit(subject.oracle, subject.oracle), rel=1e-7, why=QUADRATURE)


@discrete_bound_is_looser.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    bad, wide = scaled_x(subject.oracle, 3.0), Linear(13.3, -5.0)
    return at_least(
        _doubled(bad, subject.oracle, wide),
        limit(bad, subject.oracle, 13.3, -5.0),
        rel=1e-7,
        why=QUADRATURE,
    )


def _extrapolated(
    model: Model,
    oracle: GaussianMixture,
    schedule: Schedule,
    base: Tensor | float,
    start: int = 32,
) -> tuple[Tensor, Tensor]:
    """The limit of T (L_T − base) by Richardson's extrapolation, and how far its last two orders
    lie apart."""
    counts = tuple(start * 2**k for k in range(4))
    row = torch.tensor(counts, dtype=torch.float64) * (
        _doubled(model, oracle, schedule, counts) - base
    )
    before = row[-1]
    for order in (1, 2, 3):
        before, row = row[-1], (2**order * row[1:] - row[:-1]) / (2**order - 1)
    return row[0], (row[0] - before).abs()


def _first_order(
    subject: Subject, errors_of: Callable[[Model], Model] = lambda model: model
) -> Sides:
    """lim T (L_T − L_∞) of the exact and of a biased denoiser, against ¼ ∫ (m − m') λ'² dt of the
    errors of each."""
    lam, width = levels(LOW, HIGH)
    left, right, allowed = [], [], []
    for model, schedules in ((subject.oracle, SCHEDULES), (biased(subject.oracle), SCHEDULES[:2])):
        spread = _spread(errors_of(model), subject.oracle, lam)
        for schedule in schedules:
            value, error = _extrapolated(
                model, subject.oracle, schedule, limit(model, subject.oracle)
            )
            left.append(value)
            allowed.append(2 * error)
            right.append(0.25 * width @ (spread * schedule.rate(schedule.inverse(lam))))
    return Sides(
        torch.stack(left),
        torch.stack(right),
        torch.stack(allowed),
        "twice the difference of the last two orders of extrapolation",
    )


def _spread(model: Model, oracle: GaussianMixture, lam: Tensor) -> Tensor:
    """m − dm/dλ, m = E‖e‖² of this model."""

    def error(level: Tensor) -> Tensor:
        return average(oracle, level, squared(model))

    return error(lam) - slope(error, lam)


@theorem(
    source="of the trapezoid's error; VDM, arXiv:2107.00630, appendix F has the limit",
    given="m is of this denoiser, which is smooth in λ",
)
def rate_of_discretization(subject: Subject) -> Sides:
    """L_T − L_∞ = c₁/T + O(T⁻²) with c₁ = ¼ ∫ (m − dm/dλ) λ'(t)² dt, m = E‖e‖² of the denoiser
    itself, exact or not."""
    return _first_order(subject)


@rate_of_discretization.without("m is of this denoiser")
def _(subject: Subject) -> Sides:
    return _first_order(subject, lambda model: subject.oracle)


def _covariance(oracle: GaussianMixture, lam: Tensor) -> Tensor:
    """E‖Cov(ε | z)‖² on the line: Var(ε | z) from the posterior over the components and within
    them, by a sum over z."""
    found = []
    z = torch.linspace(-12, 12, 6001, dtype=torch.float64)[:, None]
    mean, variance, weight = oracle.means[:, 0], oracle.variances[:, 0], oracle.weights
    for level in lam:
        a2, s2 = torch.sigmoid(level), torch.sigmoid(-level)
        total = a2 * variance + s2
        density = weight * log_normal(z, a2.sqrt() * mean, total.sqrt()).exp()
        share = density / density.sum(1, keepdim=True).clamp(min=1e-300)
        eps = (
            s2.sqrt() * (z - a2.sqrt() * mean) / total
        )  # E[ε | z, k]; the spread of ε given z and k is α² v/total
        spread = (share * (a2 * variance / total + eps.square())).sum(1) - (share * eps).sum(
            1
        ).square()
        found.append((density.sum(1) * spread.square()).sum() * (z[1, 0] - z[0, 0]))
    return torch.stack(found)


AT = torch.tensor([-4.0, -1.0, 0.5, 3.0], dtype=torch.float64)


@theorem(
    source="of dmmse/dSNR = −E‖Cov(x | z)‖², arXiv:0903.1484, in terms of ε",
    given="the denoiser is the exact one",
)
def derivative_of_the_exact_error(subject: Subject) -> Sides:
    """For the exact denoiser m − dm/dλ = E‖Cov(ε | z)‖²_F, m = E‖e‖²: never negative, so that c₁ ≥
    0."""
    return equal(
        _spread(subject.oracle, subject.oracle, AT),
        _covariance(subject.oracle, AT),
        rel=1e-7,
        why="a difference quotient in λ",
    )


@derivative_of_the_exact_error.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return equal(
        _spread(biased(subject.oracle), subject.oracle, AT),
        _covariance(subject.oracle, AT),
        rel=1e-7,
        why="",
    )


@theorem(source="VDM, arXiv:2107.00630, section 4.1", given="T → ∞")
def continuous_limit(subject: Subject) -> Sides:
    """L_T tends to the loss in continuous time, for an inexact denoiser too."""
    model, schedule = biased(subject.oracle), SCHEDULES[1]
    chains = _doubled(model, subject.oracle, schedule, (64, 128, 256))
    once = 2 * chains[1:] - chains[:-1]
    best = (4 * once[1] - once[0]) / 3
    return Sides(
        best,
        expected_loss(model, subject.oracle, schedule),
        (best - once[1]).abs(),
        "the last order of extrapolation",
    )


@continuous_limit.without("T → ∞")
def _(subject: Subject) -> Sides:
    model, schedule = biased(subject.oracle), SCHEDULES[1]
    return equal(
        _doubled(model, subject.oracle, schedule, (16,)),
        expected_loss(model, subject.oracle, schedule),
        rel=1e-4,
        why="",
    )


def _same_at_every_t(subject: Subject, model: Model) -> Sides:
    square = (
        subject.oracle.weights @ (subject.oracle.means.square() + subject.oracle.variances)
    ).sum()
    signal = torch.tensor([HIGH, LOW], dtype=torch.float64).exp()
    losses = torch.stack(
        [_doubled(model, subject.oracle, schedule, (1, 3, 10)) for schedule in SCHEDULES]
    )
    return equal(losses, 0.5 * (signal[0] - signal[1]) * square, rel=1e-9, why=QUADRATURE)


@theorem(source="of the telescoping sum of SNR", given="the denoiser says x̂ = 0")
def denoiser_that_says_zero(subject: Subject) -> Sides:
    """A model that says x̂ = 0 has the same bound for every T and schedule: ½ (SNR_max − SNR_min)
    E‖x‖²."""
    return _same_at_every_t(subject, scaled_x(subject.oracle, 0.0))


@denoiser_that_says_zero.without("the denoiser says x̂ = 0")
def _(subject: Subject) -> Sides:
    return _same_at_every_t(subject, scaled_x(subject.oracle, 0.5))


def _placed(schedule: Schedule) -> Sides:
    """c₁ of N(0, 1) under a schedule, against its least: (∫ √(m − m') dλ)²/4, with m − m' =
    sigmoid(λ)²."""
    oracle = type(line())([0.0], [1.0])
    soft = torch.nn.functional.softplus(torch.tensor([HIGH, LOW], dtype=torch.float64))
    value, error = _extrapolated(oracle, oracle, schedule, 0.5 * (soft[0] - soft[1]))
    return Sides(
        value,
        0.25 * (soft[0] - soft[1]).square(),
        2 * error,
        "twice the difference of the last two orders of extrapolation",
    )


@theorem(
    source="of the rate c₁, by Cauchy and Schwarz",
    given="steps are placed with −dλ/dt ∝ (m − m')^(−½)",
)
def best_placement_of_steps(subject: Subject) -> Sides:
    """The least c₁ is ¼ (∫ √(m − m') dλ)², for steps with −dλ/dt ∝ (m − m')^(−½)."""
    soft = torch.nn.functional.softplus(torch.tensor([HIGH, LOW], dtype=torch.float64)).tolist()
    return _placed(
        Custom(
            lambda t: torch.log(torch.expm1(soft[0] + (soft[1] - soft[0]) * t)),
            lambda t: (soft[0] - soft[1]) / -torch.expm1(-(soft[0] + (soft[1] - soft[0]) * t)),
        )
    )


@best_placement_of_steps.without("steps are placed with −dλ/dt ∝ (m − m')^(−½)")
def _(subject: Subject) -> Sides:
    return _placed(Linear(HIGH, LOW))


__all__: list[str] = []
