"""The chain of T steps: divergences of Gaussians, its terms in every parameterization, the sum
that telescopes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step, alpha, per_example, sigma, step_kl
from vdiff.loss import Model, WeightFunction, predict_at, weighted_elbo
from vdiff.parameterization import (
    Eps,
    Flow,
    Parameterization,
    PosteriorMean,
    Score,
    V,
    X,
)
from vdiff.prediction import Prediction
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw, reverse_kl, reverse_log_ratio
from vdiff.schedule import Linear, Schedule, Tabulated
from vdiff.theorems.integral import log_normal, panels
from vdiff.theorems.subject import FEWEST, HIGH, LOW, Subject
from vdiff.theorems.theorem import Sides, equal, paired, theorem
from vdiff.variance import Forward, Posterior
from vdiff.weighting import MSE, Sigmoid, loss_factor

STEPS = 8
REPEATS = 32  # draws of z_s at each z_t, which take no evaluation
CHAIN = Linear(HIGH, LOW)
TARGETS: tuple[Parameterization, ...] = (
    X(),
    Eps(),
    V(),
    V(0.5),
    Flow(),
    Score(),
    PosteriorMean(CHAIN, STEPS),
)
DENSITY = "float64 rounding of log-densities"


def step_of(schedule: Schedule, steps: int, t: Tensor) -> Step:
    """The chain's step that ends at each t."""
    return Step(schedule(t), schedule.delta(t, steps))


def drawn(subject: Subject, n: int, name: str) -> tuple[Tensor, Tensor, Step]:
    """n rows of data with noise, and a step of the chain for each."""
    generator, x = subject.generator(name), subject.rows(n)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    i = torch.randint(1, STEPS + 1, (n,), generator=generator)
    return x, eps, step_of(CHAIN, STEPS, i.double() / STEPS)


def kernels(
    prediction: Prediction, x: Tensor, step: Step, variance: Tensor
) -> tuple[Normal, Normal]:
    """q(z_s | z_t, x) and p(z_s | z_t), written out: α_s (e^{−Δ} z_t/α_t + c x) with x and with
    x̂."""
    a_s, r = per_example(alpha(step.logsnr_s), x), per_example(torch.exp(-step.delta), x)
    rest = r * prediction.z / per_example(alpha(step.logsnr_t), x)
    q = Normal(
        a_s * (rest + (1 - r) * x), per_example(step.variance.sqrt(), x), validate_args=False
    )
    p = Normal(
        a_s * (rest + (1 - r) * prediction.x), per_example(variance.sqrt(), x), validate_args=False
    )
    return q, p


def total(v: Tensor) -> Tensor:
    """Summed over everything but the batch."""
    return v.flatten(1).sum(1)


def _quadrature_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(0, 1) ‖ N(mean, variance)) for each pair, by integrating q log q/p."""
    z, dz = panels(torch.linspace(-9, 9, 37, dtype=torch.float64))
    q, p = log_normal(z, 0.0, 1.0), log_normal(z, mean[:, None], variance.sqrt()[:, None])
    found: Tensor = (q.exp() * (q - p)) @ dz
    return found


MEANS = torch.tensor([0.01, 0.3, -2.0], dtype=torch.float64)
EXCESS = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64)


@theorem(
    source="the variational chapter of DDPM, its KL line", given="both covariances are the same"
)
def kl_of_equal_covariances(subject: Subject) -> Sides:
    """KL(N(μ, σ²) ‖ N(μ', σ²)) = ‖μ − μ'‖²/2σ²: an equality, without a constant."""
    return equal(
        step_kl(torch.ones(3).double(), MEANS.square()),
        _quadrature_kl(MEANS, torch.ones(3).double()),
        rel=1e-8,
        why="quadrature",
        atol=1e-13,
    )


@kl_of_equal_covariances.without("both covariances are the same")
def _(subject: Subject) -> Sides:
    return equal(
        step_kl(torch.ones(3).double(), MEANS.square()),
        _quadrature_kl(MEANS, EXCESS.exp() * 1.5),
        rel=1e-8,
        why="",
    )


@theorem(
    source="Foundations of Diffusion Models, eq. 3.4; iDDPM, arXiv:2102.09672",
    given="the divergence is from q to p",
)
def kl_of_unequal_covariances(subject: Subject) -> Sides:
    """With a variance e^u times the posterior's, KL(q ‖ p) = ½ [u + expm1(−u) + e^{−u} δ²]."""
    return equal(
        step_kl(torch.ones(3).double(), MEANS.square(), EXCESS),
        _quadrature_kl(MEANS, EXCESS.exp()),
        rel=1e-8,
        why="quadrature",
        atol=1e-13,
    )


@kl_of_unequal_covariances.without("the divergence is from q to p")
def _(subject: Subject) -> Sides:
    reverse = kl_divergence(
        Normal(MEANS, (0.5 * EXCESS).exp()),
        Normal(torch.zeros(3).double(), torch.ones(3).double()),
    )
    return equal(reverse, _quadrature_kl(MEANS, EXCESS.exp()), rel=1e-8, why="")


def _terms(subject: Subject, own_variance: bool) -> Sides:
    x, eps, step = drawn(subject, 64, "terms")
    prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
    q, p = kernels(prediction, x, step, step.variance if own_variance else step.forward_variance)
    squares = []
    for target in TARGETS:
        a, b = (
            torch.as_tensor(c, dtype=torch.float64).expand_as(step.delta)
            for c in target.row(step.logsnr_t)
        )
        kappa = b - a * sigma(step.logsnr_t) / alpha(step.logsnr_t)
        error = target.target(x, eps, step.logsnr_t) - prediction.read(target)
        squares.append(0.5 * torch.expm1(step.delta) / kappa.square() * total(error.square()))
    said = Prediction(
        prediction.z, prediction.logsnr, prediction.out, prediction.parameterization, Posterior()
    )
    squares.append(reverse_kl(said, x, eps, step))
    return equal(torch.stack(squares), total(kl_divergence(q, p)), rel=1e-8, why=DENSITY)


@theorem(
    source="VDM, arXiv:2107.00630, eq. 13; DDPM, arXiv:2006.11239, eq. 8 and 12",
    given="Σ is the posterior's",
    any_network=True,
)
def step_is_a_squared_error(subject: Subject) -> Sides:
    """Each KL of the chain is a squared error, ½ (SNR_s − SNR_t) ‖x − x̂‖², and so in ε, v, u, the
    score and the mean."""
    return _terms(subject, own_variance=True)


@step_is_a_squared_error.without("Σ is the posterior's")
def _(subject: Subject) -> Sides:
    return _terms(subject, own_variance=False)


@theorem(
    source="iDDPM, arXiv:2102.09672; DDPM's Σ = β",
    given="Σ is that of the forward step",
    any_network=True,
)
def step_with_the_forward_variance(subject: Subject) -> Sides:
    """With Σ = c σ_t² ("large") the KL of a step is that of the two Gaussians written out,
    constant included."""
    x, eps, step = drawn(subject, 64, "large")
    said = predict_at(subject.model, x, eps, step.logsnr_t, {})
    prediction = Prediction(said.z, said.logsnr, said.out, said.parameterization, Forward())
    q, p = kernels(said, x, step, step.forward_variance)
    return equal(
        reverse_kl(prediction, x, eps, step), total(kl_divergence(q, p)), rel=1e-8, why=DENSITY
    )


def _at_both_signs(subject: Subject, raw: bool) -> Sides:
    x, eps, step = drawn(subject, 64, "mean")
    prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
    noise = torch.randn(x.shape, generator=subject.generator("sign"), dtype=torch.float64)
    both = [reverse_log_ratio(prediction, x, eps, step, n) for n in (noise, -noise)]
    if raw:  # log q(z_t | z_s) in place of log q(z_s | z_t, x)
        both = [
            v
            + 0.5
            * total(
                step.noise_s(eps, n).square()
                - eps.square()
                - per_example(step.log_variance_ratio, x)
            )
            for v, n in zip(both, (noise, -noise), strict=True)
        ]
    q, p = kernels(prediction, x, step, step.variance)
    return equal(0.5 * (both[0] + both[1]), total(kl_divergence(q, p)), rel=1e-8, why=DENSITY)


@theorem(
    source="The Hidden Variance Reduction in Diffusion Loss, step (iii)",
    given="the log-ratio is of the posterior",
    any_network=True,
)
def sampled_step_has_the_mean_of_the_kl(subject: Subject) -> Sides:
    """log q(z_s | z_t, x) − log p(z_s | z_t) at z_s = μ ± √Σ n, averaged over the sign, is the
    step's KL."""
    return _at_both_signs(subject, raw=False)


@sampled_step_has_the_mean_of_the_kl.without("the log-ratio is of the posterior")
def _(subject: Subject) -> Sides:
    return _at_both_signs(subject, raw=True)


class Recorder:
    """A model that remembers what it was asked.

    >>> from vdiff.theorems.subject import random_network
    >>> Recorder(random_network()).asked
    []
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked: list[Prediction] = []

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        self.asked.append(self.model(z, logsnr))
        return self.asked[-1]


def _path(subject: Subject, ends: bool) -> Sides:
    recorder, x, decoder = (
        Recorder(subject.model),
        subject.x,
        GaussianDecoder(variance=0.1, denoise=True),
    )
    path = path_bound(
        recorder,
        x,
        schedule=CHAIN,
        decoder=decoder,
        steps=STEPS,
        generator=subject.generator("path"),
    )
    raw = torch.zeros(len(x), dtype=torch.float64)
    for later, earlier in zip(recorder.asked[:-1], recorder.asked[1:], strict=True):
        step = Step(later.logsnr, earlier.logsnr - later.logsnr)
        shrink, spread = (
            alpha(step.logsnr_t) / alpha(step.logsnr_s),
            sigma(step.logsnr_t) * (-torch.expm1(-step.delta)).sqrt(),
        )
        forward = log_normal(later.z, per_example(shrink, x) * earlier.z, per_example(spread, x))
        _, reverse = kernels(later, x, step, step.variance)
        raw = raw + total(forward - log_normal(earlier.z, reverse.mean, reverse.stddev))
    last = recorder.asked[-1]
    first_level = log_normal(
        last.z, per_example(alpha(last.logsnr), x) * x, per_example(sigma(last.logsnr), x)
    )
    raw = (
        raw - total(log_normal(recorder.asked[0].z, 0.0, 1.0)) - decoder.log_prob(x, last.x, HIGH)
    )
    return equal(
        raw + total(first_level) if ends else raw, path.log_ratio, rel=1e-7, why=DENSITY, atol=1e-7
    )


@theorem(
    source="Foundations of Diffusion Models, eq. 2.9 and 2.21; DDPM, arXiv:2006.11239, appendix A",
    given="all of q(z₀ … z₁ | x) is there",
    any_network=True,
)
def telescoped_bound(subject: Subject) -> Sides:
    """On every path, Σ log q(z_t | z_s)/p(z_s | z_t) with its ends is the sum over posteriors
    q(z_s | z_t, x) with theirs."""
    return _path(subject, ends=True)


@telescoped_bound.without("all of q(z₀ … z₁ | x) is there")
def _(subject: Subject) -> Sides:
    return _path(subject, ends=False)


def _entropy_gained(subject: Subject, gained: float) -> Sides:
    x, generator = subject.rows(max(FEWEST, subject.draws // 4)), subject.generator("raw")
    raw, sampled = (
        torch.zeros(len(x), dtype=torch.float64),
        torch.zeros(len(x), dtype=torch.float64),
    )
    for i in range(1, STEPS + 1):
        step = step_of(CHAIN, STEPS, torch.full((len(x),), i / STEPS, dtype=torch.float64))
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
        for _ in range(REPEATS):
            state = generator.get_state()
            raw = raw + Raw()(prediction, x, eps, step, generator) / REPEATS
            generator.set_state(state)  # the same z_s
            sampled = sampled + MonteCarlo()(prediction, x, eps, step, generator) / REPEATS
    return paired(raw, sampled - gained * x[0].numel())


ENTROPY = (
    0.5
    * (
        torch.tensor(-LOW, dtype=torch.float64).sigmoid().log()
        - torch.tensor(-HIGH, dtype=torch.float64).sigmoid().log()
    ).item()
)


@theorem(
    source="The Hidden Variance Reduction in Diffusion Loss, line 2",
    given="the entropy that q gains is counted",
    any_network=True,
)
def raw_terms_differ_by_an_entropy(subject: Subject) -> Sides:
    """The raw terms log q(z_t | z_s)/p(z_s | z_t) sum to less than the KLs: by ½ d log(σ₁²/σ₀²),
    the entropy q gains."""
    return _entropy_gained(subject, ENTROPY)


@raw_terms_differ_by_an_entropy.without("the entropy that q gains is counted")
def _(subject: Subject) -> Sides:
    return _entropy_gained(subject, 0.0)


@theorem(
    source="VDM, arXiv:2107.00630, eq. 11", given="both look at the same step", any_network=True
)
def estimators_share_their_mean(subject: Subject) -> Sides:
    """The KL in closed form and the sampled log-ratio are estimators of the same term of the
    bound."""
    x, eps, step = drawn(subject, max(FEWEST, subject.draws // 2), "estimators")
    prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
    generator = subject.generator("sample")
    draws = [MonteCarlo()(prediction, x, eps, step, generator) for _ in range(REPEATS)]
    return paired(torch.stack(draws).mean(0), RaoBlackwell()(prediction, x, eps, step))


TABLE = Tabulated([HIGH, 6.0, 3.0, 2.0, -1.0, LOW])


def _every_step(
    subject: Subject, weighting: WeightFunction, factor: Callable[[Tensor], Tensor]
) -> Sides:
    """Σ over the table's steps of the weighted loss, against Σ factor ‖ε − ε̂‖² of a loop of one's
    own."""
    x, n = subject.rows(32), TABLE.steps
    eps = torch.randn(x.shape, generator=subject.generator("steps"), dtype=torch.float64)
    left, right = (
        torch.zeros(len(x), dtype=torch.float64),
        torch.zeros(len(x), dtype=torch.float64),
    )
    for i in range(1, n + 1):
        t = torch.full((len(x),), i / n, dtype=torch.float64)
        left = (
            left
            + weighted_elbo(
                subject.model, x, schedule=TABLE, weighting=weighting, steps=n, t=t, eps=eps
            )
            / n
        )
        error = total((eps - predict_at(subject.model, x, eps, TABLE(t), {}).eps).square())
        right = right + factor(TABLE(t)) * error
    return equal(left, right, rel=1e-8, why="float64 rounding")


@theorem(
    source="DDPM, arXiv:2006.11239, eq. 14",
    given="the mean is over all n levels, the decoder's too",
    any_network=True,
)
def plain_loss_of_a_chain(subject: Subject) -> Sides:
    """The mean of ‖ε − ε̂‖² over the n levels of a table is the chain's loss with w = 2/(n
    expm1(Δ)), but for the decoder's level."""
    return _every_step(
        subject,
        MSE(TABLE, Eps(), steps=TABLE.steps),
        lambda lam: torch.full_like(lam, 1 / (TABLE.steps + 1)),
    )


@plain_loss_of_a_chain.without("the mean is over all n levels, the decoder's too")
def _(subject: Subject) -> Sides:
    return _every_step(
        subject,
        MSE(TABLE, Eps(), steps=TABLE.steps),
        lambda lam: torch.full_like(lam, 1 / TABLE.steps),
    )


@theorem(
    source="VDM, arXiv:2107.00630, eq. 13, for a loop over t",
    given="the factor has the step's expm1(Δ)",
    any_network=True,
)
def factor_of_a_loop_over_steps(subject: Subject) -> Sides:
    """In a loop over the steps of a chain the factor before ‖ε − ε̂‖² is ½ w T expm1(Δ), T times
    that of the sum."""
    factor = loss_factor(Sigmoid(1.0), TABLE, Eps(), steps=TABLE.steps)
    return _every_step(subject, Sigmoid(1.0), lambda lam: factor(lam) / TABLE.steps)


@factor_of_a_loop_over_steps.without("the factor has the step's expm1(Δ)")
def _(subject: Subject) -> Sides:
    factor = loss_factor(Sigmoid(1.0), TABLE, Eps())  # that of continuous time
    return _every_step(subject, Sigmoid(1.0), lambda lam: factor(lam) / TABLE.steps)


__all__: list[str] = []
