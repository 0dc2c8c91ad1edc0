"""Mere misprints of the sources: what is printed and what is meant, where no number would say more."""

from dataclasses import dataclass

from vdiff.theorems.errata.erratum import BOOK, CHAPTER, SLIDES


@dataclass(frozen=True)
class Misprint:
    """A slip of the pen, of notation or of counting: no claim, and so without a check.

    >>> MISPRINTS[0].where
    'the introduction, and invariance to noise scheduling'
    """

    source: str
    where: str
    printed: str
    right: str


MISPRINTS: tuple[Misprint, ...] = (
    Misprint(
        SLIDES,
        "the introduction, and invariance to noise scheduling",
        "a monotonic weighting function for noise scheduling; only the weighting function w(x) matters",
        "a monotonic weighting of noise levels, w(λ)",
    ),
    Misprint(
        SLIDES,
        "VDM's network of the schedule",
        "γ = l₁ + l₃(sigmoid(l₂(l₁)))",
        "the same, with weights of l₁, l₂ and l₃ that are not negative, and moved and scaled so that γ has its ends at t = 0 and 1",
    ),
    Misprint(
        SLIDES, "the linear schedule", "β_t is linear in t; therefore SNR falls", "SNR falls for every β_t in (0, 1), linear in t or not"
    ),
    Misprint(
        CHAPTER,
        "section 14.5.4, the posterior",
        "q(x_{t−1} | x_t, x₀) = N(μ̃_t, σ_t² I)",
        "its variance is β̃_t; equal to σ_t² only where that is chosen so",
    ),
    Misprint(CHAPTER, "section 14.5.4", "p_θ(x_{t−1} | x_t) N(…)", "p_θ(x_{t−1} | x_t) = N(…)"),
    Misprint(
        BOOK,
        "eq. 1.8 and 1.9",
        "E[x₀] = x₀ beside Var[x₀] + t I",
        "one is given x₀, the other is not: x₀ and t I, or E[x₀] and Var[x₀] + t I",
    ),
    Misprint(BOOK, "eq. 1.19", "the roots extend over ε_i", "√(…) ε_i: the noise stands behind the root"),
    Misprint(BOOK, "eq. 1.22 and 5.8", "ε_t, the noise of one step, for that of all steps to t", "ε, another standard normal"),
    Misprint(
        BOOK,
        "sections 3.1 and 3.1.1",
        "196,608 pixels; a (4, 4) image with a 4 × 4 diagonal covariance",
        "65,536 pixels of three channels, 196,608 dimensions; a (4, 4) image has a 16 × 16 covariance",
    ),
    Misprint(
        BOOK, "eq. 3.8, the product over dimensions", "p(x₀ⁱ | x_1ⁱ)", "p(x₀ⁱ | x_1): the mean of each dimension depends on all of x_1"
    ),
    Misprint(
        BOOK,
        "section 6.4",
        "the raw output lies in (−1, 1)",
        "nothing bounds it in iDDPM: v = (out + 1)/2 may leave [0, 1]; log β̃_1 = −∞ is clipped to log β̃_2",
    ),
    Misprint(
        BOOK,
        "chapters 5 and 6",
        "Experiment 5 and the previous one optimise the same L_VLB; L_VLL; slightly worse NLL of 20.81 after 6.16",
        "Experiment 4 has the squared error; L_VLB; more than three times as large; Experiment 9 is two, table 6.2 repeats 6.1",
    ),
)

__all__ = ["MISPRINTS", "Misprint"]
