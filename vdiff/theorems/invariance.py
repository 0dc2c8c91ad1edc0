"""What may be changed without changing the loss: the schedule's shape, the density of the draws,
the target, the process."""

import math

import torch
from torch import Tensor

from vdiff.denoiser import Denoiser, edm_time, flow_time, sigma_time
from vdiff.gaussian import alpha, diffuse, per_example
from vdiff.loss import predict_at, weighted_elbo
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Exploding, Flow, Parameterization, Score, V, X
from vdiff.prediction import Prediction
from vdiff.schedule import Cosine, Schedule
from vdiff.theorems.chains import total
from vdiff.theorems.integral import expected_loss, levels
from vdiff.theorems.shapes import BENT, CORNERS, FIXED, LEARNED
from vdiff.theorems.subject import HIGH, LOW, TIMES, Reexpressed, Subject
from vdiff.theorems.theorem import Sides, equal, paired, theorem
from vdiff.weighting import EDM, MSE, Sigmoid, Weighting, loss_factor


def _mse(
    schedules: dict[str, Schedule],
    subject: Subject,
    weighting: Weighting,
    steps: int | None = None,
) -> Tensor:
    losses = [
        expected_loss(subject.oracle, subject.oracle, s, weighting, steps=steps, corners=CORNERS)
        for s in schedules.values()
    ]
    return torch.stack(losses)


def _integral(subject: Subject, weighting: Weighting) -> Tensor:
    """½ ∫ w(λ) E‖e‖² dλ, without any schedule."""
    lam, width = levels(LOW, HIGH, *CORNERS)
    found: Tensor = 0.5 * width @ (weighting(lam) * subject.oracle.mmse(lam))
    return found


@theorem(
    source="VDM, arXiv:2107.00630, section 5.1; VDM++, arXiv:2303.00848, section 3",
    given="the ends are the same; time is continuous",
)
def schedule_invariance(subject: Subject) -> Sides:
    """The expected loss depends on the schedule through its ends alone: it is ½ ∫ w(λ) E‖ε − ε̂‖²
    dλ."""
    return equal(
        _mse(FIXED, subject, Sigmoid(2.0)),
        _integral(subject, Sigmoid(2.0)),
        rel=2e-8,
        why="quadrature over λ, x and ε",
    )


@schedule_invariance.without("time is continuous")
def _(subject: Subject) -> Sides:
    kept = {name: schedule for name, schedule in FIXED.items() if name != "table"}
    return equal(
        _mse(kept, subject, Sigmoid(2.0), steps=4),
        _integral(subject, Sigmoid(2.0)),
        rel=2e-8,
        why="",
    )


@schedule_invariance.without("the ends are the same")
def _(subject: Subject) -> Sides:
    return equal(
        _mse({"shorter": Cosine(HIGH - 2, LOW)}, subject, Sigmoid(2.0)),
        _integral(subject, Sigmoid(2.0)),
        rel=2e-8,
        why="",
    )


@theorem(source="VDM, arXiv:2107.00630, section 5.1", given="w(λ) is fixed")
def learned_schedule_invariance(subject: Subject) -> Sides:
    """A schedule that learns or adapts, whatever its shape has become, has the same expected loss
    under a fixed w(λ)."""
    found = _mse({**LEARNED, **BENT}, subject, Sigmoid(2.0))
    return equal(
        found, _integral(subject, Sigmoid(2.0)), rel=2e-7, why="quadrature over λ, x and ε"
    )


@learned_schedule_invariance.without("w(λ) is fixed")
def _(subject: Subject) -> Sides:
    losses = torch.cat(
        [_mse({name: schedule}, subject, MSE(schedule, Eps())) for name, schedule in BENT.items()]
    )  # moves with it
    return equal(losses, losses[0], rel=2e-7, why="")


def _drawn(subject: Subject, name: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator, x = subject.generator(name), subject.rows(n)
    return (
        x,
        torch.randn(x.shape, generator=generator, dtype=torch.float64),
        torch.rand(n, generator=generator, dtype=torch.float64),
    )


def _strata(schedule: Schedule, place: Tensor) -> tuple[Tensor, Tensor]:
    """A time in each of strata that are equal in λ, and their number times their width in t.

    The mean of width · f(t) is that of f over uniform t, whatever the strata are.
    """
    times = place.shape[1]
    edges = schedule.inverse(torch.linspace(HIGH, LOW, times + 1, dtype=torch.float64), clamp=True)
    edges[0], edges[-1] = 0.0, 1.0
    width = edges.diff()
    return (edges[:-1] + width * place).flatten(), (times * width).repeat(len(place))


@theorem(source="VDM, arXiv:2107.00630, section 5.1", given="time is continuous", any_network=True)
def schedule_invariance_of_any_network(subject: Subject) -> Sides:
    """Sampled with two schedules between the same ends, the loss of any network has the same
    mean."""
    (x, eps, place), w = subject.grouped("schedules"), Sigmoid(2.0)

    def loss(schedule: Schedule) -> Tensor:
        t, width = _strata(schedule, place)
        found = weighted_elbo(subject.model, x, schedule=schedule, weighting=w, t=t, eps=eps)
        return width * found

    return paired(loss(FIXED["cosine"]), loss(FIXED["normal"]), group=TIMES)


@schedule_invariance_of_any_network.without("time is continuous")
def _(subject: Subject) -> Sides:
    (x, eps, place), w = subject.grouped("schedules"), Sigmoid(2.0)
    t = (torch.floor(4 * _strata(FIXED["linear"], place)[0]) + 1) / 4

    def loss(schedule: Schedule) -> Tensor:
        model = subject.model
        return weighted_elbo(model, x, schedule=schedule, weighting=w, steps=4, t=t, eps=eps)

    return paired(loss(FIXED["cosine"]), loss(FIXED["normal"]), group=TIMES)


def _importance(subject: Subject, divided: bool) -> Sides:
    """½ w/p ‖e‖² with λ drawn from p, by hand, against the library's loss under another
    schedule."""
    x, eps, place = subject.grouped("importance")
    p = FIXED["normal"]
    u, width = _strata(p, place)
    lam = p(u)
    error = predict_at(subject.model, x, eps, lam, {}).squared_error(x, eps)
    density = p.density(lam) if divided else 1 / (HIGH - LOW)
    left = width * 0.5 * EDM()(lam) / density * error
    t, _ = _strata(FIXED["linear"], place)
    linear = FIXED["linear"]
    right = weighted_elbo(subject.model, x, schedule=linear, weighting=EDM(), t=t, eps=eps)
    return paired(left, right, group=TIMES)


@theorem(
    source="VDM++, arXiv:2303.00848, eq. 6",
    given="the density of the draws is divided out",
    any_network=True,
)
def importance_sampling_invariance(subject: Subject) -> Sides:
    """½ w(λ)/p(λ) ‖ε − ε̂‖² with λ ~ p has the same mean for every density p."""
    return _importance(subject, divided=True)


@importance_sampling_invariance.without("the density of the draws is divided out")
def _(subject: Subject) -> Sides:
    return _importance(subject, divided=False)


TARGETS: tuple[Parameterization, ...] = (X(), V(), V(0.5), Flow(), Score())


def _targets(subject: Subject, weigh: bool) -> Sides:
    x, eps, t = _drawn(subject, "targets", 256)
    schedule, losses = FIXED["cosine"], []
    for target in TARGETS:
        weighting = Sigmoid(1.0) if weigh else MSE(schedule, target)
        losses.append(
            weighted_elbo(
                Reexpressed(subject.model, target),
                x,
                schedule=schedule,
                weighting=weighting,
                t=t,
                eps=eps,
            )
        )
    z = diffuse(x, eps, schedule(t))
    noise = total((eps - subject.model(z, schedule(t)).eps).square())
    right = 0.5 * torch.sigmoid(1 - schedule(t)) * schedule.rate(t) * noise
    return equal(torch.stack(losses), right, rel=1e-8, why="float64 rounding of conversions")


@theorem(
    source="VDM, arXiv:2107.00630, appendix B; VDM++, arXiv:2303.00848, appendix C",
    given="the weighting is of the ε-loss",
    any_network=True,
)
def parameterization_invariance(subject: Subject) -> Sides:
    """The loss of every single draw is the same whether x̂, ε̂, v̂, û or the score is
    predicted."""
    return _targets(subject, weigh=True)


@parameterization_invariance.without("the weighting is of the ε-loss")
def _(subject: Subject) -> Sides:
    return _targets(subject, weigh=False)  # each target's own squared error


def _process(subject: Subject, told: bool) -> Sides:
    """The same model asked in variance exploding coordinates: it is told z/α, and scales that
    back."""
    x, eps, t = _drawn(subject, "process", 256)
    logsnr = FIXED["cosine"](t)
    z_exploding = x + per_example(torch.exp(-0.5 * logsnr), x) * eps
    scale = Exploding(X()).input_scale(logsnr)
    seen = z_exploding / per_example(torch.as_tensor(scale), x) if told else z_exploding
    said = subject.model(seen, logsnr)
    prediction = Prediction(z_exploding * per_example(alpha(logsnr), x), logsnr, said.x, X())
    left = 0.5 * FIXED["cosine"].rate(t) * prediction.squared_error(x, eps)
    right = weighted_elbo(subject.model, x, schedule=FIXED["cosine"], t=t, eps=eps)
    return equal(left, right, rel=1e-7, why="float64 rounding of conversions")


@theorem(
    source="VDM, arXiv:2107.00630, section 5.1; EDM, arXiv:2206.00364, appendix C",
    given="the input is rescaled",
    any_network=True,
)
def process_invariance(subject: Subject) -> Sides:
    """Any process with the same λ is this one rescaled: in variance exploding coordinates z/α the
    loss of each draw is the same."""
    return _process(subject, told=True)


@process_invariance.without("the input is rescaled")
def _(subject: Subject) -> Sides:
    return _process(subject, told=False)


def _published(subject: Subject, scale: float) -> Sides:
    """The same model as EDM's F, as rectified flow's velocity and as a denoiser of z/α, each told
    and fed as in its paper."""

    def edm(seen: Tensor, c_noise: Tensor) -> Tensor:  # F, fed (x + σ̃ n)/√(σ̃² + ¼)
        noise = torch.as_tensor(per_example(torch.exp(4 * c_noise), seen))
        lam = -8 * c_noise
        said = subject.model(
            scale * seen * (noise**2 + 0.25).sqrt() * per_example(alpha(lam), seen), lam
        )
        return (noise * said.x - 0.25 * said.eps) / (0.5 * (noise**2 + 0.25).sqrt())

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
        Denoiser(denoised, Exploding(X()), time=sigma_time),
    ]
    x, eps, t = _drawn(subject, "published", 128)
    losses = [weighted_elbo(model, x, schedule=FIXED["cosine"], t=t, eps=eps) for model in models]
    return equal(
        torch.stack(losses),
        weighted_elbo(subject.model, x, schedule=FIXED["cosine"], t=t, eps=eps),
        rel=1e-7,
        why="float64 rounding",
    )


@theorem(
    source="EDM, arXiv:2206.00364, table 1; Flow matching, arXiv:2210.02747",
    given="the input is scaled by c_in",
    any_network=True,
)
def published_networks_are_one_model(subject: Subject) -> Sides:
    """EDM's F, a rectified flow's velocity and D(x; σ), each fed and told as in its paper, have
    the loss of the same model."""
    return _published(subject, 1.0)


@published_networks_are_one_model.without("the input is scaled by c_in")
def _(subject: Subject) -> Sides:
    return _published(subject, 1.1)


def _rescaled(subject: Subject, shifted: bool) -> Sides:
    """The error on data times b, at λ, and on data as it is, at λ + 2 log b."""
    b, oracle = 3.0, subject.oracle
    larger = GaussianMixture(oracle.weights, b * oracle.means, b**2 * oracle.variances)
    lam = torch.linspace(-6, 4, 6, dtype=torch.float64)
    return equal(
        larger.mmse(lam),
        oracle.mmse(lam + 2 * math.log(b) if shifted else lam),
        rel=1e-9,
        why="quadrature over z",
    )


@theorem(
    source="simple diffusion, arXiv:2301.11093, section 2: shifted schedules",
    given="λ is shifted by 2 log b",
)
def scale_of_the_data_is_a_shift(subject: Subject) -> Sides:
    """Multiplying the data by b is shifting log-SNR by 2 log b: E‖e‖² of b·x at λ is that of x at
    λ + 2 log b."""
    return _rescaled(subject, shifted=True)


@scale_of_the_data_is_a_shift.without("λ is shifted by 2 log b")
def _(subject: Subject) -> Sides:
    return _rescaled(subject, shifted=False)


def _own_loop(subject: Subject, target: Parameterization, read_as: Parameterization) -> Sides:
    x, eps, t = _drawn(subject, "loop", 256)
    schedule = FIXED["normal"]
    logsnr = schedule(t)
    prediction = subject.model(diffuse(x, eps, logsnr), logsnr)
    error = total((target.target(x, eps, logsnr) - prediction.read(target)).square())
    left = loss_factor(Sigmoid(2.0), schedule, read_as)(logsnr) * error
    right = weighted_elbo(
        subject.model, x, schedule=schedule, weighting=Sigmoid(2.0), t=t, eps=eps
    )
    return equal(left, right, rel=1e-7, why="float64 rounding of conversions")


@theorem(
    source="VDM++, arXiv:2303.00848, appendix D",
    given="the factor is the target's own",
    any_network=True,
)
def factor_of_a_loop(subject: Subject) -> Sides:
    """A loop's squared error on v, times w/(2 p κ²), is the weighted loss of each draw."""
    return _own_loop(subject, V(), V())


@factor_of_a_loop.without("the factor is the target's own")
def _(subject: Subject) -> Sides:
    return _own_loop(subject, V(), X())  # the published bugs of min-SNR


__all__: list[str] = []
