"""The base class of weightings, products, custom functions, and the factor for your own loop."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Steps, WeightFunction, ordered_ends
from vdiff._modules import RestorableModule
from vdiff._precision import PURE_NOISE, at_least_float32, device_of, to_float64
from vdiff._validate import Finite, validated
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule
from vdiff.weighting._check import SPAN, check_values, divides_table, same_chain


class Weighting(RestorableModule, abc.ABC):
    """w(λ). A subclass defines `weight_at(logsnr)` in float64. A call computes in float64 and
    rounds once.

    `steps` is T if this is the plain loss of a chain, else None. `is_factor` is True if this only
    multiplies a base.

    >>> (MSE(Cosine(), Eps()) * MinSNR(5.0)).steps, (P2() * MinSNR()).is_factor
    (None, True)
    """

    __example__ = "a constant changes only the learning rate; a function of λ is Custom(…)"
    steps: int | None = None
    is_factor: bool = False

    @abc.abstractmethod
    def weight_at(self, logsnr: Tensor) -> Tensor:
        """w at each λ."""

    @validated
    def forward(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """w(λ), in the dtype of λ or float32, whichever is wider."""
        return self.weight_at(to_float64(logsnr)).to(at_least_float32(logsnr.dtype))

    def support(self) -> tuple[float, float]:
        """(λ_max, λ_min) between which the weighting is meant to be used."""
        return SPAN, -SPAN

    @property
    def monotone(self) -> bool:
        """Whether w never rises with λ. Only then is L_w an ELBO with Gaussian data augmentation
        (VDM++, arXiv:2303.00848, theorem 1).

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
        high, low = self.support()
        return torch.linspace(low, high, 8001, dtype=torch.float64, device=device_of(self))

    def __mul__(self, factor: "Weighting") -> "Weighting":
        return Product(self, factor)

    @validated
    def check(self) -> "Weighting":
        """Return self if w is finite, nonnegative and of the shape of λ over its support. Raises
        ValueError otherwise."""
        check_values(self, *self.support())
        return self

    def extra_repr(self) -> str:
        own = {k: v for k, v in vars(self).items() if k != "training" and not k.startswith("_")}
        return ", ".join(f"{name}={value}" for name, value in own.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Product(Weighting):
    """A base times factors.

    >>> Product(ELBO(), P2(gamma=1.0))(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated
    def __init__(self, base: Weighting, factor: Weighting) -> None:
        super().__init__()
        self.base, self.factor = base, factor
        self.steps = base.steps or factor.steps
        self.is_factor = base.is_factor and factor.is_factor

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self.base.weight_at(logsnr) * self.factor.weight_at(logsnr)

    def support(self) -> tuple[float, float]:
        (high, low), (other_high, other_low) = self.base.support(), self.factor.support()
        return min(high, other_high), max(low, other_low)

    def extra_repr(self) -> str:
        return f"{self.base!r}, {self.factor!r}"


class Custom(Weighting):
    """A weighting from a function of λ, checked at construction between the two ends. A plain
    function also works as `weighting=`; `Custom` adds the properties.

    >>> Custom(lambda logsnr: torch.exp(-logsnr.abs())).monotone
    False
    >>> falling = Custom(lambda logsnr: 1 - logsnr / 20, logsnr_max=10.0, logsnr_min=-10.0)
    >>> round(falling.peak, 6)
    -10.0
    """

    @validated(rules=[ordered_ends])
    def __init__(
        self, weighting: WeightFunction, *, logsnr_max: Finite = SPAN, logsnr_min: Finite = -SPAN
    ) -> None:
        super().__init__()
        self._weight, self._support = weighting, (logsnr_max, logsnr_min)
        hint = "give the range it is meant for: Custom(…, logsnr_max=…, logsnr_min=…)"
        check_values(self.weight_at, logsnr_max, logsnr_min, hint)

    def support(self) -> tuple[float, float]:
        return self._support

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self._weight(logsnr)


@dataclass(frozen=True)
class LossFactor:
    """The function of λ that `loss_factor` returns."""

    weighting: Callable[[Tensor], Tensor]
    schedule: Schedule
    parameterization: Parameterization
    steps: int | None

    @validated
    def __call__(self, logsnr: Float[Tensor, "*shape"]) -> Tensor:
        v = to_float64(logsnr).masked_fill(logsnr == -math.inf, PURE_NOISE)
        weight = 0.5 * self.weighting(v) * self.parameterization.inverse_kappa2(v)
        if self.steps is None:
            value = weight / self.schedule.density(v)
        else:
            t = self.schedule.inverse(v, clamp=True)
            value = weight * self.schedule.at(t, self.steps).rate
        return value.to(at_least_float32(logsnr.dtype))


@validated(rules=[divides_table, same_chain])
def loss_factor(
    weighting: WeightFunction,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    steps: Steps | None = None,
) -> Callable[[Tensor], Tensor]:
    """w/(2 p κ²), the function of λ that multiplies the squared error of your own loop.

    With t ~ U(0, 1), λ = schedule(t) and the target's error summed over dimensions,
    `factor(logsnr) * ‖o − ô‖²` has the expectation of `weighted_elbo` with the same weighting. The
    factor takes λ, not t: `factor(schedule(t))`. (A loop with the mean over d dimensions trains
    1/d of this objective.) With `steps`, for a loop over t = i/T, i = 1 … T, the factor is
    ½ w T expm1(λ_s − λ_t)/κ². It can be pickled if the weighting can.

    >>> factor = loss_factor(MSE(Cosine(), V()), Cosine(), V())
    >>> factor(torch.tensor([0.0, 5.0]))
    tensor([1., 1.])
    """
    return LossFactor(weighting, schedule, parameterization, steps)
