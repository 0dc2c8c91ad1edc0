"""The bound and the likelihood: which is larger, by how much, and when they meet."""

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import path_bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.decoder import normal_nodes
from vdiff.gaussian import alpha, prior_kl, sigma
from vdiff.loss import Model, elbo
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Cosine
from vdiff.theorems.integral import average, average_noise, expected_loss, levels, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import Altered, Subject, biased, line, scaled_x
from vdiff.theorems.theorem import Sides, at_least, equal, sampled, theorem
from vdiff.weighting import ELBO, Sigmoid, Weighting

HIGH, LOW = 4.0, -3.0  # close ends, so that what they leave over is seen
QUADRATURE = "quadrature over λ, x and ε"
AT = torch.tensor([HIGH, LOW], dtype=torch.float64)


def end_terms(oracle: GaussianMixture) -> Tensor:
    """E of the prior and of the reconstruction by a Gaussian decoder, through the library's own
    terms."""

    def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return prior_kl(x, LOW) + GaussianDecoder().expected_nll(x, HIGH)

    return average(oracle, AT[:1], of)[0]


def whole(model: Model, oracle: GaussianMixture, weighting: Weighting | None = None) -> Tensor:
    """E of the whole bound."""
    return end_terms(oracle) + expected_loss(model, oracle, Cosine(HIGH, LOW), weighting or ELBO())


def _models(oracle: GaussianMixture) -> list[Model]:
    return [
        oracle,
        biased(oracle),
        scaled_x(oracle, 0.0),
        Altered(oracle, lambda prediction: 0.0 * prediction.eps),
    ]


@theorem(
    source="Foundations of Diffusion Models, eq. 2.5, with its sign turned; VDM, arXiv:2107.00630, eq. 2",
    given="the weighting is 1",
)
def jensen(subject: Subject) -> Sides:
    """On average over the data the bound is never below their entropy: E[bound] ≥ H(x), whatever
    the denoiser."""
    totals = torch.stack([whole(model, subject.oracle) for model in _models(subject.oracle)])
    return at_least(totals, subject.oracle.entropy(), rel=1e-7, why=QUADRATURE)


@jensen.without("the weighting is 1")
def _(subject: Subject) -> Sides:
    totals = torch.stack(
        [whole(model, subject.oracle, Sigmoid(0.0)) for model in _models(subject.oracle)]
    )
    return at_least(totals, subject.oracle.entropy(), rel=1e-7, why=QUADRATURE)


def _noised_entropy(oracle: GaussianMixture) -> Tensor:
    """h(x + e^{−λ/2} n) at λ_max: that of z less the logarithm of its scale."""
    return oracle.mutual_information(AT)[0] + 0.5 * (math.log(2 * math.pi * math.e) - HIGH)


@theorem(source="VDM, arXiv:2107.00630, section 4", given="the denoiser is the exact one")
def bound_of_the_exact_denoiser(subject: Subject) -> Sides:
    """At the exact denoiser only the ends leave a slack: bound = h(x + e^{−λ_max/2} n) + KL(q(z₁)
    ‖ N(0, I))."""
    return equal(
        whole(subject.oracle, subject.oracle),
        _noised_entropy(subject.oracle) + subject.oracle.prior_gap(LOW),
        rel=1e-7,
        why=QUADRATURE,
    )


@bound_of_the_exact_denoiser.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return equal(
        whole(biased(subject.oracle), subject.oracle),
        _noised_entropy(subject.oracle) + subject.oracle.prior_gap(LOW),
        rel=1e-7,
        why="",
    )


POINTS = (-1.3, 0.0, 0.4, 2.0)


def marginal_kl(oracle: GaussianMixture, x: float, level: float) -> Tensor:
    """KL(q(z | x) ‖ q(z)) at one λ, from the density of the noisy data."""
    node, mass = normal_nodes()
    lam = torch.full_like(node, level)
    z = alpha(lam) * x + sigma(lam) * node
    log_q = -0.5 * (node.square() + math.log(2 * math.pi)) - sigma(lam).log()
    return mass @ (log_q - oracle.noisy_log_prob(z[:, None], lam))


def diffusion_given(model: Model, x: float, high: float, low: float) -> Tensor:
    """½ ∫ E[‖e‖² | x] dλ between two levels."""
    lam, width = levels(low, high)
    return 0.5 * width @ average_noise(x, lam, squared(model))


def _pointwise(subject: Subject, model: Model) -> Sides:
    left = torch.stack([diffusion_given(model, x, HIGH, LOW) for x in POINTS])
    right = torch.stack(
        [
            marginal_kl(subject.oracle, x, HIGH) - marginal_kl(subject.oracle, x, LOW)
            for x in POINTS
        ]
    )
    return equal(left, right, rel=1e-7, why="quadrature over λ and ε")


@theorem(
    source="VDM++, arXiv:2303.00848, appendix A, at the optimum",
    given="the denoiser is the exact one",
)
def bound_of_each_example(subject: Subject) -> Sides:
    """For each x the diffusion term of the exact denoiser is KL(q(z₀|x) ‖ q(z₀)) − KL(q(z₁|x) ‖
    q(z₁))."""
    return _pointwise(subject, subject.oracle)


@bound_of_each_example.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _pointwise(subject, biased(subject.oracle))


def chain_bound(path: GaussianPath, x: float) -> Tensor:
    """The chain's bound of one x through the library, averaged over ε by quadrature."""
    node, mass = normal_nodes()
    data = torch.full((len(node), 1), x, dtype=torch.float64)
    bound = elbo(
        path.oracle,
        data,
        schedule=path.schedule,
        decoder=GaussianDecoder(),
        steps=path.steps,
        draws=path.steps,
        eps=node[:, None],
    )
    return mass @ bound.total


CHAINS = [GaussianPath(line(), HIGH, LOW, steps) for steps in (1, 2, 6)]


def _posterior_gap(right_way: bool) -> Sides:
    bound, likelihood = [], []
    for path in CHAINS:
        for x in POINTS:
            log_p, posterior = path.given(x)
            pair = (path.forward(x), posterior) if right_way else (posterior, path.forward(x))
            bound.append(chain_bound(path, x))
            likelihood.append(kl_divergence(*pair) - log_p)
    return equal(
        torch.stack(bound),
        torch.stack(likelihood),
        rel=1e-9,
        why="float64 rounding of covariances",
    )


@theorem(source="Foundations of Diffusion Models, after eq. 2.5", given="the divergence is from q")
def slack_is_the_posteriors_divergence(subject: Subject) -> Sides:
    """bound + log p(x) = KL(q(z₀…z₁ | x) ‖ p(z₀…z₁ | x)): tight if, and only if, the two laws of
    the whole path are one."""
    return _posterior_gap(True)


@slack_is_the_posteriors_divergence.without("the divergence is from q")
def _(subject: Subject) -> Sides:
    return _posterior_gap(False)


@theorem(
    source="of the telescoped bound, eq. 2.24 of Foundations of Diffusion Models",
    given="the end terms are there",
)
def bound_is_the_divergence_of_paths(subject: Subject) -> Sides:
    """prior + Σ steps = KL(q(z₀ … z_T | x) ‖ p(z₀ … z_T)), two Gaussians of T + 1 dimensions."""
    return _path_divergence(with_prior=True)


@bound_is_the_divergence_of_paths.without("the end terms are there")
def _(subject: Subject) -> Sides:
    return _path_divergence(with_prior=False)


def _path_divergence(with_prior: bool) -> Sides:
    left, right = [], []
    for path in CHAINS:
        for x in POINTS:
            given = torch.tensor([[x]], dtype=torch.float64)
            reconstruction = GaussianDecoder().expected_nll(given, HIGH)[0]
            prior = torch.zeros(()) if with_prior else prior_kl(given, LOW)[0]
            left.append(chain_bound(path, x) - reconstruction - prior)
            right.append(kl_divergence(path.forward(x), path.part(path.reverse(), 0, path.steps)))
    return equal(
        torch.stack(left), torch.stack(right), rel=1e-9, why="float64 rounding of covariances"
    )


def _weights(subject: Subject, rao_blackwell: bool) -> Sides:
    path, x = GaussianPath(line(), HIGH, LOW, 3), 0.4
    data = torch.full((16_384, 1), x, dtype=torch.float64)
    estimate = path_bound(
        path.oracle,
        data,
        schedule=path.schedule,
        decoder=GaussianDecoder(),
        steps=path.steps,
        generator=subject.generator("weights"),
    )
    log_p, _ = path.given(x)
    return sampled(
        torch.exp(-(estimate.rao_blackwell if rao_blackwell else estimate.log_ratio) - log_p), 1.0
    )


@theorem(
    source="Burda et al., arXiv:1509.00519", given="the exponent is the log-ratio of the path"
)
def importance_weight(subject: Subject) -> Sides:
    """exp(−log-ratio) of a path is an importance weight: its mean is p(x) itself, so the bound is
    Jensen's of it."""
    return _weights(subject, rao_blackwell=False)


@importance_weight.without("the exponent is the log-ratio of the path")
def _(subject: Subject) -> Sides:
    return _weights(subject, rao_blackwell=True)


def _jensen_order(variance: float) -> tuple[float, float, float]:
    """−log E Z, −E log Z and log E 1/Z of log Z ~ N(0, variance), by quadrature."""
    node, mass = normal_nodes()
    log_z = variance**0.5 * node
    return (
        -(mass @ log_z.exp()).log().item(),
        -(mass @ log_z).item(),
        (mass @ (-log_z).exp()).log().item(),
    )


@theorem(
    source="Jensen's inequality; Foundations of Diffusion Models, eq. 2.4",
    given="the logarithm stands inside one mean",
)
def jensen_direction(subject: Subject) -> Sides:
    """−E log Z ≥ −log E Z, with the variance of log Z halved between them where it is Gaussian."""
    low, middle, _ = zip(*(_jensen_order(v) for v in (0.25, 1.0, 2.0)), strict=True)
    gap = torch.tensor(middle, dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)
    return equal(
        gap, 0.5 * torch.tensor([0.25, 1.0, 2.0], dtype=torch.float64), rel=1e-9, why="quadrature"
    )


@jensen_direction.without("the logarithm stands inside one mean")
def _(subject: Subject) -> Sides:
    low, _, high = zip(
        *(_jensen_order(v) for v in (0.25, 1.0, 2.0)), strict=True
    )  # −log E Z taken for log E 1/Z
    gap = torch.tensor(high, dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)
    return equal(gap, 0.5 * torch.tensor([0.25, 1.0, 2.0], dtype=torch.float64), rel=1e-9, why="")


@theorem(
    source="Gaussian diffusion, KL to the prior; VDM, arXiv:2107.00630, eq. 11",
    given="the prior is N(0, I)",
)
def prior_term(subject: Subject) -> Sides:
    """The prior term ½ [sigmoid(λ_min)(‖x‖² − d) + d softplus(λ_min)] is the KL of the two
    Gaussians."""
    low = torch.tensor([-6.0, -3.0, 0.5], dtype=torch.float64)
    x = torch.tensor([[0.3], [-2.0], [1.5]], dtype=torch.float64)
    left = torch.stack([prior_kl(x[i : i + 1], low[i].item())[0] for i in range(3)])
    q = Normal(alpha(low) * x[:, 0], sigma(low))
    return equal(
        left,
        kl_divergence(q, Normal(torch.zeros(3).double(), torch.ones(3).double())),
        rel=1e-9,
        why="float64 rounding",
        atol=1e-12,
    )


@prior_term.without("the prior is N(0, I)")
def _(subject: Subject) -> Sides:
    low, x = torch.tensor([-3.0], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    wide = Normal(torch.zeros(1).double(), torch.full((1,), 2.0).double())
    return equal(
        prior_kl(x, -3.0),
        kl_divergence(Normal(alpha(low) * x[:, 0], sigma(low)), wide),
        rel=1e-9,
        why="",
    )


def _end_derivative(subject: Subject, model: Model) -> Sides:
    """d/dλ_max of [diffusion + reconstruction] and d/dλ_min of [prior + diffusion], against the
    errors there."""
    oracle, h = subject.oracle, 1e-4

    def bound(high: float, low: float) -> Tensor:
        lam, width = levels(low, high)
        terms = average(
            oracle,
            AT[:1],
            lambda x, eps, level: prior_kl(x, low) + GaussianDecoder().expected_nll(x, high),
        )
        return 0.5 * width @ average(oracle, lam, squared(model)) + terms[0]

    high = (bound(HIGH + h, LOW) - bound(HIGH - h, LOW)) / (2 * h)
    low = (bound(HIGH, LOW + h) - bound(HIGH, LOW - h)) / (2 * h)
    m, signal = oracle.mmse(AT), torch.sigmoid(AT[1])
    square = (oracle.weights @ (oracle.means.square() + oracle.variances)).sum()
    right = torch.stack(
        [0.5 * (m[0] - 1), 0.5 * (signal * (1 - signal) * (square - 1) + signal - m[1])]
    )
    return equal(
        torch.stack([high, low]), right, rel=1e-5, why="a difference quotient over 2e-4 in λ"
    )


@theorem(
    source="VDM, arXiv:2107.00630, section 4: the ends are trained by the bound",
    given="the errors are those of this model",
)
def end_derivatives(subject: Subject) -> Sides:
    """The bound's derivative by its ends is local: ½ (E‖e‖² − d) at λ_max, and prior' − ½ E‖e‖² at
    λ_min."""
    return _end_derivative(subject, subject.oracle)


@end_derivatives.without("the errors are those of this model")
def _(subject: Subject) -> Sides:
    return _end_derivative(subject, biased(subject.oracle))


__all__: list[str] = []
