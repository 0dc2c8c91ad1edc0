"""Changes that leave the loss the same: the schedule's shape, the density of the draws, the
target, the process."""

import math

import torch
from torch import Tensor

from vdiff.denoiser import Denoiser, edm_time, flow_time, sigma_time
from vdiff.gaussian import alpha, per_example, sum_dims
from vdiff.loss import predict_at, weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, Parameterization, Score, V, VarianceExploding, X
from vdiff.schedule import Cosine, Schedule, Shifted
from vdiff.theorems.integral import QUADRATURE, expected_loss, integral
from vdiff.theorems.shapes import BENT, CORNERS, FIXED, LEARNED
from vdiff.theorems.subject import HIGH, LOW, ORACLE, TIMES, Reexpressed, Subject
from vdiff.theorems.theorem import Sides, equal, paired, theorem
from vdiff.weighting import EDM, MSE, Sigmoid, loss_factor

VDM, VDMPP = "VDM, arXiv:2107.00630", "VDM++, arXiv:2303.00848"
COSINE, LINEAR, NORMAL = FIXED["cosine"], FIXED["linear"], FIXED["normal"]
OF_V = V()
WITHOUT_TABLE = tuple(schedule for name, schedule in FIXED.items() if name != "table")


@theorem(
    f"{VDM}, section 5.1; {VDMPP}, section 3",
    without={
        "time is continuous": {"schedules": WITHOUT_TABLE, "steps": 4},
        "the ends are the same": {"schedules": (Cosine(HIGH - 2, LOW),)},
    },
)
def schedule_invariance(
    schedules: tuple[Schedule, ...] = tuple(FIXED.values()), steps: int | None = None
) -> Sides:
    """The expected loss depends on the schedule only through its ends: it is ½ ∫ w(λ) E‖ε − ε̂‖²
    dλ."""
    w = Sigmoid(2.0)
    losses = [
        expected_loss(ORACLE, ORACLE, schedule, w, steps=steps, corners=CORNERS)
        for schedule in schedules
    ]
    return equal(torch.stack(losses), integral(w, corners=CORNERS), rel=2e-8, why=QUADRATURE)


@theorem(f"{VDM}, section 5.1", without={"w(λ) is fixed": {"learned": {}, "moves": True}})
def learned_schedule_invariance(
    learned: dict[str, Schedule] = LEARNED, moves: bool = False
) -> Sides:
    """A learned or adaptive schedule of any shape has the same expected loss under a fixed
    w(λ)."""
    schedules = [*BENT.values(), *learned.values()]
    weightings = [MSE(one, Eps()) if moves else Sigmoid(2.0) for one in schedules]
    losses = [
        expected_loss(ORACLE, ORACLE, schedule, w, corners=CORNERS)
        for schedule, w in zip(schedules, weightings, strict=True)
    ]
    right = integral(weightings[0], corners=CORNERS)
    return equal(torch.stack(losses), right, rel=2e-7, why=QUADRATURE)


def _strata(schedule: Schedule, place: Tensor) -> tuple[Tensor, Tensor]:
    """A time in each of strata that are equal in λ, and their number times their width in t.

    The mean of width · f(t) is that of f over uniform t, whatever the strata are.
    """
    times = place.shape[1]
    edges = schedule.inverse(torch.linspace(HIGH, LOW, times + 1, dtype=torch.float64), clamp=True)
    edges[0], edges[-1] = 0.0, 1.0
    width = edges.diff()
    return (edges[:-1] + width * place).flatten(), (times * width).repeat(len(place))


@theorem(f"{VDM}, section 5.1", without={"time is continuous": {"steps": 4}})
def schedule_invariance_of_any_network(subject: Subject, steps: int | None = None) -> Sides:
    """Sampled with any schedule between the same ends, the loss of any network has the mean ½ ∫
    w(λ) E‖ε − ε̂‖² dλ."""
    (x, eps, place), w = subject.grouped("schedules"), Sigmoid(2.0)
    lam = LINEAR(_strata(LINEAR, place)[0])
    said = predict_at(subject.model, x, eps, lam, {})
    written = (HIGH - LOW) * 0.5 * torch.sigmoid(2 - lam) * sum_dims((eps - said.eps).square())
    pairs = []
    for schedule in (COSINE, NORMAL):
        t, width = _strata(LINEAR if steps else schedule, place)
        t = t if steps is None else (torch.floor(steps * t) + 1) / steps
        loss = weighted_elbo(
            subject.model, x, schedule=schedule, weighting=w, steps=steps, t=t, eps=eps
        )
        pairs.append(paired(width * loss, written, group=TIMES))
    left, right, allowed = (
        torch.cat(part) for part in zip(*(p.cases for p in pairs), strict=True)
    )
    return Sides(left, right, allowed, pairs[0].why)


@theorem(
    f"{VDMPP}, eq. 6", without={"the density of the draws is divided out": {"divided": False}}
)
def importance_sampling_invariance(subject: Subject, divided: bool = True) -> Sides:
    """½ w(λ)/p(λ) ‖ε − ε̂‖² with λ ~ p has the same mean for every density p."""
    (x, eps, place), w = subject.grouped("importance"), EDM()
    u, width = _strata(NORMAL, place)
    lam = NORMAL(u)
    error = predict_at(subject.model, x, eps, lam, {}).squared_error(x, eps)
    density = NORMAL.density(lam) if divided else 1 / (HIGH - LOW)
    t, _ = _strata(LINEAR, place)
    right = weighted_elbo(subject.model, x, schedule=LINEAR, weighting=w, t=t, eps=eps)
    return paired(width * 0.5 * w(lam) / density * error, right, group=TIMES)


def _written(subject: Subject, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """½ (−dλ/dt) ‖ε − ε̂‖² of each draw, under the cosine schedule."""
    said = predict_at(subject.model, x, eps, COSINE(t), {})
    return 0.5 * COSINE.rate(t) * sum_dims((eps - said.eps).square())


@theorem(
    f"{VDM}, appendix B; {VDMPP}, appendix C",
    without={"the weighting is of the ε-loss": {"of_each": True}},
)
def parameterization_invariance(subject: Subject, of_each: bool = False) -> Sides:
    """The loss of every single draw is the same whether x̂, ε̂, v̂, û or the score is
    predicted."""
    (x, eps, t), losses = subject.drawn("targets", 256), []
    for target in (X(), V(), V(0.5), Flow(), Score()):
        model, w = Reexpressed(subject.model, target), MSE(COSINE, target)
        weighting = w if of_each else Sigmoid(1.0)
        losses.append(weighted_elbo(model, x, schedule=COSINE, weighting=weighting, t=t, eps=eps))
    right = torch.sigmoid(1 - COSINE(t)) * _written(subject, x, eps, t)
    return equal(torch.stack(losses), right, rel=1e-8, why="float64 rounding of conversions")


@theorem(
    f"{VDM}, section 5.1; EDM, arXiv:2206.00364, appendix C",
    without={"the input is rescaled": {"rescaled": False}},
)
def process_invariance(subject: Subject, rescaled: bool = True) -> Sides:
    """Any process with the same λ is this one rescaled: in variance exploding coordinates z/α the
    loss of each draw is the same."""

    def network(seen: Tensor, lam: Tensor) -> Tensor:  # fed x + e^{−λ/2} ε
        z = seen * per_example(alpha(lam), seen) if rescaled else seen
        return subject.model(z, lam).x

    x, eps, t = subject.drawn("process", 256)
    model = Denoiser(network, VarianceExploding(X()))
    left = weighted_elbo(model, x, schedule=COSINE, t=t, eps=eps)
    why = "float64 rounding of conversions"
    return equal(left, _written(subject, x, eps, t), rel=1e-7, why=why)


@theorem(
    "EDM, arXiv:2206.00364, table 1; Flow matching, arXiv:2210.02747",
    without={"the input is scaled by c_in": {"scale": 1.1}},
)
def published_networks_are_one_model(subject: Subject, scale: float = 1.0) -> Sides:
    """EDM's F, a rectified flow's velocity and D(x; σ), each with the input and the time of its
    paper, have the loss of the same model."""

    def edm(seen: Tensor, c_noise: Tensor) -> Tensor:  # F, fed (x + σ̃ n)/√(σ̃² + ¼)
        noise = torch.as_tensor(per_example(torch.exp(4 * c_noise), seen))
        lam, total = -8 * c_noise, (noise**2 + 0.25).sqrt()
        said = subject.model(scale * seen * total * per_example(alpha(lam), seen), lam)
        return (noise * said.x - 0.25 * said.eps) / (0.5 * total)

    def velocity(seen: Tensor, time: Tensor) -> Tensor:  # fed (1 − t) x + t ε
        lam = 2 * torch.log((1 - time) / time)
        said = subject.model(scale * seen * per_example(alpha(lam) / (1 - time), seen), lam)
        return said.eps - said.x

    def denoised(seen: Tensor, noise: Tensor) -> Tensor:  # D, fed x + σ̃ n
        lam = -2 * torch.log(noise)
        return subject.model(scale * seen * per_example(alpha(lam), seen), lam).x

    models = [
        Denoiser(edm, V(0.5), time=edm_time, output=torch.neg),
        Denoiser(velocity, Flow(), time=flow_time),
        Denoiser(denoised, VarianceExploding(X()), time=sigma_time),
    ]
    x, eps, t = subject.drawn("published", 128)
    losses = [weighted_elbo(model, x, schedule=COSINE, t=t, eps=eps) for model in models]
    return equal(torch.stack(losses), _written(subject, x, eps, t), rel=1e-7)


@theorem(
    "simple diffusion, arXiv:2301.11093, section 2: shifted schedules",
    without={"λ is shifted by 2 log b": {"shift": 0.0}},
)
def scale_of_the_data_is_a_shift(shift: float = -2 * math.log(3.0)) -> Sides:
    """Multiplying the data by b is shifting log-SNR by 2 log b: with the schedule shifted by −2
    log b, the loss of b·x at each t is that of x."""
    b, t = 3.0, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    larger = GaussianMixture(ORACLE.weights, b * ORACLE.means, b**2 * ORACLE.variances)
    left = expected_loss(larger, larger, Shifted(COSINE, shift), t=t)
    right = 0.5 * COSINE.rate(t) * ORACLE.mmse(COSINE(t))
    return equal(left, right, rel=1e-8, why="quadrature over x and ε")


@theorem(f"{VDMPP}, appendix D", without={"the factor is the target's own": {"read_as": X()}})
def factor_of_a_loop(subject: Subject, read_as: Parameterization = OF_V) -> Sides:
    """A loop's squared error on v, times w/(2 p κ²), is the weighted loss of each draw."""
    x, eps, t = subject.drawn("loop", 256)
    logsnr, w = NORMAL(t), Sigmoid(2.0)
    said = predict_at(subject.model, x, eps, logsnr, {})
    error = sum_dims((V().target(x, eps, logsnr) - said.as_target(V())).square())
    left = loss_factor(w, NORMAL, read_as)(logsnr) * error
    right = weighted_elbo(subject.model, x, schedule=NORMAL, weighting=w, t=t, eps=eps)
    return equal(left, right, rel=1e-7, why="float64 rounding of conversions")
