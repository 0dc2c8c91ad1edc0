"""The bound and the likelihood: which is larger, by how much, and when they are equal."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.decoder import normal_nodes
from vdiff.gaussian import alpha, diffuse, prior_kl, sigma
from vdiff.likelihood import evaluate, path_importance
from vdiff.likelihood.importance import chain_log_prob
from vdiff.loss import Model, elbo
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Cosine, Linear, Schedule
from vdiff.theorems.integral import (
    QUADRATURE,
    average,
    expected_loss,
    levels,
    log_normal,
    over_time,
    slope,
)
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import ORACLE, Altered, biased, f64, line, scaled_x
from vdiff.theorems.theorem import ERRORS, Sides, equal, sampled, theorem
from vdiff.times import generator_of
from vdiff.weighting import ELBO, Sigmoid, Weighting

HIGH, LOW = 4.0, -3.0  # close ends, so that what they add to the bound is seen
AT = f64([HIGH, LOW])
POINTS = (-1.3, 0.0, 0.4, 2.0)
MODELS = ORACLE, biased(ORACLE), scaled_x(ORACLE, 0.0), Altered(ORACLE, lambda p: 0.0 * p.eps)
EXACT = "the denoiser is the exact one"


def end_terms(oracle: GaussianMixture) -> Tensor:
    """E of the prior and of the reconstruction by a Gaussian decoder."""

    def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return prior_kl(x, LOW) + GaussianDecoder().expected_nll(x, HIGH)

    return average(oracle, AT[:1], of)[0]


def bound(model: Model, oracle: GaussianMixture, schedule: Schedule) -> Tensor:
    """E of the whole bound, through `elbo`."""

    def total(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        found = elbo(model, x, schedule=schedule, decoder=GaussianDecoder(), t=t, eps=eps)
        return found.total

    return over_time(total, oracle, schedule)


def whole(model: Model, oracle: GaussianMixture, weighting: Weighting | None = None) -> Tensor:
    """E of the whole bound, its diffusion term weighted."""
    return end_terms(oracle) + expected_loss(model, oracle, Cosine(HIGH, LOW), weighting or ELBO())


def _ends_add() -> Tensor:
    """What the two ends add to the entropy: h(x + e^{−λ_max/2} n) − h(x), and KL(q(z₁) ‖ N(0,
    1))."""
    noised = ORACLE.mutual_information(AT)[0] + 0.5 * (math.log(2 * math.pi * math.e) - HIGH)
    return noised - ORACLE.entropy() + ORACLE.prior_gap(LOW)


@theorem(
    "Foundations of Diffusion Models, eq. 2.5, with its sign turned; VDM, arXiv:2107.00630, eq. 2",
    without={"the weighting is 1": {"weighting": Sigmoid(0.0)}},
)
def jensen(weighting: Weighting | None = None) -> Sides:
    """On average over the data the bound is never below their entropy: E[bound] ≥ H(x), whatever
    the denoiser; what is added is ½ ∫ E‖ε̂ − ε*‖² dλ, ε* exact, and the divergences of the
    ends."""
    lam, width = levels(LOW, HIGH)

    def added_by(model: Any) -> Tensor:
        def square(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
            z = diffuse(x, eps, level)
            found: Tensor = (model(z, level).eps - ORACLE(z, level).eps)[:, 0].square()
            return found

        added: Tensor = 0.5 * width @ average(ORACLE, lam, square)
        return added

    left = torch.stack([whole(model, ORACLE, weighting) for model in MODELS])
    adds = torch.stack([added_by(model) for model in MODELS]) + _ends_add()
    return equal(left, ORACLE.entropy() + adds, rel=1e-7, why=QUADRATURE)


@theorem("VDM, arXiv:2107.00630, section 4", without={EXACT: {"model": biased(ORACLE)}})
def bound_of_the_exact_denoiser(model: Model = ORACLE) -> Sides:
    """At the exact denoiser only the ends leave a slack: bound = h(x + e^{−λ_max/2} n) + KL(q(z₁)
    ‖ N(0, I))."""
    right = ORACLE.entropy() + _ends_add()
    return equal(bound(model, ORACLE, Cosine(HIGH, LOW)), right, rel=1e-7, why=QUADRATURE)


def marginal_kl(oracle: GaussianMixture, x: float, level: float) -> Tensor:
    """KL(q(z | x) ‖ q(z)) at one λ, from the density of the noisy data."""
    node, mass = normal_nodes()
    lam = torch.full_like(node, level)
    z = alpha(lam) * x + sigma(lam) * node
    log_q = log_normal(z, alpha(lam) * x, sigma(lam))
    return mass @ (log_q - oracle.noisy_log_prob(z[:, None], lam))


@theorem(
    "VDM++, arXiv:2303.00848, appendix A, at the optimum",
    without={EXACT: {"model": biased(ORACLE)}},
)
def bound_of_each_example(model: Model = ORACLE) -> Sides:
    """For each x the diffusion term of the exact denoiser is KL(q(z₀|x) ‖ q(z₀)) − KL(q(z₁|x) ‖
    q(z₁))."""
    left = [expected_loss(model, ORACLE, Cosine(HIGH, LOW), x=x) for x in POINTS]
    right = [marginal_kl(ORACLE, x, HIGH) - marginal_kl(ORACLE, x, LOW) for x in POINTS]
    return equal(torch.stack(left), torch.stack(right), rel=1e-7, why=QUADRATURE)


def chain_bound(path: GaussianPath, x: float) -> Tensor:
    """The chain's bound of one x through the library, averaged over ε by quadrature."""
    node, mass = normal_nodes()
    data, steps = torch.full((len(node), 1), x, dtype=torch.float64), path.steps
    parts: dict[str, Any] = {"schedule": path.schedule, "decoder": GaussianDecoder()}
    return (
        mass @ elbo(path.oracle, data, **parts, steps=steps, draws=steps, eps=node[:, None]).total
    )


CHAINS = [GaussianPath(line(), HIGH, LOW, steps) for steps in (1, 2, 6)]


@theorem(
    "Foundations of Diffusion Models, after eq. 2.5",
    without={"the divergence is from q": {"from_q": False}},
)
def slack_is_the_posteriors_divergence(from_q: bool = True) -> Sides:
    """bound + log p(x) = KL(q(z₀…z₁ | x) ‖ p(z₀…z₁ | x)): tight if, and only if, the two laws of
    the whole path are one."""
    cases = [(path, x) for path in CHAINS for x in POINTS]
    slack = []
    for path, x in cases:
        log_p, posterior = path.given(x)
        laws = path.forward(x), posterior
        slack.append(kl_divergence(*(laws if from_q else laws[::-1])) - log_p)
    bounds = torch.stack([chain_bound(path, x) for path, x in cases])
    return equal(bounds, torch.stack(slack), rel=1e-9, why="float64 rounding of covariances")


@theorem(
    "VDM++, arXiv:2303.00848, appendix A, at the optimum: over a data set",
    without={EXACT: {"model": scaled_x(ORACLE, 0.0)}},
)
def bound_of_a_data_set(model: Model = ORACLE) -> Sides:
    """`evaluate` estimates the mean bound of a data set: prior, KL(q(z₀|x) ‖ q(z₀)) − KL(q(z₁|x) ‖
    q(z₁)) and reconstruction of each x, for the exact denoiser."""
    x, decoder = ORACLE.sample(64, generator_of(0, 0, "data set")), GaussianDecoder()
    ends = prior_kl(x, LOW) + decoder.expected_nll(x, HIGH)
    kl = [marginal_kl(ORACLE, v, HIGH) - marginal_kl(ORACLE, v, LOW) for v in x[:, 0].tolist()]
    exact = (ends + torch.stack(kl)).mean() / math.log(2)
    options: dict[str, Any] = {"schedule": Linear(HIGH, LOW), "decoder": decoder}
    total = evaluate(model, x, draws=512, replicates=8, **options).total
    allowed = ERRORS * total.monte_carlo
    return Sides(total.value, exact, allowed, f"{ERRORS:g} standard errors")


PATH = GaussianPath(line(), HIGH, LOW, 3)
OF_PATH: dict[str, Any] = {"schedule": PATH.schedule, "decoder": GaussianDecoder(), "steps": 3}


@theorem("of affine Gaussian kernels", without={"the chain has these steps": {"path": CHAINS[0]}})
def likelihood_of_a_chain(path: GaussianPath = PATH) -> Sides:
    """log p(x) of a chain, with p(x | z₀) carried back through every p(z_s | z_t), is the density
    of x in the Gaussian vector (z₀ … z_T, x)."""
    found = chain_log_prob(PATH.oracle, f64([[x] for x in POINTS]), **OF_PATH)
    exact = torch.stack([path.given(x)[0] for x in POINTS])
    return equal(found, exact, rel=1e-8, why="the trapezoid rule over z")


@theorem(
    "Burda et al., arXiv:1509.00519",
    without={"the exponent is the log-ratio of the path": {"exponent": "rao_blackwell"}},
)
def importance_weight(exponent: str = "log_ratio") -> Sides:
    """exp(−log-ratio) of a path is an importance weight: its mean is p(x) itself, so the bound is
    Jensen's of it."""
    data, generator = torch.full((2**18, 1), 0.4, dtype=torch.float64), generator_of(0, 0, "paths")
    found = path_bound(PATH.oracle, data, generator=generator, **OF_PATH)
    return sampled(torch.exp(-getattr(found, exponent) - PATH.given(0.4)[0]), 1.0)


@theorem("Burda et al., arXiv:1509.00519", without={"K → ∞": {"samples": 1}})
def importance_weighted_bound(samples: int = 2**13) -> Sides:
    """The bound of K paths, −log (1/K) Σ exp(−log-ratio), tends to −log p(x) as K grows."""
    x = f64([[v] for v in POINTS])
    found = path_importance(PATH.oracle, x, samples=samples, replicates=16, **OF_PATH)
    exact = torch.stack([-PATH.given(v)[0] for v in POINTS])
    why = f"{ERRORS:g} standard errors"
    return Sides(found.nats, exact, ERRORS * found.standard_error, why)


@theorem(
    "Gaussian diffusion, KL to the prior; VDM, arXiv:2107.00630, eq. 11",
    without={"the prior is N(0, I)": {"std": 2.0}},
)
def prior_term(std: float = 1.0) -> Sides:
    """The prior term ½ [sigmoid(λ_min)(‖x‖² − d) + d softplus(λ_min)] is the KL of the two
    Gaussians."""
    low, x = f64([-6.0, -3.0, 0.5]), f64([[0.3], [-2.0], [1.5]])
    left = torch.cat([prior_kl(x[i : i + 1], low[i].item()) for i in range(3)])
    q = Normal(alpha(low) * x[:, 0], sigma(low))
    return equal(left, kl_divergence(q, Normal(f64(0.0), f64(std))), rel=1e-9)


@theorem(
    "VDM, arXiv:2107.00630, section 4: the ends are trained by the bound",
    without={"the errors are those of this model": {"model": biased(ORACLE)}},
)
def end_derivatives(model: Model = ORACLE) -> Sides:
    """The bound's derivative by its ends is local: ½ (E‖e‖² − d) at λ_max, and prior' − ½ E‖e‖² at
    λ_min."""
    high = slope(lambda end: bound(model, ORACLE, Linear(end.item(), LOW)), AT[0], 1e-2)
    low = slope(lambda end: bound(model, ORACLE, Linear(HIGH, end.item())), AT[1], 1e-2)
    m, signal = ORACLE.mmse(AT), torch.sigmoid(AT[1])
    square = (ORACLE.weights @ (ORACLE.means.square() + ORACLE.variances)).sum()
    at_low = signal * (1 - signal) * (square - 1) + signal - m[1]
    right = 0.5 * torch.stack([m[0] - 1, at_low])
    return equal(torch.stack([high, low]), right, rel=1e-5, why="a difference quotient in λ")
