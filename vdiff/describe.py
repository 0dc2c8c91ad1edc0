"""What an objective optimises: its w(λ), whether that is a likelihood of noisier data, and at
which λ its signal lies."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import require, validated
from vdiff.augmentation import POINTS, ROUNDING, Augmentation, rises
from vdiff.errors import InvalidType
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.recipes import Recipe, recipe
from vdiff.weighting import loss_factor

TARGETS: Mapping[str, Parameterization] = {"x": X(), "ε": Eps(), "v": V(), "u": Flow()}
NEAR, LONG = 0.01, 1.0  # a plateau: w within 1 % of its largest value over a λ of 1 or more
Errors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Description:
    """What a recipe optimises, on a grid of λ between its ends, in float64; `print` shows it in
    words.

    `error` is E‖ε − ε̂‖² at any λ, up to a constant: the signal depends on it. The default is that
    of data N(0, I), sigmoid(λ) in each dimension; a model's own is `Profile.at`.

    >>> described = describe("edm")
    >>> described.monotone, round(described.peak, 2)
    (False, -3.31)
    """

    recipe: Recipe
    error: Errors = torch.sigmoid
    error_of: str = "N(0, I)"

    @cached_property
    def logsnr(self) -> Float[Tensor, " grid"]:
        """Equidistant λ, from noise to data, where both schedule and weighting are meant to be
        used."""
        schedule, (high, low) = self.recipe.schedule, self.recipe.weighting.support()
        low, high = max(low, schedule.logsnr_min), min(high, schedule.logsnr_max)
        return torch.linspace(low, high, POINTS, dtype=torch.float64)

    @cached_property
    def weight(self) -> Float[Tensor, " grid"]:
        """w(λ) on the ε-loss, constant included."""
        with torch.no_grad():
            weight: Tensor = self.recipe.weighting(self.logsnr)
        return weight

    @cached_property
    def draws(self) -> Float[Tensor, " grid"]:
        """p(λ), the density of training's draws; at the ends that of a quarter of a cell
        inside.
        """
        quarter = 0.25 * (self.logsnr[1] - self.logsnr[0]).item()
        low, high = self.logsnr[0].item(), self.logsnr[-1].item()
        inside = self.logsnr.clamp(low + quarter, high - quarter)  # p may be infinite at an end
        with torch.no_grad():
            return self.recipe.schedule.density(inside)

    @cached_property
    def signal(self) -> Float[Tensor, " grid"]:
        """The share of the loss by λ, ½ w(λ) E‖ε − ε̂‖² as a density."""
        loss = self.weight * self.error(self.logsnr)
        return loss / torch.trapezoid(loss, self.logsnr)

    @property
    def flat(self) -> bool:
        """Whether w is constant."""
        return bool(self.weight.max() <= self.weight.min() * (1 + 1e-9))

    @property
    def peak(self) -> float:
        """The largest λ in this range at which w has its maximum."""
        return min(max(self.recipe.weighting.peak, self.logsnr[0].item()), self.logsnr[-1].item())

    @property
    def plateau(self) -> tuple[float, float] | None:
        """The λ between which w stays within 1 % of its largest value, where they are 1 or more
        apart; None for a peak.

        >>> low, high = describe("vdmpp-sigmoid").plateau
        >>> round(low, 1), round(high, 1)
        (-15.0, -2.6)
        """
        top, near = int(self.weight.argmax()), self.weight >= (1 - NEAR) * self.weight.max()
        below, above = (~near[:top]).nonzero().flatten(), (~near[top:]).nonzero().flatten()
        first = 0 if len(below) == 0 else int(below[-1]) + 1
        last = len(near) - 1 if len(above) == 0 else top + int(above[0]) - 1
        low, high = self.logsnr[first].item(), self.logsnr[last].item()
        return (low, high) if high - low >= LONG else None

    @cached_property
    def rises(self) -> list[tuple[float, float]]:
        """The intervals of λ on which w rises; none for a monotone weighting."""
        return rises(self.logsnr, self.weight)

    @property
    def monotone(self) -> bool:
        """Whether w never rises with λ here: then L_w is an ELBO with Gaussian noise added to the
        data (arXiv:2303.00848)."""
        return not self.rises

    @cached_property
    def augmentation(self) -> Augmentation:
        """The law of the noise that a monotone weighting adds to the data, p_w: called with λ, the
        probability w(λ)/w(λ_min) that the data gets a less noisy level; `.sample(n)` draws levels,
        and `augmented_elbo` trains on such data.

        At λ_max it is the mass at no added noise (beyond the first level's own), above it is 0.
        Raises ValueError where w rises: the measure is then signed and no distribution.

        >>> bound = describe("vdm").augmentation  # adds no noise
        >>> bound(torch.tensor([0.0], dtype=torch.float64))
        tensor([1.], dtype=torch.float64)
        """
        low, high = (self.rises or [(0.0, 0.0)])[0]
        got = f"w that rises from λ = {low:.3g} to {high:.3g}"
        require(self.monotone, "recipe", "have a monotone weighting", got)
        return Augmentation(self.recipe.weighting, self.logsnr[-1].item(), self.logsnr[0].item())

    def negative_mass(self) -> float:
        """The total rise of w over its largest value: the negative part of the mixture of ELBOs
        that L_w is.

        >>> describe("v-prediction").negative_mass()
        0.0
        """
        rise = self.weight.diff().clamp(min=0).sum() / self.weight.max()
        return rise.item() if self.rises else 0.0

    def factor(self, parameterization: Parameterization) -> Callable[[Tensor], Tensor]:
        """The factor before a squared error on another target that gives the same objective with
        the same times.

        >>> describe("v-prediction").factor(X())(torch.tensor([0.0]))  # SNR + 1, truncated
        tensor([1.9986])
        """
        return loss_factor(
            self.recipe.weighting, self.recipe.schedule, parameterization, steps=self.recipe.steps
        )

    def overlap(self, other: "Description") -> float:
        """The share of the signal that two objectives have in common: 1 for equal signals, 0 for
        disjoint ones.

        >>> round(describe("flow-matching").overlap(describe("v-prediction")), 3)  # e^{−λ/2}, both
        1.0
        """
        low = min(self.logsnr[0], other.logsnr[0])
        high = max(self.logsnr[-1], other.logsnr[-1])
        grid = torch.linspace(low.item(), high.item(), POINTS, dtype=torch.float64)
        shares = []
        for one in (self, other):
            inside = (grid >= one.logsnr[0]) & (grid <= one.logsnr[-1])
            loss = torch.where(inside, one.recipe.weighting(grid), 0.0) * one.error(grid)
            shares.append(loss / torch.trapezoid(loss, grid))
        return torch.trapezoid(torch.minimum(*shares), grid).item()

    def quantile(self, density: Tensor, share: float) -> float:
        """The λ below which a share of a density on the grid lies."""
        below = torch.cumulative_trapezoid(density, self.logsnr)
        first = torch.searchsorted(below, share * below[-1]).clamp(max=POINTS - 2)
        return self.logsnr[1 + int(first)].item()

    def __str__(self) -> str:
        low, high = self.logsnr[0].item(), self.logsnr[-1].item()
        ends = f"λ from {_rounded(low)} to {_rounded(high)}"
        lines = [
            f"{self.recipe.name}" + (f" ({self.recipe.source})" if self.recipe.source else ""),
            f"  w(λ)      {self.recipe.weighting!r}, for {ends}",
            f"  peak      {self._peak()}",
            f"  means     {self._meaning()}",
            f"  draws     {self._middle(self.draws)}",
            f"  signal    {self._middle(self.signal)} (with the error of {self.error_of})",
            "  the same loss with the same times, as a factor before the squared error on another "
            "target:",
        ]
        levels = [self.quantile(self.draws, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
        lines.append(" " * 12 + "".join(f"{f'λ = {_rounded(level)}':>12}" for level in levels))
        for name, target in TARGETS.items():
            values = self.factor(target)(torch.tensor(levels, dtype=torch.float64)).tolist()
            lines.append(f"    {name:<8}" + "".join(f"{value:>12.4g}" for value in values))
        return "\n".join(lines)

    def _middle(self, density: Tensor) -> str:
        a, b, c, d = (
            _rounded(self.quantile(density, share)) for share in (0.05, 0.25, 0.75, 0.95)
        )
        return f"half in λ from {b} to {c}, 90 % from {a} to {d}"

    def _peak(self) -> str:
        if self.flat:
            return "none: every λ counts alike"
        if self.plateau:
            low, high = map(_rounded, self.plateau)
            return f"none: a plateau, w within 1 % of its largest value for λ from {low} to {high}"
        noise = f"{math.exp(-self.peak / 2):.2g} times the signal's scale"
        return f"λ = {_rounded(self.peak, 2)}, where the noise is {noise}"

    def _meaning(self) -> str:
        if not self.monotone:
            where = " and ".join(f"{_rounded(a)} to {_rounded(b)}" for a, b in self.rises)
            return (
                f"no likelihood, not even of noisier data: w rises for λ from {where}, "
                f"by {100 * self.negative_mass():.0f} % of its largest value"
            )
        kept = (self.weight[-1] / self.weight[0]).item()
        if kept > 1 - ROUNDING:
            return "the evidence lower bound itself: every log-SNR counts alike"
        half = self.logsnr[int((self.weight >= 0.5 * self.weight[0]).nonzero()[-1])].item()
        return (
            f"an ELBO of noisier data: half of it of data noised to λ ≤ {_rounded(half)} "
            f"(σ/α ≥ {math.exp(-half / 2):.2g}), a share of {kept:.2g} of data as it is"
        )


def _rounded(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no −0.0


@validated
def describe(objective: Recipe | str, *, error: Errors | None = None) -> Description:
    """What a recipe, or a published one by its name, optimises. `print` shows it in words.

    Args:
        objective: a `Recipe` or the name of one. A loss of your own is `Recipe("mine", schedule,
            parameterization, MSE(schedule, parameterization))`: plain squared error on that target
            with those times.
        error: E‖ε − ε̂‖² at any λ, for instance `profile.at` of a profile that `evaluate` has
            filled; that of N(0, I) otherwise.

    Raises:
        ValueError: for an unknown name, with the nearest one.
        TypeError: if the objective is not a recipe.

    Kingma & Gao, arXiv:2303.00848.

    >>> print(describe("vdmpp-sigmoid").recipe.weighting)
    Sigmoid(bias=2.0)
    """
    if isinstance(objective, str):
        objective = recipe(objective)
    if not isinstance(objective, Recipe):
        hint = "Recipe(name, schedule, parameterization, weighting)"
        raise InvalidType("objective", "be a Recipe or the name of one", repr(objective), hint)
    if error is None:
        return Description(objective)
    return Description(objective, error, "the given model")


__all__ = ["Description", "describe"]
