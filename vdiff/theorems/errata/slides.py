"""Errata of the slides on VDM++."""

import math

import torch
from torch import Tensor

from vdiff.describe import describe
from vdiff.gaussian import Step, alpha
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.recipes import recipe
from vdiff.schedule import Cosine, Normal, OptimalTransport, Tabulated
from vdiff.schedule.law import HyperbolicSecant
from vdiff.theorems.augmentation import weighted_loss_is_a_bound_of_noisier_data
from vdiff.theorems.bounds import HIGH, LOW, end_terms
from vdiff.theorems.errata.erratum import SLIDES, Correction, by_theorem, compared, erratum
from vdiff.theorems.integral import expected_loss
from vdiff.theorems.subject import mixture
from vdiff.theorems.theorem import at_least, equal
from vdiff.weighting import MSE, P2, MinSNR

DDPM = Tabulated.linear_betas()
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SIGNAL = torch.cumprod(1 - BETAS, 0)


def steps_to(t: Tensor) -> Step:
    """DDPM's steps that end at its level t = 2 … 1000.

    >>> f"{steps_to(torch.tensor([2])).variance.item():.4e}"
    '5.4532e-05'
    """
    return Step(DDPM.table[t - 1], DDPM.table[t - 2] - DDPM.table[t - 1])


@erratum(
    source=SLIDES,
    where="Background: DDPM, σ_q²(t)",
    printed="σ_q²(t) = (1 − α_t)(1 − √ᾱ_{t−1})/(1 − ᾱ_t)",
    right="σ_q²(t) = (1 − α_t)(1 − ᾱ_{t−1})/(1 − ᾱ_t), without the root",
)
def variance_of_the_posterior() -> Correction:
    """DDPM at t = 2: 5.4532e-5, printed 2.7267e-5. The truth is 1 over the sum of the precisions
    of q(x_t|x_{t−1}) and q(x_{t−1}|x₀)."""
    t = torch.tensor([2, 100, 500, 1000])
    before, now, beta = SIGNAL[t - 2], SIGNAL[t - 1], BETAS[t - 1]
    truth = 1 / ((1 - beta) / beta + 1 / (1 - before))
    return compared(beta * (1 - before.sqrt()) / (1 - now), steps_to(t).variance, truth)


@erratum(
    source=SLIDES,
    where="eq. 1",
    printed="q(x_t|x) = N(x_t|√ᾱ_t x_{t−1}, (1 − ᾱ_t) I)",
    right="its mean is √ᾱ_t x₀",
)
def mean_of_the_marginal() -> Correction:
    """DDPM at t = 100, x₀ = 1: 0.9471; √ᾱ_t x_{t−1} has 0.8979 for its mean. The truth is a
    product of a hundred √α."""
    truth = torch.prod((1 - BETAS[:100]).sqrt())
    return compared(SIGNAL[99].sqrt() * SIGNAL[98].sqrt(), alpha(DDPM.table[99]), truth)


@erratum(
    source=SLIDES,
    where="eq. 5",
    printed="the sum of squared errors, each over σ_q²(t), begins with t = 1",
    right="it begins with t = 2: σ_q²(1) = 0, and the first level has the decoder's term instead",
)
def the_sum_begins_with_two() -> Correction:
    """σ_q²(1) = 0, σ_q²(2) = 5.4532e-5."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), SIGNAL[:-1]])
    variance = BETAS * (1 - before) / (1 - SIGNAL)
    return Correction(
        at_least(variance, 1e-12, rel=0.0, why="divisible"),
        at_least(variance[1:], 1e-12, rel=0.0, why="divisible"),
    )


@erratum(
    source=SLIDES,
    where="eq. 5, 7 and 10",
    printed="“≜” between −ELBO and the diffusion loss, read as equality",
    right="−ELBO = prior + reconstruction + the diffusion loss; the first two are constants only where the ends and the decoder are fixed",
    left_open=True,
)
def the_bound_has_three_parts() -> Correction:
    """The mixture of the theorems, λ from 4 to −3: 0.814 nats in all, of which the diffusion loss
    is 1.382 and the decoder's term negative."""
    oracle = mixture()
    diffusion = expected_loss(oracle, oracle, Cosine(HIGH, LOW))
    truth = oracle.bound(HIGH, LOW).total[0]
    return compared(diffusion, diffusion + end_terms(oracle), truth)


@erratum(
    source=SLIDES,
    where="the introduction",
    printed="“all diffusion objectives equal the ELBO, combined with Gaussian noise perturbation”",
    right="all are integrals of ELBOs over noise levels, with signs; they are an ELBO with augmentation only where w never rises with λ, as its theorem 1 says",
)
def not_all_are_bounds() -> Correction:
    """EDM's w is not monotone: as a mixture of bounds with weights that are not negative it misses
    its own loss, both over w(λ_min), by 3e-3 nats."""
    return by_theorem(weighted_loss_is_a_bound_of_noisier_data, "w never rises")


@erratum(
    source=SLIDES,
    where="the table of weightings, “Implied weighting w(λ)”",
    printed="e^(−λ/2) for v-prediction and for flow matching, read as one loss by eq. 11",
    right="one shape: v-prediction under cosine has (2/π) e^(−λ/2), flow matching exactly e^(−λ/2)",
    left_open=True,
)
def rows_with_one_shape_differ_by_a_constant() -> Correction:
    """w of v-prediction over w of flow matching: 0.6366."""
    lam = torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)
    return compared(
        1.0,
        2 / math.pi,
        MSE(HyperbolicSecant(), V())(lam) / MSE(OptimalTransport().law, Flow())(lam),
    )


@erratum(
    source=SLIDES,
    where="the table of weightings, its other rows",
    printed="IDDPM sech(λ/2), EDM N(λ; 2.4, 2.4²)·(e^{−λ} + 0.5²), InDI e^{−λ} sech²(λ/4), P2 and min-SNR sech(λ/2) times their factors, "
    "read with the constant",
    right="the same times 1/π, 2/σ_d² = 8, ¼, 1/π and 1/π: constants that a learning rate and a sum of losses see",
    left_open=True,
)
def constants_of_the_weightings() -> Correction:
    """The loss of each as it is trained, by w = 2 p κ² c of the library, over the table's shape,
    at λ = −5, 0 and 5."""
    lam = torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)
    sech = 1 / torch.cosh(lam / 2)
    cosine = MSE(HyperbolicSecant(), Eps())
    normal = torch.exp(-0.5 * ((lam - 2.4) / 2.4).square()) / (2.4 * math.sqrt(2 * math.pi))
    law = Normal(2.4, 2.4).law
    edm = (
        2
        * law.density(lam)
        * (torch.exp(-lam) + 0.25)
        / (torch.exp(-lam) * 0.25)
        * torch.exp(-lam)
    )  # c_x = (σ² + σ_d²)/(σ σ_d)²
    over_shape = [
        cosine(lam) / sech,
        edm / (normal * (torch.exp(-lam) + 0.25)),
        MSE(OptimalTransport().law, X())(lam) / (torch.exp(-lam) / torch.cosh(lam / 4).square()),
        (cosine * P2(gamma=1.0))(lam) / (sech / (1 + lam.exp())),
        (cosine * MinSNR(5.0))(lam) / (sech * (5 * torch.exp(-lam)).clamp(max=1)),
    ]
    right = torch.tensor([1 / math.pi, 8.0, 0.25, 1 / math.pi, 1 / math.pi], dtype=torch.float64)
    return compared(1.0, right[:, None].expand(-1, 3), torch.stack(over_shape))


@erratum(
    source=SLIDES,
    where="the table of weightings, row IDDPM",
    printed="“IDDPM (ϵ-prediction with 'cosine' schedule)”: sech(λ/2)",
    right="only for offset 0; with IDDPM's own 0.008, w ∝ sigmoid(−λ) √(C sigmoid λ/(1 − C sigmoid λ)), C = cos²(πs/2(1 + s))",
)
def offset_of_the_cosine() -> Correction:
    """w over sech(λ/2)/π: 0.978 at λ = 6, 0.833 at 8, 0.479 at 10, 0.197 at 12."""
    lam, s = torch.tensor([6.0, 8.0, 10.0, 12.0], dtype=torch.float64), 0.008
    kept = math.cos(math.pi * s / (2 * (1 + s))) ** 2 * torch.sigmoid(lam)
    right = 2 * (1 + s) / math.pi * torch.sigmoid(-lam) * (kept / (1 - kept)).sqrt()
    return compared(1 / torch.cosh(lam / 2) / math.pi, right, recipe("iddpm").weighting(lam))


@erratum(
    source=SLIDES,
    where="proof part 2",
    printed="“Dirac delta peak of typically very small mass w(λ_max)”, read as always",
    right="w(λ_max), with its w(λ_min) = 1, is the mass; it is small where w falls far, and it is 1 for the ELBO itself",
    left_open=True,
)
def mass_of_the_dirac() -> Correction:
    """The ELBO's weighting: mass 1. Sigmoid with bias 2 between λ = 10 and −10: 3.4e-4."""
    elbo = describe("vdm").augmentation(torch.tensor([13.3], dtype=torch.float64))
    return Correction(
        at_least(0.01, elbo, rel=0.0, why="a small mass"),
        equal(elbo, 1.0, rel=1e-9, why="rounding"),
    )


__all__: list[str] = []
