"""What a weighting is, products and custom functions, and the factor for a loop of one's own."""

import abc
import math
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import RestorableModule
from vdiff._precision import PURE_NOISE, at_least_float32, device_of, to_float64
from vdiff._validate import (
    Finite,
    Given,
    Steps,
    WeightFunction,
    ordered_ends,
    require,
    validated,
)
from vdiff.errors import InvalidType, InvalidValue
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule, Tabulated

SPAN = 40.0  # |λ| up to which a weighting is checked
_CHECKED: "weakref.WeakSet[Callable[[Tensor], Tensor]]" = weakref.WeakSet()


def operand(value: object, argument: str, given: Given) -> object:
    """A weighting that can be multiplied with another one."""
    if isinstance(value, Weighting):
        return value
    hint = "a constant changes only the learning rate; a function of λ is weighting.Custom(…)"
    if isinstance(value, type):
        hint = f"an instance: {value.__name__}()"
    raise InvalidType(argument, "be a Weighting", value, hint)


class Weighting(RestorableModule, abc.ABC):
    """w(λ). A subclass defines `weight_at(logsnr)` in float64; a call computes in float64 and
    rounds once.

    `chain` is the number of steps of the chain whose plain loss this is, or None. `is_factor` says
    that this only multiplies a base.

    >>> (MSE(Cosine(), Eps()) * MinSNR(5.0)).chain, (P2() * MinSNR()).is_factor
    (None, True)
    """

    chain: int | None = None
    is_factor: bool = False

    @abc.abstractmethod
    def weight_at(self, logsnr: Tensor) -> Tensor:
        """w at each λ."""

    @validated
    def forward(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """w(λ), in the dtype of λ (float32 where that is narrower).

        >>> Sigmoid(bias=2.0)(torch.tensor([2.0]))
        tensor([0.5000])
        """
        return self.weight_at(to_float64(logsnr)).to(at_least_float32(logsnr.dtype))

    def support(self) -> tuple[float, float]:
        """The λ between which the weighting is meant to be used."""
        return -SPAN, SPAN

    @property
    def monotone(self) -> bool:
        """Whether w never rises with λ: then, and only then, L_w is an ELBO with Gaussian data
        augmentation (VDM++, arXiv:2303.00848, theorem 1).

        >>> ELBO().monotone, EDM().monotone, EDM(monotone=True).monotone
        (True, False, True)
        """
        w = self.weight_at(self._grid())
        return bool((w[1:] <= w[:-1] * (1 + 1e-9)).all())

    @property
    def peak(self) -> float:
        """The largest λ at which w has its maximum.

        >>> round(EDM().peak, 4)
        -3.3078
        """
        grid = self._grid()
        for _ in range(8):
            best = self._last_largest(grid)
            low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, len(grid) - 1)].item()
            grid = torch.linspace(low, high, 1001, dtype=torch.float64, device=grid.device)
        return grid[self._last_largest(grid)].item()

    def _last_largest(self, grid: Tensor) -> int:
        w = self.weight_at(grid)
        return int((w == w.max()).nonzero()[-1])

    def _grid(self) -> Tensor:
        return torch.linspace(*self.support(), 8001, dtype=torch.float64, device=device_of(self))

    def __mul__(self, factor: "Weighting") -> "Weighting":
        return Product(self, factor)

    @validated
    def check(self) -> "Weighting":
        """Verify that w is finite, nonnegative and keeps its shape over its range; returns self,
        raises ValueError.

        >>> (ELBO() * MinSNR(5.0)).check()
        Product(ELBO(), MinSNR(gamma=5.0))
        """
        check_values(self, *self.support())
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Product(Weighting):
    """A base times factors.

    >>> Product(ELBO(), P2(gamma=1.0))(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated
    def __init__(
        self, base: Annotated[Weighting, operand], factor: Annotated[Weighting, operand]
    ) -> None:
        super().__init__()
        self.base, self.factor = base, factor
        self.chain = base.chain or factor.chain
        self.is_factor = base.is_factor and factor.is_factor

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self.base.weight_at(logsnr) * self.factor.weight_at(logsnr)

    def support(self) -> tuple[float, float]:
        (low, high), (lower, higher) = self.base.support(), self.factor.support()
        return max(low, lower), min(high, higher)

    def extra_repr(self) -> str:
        return f"{self.base!r}, {self.factor!r}"


class Custom(Weighting):
    """A weighting from a function of λ, checked at construction between `logsnr_min` and
    `logsnr_max`. A plain function works as `weighting=` too; `Custom` adds the properties.

    >>> Custom(lambda logsnr: torch.exp(-logsnr.abs())).monotone
    False
    >>> round(Custom(lambda logsnr: 1 - logsnr / 20, -10.0, 10.0).peak, 6)
    -10.0
    """

    @validated(rules=[ordered_ends])
    def __init__(
        self, weighting: WeightFunction, logsnr_min: Finite = -SPAN, logsnr_max: Finite = SPAN
    ) -> None:
        super().__init__()
        self._weight, self._range = weighting, (logsnr_min, logsnr_max)
        hint = "give the range it is meant for: Custom(…, logsnr_min=…, logsnr_max=…)"
        check_values(self.weight_at, logsnr_min, logsnr_max, hint)

    def support(self) -> tuple[float, float]:
        return self._range

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self._weight(logsnr)


def check_values(
    weighting: Callable[[Tensor], Tensor], logsnr_min: float, logsnr_max: float, hint: str = ""
) -> None:
    """Raise unless a weighting is finite, nonnegative and (batch,) → (batch,) between two
    log-SNRs. Reads values."""
    place = device_of(weighting)
    if place.type == "meta":
        return
    with torch.no_grad():
        logsnr = torch.linspace(logsnr_min, logsnr_max, 1001, dtype=torch.float64, device=place)
        w = weighting(logsnr)
    check_returned(w, logsnr)
    bad = (~(torch.isfinite(w) & (w >= 0))).nonzero().flatten().tolist()
    if bad:
        got = f"{w[bad[0]]:g} at λ = {logsnr[bad[0]]:g}"
        raise InvalidValue("weighting", "be finite and at least 0", got, hint)


def check_returned(weight: object, logsnr: Tensor) -> None:
    """Raise unless a weighting returned the shape and device of logsnr. Reads no value."""
    got, hint = type(weight).__name__, "torch.full_like(logsnr, value) for a constant"
    if isinstance(weight, Tensor):
        if (weight.shape, weight.device) == (logsnr.shape, logsnr.device):
            return
        got = f"{tuple(weight.shape)} on {weight.device}"
        hint = "it would broadcast in silence" if weight.shape != logsnr.shape else ""
    same = f"the shape and device of logsnr, {tuple(logsnr.shape)} on {logsnr.device}"
    raise InvalidValue("weighting", f"return a tensor of {same}", got, hint)


def sound(weighting: Callable[[Tensor], Tensor], schedule: Schedule) -> None:
    """Rule: a plain function is a weighting between the ends of the schedule. Read once for each
    function."""
    if isinstance(weighting, types.FunctionType) and weighting not in _CHECKED:
        check_values(weighting, lowest(schedule), schedule.logsnr_max)
        _CHECKED.add(weighting)


def same_chain(weighting: object, steps: int | None) -> None:
    """Rule: the plain loss of a chain is used on that chain."""
    own = weighting.chain if isinstance(weighting, Weighting) else None
    if own not in (None, steps):
        hint = "the plain loss of a chain is one on that chain"
        raise InvalidValue("steps", f"be {own}, as in {weighting!r}", steps, hint)


def divides_table(schedule: Schedule, steps: int | None) -> None:
    """Rule: the steps of a table divide into `steps`."""
    if steps is not None and isinstance(schedule, Tabulated):
        own = schedule.steps
        levels = (
            f"a table of {own + 1} levels has {own} steps, the first level being the decoder's"
        )
        require(own % steps == 0, "steps", f"divide the {own} steps of the table", steps, levels)


def lowest(schedule: Schedule) -> float:
    """The least λ of a schedule at which a weighting is checked."""
    return -SPAN if schedule.reaches_noise else schedule.logsnr_min


def not_times(value: object, argument: str, given: Given) -> object:
    """A floating tensor of λ."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    got = value.dtype if isinstance(value, Tensor) else type(value).__name__
    hint = "of times or steps t, λ is schedule(t): factor(schedule(t))"
    raise InvalidType(argument, "be a floating tensor", got, hint)


@dataclass(frozen=True)
class LossFactor:
    """The function of λ that `loss_factor` returns."""

    weighting: Callable[[Tensor], Tensor]
    schedule: Schedule
    parameterization: Parameterization
    steps: int | None

    @validated
    def __call__(self, logsnr: Annotated[Float[Tensor, "*shape"], not_times]) -> Tensor:
        v = to_float64(logsnr).masked_fill(logsnr == -math.inf, PURE_NOISE)
        kappa2 = self.parameterization.kappa2(v)
        if self.steps is None:
            value = self.weighting(v) / (2.0 * self.schedule.density(v) * kappa2)
        else:
            measure = self.schedule.at(self.schedule.inverse(v, clamp=True), self.steps)[1]
            value = 0.5 * self.weighting(v) * measure / kappa2
        return value.to(at_least_float32(logsnr.dtype))


@validated(rules=[divides_table, same_chain])
def loss_factor(
    weighting: WeightFunction,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    steps: Steps | None = None,
) -> Callable[[Tensor], Tensor]:
    """w/(2 p κ²), the function of λ by which to multiply the squared error of your own loop.

    With t ~ U(0, 1), λ = schedule(t) and the target's error summed over dimensions,
    `factor(logsnr) * ‖o − ô‖²` has the expectation of `weighted_elbo` with the same weighting. It
    is a function of λ, not of t: `factor(schedule(t))`. (A loop that takes the mean over d
    dimensions trains the same objective over d.) With `steps`, for a loop over t = i/T, i = 1 … T:
    ½ w T expm1(λ_s − λ_t)/κ². It can be pickled if the weighting can.

    >>> factor = loss_factor(MSE(Cosine(), V()), Cosine(), V())
    >>> factor(torch.tensor([0.0, 5.0]))
    tensor([1., 1.])
    """
    return LossFactor(weighting, schedule, parameterization, steps)


__all__ = ["Custom", "Product", "Weighting", "loss_factor"]
