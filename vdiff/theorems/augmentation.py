"""Theorem 1 of VDM++: a weighted loss is a mixture of bounds of noisier data, with its lemmas, its
mass at no noise, its signs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vdiff.augmentation import Augmentation, augmented_elbo
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.describe import Description
from vdiff.gaussian import prior_kl
from vdiff.loss import Model, elbo, weighted_elbo
from vdiff.parameterization import Eps
from vdiff.recipes import Recipe
from vdiff.schedule import Cosine, Linear
from vdiff.theorems.bounds import marginal_kl
from vdiff.theorems.integral import average_noise, levels, slope, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import FEWEST, HIGH, LOW, TIMES, Subject, biased, line
from vdiff.theorems.theorem import Sides, at_least, equal, paired, theorem
from vdiff.weighting import EDM, ELBO, MSE, Sigmoid, Weighting

SOURCE = "VDM++, arXiv:2303.00848"
POINTS = (-1.3, 0.4, 2.0)
LAMBDA = torch.tensor([-3.0, 0.0, 2.5, 6.0], dtype=torch.float64)
KINK = -3.3077775  # the peak of EDM's weighting


def _marginal_slope(subject: Subject, model: Model, weight: float) -> Sides:
    """d/dλ of KL(q(z|x) ‖ q(z)), from densities, against ½ E[‖e‖² | x]."""

    def against_the_marginal(x: float) -> Callable[[Tensor], Tensor]:
        return lambda lam: torch.stack([marginal_kl(subject.oracle, x, v) for v in lam.tolist()])

    left = torch.stack([slope(against_the_marginal(x), LAMBDA) for x in POINTS])
    right = torch.stack([weight * average_noise(x, LAMBDA, squared(model)) for x in POINTS])
    return equal(left, right, rel=1e-6, why="a difference quotient in λ")


@theorem(
    source=f"{SOURCE}, appendix A.1, the first lemma, at the optimum",
    given="the denoiser is the exact one; the factor is one half",
)
def derivative_of_the_bound_from_t_on(subject: Subject) -> Sides:
    """For the exact denoiser L(t; x) is KL(q(z_t | x) ‖ q(z_t)) up to a constant, and dL(t; x)/dt
    = ½ λ'(t) E[‖ε − ε̂‖² | x]."""
    return _marginal_slope(subject, subject.oracle, 0.5)


@derivative_of_the_bound_from_t_on.without("the factor is one half")
def _(subject: Subject) -> Sides:
    return _marginal_slope(subject, subject.oracle, 1.0)


@derivative_of_the_bound_from_t_on.without("the denoiser is the exact one")
def _(subject: Subject) -> Sides:
    return _marginal_slope(subject, biased(subject.oracle), 0.5)


PATH = GaussianPath(line(), 4.0, -3.0, 6)


def _from_each_level(x: float) -> tuple[Tensor, Tensor, Tensor]:
    """L(t; x) of every z_t … z_T, the KL of z_t alone, and the mean KL of the rest given z_t, all
    from Gaussian vectors."""
    q, p = PATH.forward(x), PATH.part(PATH.reverse(), 0, PATH.steps)
    whole, alone, rest = [], [], []
    for t in range(PATH.steps):
        a, b = PATH.part(q, t, PATH.steps), PATH.part(p, t, PATH.steps)
        whole.append(kl_divergence(a, b))
        alone.append(kl_divergence(PATH.part(a, 0), PATH.part(b, 0)))
        rest.append(_conditional_kl(a.mean, a.covariance_matrix, b.mean, b.covariance_matrix))
    return torch.stack(whole), torch.stack(alone), torch.stack(rest)


def _conditional_kl(m: Tensor, c: Tensor, n: Tensor, d: Tensor) -> Tensor:
    """E over the first variable of KL(rest | first) of N(m, c) from N(n, d)."""
    gain_q, gain_p = c[1:, 0] / c[0, 0], d[1:, 0] / d[0, 0]
    cov_q, cov_p = (
        c[1:, 1:] - torch.outer(gain_q, c[0, 1:]),
        d[1:, 1:] - torch.outer(gain_p, d[0, 1:]),
    )
    shift = (
        m[1:] - n[1:] - gain_p * (m[0] - n[0])
    )  # of the conditional means at the mean of z_t; it moves with z_t by the gains
    precision, move = torch.linalg.inv(cov_p), gain_q - gain_p
    square = shift @ precision @ shift + c[0, 0] * (move @ precision @ move)
    found: Tensor = 0.5 * (
        torch.trace(precision @ cov_q)
        - len(cov_q)
        + square
        + torch.logdet(cov_p)
        - torch.logdet(cov_q)
    )
    return found


def _given_from(x: float) -> Tensor:
    """L(t; x) through the library: the prior and the chain's steps from t on, averaged over ε by
    quadrature."""
    from_decoder = GaussianDecoder()
    node = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)[
        :, None
    ]  # exact for the square of an affine error
    mass = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    data = torch.full((3, 1), x, dtype=torch.float64)
    bound = elbo(
        PATH.oracle,
        data,
        schedule=PATH.schedule,
        decoder=from_decoder,
        steps=PATH.steps,
        draws=PATH.steps,
        eps=node,
    )
    terms = torch.stack(
        [mass @ bound.terms(nats=True)[f"L_{i}"] for i in range(1, PATH.steps + 1)]
    )
    return terms.flip(0).cumsum(0).flip(0) + bound.prior[0]


@theorem(
    source=f"{SOURCE}, appendix A.2, the second lemma", given="the rest of the path is counted"
)
def bound_from_t_on(subject: Subject) -> Sides:
    """L(t; x) = KL(q(z_t | x) ‖ p(z_t)) + E KL of the rest of the path given z_t: the gap of the
    second lemma."""
    left = torch.stack([_given_from(x) for x in POINTS])
    right = torch.stack([alone + rest for _, alone, rest in map(_from_each_level, POINTS)])
    return equal(left, right, rel=1e-8, why="float64 rounding of covariances")


@bound_from_t_on.without("the rest of the path is counted")
def _(subject: Subject) -> Sides:
    left = torch.stack([_given_from(x) for x in POINTS])
    return equal(left, torch.stack([_from_each_level(x)[1] for x in POINTS]), rel=1e-8, why="")


@theorem(
    source=f"{SOURCE}, appendix A.2, the second lemma", given="the divergence is that of the path"
)
def bound_from_t_on_is_above_the_marginals(subject: Subject) -> Sides:
    """L(t; x) ≥ KL(q(z_t | x) ‖ p(z_t)): the bound from t on is one for the noisy data z_t."""
    left = torch.stack([_given_from(x) for x in POINTS])
    return at_least(
        left,
        torch.stack([_from_each_level(x)[1] for x in POINTS]),
        rel=1e-9,
        why="float64 rounding of covariances",
    )


@bound_from_t_on_is_above_the_marginals.without("the divergence is that of the path")
def _(subject: Subject) -> Sides:
    rest = torch.stack([_from_each_level(x)[2] for x in POINTS])
    return at_least(rest, torch.stack([_from_each_level(x)[1] for x in POINTS]), rel=1e-9, why="")


def _elbo_of_noisy_data(entropy: bool) -> Sides:
    """L(t; x) of the library against E[−ELBO_t(z_t)], a cross entropy of z_t … z_T less the
    entropies of its own steps."""
    spread = 2 * torch.pi * torch.e * torch.sigmoid(-PATH.logsnr)  # 2πe σ_t²
    walked = (
        0.5 * (spread[1:] * -torch.expm1(PATH.logsnr[1:] - PATH.logsnr[:-1])).log()
    )  # entropy of q(z_t | z_s), each step
    right = []
    for x in POINTS:
        q, p = PATH.forward(x), PATH.reverse()
        for t in range(PATH.steps):
            a, b = PATH.part(q, t, PATH.steps), PATH.part(p, t, PATH.steps)
            away = a.mean - b.mean
            square = (
                torch.trace(b.precision_matrix @ a.covariance_matrix)
                + away @ b.precision_matrix @ away
            )
            cross = 0.5 * (torch.logdet(2 * torch.pi * b.covariance_matrix) + square)
            right.append(cross - walked[t:].sum() - (0.5 * spread[t].log() if entropy else 0.0))
    return equal(
        torch.cat([_given_from(x) for x in POINTS]),
        torch.stack(right),
        rel=1e-8,
        why="float64 rounding of covariances",
    )


@theorem(
    source=f"{SOURCE}, appendix A.2, the second lemma",
    given="the entropy of q(z_t | x) is taken off",
)
def bound_from_t_on_is_an_elbo_of_noisy_data(subject: Subject) -> Sides:
    """L(t; x) = E[−ELBO_t(z_t)] − ½ d log 2πe σ_t², where ELBO_t is that of z_t as data, with the
    rest of the path for latents."""
    return _elbo_of_noisy_data(entropy=True)


@bound_from_t_on_is_an_elbo_of_noisy_data.without("the entropy of q(z_t | x) is taken off")
def _(subject: Subject) -> Sides:
    return _elbo_of_noisy_data(entropy=False)


def _given(model: Model, weighting: Weighting, x: float) -> Tensor:
    """L_w(x)/w(λ_min) of a model through the loss."""
    lam, width = levels(LOW, HIGH, KINK)
    low = weighting(torch.tensor(LOW, dtype=torch.float64))
    found: Tensor = 0.5 * width @ (weighting(lam) / low * average_noise(x, lam, squared(model)))
    return found


def _mixture(
    subject: Subject, weighting: Weighting, x: float, signed: bool, mass: float, constant: float
) -> Tensor:
    """E_{p_w}[L(t; x)] − L(1; x) with p_w = (dw/dt)/w(λ_min) and the mass w(λ_max)/w(λ_min) at t =
    0; L(t; x) from densities."""
    lam, width = levels(LOW, HIGH, KINK)
    ends = torch.tensor([HIGH, LOW], dtype=torch.float64)
    first = prior_kl(torch.tensor([[x]], dtype=torch.float64), LOW)[0]

    def bound(level: float) -> Tensor:
        return first + marginal_kl(subject.oracle, x, level) - marginal_kl(subject.oracle, x, LOW)

    falling = -slope(weighting, lam)
    falling = falling if signed else falling.clamp(min=0)
    at_high, at_low = weighting(ends)
    spread: Tensor = width @ (falling / at_low * torch.stack([bound(v) for v in lam.tolist()]))
    found: Tensor = spread + mass * at_high / at_low * bound(HIGH) - constant * first
    return found


def _theorem_1(
    subject: Subject,
    weightings: tuple[Weighting, ...],
    signed: bool = True,
    mass: float = 1.0,
    constant: float = 1.0,
    model: Model | None = None,
) -> Sides:
    left = torch.stack([_given(model or subject.oracle, w, x) for w in weightings for x in POINTS])
    right = torch.stack(
        [_mixture(subject, w, x, signed, mass, constant) for w in weightings for x in POINTS]
    )
    return equal(left, right, rel=1e-6, why="a difference quotient of w, and quadrature")


MONOTONE: tuple[Weighting, ...] = (
    Sigmoid(2.0),
    Sigmoid(-6.0),
    EDM(monotone=True),
)  # w(λ_min) is 0.999, 0.27 and 2.2


@theorem(
    source=f"{SOURCE}, theorem 1",
    given="w never rises; the mass at no noise is w(λ_max)/w(λ_min); the constant is there; L(t; x) is that of the denoiser, here the exact one",
)
def weighted_loss_is_a_bound_of_noisier_data(subject: Subject) -> Sides:
    """L_w/w(λ_min) = E_{t ~ p_w}[L(t; x)] − L(1; x) where p_w = (dw/dt)/w(λ_min), with the mass
    w(λ_max)/w(λ_min) at t = 0."""
    return _theorem_1(subject, MONOTONE, signed=False)


@weighted_loss_is_a_bound_of_noisier_data.without("w never rises")
def _(subject: Subject) -> Sides:
    return _theorem_1(subject, (EDM(),), signed=False)


@weighted_loss_is_a_bound_of_noisier_data.without("the mass at no noise is w(λ_max)/w(λ_min)")
def _(subject: Subject) -> Sides:
    return _theorem_1(subject, MONOTONE, mass=0.0)


@weighted_loss_is_a_bound_of_noisier_data.without("the constant is there")
def _(subject: Subject) -> Sides:
    return _theorem_1(subject, MONOTONE, constant=0.0)


@weighted_loss_is_a_bound_of_noisier_data.without(
    "L(t; x) is that of the denoiser, here the exact one"
)
def _(subject: Subject) -> Sides:
    return _theorem_1(subject, MONOTONE, model=biased(subject.oracle))


@theorem(
    source=f"{SOURCE}, section 3.1, without monotonicity",
    given="the measure keeps its sign; L(t; x) is that of the denoiser, here the exact one",
)
def weighted_loss_is_a_signed_mixture(subject: Subject) -> Sides:
    """For any w the same identity holds with a signed measure (dw/dt)/w(λ_min), negative where w
    rises with λ."""
    return _theorem_1(subject, (EDM(), MSE(Cosine(HIGH, LOW), Eps())))


@weighted_loss_is_a_signed_mixture.without("the measure keeps its sign")
def _(subject: Subject) -> Sides:
    return _theorem_1(subject, (EDM(),), signed=False)


def _mass(weighting: Weighting) -> Sides:
    described = Description(Recipe("any", Linear(HIGH, LOW), Eps(), weighting))
    lam, width = levels(LOW, HIGH, KINK)
    low = weighting(torch.tensor([LOW], dtype=torch.float64))
    spread = width @ (-slope(weighting, lam)).clamp(min=0) / low
    mass = described.recipe.weighting(torch.tensor([HIGH], dtype=torch.float64)) / low
    said = (
        described.augmentation(torch.tensor([HIGH], dtype=torch.float64))
        if described.monotone
        else mass
    )
    return equal(said, 1 - spread, rel=1e-6, why="quadrature")


@theorem(source=f"{SOURCE}, theorem 1: the Dirac delta", given="w never rises")
def mass_at_no_noise(subject: Subject) -> Sides:
    """p_w is a distribution: its mass at data as it is, w(λ_max)/w(λ_min), is what dw/dt leaves of
    1."""
    sides = [_mass(w) for w in (Sigmoid(2.0), Sigmoid(6.0))]
    return Sides(
        torch.cat([s.cases[0] for s in sides]),
        torch.cat([s.cases[1] for s in sides]),
        torch.cat([s.cases[2] for s in sides]),
        "quadrature",
    )


@mass_at_no_noise.without("w never rises")
def _(subject: Subject) -> Sides:
    return _mass(EDM())


def _augmented(subject: Subject, weighting: Weighting, noise: Weighting) -> Sides:
    """L_w/w(λ_min) against the plain bound of data noised by p_w of a weighting: any network.

    Draws at one (x, ε) lie far apart in the batch, hence in time: their mean hardly varies.
    """
    generator, groups = subject.generator("augmentation"), max(FEWEST, 4 * subject.draws // TIMES)
    x = subject.rows(groups)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x, eps = (v.repeat(TIMES, *(1 for _ in v.shape[1:])) for v in (x, eps))
    options: dict[str, Any] = {"schedule": Linear(HIGH, LOW), "eps": eps, "generator": generator}
    law = Augmentation(noise, HIGH, LOW)
    drawn = augmented_elbo(subject.model, x, augmentation=law, **options)
    weighted = weighted_elbo(subject.model, x, weighting=weighting, **options)
    weighted = weighted / weighting(torch.tensor(LOW, dtype=torch.float64))
    return paired(drawn.view(TIMES, groups).mean(0), weighted.view(TIMES, groups).mean(0))


@theorem(
    source=f"{SOURCE}, theorem 1",
    given="the noise of the augmentation is drawn from p_w",
    any_network=True,
)
def training_on_noisier_data(subject: Subject) -> Sides:
    """Drawing a level from p_w and taking the plain bound of the data noised to it has the mean of
    the weighted loss."""
    return _augmented(subject, Sigmoid(0.0), noise=Sigmoid(0.0))


@training_on_noisier_data.without("the noise of the augmentation is drawn from p_w")
def _(subject: Subject) -> Sides:
    return _augmented(subject, Sigmoid(0.0), noise=ELBO())


__all__: list[str] = []
