"""What an objective over tokens optimises: whether it is a bound, of which data, and where it is
published."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff import _html
from vdiff.augmentation import POINTS, rises
from vdiff.discrete import AnyOrder, Hybrid, Masked, Uniform
from vdiff.recipes import TokenRecipe

MASKS = (
    "MDLM (arXiv:2406.07524), MD4 (arXiv:2406.04329), RADD (arXiv:2406.03736), absorbing SEDD "
    "(arXiv:2310.16834) and LLaDA (arXiv:2502.09992): one objective, whose schedules differ in "
    "the variance alone"
)
ORDERS = "the any-order loss of ARDM (arXiv:2110.02037), the bound of masked diffusion"
CHAIN = "the bound of an absorbing chain in D3PM (arXiv:2107.03006), without its auxiliary loss"
PLAIN = (
    "the plain cross-entropy of masked tokens with the mask rates of this schedule, as in MaskGIT "
    "(arXiv:2202.04200), and with one rate in BERT (arXiv:1810.04805)"
)
GIDD = (
    "the bound of GIDD (arXiv:2503.04482); its clamped weights, which depend on the token, make a "
    "loss that is no bound"
)
UNIFORM = "uniform SEDD (arXiv:2310.16834) and UDLM (arXiv:2412.10193)"
SAME = 1e-6  # of a weight


@dataclass(frozen=True)
class TokenDescription:
    """What an objective over tokens optimises, on a grid of λ in float64. `print` shows it in
    words.

    A weighting that never rises with λ gives an ELBO of noisier data, as it does for Gaussian
    noise (arXiv:2303.00848): the loss beyond λ is the KL of the two processes from λ on, at least
    that of z_λ alone, for every Markov process. The noise is that of this one: tokens that are
    masked, or replaced.

    >>> from vdiff.describe import describe
    >>> described = describe("mdlm")
    >>> described.is_bound, described.monotone
    (True, True)
    """

    recipe: TokenRecipe
    independent: tuple[int, ...] = ()

    @cached_property
    def logsnr(self) -> Float[Tensor, " grid"]:
        """λ from noise to data, in the range of both schedule and weighting."""
        schedule, (high, low) = self.recipe.schedule, self.recipe.weighting.support()
        low, high = max(low, schedule.logsnr_min), min(high, schedule.logsnr_max)
        return torch.linspace(low, high, POINTS, dtype=torch.float64)

    @cached_property
    def weight(self) -> Float[Tensor, " grid"]:
        """w(λ); a bound has 1."""
        with torch.no_grad():
            weight: Tensor = self.recipe.weighting(self.logsnr)
        return weight

    @cached_property
    def rises(self) -> list[tuple[float, float]]:
        """The intervals of λ in which w rises; empty for a monotone weighting."""
        return rises(self.logsnr, self.weight)

    @property
    def flat(self) -> bool:
        """Whether w is constant."""
        return bool(self.weight.max() <= self.weight.min() * (1 + SAME))

    @property
    def monotone(self) -> bool:
        """Whether the loss is an ELBO of noisier data, or of data as they are."""
        return not self.rises and not self.independent

    @property
    def is_bound(self) -> bool:
        """Whether the loss is the diffusion term of a bound of −log p(x): w = 1, on one path."""
        one = bool((self.weight - 1).abs().max() < SAME)
        return one and not self.independent

    @property
    def plain(self) -> bool:
        """Whether each draw is the plain cross-entropy of the masked tokens, times a constant."""
        inside = self.logsnr[POINTS // 50 : -POINTS // 50]
        with torch.no_grad():
            w = self.recipe.weighting(inside)
            factor = w * inside.sigmoid() / self.recipe.schedule.density(inside)
        same = bool(factor.max() <= factor.min() * (1 + 1e-3))
        return same and isinstance(self.recipe.process, Masked) and self.recipe.steps is None

    @property
    def published(self) -> str:
        """The published objectives that this is; empty if none is known."""
        process, chain = self.recipe.process, self.recipe.steps is not None
        if self.independent or not self.flat:
            return PLAIN if self.plain and not self.independent else ""
        if isinstance(process, AnyOrder):
            return ORDERS
        if isinstance(process, Masked):
            return CHAIN if chain else MASKS
        if isinstance(process, Hybrid) and "gidd" in repr(process) and not chain:
            return GIDD
        return UNIFORM if isinstance(process, Uniform) and not chain else ""

    def lost(self, share: float) -> float:
        """The share of tokens that lose their value, below which this share of the draws lies."""
        t = torch.tensor([share], dtype=torch.float64)
        with torch.no_grad():
            return float(self.recipe.schedule(t).neg().sigmoid())

    def _lines(self) -> dict[str, str]:
        recipe, lost = self.recipe, [100 * self.lost(q) for q in (0.05, 0.25, 0.75, 0.95)]
        time = "continuous time" if recipe.steps is None else f"a chain of {recipe.steps} steps"
        low, high = self.logsnr[0].item(), self.logsnr[-1].item()
        lines = {
            "process": f"{recipe.process!r}, {time}",
            "predicts": repr(recipe.parameterization),
            "w(λ)": f"{recipe.weighting!r}, for λ from {low:.1f} to {high:.1f}",
            "means": self._meaning(),
            "is": self.published,
            "draws": f"half with {lost[1]:.0f} to {lost[2]:.0f} % of the tokens lost, 90 % with "
            f"{lost[0]:.0f} to {lost[3]:.0f} %",
        }
        return {name: line for name, line in lines.items() if line}

    def _meaning(self) -> str:
        noise = "masked" if isinstance(self.recipe.process, Masked) else "lost"
        if self.independent:
            return "no bound: the times of a sequence lie on no one path from noise to data"
        if self.is_bound:
            return "the evidence lower bound itself, its diffusion term, nats per sequence"
        if self.flat:
            return f"{self.weight[0].item():.4g} times the evidence lower bound"
        if self.monotone:
            kept = (self.weight[-1] / self.weight[0]).item()
            half = self.logsnr[int((self.weight >= 0.5 * self.weight[0]).nonzero()[-1])]
            return (
                f"no bound of the data: an ELBO of data with tokens {noise}, half of it with "
                f"{100 * half.neg().sigmoid().item():.2g} % or more of them, a share of "
                f"{kept:.2g} of data as they are"
            )
        where = " and ".join(f"{a:.1f} to {b:.1f}" for a, b in self.rises)
        return f"no likelihood, not even of noisier data: w rises for λ from {where}"

    def asdict(self) -> dict[str, object]:
        """The description as plain data."""
        recipe = self.recipe
        named = {"objective": recipe.name, "source": recipe.source, **self._lines()}
        return named | {"is_bound": self.is_bound, "monotone": self.monotone}

    def __str__(self) -> str:
        source = f" ({self.recipe.source})" if self.recipe.source else ""
        lines = [f"  {name:<10}{line}" for name, line in self._lines().items()]
        return "\n".join([self.recipe.name + source, *lines])

    def _repr_html_(self) -> str:
        rows = {"objective": f"{self.recipe.name} {self.recipe.source}", **self._lines()}
        curve = _html.curve(self.logsnr, self.weight, "w(λ) by log-SNR, noise to data")
        return _html.table([*rows.items(), ("w(λ)", curve)])
