"""What an objective optimises: its w(λ), whether that is an ELBO of noisier data, and the λ of its
signal."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff import _html
from vdiff._describe_tokens import TokenDescription
from vdiff._diffusion import diffusion_of
from vdiff._validate import Given, require, validated
from vdiff.augmentation import POINTS, ROUNDING, Augmentation, rises
from vdiff.discrete import Posterior
from vdiff.errors import InvalidType
from vdiff.losses import Weighted
from vdiff.objective import Objective
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.recipes import Recipe, TokenRecipe, recipe
from vdiff.weighting import Weighting, loss_factor

TARGETS: Mapping[str, Parameterization] = {"x": X(), "ε": Eps(), "v": V(), "u": Flow()}
NEAR, LONG = 0.01, 1.0  # a plateau: w within 1 % of its largest value over at least 1 in λ
Errors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Description:
    """What a recipe optimises, on a grid of λ in float64. `print` shows it in words.

    The signal depends on `error`, E‖ε − ε̂‖² at any λ, up to a constant. The default is that of
    data N(0, I), sigmoid(λ) in each dimension. That of a model is `Profile.at`.

    >>> described = describe("edm")
    >>> described.monotone, round(described.peak, 2)
    (False, -3.31)
    """

    recipe: Recipe
    error: Errors = field(default=torch.sigmoid, repr=False)  # its repr is an address
    error_of: str = "N(0, I)"

    @cached_property
    def logsnr(self) -> Float[Tensor, " grid"]:
        """Equidistant λ from noise to data, in the range of both schedule and weighting."""
        schedule, (high, low) = self.recipe.schedule, self.recipe.weighting.support()
        low, high = max(low, schedule.logsnr_min), min(high, schedule.logsnr_max)
        return torch.linspace(low, high, POINTS, dtype=torch.float64)

    @cached_property
    def weight(self) -> Float[Tensor, " grid"]:
        """w(λ) of the ε-loss, with its constant."""
        with torch.no_grad():
            weight: Tensor = self.recipe.weighting(self.logsnr)
        return weight

    @cached_property
    def draws(self) -> Float[Tensor, " grid"]:
        """p(λ), the density of the training times; at an end, its value a quarter of a cell
        inside."""
        quarter = 0.25 * (self.logsnr[1] - self.logsnr[0]).item()
        low, high = self.logsnr[0].item(), self.logsnr[-1].item()
        inside = self.logsnr.clamp(low + quarter, high - quarter)  # p may be infinite at an end
        with torch.no_grad():
            return self.recipe.schedule.density(inside)

    @cached_property
    def signal(self) -> Float[Tensor, " grid"]:
        """The density of the loss over λ: w(λ) E‖ε − ε̂‖², normalised."""
        loss = self.weight * self.error(self.logsnr)
        return loss / torch.trapezoid(loss, self.logsnr)

    @property
    def flat(self) -> bool:
        """Whether w is constant."""
        return bool(self.weight.max() <= self.weight.min() * (1 + 1e-9))

    @property
    def peak(self) -> float:
        """The largest λ of the grid's range at which w has its maximum."""
        return min(max(self.recipe.weighting.peak, self.logsnr[0].item()), self.logsnr[-1].item())

    @property
    def plateau(self) -> tuple[float, float] | None:
        """The range of λ in which w stays within 1 % of its largest value, if it is at least 1
        long; None for a peak.

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
        """The intervals of λ in which w rises; empty for a monotone weighting."""
        return rises(self.logsnr, self.weight)

    @property
    def monotone(self) -> bool:
        """Whether w never rises with λ. L_w is then an ELBO of data with Gaussian noise added
        (arXiv:2303.00848)."""
        return not self.rises

    @cached_property
    def augmentation(self) -> Augmentation:
        """The distribution p_w of the noise that a monotone weighting adds to the data.

        Called with λ, it gives the probability w(λ)/w(λ_min) of a less noisy level. At λ_max this
        is the mass at no added noise beyond that of the first level; above it is 0. `.sample(n)`
        draws levels, and `augmented_elbo` trains on such data. Raises ValueError if w rises, since
        the measure is then signed.

        >>> bound = describe("vdm").augmentation  # it adds no noise
        >>> bound(torch.tensor([0.0], dtype=torch.float64))
        tensor([1.], dtype=torch.float64)
        """
        low, high = (self.rises or [(0.0, 0.0)])[0]
        got = f"w that rises from λ = {low:.3g} to {high:.3g}"
        require(self.monotone, "recipe", "have a monotone weighting", got)
        return Augmentation(self.recipe.weighting, self.logsnr[-1].item(), self.logsnr[0].item())

    def negative_mass(self) -> float:
        """The total rise of w over its largest value: the negative part of L_w as a mixture of
        ELBOs.

        >>> describe("v-prediction").negative_mass()
        0.0
        """
        rise = self.weight.diff().clamp(min=0).sum() / self.weight.max()
        return rise.item() if self.rises else 0.0

    def factor(self, parameterization: Parameterization) -> Callable[[Tensor], Tensor]:
        """The factor of a squared error on another target that gives the same objective at the
        same times.

        >>> describe("v-prediction").factor(X())(torch.tensor([0.0]))  # SNR + 1, truncated
        tensor([1.9986])
        """
        return loss_factor(
            self.recipe.weighting, self.recipe.schedule, parameterization, steps=self.recipe.steps
        )

    def overlap(self, other: "Description") -> float:
        """The overlap of two signals: 1 for equal ones, 0 for disjoint ones.

        >>> round(describe("flow-matching").overlap(describe("v-prediction")), 3)  # e^{−λ/2}, both
        1.0
        """
        low = min(self.logsnr[0], other.logsnr[0])
        high = max(self.logsnr[-1], other.logsnr[-1])
        grid = torch.linspace(low.item(), high.item(), POINTS, dtype=torch.float64)
        shares = []
        for each in (self, other):
            inside = (grid >= each.logsnr[0]) & (grid <= each.logsnr[-1])
            loss = torch.where(inside, each.recipe.weighting(grid), 0.0) * each.error(grid)
            shares.append(loss / torch.trapezoid(loss, grid))
        return torch.trapezoid(torch.minimum(*shares), grid).item()

    def quantile(self, density: Tensor, share: float) -> float:
        """The λ below which a density on the grid has this share of its mass."""
        below = torch.cumulative_trapezoid(density, self.logsnr)
        first = torch.searchsorted(below, share * below[-1]).clamp(max=POINTS - 2)
        return self.logsnr[1 + int(first)].item()

    def __str__(self) -> str:
        low, high = self.logsnr[0].item(), self.logsnr[-1].item()
        ends = f"λ from {_rounded(low)} to {_rounded(high)}"
        lines = [
            self.recipe.name + (f" ({self.recipe.source})" if self.recipe.source else ""),
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

    def _repr_html_(self) -> str:
        curves = {"w(λ)": self.weight, "draws": self.draws, "signal": self.signal}
        drawn = (
            (name, _html.curve(self.logsnr, y, f"{name} by log-SNR, noise to data"))
            for name, y in curves.items()
        )
        words = {
            "objective": f"{self.recipe.name} {self.recipe.source}",
            "weighting": repr(self.recipe.weighting),
            "peak": self._peak(),
            "means": self._meaning(),
            "where it draws": self._middle(self.draws),
            "where its signal is": self._middle(self.signal),
        }
        return _html.table([*words.items(), *drawn])

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


def _recipe(value: object, argument: str, given: Given) -> object:
    tokens = isinstance(value, Objective) and not diffusion_of(value.model).continuous
    if not (isinstance(value, Recipe | str) or tokens):
        hint = "Recipe(name, schedule, parameterization, weighting)"
        got = "an Objective with Gaussian noise" if isinstance(value, Objective) else repr(value)
        raise InvalidType(argument, "be a Recipe or the name of one", got, hint)
    return value


TokenNames = Literal["mdlm", "md4", "llada", "gidd"]


def _of_tokens(objective: Objective) -> TokenDescription:
    """The description of an objective over tokens."""
    model, loss = objective.model, objective.loss
    weighting: Any = getattr(loss, "weighting", None)
    what, hint = "be Weighted with a Weighting", "weighting.Custom has a function"
    fits = isinstance(loss, Weighted) and isinstance(weighting, Weighting)
    require(fits, "objective.loss", what, repr(loss), hint)
    own: dict[str, Any] = {"process": diffusion_of(model), "steps": loss.steps}
    predicts = getattr(model, "parameterization", Posterior())
    made = TokenRecipe("objective", objective.schedule, predicts, weighting, **own)
    return TokenDescription(made, loss.independent)


@overload
def describe(  # type: ignore[overload-overlap]  # a text of other names is a Gaussian recipe
    objective: Objective | TokenRecipe | TokenNames, *, error: None = None
) -> TokenDescription: ...
@overload
def describe(objective: Recipe | str, *, error: Errors | None = None) -> Description: ...
@validated
def describe(
    objective: Annotated[Recipe | Objective | str, _recipe], *, error: Errors | None = None
) -> Description | TokenDescription:
    """What a recipe optimises. `print` shows it in words.

    Args:
        objective: a `Recipe` or the name of a published one. Plain squared error is
            `Recipe("mine", schedule, parameterization, MSE(schedule, parameterization))`. Or an
            `Objective` over tokens.
        error: E‖ε − ε̂‖² at any λ, for instance `profile.at` of a profile from `evaluate`; by
            default that of N(0, I).

    Raises:
        ValueError: for an unknown name, with the nearest one.
        TypeError: if the objective is no recipe, and no objective over tokens.

    Kingma & Gao, arXiv:2303.00848.

    >>> print(describe("vdmpp-sigmoid").recipe.weighting)
    Sigmoid(bias=2.0)
    """
    if isinstance(objective, Objective):
        return _of_tokens(objective)
    described = recipe(objective) if isinstance(objective, str) else objective
    if isinstance(described, TokenRecipe):
        return TokenDescription(described)
    one, drawn = "have one λ for all dimensions and examples", described.schedule
    require(drawn.shared, "objective.schedule", one, drawn, "w is a function of one λ")
    if error is None:
        return Description(described)
    return Description(described, error, "the given model")


__all__ = ["Description", "TokenDescription", "describe"]
