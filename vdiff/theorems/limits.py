"""The limit of many steps: the cost of T steps, its rate, and what does not hold."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vdiff.loss import Model
from vdiff.oracle import Gaussian, GaussianMixture, Lattice
from vdiff.schedule import Cosine, Custom, Linear, OptimalTransport, Schedule
from vdiff.theorems.integral import average, expected_loss, integral, levels, log_normal, slope
from vdiff.theorems.integral import squared as squared_error
from vdiff.theorems.subject import ORACLE, biased, f64, scaled_x
from vdiff.theorems.theorem import Sides, at_least, equal, theorem

VDM, EXACT = "VDM, arXiv:2107.00630", "the denoiser is the exact one"
HIGH, LOW = 5.0, -5.0
ENDS = (HIGH, LOW)
LINEAR, COSINE, STRAIGHT = Linear(HIGH, LOW), Cosine(HIGH, LOW), OptimalTransport(HIGH, LOW)
FIXED = (LINEAR, COSINE, STRAIGHT)
COIN = Lattice([-1.0, 1.0], [0.5, 0.5])
BIASED, TRIPLED = biased(ORACLE), scaled_x(ORACLE, 3.0)
QUADRATURE = "quadrature over x and ε"
EXTRAPOLATED = "twice the difference of the last two orders of extrapolation"


def _losses(
    model: Model, data: GaussianMixture, schedule: Schedule, counts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """L_T of each T, through `weighted_elbo` and as Σ ½ expm1(Δ) E‖e‖² written out."""
    loss, written = [], []
    for n in counts:
        lam = schedule(torch.arange(n + 1, dtype=torch.float64) / n)
        error = average(data, lam[1:], squared_error(model))
        written.append(0.5 * torch.expm1(-lam.diff()) @ error)
        loss.append(expected_loss(model, data, schedule, steps=n))
    return torch.stack(loss), torch.stack(written)


@theorem(
    f"{VDM}, section 5.1 and appendix F",
    without={
        "each step is divided": {
            "model": COIN, "data": COIN, "schedules": (Linear(12.0, -6.0),), "counts": (1, 2, 3, 4,
            5),
        },
        EXACT: {"model": TRIPLED, "schedules": (Linear(13.3, -5.0),)},
    },
)  # fmt: skip
def refinement(
    model: Model = ORACLE,
    data: GaussianMixture = ORACLE,
    schedules: tuple[Schedule, ...] = FIXED,
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128),
) -> Sides:
    """Dividing each step of a chain never raises the bound of the exact denoiser: L_T ≥ L_2T."""
    pairs = [_losses(model, data, schedule, counts) for schedule in schedules]
    left = torch.stack([torch.stack([a[:-1], b[:-1]]) for a, b in pairs])
    right = torch.stack([torch.stack([b[1:], a[1:]]) for a, b in pairs])
    return at_least(left, right, rel=1e-9, why=QUADRATURE)


@theorem(
    f"{VDM}, section 5.1", without={EXACT: {"model": TRIPLED, "schedules": (Linear(13.3, -5.0),)}}
)
def discrete_bound_is_looser(
    model: Model = ORACLE, schedules: tuple[Schedule, ...] = FIXED
) -> Sides:
    """With the exact denoiser a chain of any number of steps has a looser bound than continuous
    time: L_T ≥ L_∞."""
    left, right = [], []
    for schedule in schedules:
        ends = schedule.logsnr_max, schedule.logsnr_min
        left.append(torch.stack(_losses(model, ORACLE, schedule, (1, 2, 3, 5, 7, 30, 100))))
        limits = integral(model=model, ends=ends), expected_loss(model, ORACLE, schedule)
        right.append(torch.stack(limits)[:, None])
    return at_least(torch.stack(left), torch.stack(right), rel=1e-7, why=QUADRATURE)


def _rate(
    model: Model, data: GaussianMixture, schedule: Schedule, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """The limit of T (L_T − L_∞) by Richardson's extrapolation, and how far its last two orders
    are apart."""
    counts = tuple(32 * 2**k for k in range(4))
    losses = [expected_loss(model, data, schedule, steps=n) for n in counts]
    row = f64(counts) * (torch.stack(losses) - limit)
    before = row[-1]
    for order in (1, 2, 3):
        before, row = row[-1], (2**order * row[1:] - row[:-1]) / (2**order - 1)
    return row[0], (row[0] - before).abs()


def _spread(model: Model, lam: Tensor) -> Tensor:
    """m − dm/dλ, m = E‖e‖² of this model."""

    def error(level: Tensor) -> Tensor:
        return average(ORACLE, level, squared_error(model))

    return error(lam) - slope(error, lam)


@theorem(
    f"of the trapezoid's error; {VDM}, appendix F has the limit",
    without={"m is of this denoiser": {"errors_of": ORACLE}},
)
def rate_of_discretization(errors_of: Model | None = None) -> Sides:
    """L_T − L_∞ = c₁/T + O(T⁻²) with c₁ = ¼ ∫ (m − dm/dλ) λ'(t)² dt, m = E‖e‖² of the denoiser
    itself, exact or not, if it is smooth in λ."""
    (lam, width), left, right = levels(LOW, HIGH), [], []
    for model, schedules in ((ORACLE, FIXED), (BIASED, FIXED[:2])):
        limit, spread = integral(model=model, ends=ENDS), _spread(errors_of or model, lam)
        for schedule in schedules:
            left.append(torch.stack(_rate(model, ORACLE, schedule, limit)))
            right.append(0.25 * width @ (spread * schedule.rate(schedule.inverse(lam))))
    value, error = torch.stack(left, 1)
    return Sides(value, torch.stack(right), 2 * error, EXTRAPOLATED)


def _covariance(level: Tensor) -> Tensor:
    """E Var(ε | z)² on the line, from the posterior over the components and within them, by a sum
    over z."""
    z, dz = torch.linspace(-12, 12, 6001, dtype=torch.float64)[:, None], 24 / 6000
    mean, variance = ORACLE.means[:, 0], ORACLE.variances[:, 0]
    a2, s2 = torch.sigmoid(level), torch.sigmoid(-level)
    total = a2 * variance + s2
    density = ORACLE.weights * log_normal(z, a2.sqrt() * mean, total.sqrt()).exp()
    share = density / density.sum(1, keepdim=True).clamp(min=1e-300)
    eps = s2.sqrt() * (z - a2.sqrt() * mean) / total  # E[ε | z, k]; Var[ε | z, k] = α² v/total
    second = (share * (a2 * variance / total + eps.square())).sum(1)
    spread = second - (share * eps).sum(1).square()
    return density.sum(1) @ spread.square() * dz


@theorem(
    "from dmmse/dSNR = −E‖Cov(x | z)‖², arXiv:0903.1484, in terms of ε",
    without={EXACT: {"model": BIASED}},
)
def derivative_of_the_exact_error(model: Model = ORACLE) -> Sides:
    """For the exact denoiser m − dm/dλ = E‖Cov(ε | z)‖²_F, m = E‖e‖²: never negative, so that c₁ ≥
    0."""
    at = f64([-4.0, -1.0, 0.5, 3.0])
    left = torch.stack([_spread(model, at), ORACLE.mmse(at) - slope(ORACLE.mmse, at)])
    right = torch.stack([_covariance(level) for level in at])
    return equal(left, right, rel=1e-7, why="a difference quotient in λ")


@theorem(f"{VDM}, section 4.1", without={"T → ∞": {"counts": (4, 8, 16), "orders": 0}})
def continuous_limit(counts: tuple[int, ...] = (64, 128, 256), orders: int = 2) -> Sides:
    """L_T tends to the loss in continuous time, ½ ∫ E‖ε − ε̂‖² dλ, for an inexact denoiser too."""
    row = torch.stack([expected_loss(BIASED, ORACLE, COSINE, steps=n) for n in counts])
    for order in range(1, orders + 1):
        row = (2**order * row[1:] - row[:-1]) / (2**order - 1)
    left = torch.stack([row[-1], expected_loss(BIASED, ORACLE, COSINE)])
    right = integral(model=BIASED, ends=ENDS)
    return equal(left, right, rel=1e-4, why="the next order of extrapolation")


@theorem("of the telescoping sum of SNR", without={"the denoiser's x̂ is 0": {"scale": 0.5}})
def denoiser_that_says_zero(scale: float = 0.0) -> Sides:
    """A model with x̂ = 0 has the same bound for every T and schedule: ½ (SNR_max − SNR_min)
    E‖x‖²."""
    model = scaled_x(ORACLE, scale)
    left = [
        expected_loss(model, ORACLE, schedule, steps=n) for schedule in FIXED for n in (1, 3, 10)
    ]
    square = (ORACLE.weights @ (ORACLE.means.square() + ORACLE.variances)).sum()
    signal = f64(ENDS).exp()
    return equal(
        torch.stack(left), 0.5 * (signal[0] - signal[1]) * square, rel=1e-9, why=QUADRATURE
    )


TOP, BOTTOM = softplus(f64(ENDS))  # ∫ √(m − m') dλ of N(0, 1), whose m − m' is sigmoid(λ)²
BEST = Custom(
    lambda t: torch.log(torch.expm1(TOP + (BOTTOM - TOP) * t)),
    lambda t: (TOP - BOTTOM) / -torch.expm1(-(TOP + (BOTTOM - TOP) * t)),
)


@theorem(
    "from the rate c₁, by Cauchy and Schwarz",
    without={"steps are placed with −dλ/dt ∝ (m − m')^(−½)": {"schedule": LINEAR}},
)
def best_placement_of_steps(schedule: Schedule = BEST) -> Sides:
    """The least c₁ is ¼ (∫ √(m − m') dλ)², for steps with −dλ/dt ∝ (m − m')^(−½); here of N(0,
    1)."""
    unit = Gaussian([0.0], [1.0])
    value, error = _rate(unit, unit, schedule, 0.5 * (TOP - BOTTOM))
    return Sides(value, 0.25 * (TOP - BOTTOM).square(), 2 * error, EXTRAPOLATED)
