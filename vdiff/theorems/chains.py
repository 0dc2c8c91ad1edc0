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
from vdiff.parameterization import Eps, Flow, Parameterization, PosteriorMean, Score, V, X
from vdiff.prediction import Prediction
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw, reverse_kl, reverse_log_ratio
from vdiff.schedule import Linear, Schedule, Tabulated
from vdiff.theorems.integral import log_normal, panels
from vdiff.theorems.subject import FEWEST, HIGH, LOW, Subject, f64
from vdiff.theorems.theorem import Sides, equal, paired, theorem
from vdiff.variance import FixedLarge, FixedSmall, ReverseVariance
from vdiff.weighting import MSE, Sigmoid, loss_factor

STEPS = 8
REPEATS = 32  # draws of z_s at each z_t, which take no evaluation
CHAIN = Linear(HIGH, LOW)
TARGETS: tuple[Parameterization, ...] = (
    *(X(), Eps(), V(), V(0.5), Flow(), Score()),
    PosteriorMean(CHAIN, STEPS),
)
DENSITY = "float64 rounding of log-densities"
BLOG = "The Hidden Variance Reduction in Diffusion Loss"


def step_of(schedule: Schedule, steps: int, t: Tensor) -> Step:
    """The chain's step that ends at each t."""
    return Step(schedule(t), schedule.delta(t, steps))


def drawn(subject: Subject, n: int, name: str) -> tuple[Tensor, Tensor, Step]:
    """n rows of data with noise, and a step of the chain for each."""
    generator, x = subject.generator(name), subject.rows(n)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    i = torch.randint(1, STEPS + 1, (n,), generator=generator)
    return x, eps, step_of(CHAIN, STEPS, i.double() / STEPS)


def predicted(
    subject: Subject, n: int, name: str, variance: ReverseVariance | None = None
) -> tuple[Prediction, Tensor, Tensor, Step]:
    """The network's prediction at `drawn`, with this reverse variance, and x, ε and the step."""
    x, eps, step = drawn(subject, n, name)
    said = predict_at(subject.model, x, eps, step.logsnr_t, {})
    parts = said.z, said.logsnr, said.output, said.parameterization
    return Prediction(*parts, variance or FixedSmall()), x, eps, step


def kernels(
    prediction: Prediction, x: Tensor, step: Step, variance: Tensor
) -> tuple[Normal, Normal]:
    """q(z_s | z_t, x) and p(z_s | z_t), written out: α_s (e^{−Δ} z_t/α_t + c x) with x and with
    x̂."""
    a_s, r = per_example(alpha(step.logsnr_s), x), per_example(torch.exp(-step.delta), x)
    rest = r * prediction.z / per_example(alpha(step.logsnr_t), x)
    q, p = (
        Normal(a_s * (rest + (1 - r) * mean), per_example(v.sqrt(), x), validate_args=False)
        for mean, v in ((x, step.variance), (prediction.x, variance))
    )
    return q, p


def total(v: Tensor) -> Tensor:
    """Summed over everything but the batch."""
    return v.flatten(1).sum(1)


MEANS, EXCESS, ONE = f64([0.01, 0.3, -2.0]), f64([-1.0, 0.0, 0.7]), f64([1.0, 1.0, 1.0])


def _quadrature_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(0, 1) ‖ N(mean, variance)) for each pair, by integrating q log q/p."""
    z, dz = panels(torch.linspace(-9, 9, 37, dtype=torch.float64))
    q, p = log_normal(z, 0.0, 1.0), log_normal(z, mean[:, None], variance.sqrt()[:, None])
    found: Tensor = (q.exp() * (q - p)) @ dz
    return found


@theorem(
    "the variational chapter of DDPM, its KL line",
    without={"both covariances are the same": {"variance": 1.5 * EXCESS.exp()}},
)
def kl_of_equal_covariances(variance: Tensor = ONE) -> Sides:
    """KL(N(μ, σ²) ‖ N(μ', σ²)) = ‖μ − μ'‖²/2σ²: an equality, without a constant."""
    left = step_kl(ONE, MEANS.square())
    return equal(left, _quadrature_kl(MEANS, variance), rel=1e-8, why="quadrature", atol=1e-13)


@theorem(
    "Foundations of Diffusion Models, eq. 3.4; iDDPM, arXiv:2102.09672",
    without={"the divergence is from q to p": {"from_q": False}},
)
def kl_of_unequal_covariances(from_q: bool = True) -> Sides:
    """With a variance e^u times the posterior's, KL(q ‖ p) = ½ [u + expm1(−u) + e^{−u} δ²]."""
    p, q = Normal(MEANS, (0.5 * EXCESS).exp()), Normal(0 * ONE, ONE)
    left = step_kl(ONE, MEANS.square(), EXCESS) if from_q else kl_divergence(p, q)
    right = _quadrature_kl(MEANS, EXCESS.exp())
    return equal(left, right, rel=1e-8, why="quadrature", atol=1e-13)


@theorem(
    "VDM, arXiv:2107.00630, eq. 13; DDPM, arXiv:2006.11239, eq. 8 and 12",
    without={"Σ is the posterior's": {"variance": "forward_variance"}},
)
def step_is_a_squared_error(subject: Subject, variance: str = "variance") -> Sides:
    """Each KL of the chain is a squared error, ½ (SNR_s − SNR_t) ‖x − x̂‖², and so in ε, v, u, the
    score and the mean."""
    prediction, x, eps, step = predicted(subject, 64, "terms")
    q, p = kernels(prediction, x, step, getattr(step, variance))
    terms = [reverse_kl(prediction, x, eps, step)]
    for target in TARGETS:
        rows = (torch.as_tensor(c, dtype=torch.float64) for c in target.row(step.logsnr_t))
        a, b = (c.expand_as(step.delta) for c in rows)
        kappa = b - a * sigma(step.logsnr_t) / alpha(step.logsnr_t)
        error = target.target(x, eps, step.logsnr_t) - prediction.as_target(target)
        terms.append(0.5 * torch.expm1(step.delta) / kappa.square() * total(error.square()))
    return equal(torch.stack(terms), total(kl_divergence(q, p)), rel=1e-8, why=DENSITY)


@theorem(
    "iDDPM, arXiv:2102.09672; DDPM's Σ = β",
    without={"Σ is that of the forward step": {"variance": "variance"}},
)
def step_with_the_forward_variance(subject: Subject, variance: str = "forward_variance") -> Sides:
    """With Σ = c σ_t² ("large") the KL of a step is that of the two Gaussians written out,
    constant included."""
    prediction, x, eps, step = predicted(subject, 64, "large", FixedLarge())
    q, p = kernels(prediction, x, step, getattr(step, variance))
    kl = total(kl_divergence(q, p))
    return equal(reverse_kl(prediction, x, eps, step), kl, rel=1e-8, why=DENSITY)


@theorem(
    f"{BLOG}, step (iii)", without={"the log-ratio is of the posterior": {"posterior": False}}
)
def sampled_step_has_the_mean_of_the_kl(subject: Subject, posterior: bool = True) -> Sides:
    """log q(z_s | z_t, x) − log p(z_s | z_t) at z_s = μ ± √Σ n, averaged over the sign, is the
    step's KL."""
    prediction, x, eps, step = predicted(subject, 64, "mean")
    noise = torch.randn(x.shape, generator=subject.generator("sign"), dtype=torch.float64)
    mean = torch.zeros(len(x), dtype=torch.float64)
    for n in (noise, -noise):
        mean = mean + 0.5 * reverse_log_ratio(prediction, x, eps, step, n)
        if not posterior:  # log q(z_t | z_s) in place of log q(z_s | z_t, x)
            spread = per_example(step.log_variance_ratio, x)
            mean = mean + 0.25 * total(step.noise_s(eps, n).square() - eps.square() - spread)
    q, p = kernels(prediction, x, step, step.variance)
    return equal(mean, total(kl_divergence(q, p)), rel=1e-8, why=DENSITY)


class Recorder:
    """A model that keeps its predictions."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.predictions: list[Prediction] = []

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        self.predictions.append(self.model(z, logsnr))
        return self.predictions[-1]


@theorem(
    "Foundations of Diffusion Models, eq. 2.9 and 2.21; DDPM, arXiv:2006.11239, appendix A",
    without={"all of q(z₀ … z₁ | x) is there": {"first": False}},
)
def telescoped_bound(subject: Subject, first: bool = True) -> Sides:
    """On every path, Σ log q(z_t | z_s)/p(z_s | z_t) with its ends is the sum over posteriors
    q(z_s | z_t, x) with theirs."""
    recorder, x = Recorder(subject.model), subject.x
    decoder = GaussianDecoder(variance=0.1, uses_network=True)
    generator = subject.generator("path")
    path = path_bound(
        recorder, x, schedule=CHAIN, decoder=decoder, steps=STEPS, generator=generator
    )
    start, last = recorder.predictions[0], recorder.predictions[-1]
    raw = -total(log_normal(start.z, 0.0, 1.0)) - decoder.log_prob(x, last.x, HIGH)
    for later, earlier in zip(recorder.predictions, recorder.predictions[1:], strict=False):
        step = Step(later.logsnr, earlier.logsnr - later.logsnr)
        shrink = per_example(alpha(step.logsnr_t) / alpha(step.logsnr_s), x)
        spread = per_example(sigma(step.logsnr_t) * (-torch.expm1(-step.delta)).sqrt(), x)
        _, reverse = kernels(later, x, step, step.variance)
        forward = log_normal(later.z, shrink * earlier.z, spread)
        raw = raw + total(forward - log_normal(earlier.z, reverse.mean, reverse.stddev))
    if first:
        mean, std = (per_example(f(last.logsnr), x) for f in (alpha, sigma))
        raw = raw + total(log_normal(last.z, mean * x, std))
    return equal(raw, path.log_ratio, rel=1e-7, why=DENSITY, atol=1e-7)


@theorem(f"{BLOG}, line 2", without={"the entropy that q gains is counted": {"counted": 0.0}})
def raw_terms_differ_by_an_entropy(subject: Subject, counted: float = 1.0) -> Sides:
    """The raw terms log q(z_t | z_s)/p(z_s | z_t) sum to less than the KLs: by ½ d log(σ₁²/σ₀²),
    the entropy q gains."""
    x, generator = subject.rows(max(FEWEST, subject.draws // 4)), subject.generator("raw")
    raw, closed = (torch.zeros(len(x), dtype=torch.float64) for _ in range(2))
    for i in range(1, STEPS + 1):
        step = step_of(CHAIN, STEPS, torch.full((len(x),), i / STEPS, dtype=torch.float64))
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        prediction = predict_at(subject.model, x, eps, step.logsnr_t, {})
        closed = closed + RaoBlackwell()(prediction, x, eps, step)
        draws = [Raw()(prediction, x, eps, step, generator) for _ in range(REPEATS)]
        raw = raw + torch.stack(draws).mean(0)
    noisy, clean = torch.sigmoid(-f64([LOW, HIGH])).log()
    return paired(raw, closed - counted * 0.5 * (noisy - clean) * x[0].numel())


@theorem("VDM, arXiv:2107.00630, eq. 11", without={"both are of the same step": {"ahead": 1.0}})
def estimators_share_their_mean(subject: Subject, ahead: float = 0.0) -> Sides:
    """The KL in closed form and the sampled log-ratio are estimators of the same term of the
    bound."""
    prediction, x, eps, step = predicted(subject, max(FEWEST, subject.draws // 2), "estimators")
    generator, longer = subject.generator("sample"), Step(step.logsnr_t, step.delta + ahead)
    draws = [MonteCarlo()(prediction, x, eps, longer, generator) for _ in range(REPEATS)]
    return paired(torch.stack(draws).mean(0), RaoBlackwell()(prediction, x, eps, step))


LEVELS = [HIGH, 6.0, 3.0, 2.0, -1.0, LOW]
TABLE = Tabulated(LEVELS)
Factor = Callable[[Tensor], Tensor | float]


def _every_step(
    subject: Subject, weighting: WeightFunction, factors: list[Factor]
) -> tuple[Tensor, Tensor]:
    """Σ over the table's steps of the weighted loss, and Σ factor ‖ε − ε̂‖² of loops of one's
    own."""
    x, n = subject.rows(32), TABLE.steps
    eps = torch.randn(x.shape, generator=subject.generator("steps"), dtype=torch.float64)
    losses, loops = torch.zeros(2, 1, dtype=torch.float64)
    for i in range(1, n + 1):
        lam, t = (torch.full((len(x),), v, dtype=torch.float64) for v in (LEVELS[i], i / n))
        loss = weighted_elbo(
            subject.model, x, schedule=TABLE, weighting=weighting, steps=n, t=t, eps=eps
        )
        error = total((eps - predict_at(subject.model, x, eps, lam, {}).eps).square())
        losses = losses + loss / n
        loops = loops + torch.stack([factor(lam) * error for factor in factors])
    return losses, loops


@theorem(
    "DDPM, arXiv:2006.11239, eq. 14",
    without={"the mean is over all n levels, the decoder's too": {"levels": TABLE.steps}},
)
def plain_loss_of_a_chain(subject: Subject, levels: int = TABLE.steps + 1) -> Sides:
    """The mean of ‖ε − ε̂‖² over the n levels of a table is the chain's loss with w = 2/(n
    expm1(Δ)), but for the decoder's level."""
    plain = MSE(TABLE, Eps(), steps=TABLE.steps)
    return equal(*_every_step(subject, plain, [lambda lam: 1 / levels]), rel=1e-8)


@theorem(
    "VDM, arXiv:2107.00630, eq. 13, for a loop over t",
    without={"the factor has the step's expm1(Δ)": {"steps": None}},
)
def factor_of_a_loop_over_steps(subject: Subject, steps: int | None = TABLE.steps) -> Sides:
    """In a loop over the steps of a chain the factor before ‖ε − ε̂‖² is ½ w T expm1(Δ), T times
    that of the sum."""
    w, before = Sigmoid(1.0), dict(zip(LEVELS[1:], LEVELS, strict=False))
    library = loss_factor(w, TABLE, Eps(), steps=steps)

    def written_out(lam: Tensor) -> Tensor:
        factor: Tensor = 0.5 * w(lam) * torch.expm1(before[lam[0].item()] - lam)
        return factor

    losses, (loop, right) = _every_step(
        subject, w, [lambda lam: library(lam) / TABLE.steps, written_out]
    )
    return equal(torch.stack([losses, loop]), right, rel=1e-8)
