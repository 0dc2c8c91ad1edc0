"""Which weighting a plain loss is: DDPM's simple loss, the table of implied weightings, their
shapes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step, sum_dims
from vdiff.loss import predict_at, weighted_elbo
from vdiff.parameterization import Eps, Flow, Parameterization, Score, V, X
from vdiff.reverse import reverse_kl
from vdiff.schedule import Cosine, Laplace, LinearBeta, Normal, OptimalTransport, Tabulated
from vdiff.schedule.law import HyperbolicSecant, Law
from vdiff.theorems.integral import log_normal, slope
from vdiff.theorems.subject import HIGH, LOW, Subject
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.variance import FixedLarge, FixedSmall, ReverseVariance
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Debiased,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
)

Formula = Callable[[Tensor], Tensor]
VDMPP = "VDM++, arXiv:2303.00848"
LAMBDA = torch.linspace(-11.5, 11.5, 24, dtype=torch.float64)
COSINE = HyperbolicSecant()
PER_EPS = MSE(COSINE, Eps())  # iDDPM's plain loss on ε
LEVELS = 20
BETAS = torch.linspace(1e-3, 0.3, LEVELS, dtype=torch.float64)
KEPT = torch.cumprod(1 - BETAS, 0)  # ᾱ_t
TABLE = Tabulated.from_betas(BETAS)
sig = torch.sigmoid
SMALL, LARGE = FixedSmall(), FixedLarge()


def _simple(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """x, ε and DDPM's L_simple over all levels, by row and written out."""
    x, eps, _ = subject.drawn("simple", 16)
    errors = []
    for kept in KEPT:
        z = kept.sqrt() * x + (1 - kept).sqrt() * eps
        logsnr = (kept / (1 - kept)).log().expand(len(x))
        errors.append(sum_dims((eps - subject.model(z, logsnr).eps).square()))
    return x, eps, torch.stack(errors).mean(0)


def _first(subject: Subject, x: Tensor, eps: Tensor) -> Tensor:
    """ω₁ (L₀ − C₁) of a Gaussian decoder of variance β₁ around x̂(z₀)."""
    variance = BETAS[0].item()
    decoder = GaussianDecoder(variance=variance, uses_network=True)
    term = decoder.reconstruction(x, x, TABLE.logsnr_max, subject.model, eps=eps)
    constant = 0.5 * x[0].numel() * math.log(2 * math.pi * variance)
    return (term - constant) / (LEVELS * math.exp(-TABLE.logsnr_max) / (2 * variance))


@theorem(
    "The DDPM Simple Loss Is a Weighted ELBO; DDPM, arXiv:2006.11239, eq. 14",
    without={"L₀ has its own weight": {"first": 0.0}},
)
def simple_loss_is_a_weighted_bound(subject: Subject, first: float = 1.0) -> Sides:
    """L_simple = Σ_{t≥2} ω_t L_{t−1} + ω₁ (L₀ − C₁), ω_t = 1/(T w_t), w_t = ½ expm1(λ_{t−1} −
    λ_t), with no other constant.

    L₀ is that of the Gaussian decoder N(x̂(z₀), s₁ I), here with s₁ = β₁: w₁ = e^{−λ₁}/2s₁ and C₁
    = ½ d log 2πs₁."""
    x, eps, simple = _simple(subject)
    bound, snr, steps = first * _first(subject, x, eps), KEPT / (1 - KEPT), LEVELS - 1
    for i in range(1, LEVELS):
        t = torch.full((len(x),), i / steps, dtype=torch.float64)
        term = weighted_elbo(subject.model, x, schedule=TABLE, steps=steps, t=t, eps=eps) / steps
        bound += term / (LEVELS * 0.5 * (snr[i - 1] / snr[i] - 1))
    return equal(bound, simple, rel=1e-8)


@theorem(
    "DDPM, arXiv:2006.11239, eq. 12 with σ² = β",
    without={"the constants C_t are taken off": {"constants": 0.0}, "Σ is β": {"variance": SMALL}},
)
def simple_loss_with_the_large_variance(
    subject: Subject, constants: float = 1.0, variance: ReverseVariance = LARGE
) -> Sides:
    """With Σ = β_t, L_simple = Σ ω_t (L_{t−1} − C_t), ω_t = 1/(T w_t), and for t ≥ 2 w_t = β_t/(2
    α_t (1 − ᾱ_t)), C_t = ½ d (ℓ + expm1(−ℓ)), ℓ = log(σ_t²/σ_{t−1}²); L₀ is that of the Gaussian
    decoder N(x̂(z₀), s₁ I), with s₁ = β₁, w₁ = e^{−λ₁}/2s₁ and C₁ = ½ d log 2πs₁."""
    x, eps, simple = _simple(subject)
    bound, table, n = _first(subject, x, eps), TABLE.table, len(x)
    for i in range(1, LEVELS):
        step = Step(table[i].expand(n), (table[i - 1] - table[i]).expand(n))
        said = predict_at(subject.model, x, eps, step.logsnr_t, {})
        said = said.replace(variance=variance)
        ratio = torch.log((1 - KEPT[i]) / (1 - KEPT[i - 1]))
        constant = constants * 0.5 * x[0].numel() * (ratio + torch.expm1(-ratio))
        weight = BETAS[i] / (2 * (1 - BETAS[i]) * (1 - KEPT[i]))
        bound += (reverse_kl(said, x, eps, step) - constant) / (LEVELS * weight)
    return equal(bound, simple, rel=1e-8)


@theorem(f"{VDMPP}, table 1", without={"w has the density of the times in it": {"w": ELBO()}})
def simple_loss_in_continuous_time(subject: Subject, w: Weighting | None = None) -> Sides:
    """With t ~ U(0, 1), ‖ε − ε̂‖² is the weighted bound with w = 2/(−dλ/dt), draw by draw and with
    no constant."""
    schedule = LinearBeta(HIGH, LOW)
    x, eps, t = subject.drawn("continuous", 256)

    def by_quotient(lam: Tensor) -> Tensor:
        return -2 / slope(schedule, schedule.inverse(lam), 1e-5)

    t = 0.01 + 0.98 * t  # so that the difference quotient stays between the ends
    error = sum_dims((eps - predict_at(subject.model, x, eps, schedule(t), {}).eps).square())
    losses = [
        weighted_elbo(subject.model, x, schedule=schedule, weighting=weighting, t=t, eps=eps)
        for weighting in (w or by_quotient, w or MSE(schedule, Eps()))
    ]
    return equal(torch.stack(losses), error, rel=1e-6, why="a difference quotient in t")


@theorem(f"{VDMPP}, appendix D", without={"κ is the target's": {"kappa": Eps()}})
def plain_loss_is_a_weighting(subject: Subject, kappa: Parameterization | None = None) -> Sides:
    """Squared error on any target with times from p is the weighted bound with w(λ) = 2 p(λ)
    κ(λ)², constant included."""
    schedule = OptimalTransport(HIGH, LOW)
    x, eps, t = subject.drawn("plain", 256)
    logsnr = schedule(t)
    prediction = predict_at(subject.model, x, eps, logsnr, {})
    left, right = [], []
    for target in (X(), Eps(), V(), V(0.5), Flow(), Score()):
        w = MSE(schedule, kappa or target)
        left.append(weighted_elbo(subject.model, x, schedule=schedule, weighting=w, t=t, eps=eps))
        right.append(
            sum_dims((target.target(x, eps, logsnr) - prediction.as_target(target)).square())
        )
    return equal(torch.stack(left), torch.stack(right), rel=1e-7)


def sech(u: Tensor) -> Tensor:
    """1/cosh u."""
    return 1 / torch.cosh(u)


def normal(lam: Tensor, mean: float, std: float) -> Tensor:
    """The density N(λ; mean, std²)."""
    return log_normal(lam, mean, std).exp()


# the library's weighting, that of the literature, and whether it never rises with λ
IMPLIED: dict[str, tuple[Weighting, Formula, bool]] = {
    "ELBO": (ELBO(), torch.ones_like, True),
    "DDPM, linear β": (MSE(LinearBeta().law, Eps()),
        lambda v: 2 * sig(-v) / (0.01 + 39.8 * torch.log1p(torch.exp(-v))).sqrt(), False),
    "iDDPM, cosine": (PER_EPS, lambda v: sech(v / 2) / math.pi, False),
    "EDM": (EDM(), lambda v: 8 * normal(v, 2.4, 2.4) * (torch.exp(-v) + 0.25), False),
    "v-prediction, cosine": (MSE(COSINE, V()), lambda v: 2 / math.pi * torch.exp(-v / 2), True),
    "flow matching": (MSE(OptimalTransport().law, Flow()), lambda v: torch.exp(-v / 2), True),
    "Stable Diffusion 3": (MSE(Normal(0.0, 2.0).law, Flow()),
        lambda v: 2 * normal(v, 0.0, 2.0) * (1 + torch.exp(-v / 2)).square(), False),
    "InDI": (InDI(), lambda v: 0.25 * torch.exp(-v) * sech(v / 4).square(), True),
    "x, cosine": (MSE(COSINE, X()), lambda v: torch.exp(-v) * sech(v / 2) / math.pi, True),
    "truncated SNR on x, cosine": (PER_EPS * TruncatedSNR(),
        lambda v: sech(v / 2) * torch.exp(-v).clamp(min=1) / math.pi, True),
    "P2, cosine": (PER_EPS * P2(gamma=1.0),
        lambda v: sech(v / 2) / (1 + torch.exp(v)) / math.pi, False),
    "P2 with k = 3, cosine": (PER_EPS * P2(gamma=0.5, k=3.0),
        lambda v: sech(v / 2) / (3 + v.exp()).sqrt() / math.pi, False),
    "min-SNR-5, cosine": (PER_EPS * MinSNR(5.0),
        lambda v: sech(v / 2) * (5 * torch.exp(-v)).clamp(max=1) / math.pi, False),
    "soft min-SNR-5, cosine": (PER_EPS * SoftMinSNR(5.0),
        lambda v: sech(v / 2) * sig(math.log(5) - v) / math.pi, False),
    "debiased, cosine": (PER_EPS * Debiased(), lambda v: 2 * sig(-v) / math.pi, True),
    "Laplace": (MSE(Laplace(0.5, 2.0).law, Eps()),
        lambda v: torch.exp(-(v - 0.5).abs() / 2) / 2, False),
    "sigmoid": (Sigmoid(2.0), lambda v: sig(2 - v), True),
}  # fmt: skip


@theorem(
    f"{VDMPP}, table 1, with its constants",
    without={"iDDPM's offset is zero": {"iddpm": MSE(Cosine(offset=0.008).law, Eps())}},
)
def implied_weightings(iddpm: Weighting = PER_EPS) -> Sides:
    """The weighting of each published loss by the rule w = 2 p κ² is that of the table, with its
    constant."""
    ours = {name: w for name, (w, _, _) in IMPLIED.items()} | {"iDDPM, cosine": iddpm}
    left = torch.stack([w(LAMBDA) for w in ours.values()])
    return equal(left, torch.stack([f(LAMBDA) for _, f, _ in IMPLIED.values()]), rel=1e-10)


@theorem(f"{VDMPP}, table 1, its last column")
def monotone_weightings() -> Sides:
    """Which of them never rise with λ: ELBO, v under cosine, flow matching, InDI, x, truncated
    SNR, debiased, sigmoid."""
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    falls = [bool((f(grid).diff() <= 1e-12 * f(grid)[:-1]).all()) for _, f, _ in IMPLIED.values()]
    left = torch.tensor([[w.monotone for w, _, _ in IMPLIED.values()], falls]).double()
    right = torch.tensor([monotone for _, _, monotone in IMPLIED.values()]).double()
    return equal(left, right, rel=0.0, why="yes or no")


def _stationary(formula: Formula) -> float:
    """Where log w has slope zero, by bisection on its derivative."""
    low, high = -8.0, 5.0
    for _ in range(60):
        middle = torch.tensor(0.5 * (low + high), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (rising,) = torch.autograd.grad(formula(middle).log(), middle)
        low, high = (middle.item(), high) if rising > 0 else (low, middle.item())
    return 0.5 * (low + high)


@theorem(f"{VDMPP}, table 1", without={"the data's scale is ½": {"sigma_data": 1.0}})
def peaks_of_weightings(sigma_data: float = 0.5) -> Sides:
    """Those that rise have their largest w where d log w/dλ = 0: DDPM −0.922, iDDPM 0, EDM −3.308,
    P2 −log(1 + 2γ)."""
    smooth = "DDPM, linear β", "iDDPM, cosine", "P2, cosine", "P2 with k = 3, cosine"
    names = *smooth, "soft min-SNR-5, cosine"
    left = torch.tensor(
        [EDM(sigma_data=sigma_data).peak, *(IMPLIED[name][0].peak for name in names)]
    )
    right = torch.tensor([_stationary(IMPLIED[name][1]) for name in ("EDM", *names)])
    return Sides(left, right, 1e-6, "a search on a grid")


@theorem(
    f"{VDMPP}, appendix D.3",
    without={"the cosine schedule is not shifted": {"cosine": HyperbolicSecant(2.0)}},
)
def flow_matching_is_v_prediction(cosine: Law = COSINE) -> Sides:
    """Flow matching with uniform t and v-prediction under the cosine schedule are one objective,
    up to the factor π/2: w = e^{−λ/2}."""
    left = MSE(OptimalTransport().law, Flow())(LAMBDA), 0.5 * math.pi * MSE(cosine, V())(LAMBDA)
    return equal(torch.stack(left), torch.exp(-0.5 * LAMBDA), rel=1e-10)


@theorem(
    "min-SNR-γ, arXiv:2303.09556, section 3.4",
    without={"each factor is for its own target": {"added": 0.0}},
)
def min_snr_in_each_target(subject: Subject, added: float = 1.0) -> Sides:
    """min(SNR, γ) on x, min(1, γ/SNR) on ε and min(SNR, γ)/(SNR + 1) on v are one weighting: that
    of `MinSNR`."""
    x, eps, t = subject.drawn("min-SNR", 256)
    schedule = Cosine(HIGH, LOW)
    logsnr, snr = schedule(t), schedule(t).exp()
    prediction = predict_at(subject.model, x, eps, logsnr, {})
    clipped = snr.clamp(max=5)
    losses = [
        factor * sum_dims((target.target(x, eps, logsnr) - prediction.as_target(target)).square())
        for target, factor in (
            (X(), clipped),
            (Eps(), clipped / snr),
            (V(), clipped / (snr + added)),
        )
    ]
    w = MSE(schedule, Eps()) * MinSNR(5.0)
    right = weighted_elbo(subject.model, x, schedule=schedule, weighting=w, t=t, eps=eps)
    return equal(torch.stack(losses), right, rel=1e-7)
