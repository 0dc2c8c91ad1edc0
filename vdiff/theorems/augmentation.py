"""Theorem 1 of VDM++: a weighted loss is a mixture of bounds of noisier data, with its lemmas and
its signs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vdiff.augmentation import Augmentation, augmented_elbo
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import prior_kl
from vdiff.loss import Model, elbo, weighted_elbo
from vdiff.parameterization import Eps
from vdiff.schedule import Cosine, Linear
from vdiff.theorems.bounds import marginal_kl
from vdiff.theorems.integral import QUADRATURE, expected_loss, levels, panels, slope
from vdiff.theorems.paths import GaussianPath
from vdiff.theorems.subject import FEWEST, HIGH, LOW, ORACLE, TIMES, Subject, biased, f64, line
from vdiff.theorems.theorem import Sides, equal, paired, theorem
from vdiff.weighting import EDM, ELBO, MSE, Sigmoid, Weighting

SOURCE = "VDM++, arXiv:2303.00848"
POINTS = (-1.3, 0.4, 2.0)
KINK = -3.3077775  # the peak of EDM's weighting
EXACT = "the denoiser is the exact one"
COVARIANCES = "float64 rounding of covariances"


@theorem(
    f"{SOURCE}, appendix A.1, the first lemma, at the optimum",
    without={"the factor is one half": {"factor": 1.0}, EXACT: {"model": biased(ORACLE)}},
)
def derivative_of_the_bound_from_t_on(factor: float = 0.5, model: Model = ORACLE) -> Sides:
    """For the exact denoiser L(t; x) is KL(q(z_t | x) ‖ q(z_t)) up to a constant, and dL(t; x)/dt
    = ½ λ'(t) E[‖ε − ε̂‖² | x]."""
    schedule, t = Cosine(HIGH, LOW), f64([0.1, 0.5, 0.8])

    def divergence(x: float) -> Callable[[Tensor], Tensor]:
        return lambda t: torch.stack([marginal_kl(ORACLE, x, v) for v in schedule(t).tolist()])

    left = [slope(divergence(x), t) for x in POINTS]
    right = [-expected_loss(model, ORACLE, schedule, t=t, x=x) for x in POINTS]
    return equal(
        torch.stack(left),
        2 * factor * torch.stack(right),
        rel=1e-6,
        why="a difference quotient in t",
    )


PATH = GaussianPath(line(), 4.0, -3.0, 6)


def _bounds_from(x: float) -> Tensor:
    """L(t; x) at each t: the prior and the chain's steps from t on, by quadrature over ε."""
    node, mass = f64([[-(3**0.5)], [0.0], [3**0.5]]), f64([1 / 6, 2 / 3, 1 / 6])
    options: dict[str, Any] = {"schedule": PATH.schedule, "decoder": GaussianDecoder()}
    data = torch.full((3, 1), x, dtype=torch.float64)
    bound = elbo(PATH.oracle, data, **options, steps=PATH.steps, draws=PATH.steps, eps=node)
    terms = [mass @ bound.terms(nats=True)[f"L_{i}"] for i in range(1, PATH.steps + 1)]
    return torch.stack(terms).flip(0).cumsum(0).flip(0) + bound.prior[0]


@theorem(
    f"{SOURCE}, appendix A.2, the second lemma; eq. 2.24 of Foundations of Diffusion Models",
    without={"the rest of the path is counted": {"rest": 0}},
)
def bound_from_t_on(rest: int = PATH.steps) -> Sides:
    """L(t; x) = KL(q(z_t … z_T | x) ‖ p(z_t … z_T)), which is KL(q(z_t | x) ‖ p(z_t)) and the mean
    KL of the rest of the path given z_t: the bound from t on is one for the noisy data z_t."""
    right = []
    for x in POINTS:
        laws = PATH.forward(x), PATH.reverse()
        for t in range(PATH.steps):
            right.append(kl_divergence(*(PATH.part(law, t, max(t, rest)) for law in laws)))
    return equal(
        torch.cat([*map(_bounds_from, POINTS)]), torch.stack(right), rel=1e-8, why=COVARIANCES
    )


@theorem(
    f"{SOURCE}, appendix A.2, the second lemma",
    without={"the entropy of q(z_t | x) is taken off": {"entropy": 0.0}},
)
def bound_from_t_on_is_an_elbo_of_noisy_data(entropy: float = 1.0) -> Sides:
    """L(t; x) = E[−ELBO_t(z_t)] − ½ d log 2πe σ_t², where ELBO_t is that of z_t as data, with the
    rest of the path for latents."""
    spread = 2 * torch.pi * torch.e * torch.sigmoid(-PATH.logsnr)  # 2πe σ_t²
    step = spread[1:] * -torch.expm1(PATH.logsnr[1:] - PATH.logsnr[:-1])  # of q(z_t | z_s)
    right = []
    for x in POINTS:
        for t in range(PATH.steps):
            q, p = (PATH.part(law, t, PATH.steps) for law in (PATH.forward(x), PATH.reverse()))
            cross = kl_divergence(q, p) + q.entropy()  # type: ignore[no-untyped-call]
            right.append(cross - 0.5 * (step[t:].log().sum() + entropy * spread[t].log()))
    return equal(
        torch.cat([*map(_bounds_from, POINTS)]), torch.stack(right), rel=1e-8, why=COVARIANCES
    )


Bounds = Callable[[Tensor], Tensor]  # of levels λ: L(t; x) at each


def _drawn(weighting: Weighting, bounds: Bounds) -> Tensor:
    """E_{p_w}[L(t; x)] through the library's p_w: its quantiles, and the mass at no noise."""
    noise = Augmentation(weighting, HIGH, LOW)
    u, du = panels(1 - noise(torch.linspace(LOW, HIGH, 27, dtype=torch.float64)))
    return du @ bounds(noise.icdf(u)) + noise(f64([HIGH])) @ bounds(f64([HIGH]))


def _measure(signed: bool, mass: float = 1.0) -> Callable[[Weighting, Bounds], Tensor]:
    """E under the measure (dw/dt)/w(λ_min), or its positive part, and the mass at no noise."""

    def expectation(weighting: Weighting, bounds: Bounds) -> Tensor:
        lam, width = levels(LOW, HIGH, KINK)
        falling = -slope(weighting, lam)
        falling = falling if signed else falling.clamp(min=0)
        at_high, at_low = weighting(f64([HIGH])), weighting(f64([LOW]))
        at_data = mass * at_high @ bounds(f64([HIGH]))
        total: Tensor = (width @ (falling * bounds(lam)) + at_data) / at_low[0]
        return total

    return expectation


def _mixture(
    weightings: tuple[Weighting, ...],
    expectation: Callable[[Weighting, Bounds], Tensor],
    constant: float = 1.0,
    model: Model = ORACLE,
) -> Sides:
    """L_w(x)/w(λ_min) by `weighted_elbo`, against E[L(t; x)] − L(1; x) from densities."""
    left, right = [], []
    for weighting in weightings:
        low = weighting(f64(LOW))
        for x in POINTS:
            first = prior_kl(f64([[x]]), LOW)[0]

            def bounds(lam: Tensor, x: float = x, first: Tensor = first) -> Tensor:
                kl = torch.stack([marginal_kl(ORACLE, x, level) for level in lam.tolist()])
                return first + kl - marginal_kl(ORACLE, x, LOW)

            loss = expected_loss(model, ORACLE, Linear(HIGH, LOW), weighting, x=x, corners=(KINK,))
            left.append(loss / low)
            right.append(expectation(weighting, bounds) - constant * first)
    why = f"{QUADRATURE}, a difference quotient of w"
    return equal(torch.stack(left), torch.stack(right), rel=1e-6, why=why)


MONOTONE = Sigmoid(2.0), Sigmoid(-6.0), EDM(monotone=True)  # w(λ_min) is 0.999, 0.27 and 2.2
OF_THE_MODEL = "L(t; x) is that of the denoiser, here the exact one"


@theorem(
    f"{SOURCE}, theorem 1, and its Dirac delta",
    without={
        "w never rises": {"weightings": (EDM(),), "expectation": _measure(signed=False)},
        "the mass at no noise is w(λ_max)/w(λ_min)": {"expectation": _measure(True, mass=0.0)},
        "the constant is there": {"constant": 0.0},
        OF_THE_MODEL: {"model": biased(ORACLE)},
    },
)
def weighted_loss_is_a_bound_of_noisier_data(
    weightings: tuple[Weighting, ...] = MONOTONE, expectation: Any = _drawn, **dropped: Any
) -> Sides:
    """L_w/w(λ_min) = E_{t ~ p_w}[L(t; x)] − L(1; x) where p_w = (dw/dt)/w(λ_min), with the mass
    w(λ_max)/w(λ_min) at t = 0."""
    return _mixture(weightings, expectation, **dropped)


@theorem(
    f"{SOURCE}, section 3.1, without monotonicity",
    without={
        "the measure keeps its sign": {"signed": False},
        OF_THE_MODEL: {"model": biased(ORACLE)},
    },
)
def weighted_loss_is_a_signed_mixture(signed: bool = True, model: Model = ORACLE) -> Sides:
    """For any w the same identity holds with a signed measure (dw/dt)/w(λ_min), negative where w
    rises with λ."""
    weightings = EDM(), MSE(Cosine(HIGH, LOW), Eps())
    return _mixture(weightings, _measure(signed), model=model)


@theorem(
    f"{SOURCE}, theorem 1",
    without={"the noise of the augmentation is drawn from p_w": {"noise": ELBO()}},
)
def training_on_noisier_data(subject: Subject, noise: Weighting | None = None) -> Sides:
    """Drawing a level from p_w and taking the plain bound of the data noised to it has the mean of
    the weighted loss, divided by w(λ_min)."""
    w, groups = Sigmoid(0.0), max(FEWEST, 4 * subject.draws // TIMES)
    generator, x = subject.generator("augmentation"), subject.rows(groups)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    # draws at one (x, ε) lie far apart in the batch, hence in time: their mean hardly varies
    x, eps = (v.repeat(TIMES, *(1 for _ in v.shape[1:])) for v in (x, eps))
    options: dict[str, Any] = {"schedule": Linear(HIGH, LOW), "eps": eps, "generator": generator}
    law = Augmentation(noise or w, HIGH, LOW)
    drawn = augmented_elbo(subject.model, x, augmentation=law, **options)
    weighted = weighted_elbo(subject.model, x, weighting=w, **options) / w(f64(LOW))
    return paired(drawn.view(TIMES, groups).mean(0), weighted.view(TIMES, groups).mean(0))
