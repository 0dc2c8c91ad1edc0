"""Mere misprints of the sources, and signs of how their text was extracted: what is printed and
what is meant."""

from dataclasses import dataclass

from vdiff.theorems.errata.erratum import BOOK, CHAPTER, SLIDES


@dataclass(frozen=True)
class Misprint:
    """A slip of the pen, of notation or of counting: no claim, and so without a check.

    >>> MISPRINTS[0].where
    'the introduction, third goal'
    """

    source: str
    where: str
    printed: str
    right: str


MISPRINTS: tuple[Misprint, ...] = (
    Misprint(
        SLIDES,
        "the introduction, third goal",
        "“monotonic weighting function for noise scheduling”",
        "a weighting of noise levels, w(λ), that is monotonic",
    ),
    Misprint(
        SLIDES,
        "Background: VDM, the schedule's network",
        "γ_η(t) = l₁(t) + l₃(sigmoid(l₂(l₁(t)))), without a word on its weights and its ends",
        "the weights of l₁, l₂ and l₃ are not negative, and γ is moved and scaled so that it has its ends at t = 0 and 1",
    ),
    Misprint(
        SLIDES,
        "Background: DDPM, the linear schedule",
        "β_t “from 1e–4 to 0.02 over t=1...1e3. Therefore, the signal-to-noise ratio ↓”",
        "SNR falls for every β_t in (0, 1), linear in t or not",
    ),
    Misprint(CHAPTER, "section 14.5.4", "p_θ(x_{t−1}|x_t) N(…)", "p_θ(x_{t−1}|x_t) = N(…)"),
    Misprint(
        BOOK,
        "eq. 1.8 and 1.9",
        "E[x_t] = x₀ beside Var[x_t] = Var[x₀] + t I",
        "one is given x₀, the other is not: x₀ and t I, or E[x₀] and Var[x₀] + t I",
    ),
    Misprint(
        BOOK,
        "eq. 1.22, 1.23 and 5.8",
        "ε_t, the noise of one step, for that of all steps to t",
        "ε, another standard normal",
    ),
    Misprint(
        BOOK,
        "sections 3.1 and 3.1.1",
        "“196,608 pixels”; a (4, 4) image with a 4 × 4 diagonal covariance",
        "65,536 pixels of three channels, 196,608 dimensions; a (4, 4) image has a 16 × 16 covariance",
    ),
    Misprint(
        BOOK,
        "eq. 3.8, eq. 3.11 and the product before it",
        "p(x₀ⁱ|x₁ⁱ)",
        "p(x₀ⁱ|x₁): the mean of each dimension depends on all of x₁",
    ),
    Misprint(
        BOOK,
        "section 3.2.4, of eq. 3.9",
        "“Page (1995)”",
        "Page, 1977 (Applied Statistics 26, page 75)",
    ),
    Misprint(
        BOOK,
        "Algorithm 2",
        "L₀ for the probability of a pixel, for its logarithm and for the reconstruction term",
        "three names",
    ),
    Misprint(
        BOOK,
        "eq. 6.4",
        "“the raw network output in the range (−1, 1)”",
        "nothing bounds it in iDDPM: v = (out + 1)/2 may leave [0, 1]; log β̃_1 = −∞ is clipped to log β̃_2",
    ),
    Misprint(
        BOOK,
        "section 5.2",
        "Experiment 5 “and the previous one optimize the same L_VLB”",
        "Experiment 4, the previous one, has the squared error",
    ),
    Misprint(
        BOOK,
        "section 5.3 and table 5.1",
        "“slightly worse Mean MSE and NLL” in Experiment 6",
        "in the table its NLL is 20.81 after 6.16; the unit of NLL is given nowhere",
    ),
    Misprint(BOOK, "section 5.4", "L_VLL", "L_VLB"),
    Misprint(
        BOOK,
        "captions of figures 4.10, 5.8, 5.9 and 5.10",
        "direct-fixed-vlb; “XStart Mean strategy”, twice; xstart-fixed-mse",
        "direct-fixed-mse; Epsilon, twice; epsilon-fixed-vlb",
    ),
    Misprint(
        BOOK,
        "section 5.6, tables 6.1 and 6.2",
        "Experiment 9 is the longer training, and then the hybrid loss; table 6.2, after 1000 epochs, repeats table 6.1",
        "two numbers; a table of its own",
    ),
    Misprint(
        BOOK,
        "the end of chapter 5",
        "“Small summary about the table.”, “Summary to the chapter?”",
        "the summaries themselves",
    ),
)
EXTRACTED: tuple[Misprint, ...] = (
    Misprint(SLIDES, "eq. 5", "a sum to I", "to T"),
    Misprint(
        SLIDES,
        "eq. 8, its first form",
        "−½ E[SNR'(t)/‖x − x̂‖²], a quotient",
        "−½ E[SNR'(t) ‖x − x̂‖²], a product",
    ),
    Misprint(
        SLIDES,
        "Background: VDM, the schedule's network",
        "I₁, I₂ and I₃; γ_n",
        "l₁, l₂ and l₃; γ_η",
    ),
    Misprint(
        SLIDES,
        "invariance to noise scheduling",
        "“Only the weighting function w(x) matters!”",
        "w(λ)",
    ),
    Misprint(SLIDES, "eq. 13", "ρ(λ)", "p(λ), as below it"),
    Misprint(
        BOOK, "eq. 1.19", "the roots extend over ε_i", "√(…) ε_i: the noise stands behind the root"
    ),
    Misprint(
        BOOK, "references to equations and figures", "“Equation ??”, “Figure ??”", "their numbers"
    ),
)

__all__ = ["EXTRACTED", "MISPRINTS", "Misprint"]
