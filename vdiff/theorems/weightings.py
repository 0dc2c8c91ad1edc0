"""Which weighting a plain loss is: DDPM's simple loss, the table of implied weightings, their
shapes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import Step, diffuse
from vdiff.loss import weighted_elbo
from vdiff.parameterization import Eps, Flow, Parameterization, Score, V, X
from vdiff.prediction import Prediction
from vdiff.reverse import reverse_kl
from vdiff.schedule import (
    Cosine,
    Laplace,
    LinearBeta,
    Normal,
    OptimalTransport,
    Schedule,
    Tabulated,
)
from vdiff.schedule.law import HyperbolicSecant, Law
from vdiff.theorems.chains import total
from vdiff.theorems.subject import HIGH, LOW, Subject
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.variance import Forward
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
LEVELS, STEPS = 20, 19
BETAS = torch.linspace(1e-3, 0.3, LEVELS, dtype=torch.float64)
TABLE = Tabulated.from_betas(BETAS)
ROUNDING = "float64 rounding"
LAMBDA = torch.linspace(-11.5, 11.5, 24, dtype=torch.float64)
COSINE = HyperbolicSecant()
sig = torch.sigmoid


def sech(u: Tensor) -> Tensor:
    """1/cosh u.

    >>> sech(torch.zeros(1))
    tensor([1.])
    """
    return 1 / torch.cosh(u)


def normal(mean: float, std: float) -> Formula:
    """The density N(λ; mean, std²).

    >>> normal(0.0, 1.0)(torch.zeros(1))
    tensor([0.3989])
    """
    return lambda lam: (
        torch.exp(-0.5 * ((lam - mean) / std).square()) / (std * math.sqrt(2 * math.pi))
    )


def _simple(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: DDPM's L_simple over all levels t = 1 … n, with the noise it was drawn with,
    written out."""
    x = subject.rows(16)
    eps = torch.randn(x.shape, generator=subject.generator("simple"), dtype=torch.float64)
    signal = torch.cumprod(1 - BETAS, 0)
    errors = []
    for kept in signal:
        z = kept.sqrt() * x + (1 - kept).sqrt() * eps
        logsnr = (kept / (1 - kept)).log().expand(len(x))
        errors.append(total((eps - subject.model(z, logsnr).eps).square()))
    return torch.stack(errors).mean(0), x, eps


def _decoder_term(subject: Subject, x: Tensor, eps: Tensor, variance: float) -> Tensor:
    """ω₁ (L₀ − C₁) of a Gaussian decoder of this variance around x̂(z₀)."""
    term = GaussianDecoder(variance=variance, denoise=True).reconstruction(
        x, x, TABLE.logsnr_max, subject.model, eps=eps
    )
    weight, constant = (
        math.exp(-TABLE.logsnr_max) / (2 * variance),
        0.5 * x[0].numel() * math.log(2 * math.pi * variance),
    )
    return (term - constant) / (LEVELS * weight)


def _small(subject: Subject, decoder_weight: float = 1.0) -> Sides:
    simple, x, eps = _simple(subject)
    bound = decoder_weight * _decoder_term(subject, x, eps, BETAS[0].item())
    for i in range(1, STEPS + 1):
        t = torch.full((len(x),), i / STEPS, dtype=torch.float64)
        term = weighted_elbo(subject.model, x, schedule=TABLE, steps=STEPS, t=t, eps=eps) / STEPS
        bound = bound + term / (LEVELS * 0.5 * torch.expm1(TABLE.delta(t, STEPS)))
    return equal(bound, simple, rel=1e-8, why=ROUNDING)


@theorem(
    source="The DDPM Simple Loss Is a Weighted ELBO; DDPM, arXiv:2006.11239, eq. 14",
    given="Σ is the posterior's; L₀ has its own weight",
    any_network=True,
)
def simple_loss_is_a_weighted_bound(subject: Subject) -> Sides:
    """L_simple = Σ_{t≥2} ω_t L_{t−1} + ω₁ (L₀ − C₁), ω_t = 1/(T w_t), w_t = ½ expm1(λ_{t−1} −
    λ_t), with no other constant.

    L₀ is that of the Gaussian decoder N(x̂(z₀), s₁ I), here with s₁ = β₁: w₁ = e^{−λ₁}/2s₁ and C₁
    = ½ d log 2πs₁."""
    return _small(subject)


@simple_loss_is_a_weighted_bound.without("L₀ has its own weight")
def _(subject: Subject) -> Sides:
    return _small(subject, decoder_weight=0.0)


def _large(subject: Subject, with_constant: bool) -> Sides:
    simple, x, eps = _simple(subject)
    bound = _decoder_term(subject, x, eps, BETAS[0].item())
    signal = torch.cumprod(1 - BETAS, 0)
    for i in range(1, LEVELS):
        step = Step(
            TABLE.table[i].expand(len(x)), (TABLE.table[i - 1] - TABLE.table[i]).expand(len(x))
        )
        said = subject.model(diffuse(x, eps, step.logsnr_t), step.logsnr_t)
        term = reverse_kl(
            Prediction(said.z, said.logsnr, said.out, said.parameterization, Forward()),
            x,
            eps,
            step,
        )
        ratio = torch.log((1 - signal[i]) / (1 - signal[i - 1]))
        constant = 0.5 * x[0].numel() * (ratio + torch.expm1(-ratio)) if with_constant else 0.0
        weight = BETAS[i] / (2 * (1 - BETAS[i]) * (1 - signal[i]))
        bound = bound + (term - constant) / (LEVELS * weight)
    return equal(bound, simple, rel=1e-7, why=ROUNDING)


@theorem(
    source="DDPM, arXiv:2006.11239, eq. 12 with σ² = β",
    given="the constants C_t are taken off",
    any_network=True,
)
def simple_loss_with_the_large_variance(subject: Subject) -> Sides:
    """With Σ = β_t, L_simple = Σ ω_t (L_{t−1} − C_t), ω_t = 1/(T w_t), and for t ≥ 2 w_t = β_t/(2
    α_t (1 − ᾱ_t)), C_t = ½ d (ℓ + expm1(−ℓ)), ℓ = log(σ_t²/σ_{t−1}²); L₀ is that of the Gaussian
    decoder N(x̂(z₀), s₁ I), with s₁ = β₁, w₁ = e^{−λ₁}/2s₁ and C₁ = ½ d log 2πs₁."""
    return _large(subject, with_constant=True)


@simple_loss_with_the_large_variance.without("the constants C_t are taken off")
def _(subject: Subject) -> Sides:
    return _large(subject, with_constant=False)


def _continuous(subject: Subject, weight: Callable[[Schedule], Formula]) -> Sides:
    schedule, generator = LinearBeta(HIGH, LOW), subject.generator("continuous")
    x, t = subject.rows(256), torch.rand(256, generator=generator, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    error = total((eps - subject.model(diffuse(x, eps, schedule(t)), schedule(t)).eps).square())
    return equal(
        weighted_elbo(
            subject.model, x, schedule=schedule, weighting=weight(schedule), t=t, eps=eps
        ),
        error,
        rel=1e-8,
        why=ROUNDING,
    )


@theorem(
    source="VDM++, arXiv:2303.00848, table 1",
    given="w has the density of the times in it",
    any_network=True,
)
def simple_loss_in_continuous_time(subject: Subject) -> Sides:
    """With t ~ U(0, 1), ‖ε − ε̂‖² is the weighted bound with w = 2/(−dλ/dt), draw by draw and with
    no constant."""
    return _continuous(subject, lambda schedule: lambda lam: 2 * schedule.density(lam))


@simple_loss_in_continuous_time.without("w has the density of the times in it")
def _(subject: Subject) -> Sides:
    return _continuous(subject, lambda schedule: ELBO())


def _plain(subject: Subject, with_kappa: bool) -> Sides:
    generator, x = subject.generator("plain"), subject.rows(256)
    eps, t = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64),
        torch.rand(256, generator=generator, dtype=torch.float64),
    )
    schedule = OptimalTransport(HIGH, LOW)
    logsnr = schedule(t)
    prediction = subject.model(diffuse(x, eps, logsnr), logsnr)
    left, right = [], []
    for target in (X(), Eps(), V(), V(0.5), Flow(), Score()):
        weighting: Weighting = MSE(schedule, target if with_kappa else Eps())
        left.append(
            weighted_elbo(subject.model, x, schedule=schedule, weighting=weighting, t=t, eps=eps)
        )
        right.append(total((target.target(x, eps, logsnr) - prediction.read(target)).square()))
    return equal(torch.stack(left), torch.stack(right), rel=1e-7, why=ROUNDING)


@theorem(source="VDM++, arXiv:2303.00848, appendix D", given="κ is the target's", any_network=True)
def plain_loss_is_a_weighting(subject: Subject) -> Sides:
    """Squared error on any target with times from p is the weighted bound with w(λ) = 2 p(λ)
    κ(λ)², constant included."""
    return _plain(subject, with_kappa=True)


@plain_loss_is_a_weighting.without("κ is the target's")
def _(subject: Subject) -> Sides:
    return _plain(subject, with_kappa=False)


IMPLIED: dict[
    str, tuple[Weighting, Formula, bool]
] = {  # what it is called: (the library's, the literature's, monotone?)
    "ELBO": (ELBO(), lambda lam: 1 + 0 * lam, True),
    "DDPM, linear β": (
        MSE(LinearBeta().law, Eps()),
        lambda lam: 2 * sig(-lam) / (0.01 + 39.8 * torch.log1p(torch.exp(-lam))).sqrt(),
        False,
    ),
    "iDDPM, cosine": (MSE(COSINE, Eps()), lambda lam: sech(lam / 2) / math.pi, False),
    "EDM": (EDM(), lambda lam: 8 * normal(2.4, 2.4)(lam) * (torch.exp(-lam) + 0.25), False),
    "v-prediction, cosine": (
        MSE(COSINE, V()),
        lambda lam: 2 / math.pi * torch.exp(-lam / 2),
        True,
    ),
    "flow matching": (MSE(OptimalTransport().law, Flow()), lambda lam: torch.exp(-lam / 2), True),
    "Stable Diffusion 3": (
        MSE(Normal(0.0, 2.0).law, Flow()),
        lambda lam: 2 * normal(0.0, 2.0)(lam) * (1 + torch.exp(-lam / 2)).square(),
        False,
    ),
    "InDI": (InDI(), lambda lam: 0.25 * torch.exp(-lam) * sech(lam / 4).square(), True),
    "x, cosine": (MSE(COSINE, X()), lambda lam: torch.exp(-lam) * sech(lam / 2) / math.pi, True),
    "truncated SNR on x, cosine": (
        MSE(COSINE, Eps()) * TruncatedSNR(),
        lambda lam: sech(lam / 2) * torch.exp(-lam).clamp(min=1) / math.pi,
        True,
    ),
    "P2, cosine": (
        MSE(COSINE, Eps()) * P2(gamma=1.0),
        lambda lam: sech(lam / 2) / (1 + torch.exp(lam)) / math.pi,
        False,
    ),
    "P2 with k = 3, cosine": (
        MSE(COSINE, Eps()) * P2(gamma=0.5, k=3.0),
        lambda lam: sech(lam / 2) / (3 + lam.exp()).sqrt() / math.pi,
        False,
    ),
    "min-SNR-5, cosine": (
        MSE(COSINE, Eps()) * MinSNR(5.0),
        lambda lam: sech(lam / 2) * (5 * torch.exp(-lam)).clamp(max=1) / math.pi,
        False,
    ),
    "soft min-SNR-5, cosine": (
        MSE(COSINE, Eps()) * SoftMinSNR(5.0),
        lambda lam: sech(lam / 2) * sig(math.log(5) - lam) / math.pi,
        False,
    ),
    "debiased, cosine": (
        MSE(COSINE, Eps()) * Debiased(),
        lambda lam: 2 * sig(-lam) / math.pi,
        True,
    ),
    "Laplace": (
        MSE(Laplace(0.5, 2.0).law, Eps()),
        lambda lam: torch.exp(-(lam - 0.5).abs() / 2) / 2,
        False,
    ),
    "sigmoid": (Sigmoid(2.0), lambda lam: sig(2 - lam), True),
}


@theorem(
    source="VDM++, arXiv:2303.00848, table 1, with its constants", given="iDDPM's offset is zero"
)
def implied_weightings(subject: Subject) -> Sides:
    """The weighting of each published loss by the rule w = 2 p κ² is that of the table, with its
    constant."""
    return equal(
        torch.stack([w(LAMBDA) for w, _, _ in IMPLIED.values()]),
        torch.stack([f(LAMBDA) for _, f, _ in IMPLIED.values()]),
        rel=1e-10,
        why=ROUNDING,
    )


@implied_weightings.without("iDDPM's offset is zero")
def _(subject: Subject) -> Sides:
    return equal(
        MSE(Cosine(offset=0.008).law, Eps())(LAMBDA), sech(LAMBDA / 2) / math.pi, rel=1e-10, why=""
    )


@theorem(source="VDM++, arXiv:2303.00848, table 1, its last column")
def monotone_weightings(subject: Subject) -> Sides:
    """Which of them never rise with λ: ELBO, v under cosine, flow matching, InDI, x, truncated
    SNR, debiased, sigmoid."""
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    said = torch.tensor([w.monotone for w, _, _ in IMPLIED.values()])
    seen = torch.tensor(
        [bool((f(grid).diff() <= 1e-12 * f(grid)[:-1]).all()) for _, f, _ in IMPLIED.values()]
    )
    known = torch.tensor([monotone for _, _, monotone in IMPLIED.values()])
    return Sides(torch.stack([said, seen]).double(), known.double(), 0.0, "yes or no")


def _stationary(formula: Formula, low: float, high: float) -> float:
    """Where log w has slope zero, by bisection on its derivative."""
    for _ in range(60):
        middle = torch.tensor(0.5 * (low + high), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (rising,) = torch.autograd.grad(formula(middle).log(), middle)
        low, high = (middle.item(), high) if rising > 0 else (low, middle.item())
    return 0.5 * (low + high)


PEAKS = (
    "DDPM, linear β",
    "iDDPM, cosine",
    "EDM",
    "P2, cosine",
    "P2 with k = 3, cosine",
    "soft min-SNR-5, cosine",
)


@theorem(source="VDM++, arXiv:2303.00848, table 1", given="the data's scale is ½")
def peaks_of_weightings(subject: Subject) -> Sides:
    """Those that rise have their largest w where d log w/dλ = 0: DDPM −0.922, iDDPM 0, EDM −3.308,
    P2 −log(1 + 2γ)."""
    left = [IMPLIED[name][0].peak for name in PEAKS]
    right = [_stationary(IMPLIED[name][1], -8.0, 5.0) for name in PEAKS]
    return Sides(
        torch.tensor(left, dtype=torch.float32),
        torch.tensor(right, dtype=torch.float32),
        1e-6,
        "a search on a grid",
    )


@peaks_of_weightings.without("the data's scale is ½")
def _(subject: Subject) -> Sides:
    return Sides(EDM(sigma_data=1.0).peak, _stationary(IMPLIED["EDM"][1], -8.0, 5.0), 1e-6, "")


def _flow_and_v(schedule: Schedule | Law) -> Sides:
    return equal(
        MSE(OptimalTransport().law, Flow())(LAMBDA),
        0.5 * math.pi * MSE(schedule, V())(LAMBDA),
        rel=1e-10,
        why=ROUNDING,
    )


@theorem(
    source="VDM++, arXiv:2303.00848, appendix D.3", given="the cosine schedule is not shifted"
)
def flow_matching_is_v_prediction(subject: Subject) -> Sides:
    """Flow matching with uniform t and v-prediction under the cosine schedule are one objective,
    up to the factor π/2."""
    return _flow_and_v(COSINE)


@flow_matching_is_v_prediction.without("the cosine schedule is not shifted")
def _(subject: Subject) -> Sides:
    return _flow_and_v(HyperbolicSecant(2.0))


def _min_snr(factors: tuple[Formula, Formula, Formula]) -> Sides:
    """min-SNR with its factors for x, ε and v, each times that target's own squared error."""
    targets: tuple[Parameterization, ...] = (X(), Eps(), V())
    ours = MSE(COSINE, Eps()) * MinSNR(5.0)
    left = torch.stack(
        [
            2 * COSINE.density(LAMBDA) * factor(LAMBDA.exp()) * target.kappa2(LAMBDA)
            for factor, target in zip(factors, targets, strict=True)
        ]
    )
    return equal(left, ours(LAMBDA), rel=1e-10, why=ROUNDING)


@theorem(
    source="min-SNR-γ, arXiv:2303.09556, section 3.4", given="each factor is for its own target"
)
def min_snr_in_each_target(subject: Subject) -> Sides:
    """min(SNR, γ) on x, min(1, γ/SNR) on ε and min(SNR, γ)/(SNR + 1) on v are one weighting."""
    return _min_snr(
        (
            lambda snr: snr.clamp(max=5),
            lambda snr: (5 / snr).clamp(max=1),
            lambda snr: snr.clamp(max=5) / (snr + 1),
        )
    )


@min_snr_in_each_target.without("each factor is for its own target")
def _(subject: Subject) -> Sides:
    return _min_snr(
        (
            lambda snr: snr.clamp(max=5),
            lambda snr: (5 / snr).clamp(max=1),
            lambda snr: snr.clamp(max=5) / snr,
        )
    )


__all__: list[str] = []
