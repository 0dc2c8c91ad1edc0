"""What counts: w(λ) ≥ 0 on the ε-loss, L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ.

A total stands alone (`ELBO`, `Sigmoid`, `MSE`); a factor multiplies a base, such as `MSE(Cosine(),
Eps()) * MinSNR(5)`, and is refused alone. A function of your own is a total. Every factor is in
ε-units whatever the network predicts: the published bugs of min-SNR are all violations of this.
"""

import math
import types
import weakref
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import (
    check_steps,
    check_total,
    checking,
    finite,
    must,
    names_arrays,
    shown,
)
from vdiff.gaussian import PURE, RestorableModule, at_least_float32, wide
from vdiff.parameterization import Parameterization, V, X, check_parameterization
from vdiff.schedule import OptimalTransport, Schedule, Tabulated
from vdiff.schedule.base import EDGE, check_ends, check_schedule, home
from vdiff.schedule.law import Gaussian, Law

SPAN = 40.0  # |λ| up to which a weighting is examined
_SEEN: "weakref.WeakSet[Callable[[Tensor], Tensor]]" = (
    weakref.WeakSet()
)  # functions whose values were found to be weights


class Weighting(RestorableModule):
    """w(λ): one method, `weight_at(logsnr)`, written in float64; calling it computes there and
    rounds once.

    >>> Sigmoid(bias=2.0)(torch.tensor([2.0]))
    tensor([0.5000])
    >>> (ELBO() * MinSNR(5.0))(torch.tensor([0.0]))
    tensor([1.])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        """w at each λ."""
        raise NotImplementedError(f"{type(self).__name__} must define weight_at(logsnr)")

    @names_arrays
    def forward(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """w(λ), in the dtype of λ (float32 where that is narrower)."""
        return self.weight_at(wide(logsnr)).to(at_least_float32(logsnr.dtype))

    def range(self) -> tuple[float, float]:
        """The λ between which the weighting is meant to be used."""
        return -SPAN, SPAN

    @property
    def chain(self) -> int | None:
        """The number of steps of the chain that this weighting is the plain loss of; None where it
        is of none.

        >>> ELBO().chain
        """
        return None

    @property
    def is_factor(self) -> bool:
        """Whether this only multiplies a base and is no weighting by itself.

        >>> MinSNR(5.0).is_factor, (P2() * MinSNR()).is_factor, (ELBO() * MinSNR()).is_factor
        (True, True, False)
        """
        return False

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
        """The λ at which w is largest, the greatest where that is a stretch.

        >>> round(EDM().peak, 4)
        -3.3078
        """
        grid = self._grid()
        for _ in range(8):
            best = self._last_largest(grid)
            grid = torch.linspace(
                grid[max(best - 1, 0)].item(),
                grid[min(best + 1, len(grid) - 1)].item(),
                1001,
                dtype=torch.float64,
                device=grid.device,
            )
        return grid[self._last_largest(grid)].item()

    def _last_largest(self, grid: Tensor) -> int:
        w = self.weight_at(grid)
        return int((w == w.max()).nonzero()[-1])

    def _grid(self) -> Tensor:
        return torch.linspace(*self.range(), 8001, dtype=torch.float64, device=home(self))

    def __mul__(self, factor: "Weighting") -> "Weighting":
        return Product(self, factor)

    def check(self) -> "Weighting":
        """Verify that w is finite, nonnegative and keeps its shape over its range; returns self,
        raises ValueError.

        >>> (ELBO() * MinSNR(5.0)).check()
        Product(ELBO(), MinSNR(gamma=5.0))
        """
        check_weighting(self, *self.range(), name=type(self).__name__)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Product(Weighting):
    """A base times factors.

    >>> Product(ELBO(), P2(gamma=1.0))(torch.tensor([0.0]))
    tensor([0.5000])
    """

    def __init__(self, base: Weighting, factor: Weighting) -> None:
        super().__init__()
        for argument, value in (("base", base), ("factor", factor)):
            if not isinstance(value, Weighting):
                hint = "a constant moves nothing but the learning rate; a function of λ is weighting.Custom(…)"
                raise TypeError(
                    must(
                        "Product",
                        argument,
                        "be a Weighting",
                        value,
                        f"an instance: {value.__name__}()" if isinstance(value, type) else hint,
                    )
                )
        self.base, self.factor = base, factor

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self.base.weight_at(logsnr) * self.factor.weight_at(logsnr)

    @property
    def chain(self) -> int | None:
        return self.base.chain or self.factor.chain

    @property
    def is_factor(self) -> bool:
        return self.base.is_factor and self.factor.is_factor

    def range(self) -> tuple[float, float]:
        (low, high), (lower, higher) = self.base.range(), self.factor.range()
        return max(low, lower), min(high, higher)

    def extra_repr(self) -> str:
        return f"{self.base!r}, {self.factor!r}"


class ELBO(Weighting):
    """w = 1: the evidence lower bound.

    >>> ELBO()(torch.tensor([3.0]))
    tensor([1.])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


class MSE(Weighting):
    """The weighting that plain squared error on a target is, with times from a schedule or a law
    over λ.

        w(λ) = 2 p(λ) κ(λ)²

    constant included: `weighted_elbo(..., weighting=MSE(s, p))` is E‖o − ô‖², summed over
    dimensions, with λ ~ p_s between the ends of s, whatever schedule it is sampled with. With
    `steps`, the mean over the T + 1 levels of the T-step chain of s: w(λ_i) = 2κ²/((T + 1)
    expm1(λ_{i−1} − λ_i)) at i = 1 … T, the level at t = 0 being the decoder's. No draw trains that
    level, at which a sampler asks the network: the simple loss on all T + 1 levels is `hybrid(…,
    steps=T, bound_weight=0)`. A schedule that is learned or adaptive is refused: the objective
    would move with it.

    >>> MSE(OptimalTransport().law, Flow())(torch.tensor([2.0]))  # e^{-λ/2}
    tensor([0.3679])
    """

    def __init__(
        self,
        schedule: Schedule | Law,
        parameterization: Parameterization,
        *,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Law):
            check_schedule("MSE", schedule)
        if not isinstance(parameterization, Parameterization):
            raise TypeError(
                must(
                    "MSE",
                    "parameterization",
                    "be a Parameterization",
                    shown(parameterization),
                    "an instance, for instance V()",
                )
            )
        if isinstance(schedule, Schedule) and (schedule.learns_ends or schedule.learns_shape):
            raise ValueError(
                must(
                    "MSE",
                    "schedule",
                    "be fixed",
                    repr(schedule),
                    "a plain loss under a learned schedule is an objective that moves with it; use a fixed w(λ)",
                )
            )
        if steps is not None:
            check_steps("MSE", steps)
            if isinstance(schedule, Law):
                raise TypeError(
                    must("MSE", "schedule", "be a Schedule where steps are given", repr(schedule))
                )
        self.schedule, self.parameterization, self.steps = schedule, parameterization, steps
        self._take_first()
        self.register_load_state_dict_post_hook(MSE._take_first)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._take_first()

    def _take_first(self, *_: object) -> None:
        """The level at t = 0 is the decoder's: a chain's loss starts at the next."""
        if isinstance(self.schedule, Schedule) and home(self.schedule).type != "meta":
            start = 0.0 if self.steps is None else 1 / self.steps
            t = torch.tensor(start, dtype=torch.float64, device="cpu")
            self._first: float = self.schedule(t).item()

    def weight_at(self, logsnr: Tensor) -> Tensor:
        if self.steps is None or isinstance(self.schedule, Law):
            return self.schedule.density(logsnr) * (2.0 * self.parameterization.kappa2(logsnr))
        logsnr = logsnr.masked_fill(logsnr == -math.inf, PURE)
        kappa2 = self.parameterization.kappa2(logsnr)
        delta = self.schedule.delta(self.schedule.inverse(logsnr, clamp=True), self.steps)
        inside = (logsnr >= self.schedule.logsnr_min - EDGE) & (logsnr <= self._first + EDGE)
        return torch.where(inside, 2.0 * kappa2 / ((self.steps + 1) * torch.expm1(delta)), 0.0)

    def range(self) -> tuple[float, float]:
        if isinstance(self.schedule, Law):
            return super().range()
        return lowest(self.schedule), self._first

    @property
    def chain(self) -> int | None:
        return self.steps

    def extra_repr(self) -> str:
        return f"{self.schedule!r}, {self.parameterization!r}" + (
            f", steps={self.steps}" if self.steps else ""
        )


class EDM(MSE):
    """EDM's, w = (2/σ_d²) N(λ; 2.4, 2.4²)(e^{−λ} + σ_d²); with `monotone`, held at its peak to the
    left (VDM++).

    >>> EDM()(torch.tensor([0.0]))
    tensor([1.0082])
    """

    def __init__(
        self,
        mean: float = 2.4,
        std: float = 2.4,
        sigma_data: float = 0.5,
        *,
        monotone: bool = False,
    ) -> None:
        super().__init__(Gaussian(mean, std), V(sigma_data))
        self.held_below = -math.inf
        if monotone:
            self.held_below = self.peak

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return super().weight_at(
            logsnr.clamp(min=self.held_below) if self.held_below > -math.inf else logsnr
        )


class InDI(MSE):
    """Inversion by direct iteration: x-prediction on the straight path, w = ¼ e^{−λ} sech²(λ/4).

    >>> InDI()(torch.tensor([0.0]))
    tensor([0.2500])
    """

    def __init__(self) -> None:
        super().__init__(OptimalTransport().law, X())


class Sigmoid(Weighting):
    """w = sigmoid(bias − λ), a total (VDM++, arXiv:2303.00848; bias 2 was best there).

    >>> Sigmoid(0.0)(torch.tensor([0.0]))
    tensor([0.5000])
    """

    def __init__(self, bias: float = 2.0) -> None:
        super().__init__()
        self.bias = finite("Sigmoid", "bias", bias)

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - logsnr)

    def extra_repr(self) -> str:
        return f"bias={self.bias}"


class Factor(Weighting):
    """What multiplies a base, in ε-units whatever the network predicts; alone it is refused
    wherever a weighting is taken.

    A factor of your own is a subclass with `weight_at(logsnr)`.

    >>> class Half(Factor):
    ...     def weight_at(self, logsnr):
    ...         return torch.full_like(logsnr, 0.5)
    >>> (Sigmoid(0.0) * Half())(torch.tensor([0.0]))
    tensor([0.2500])
    """

    @property
    def is_factor(self) -> bool:
        return True


class MinSNR(Factor):
    """The factor min(1, γ e^{−λ}), in ε-units whatever the network predicts (min-SNR-γ,
    arXiv:2303.09556).

    >>> MinSNR(5.0)(torch.tensor([0.0, 3.0]))
    tensor([1.0000, 0.2489])
    """

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        self.gamma = finite(type(self).__name__, "gamma", gamma, above=0.0)

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp((math.log(self.gamma) - logsnr).clamp(max=0.0))

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class SoftMinSNR(MinSNR):
    """The factor sigmoid(log γ − λ): γ·SNR/(γ + SNR) on x, without the corner of min-SNR.

    >>> SoftMinSNR(1.0)(torch.tensor([0.0]))
    tensor([0.5000])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(math.log(self.gamma) - logsnr)


class P2(Factor):
    """The factor 1/(k + e^λ)^γ (P2, arXiv:2204.00227).

    >>> P2(gamma=0.5)(torch.tensor([0.0]))
    tensor([0.7071])
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.k = finite("P2", "gamma", gamma), finite("P2", "k", k, above=0.0)

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp(
            -self.gamma * torch.logaddexp(logsnr, torch.full_like(logsnr, math.log(self.k)))
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, k={self.k}"


class TruncatedSNR(Factor):
    """The factor max(1, e^{−λ}): max(SNR, 1) on x (Salimans & Ho 2022).

    >>> TruncatedSNR()(torch.tensor([1.0, -1.0]))
    tensor([1.0000, 2.7183])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr.clamp(max=0.0))


class Debiased(Factor):
    """The factor e^{−λ/2}: the ε-loss over √SNR (debiased estimation loss, arXiv:2310.08442).

    >>> Debiased()(torch.tensor([2.0]))
    tensor([0.3679])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-0.5 * logsnr)


class Custom(Weighting):
    """A weighting from a function of λ, checked at construction over the λ for which it is meant;
    a plain function can be passed as `weighting=` too, `Custom` adds the rest.

    >>> Custom(lambda logsnr: torch.exp(-logsnr.abs())).monotone
    False
    >>> Custom(lambda logsnr: 1 - logsnr / 20)
    Traceback (most recent call last):
        ...
    ValueError: Custom: argument 'weighting' must be finite and at least 0; got -0.004 at λ = 20.08 (give the range it is meant for: Custom(…, logsnr_min=…, logsnr_max=…))
    """

    def __init__(
        self,
        weight: Callable[[Tensor], Tensor],
        logsnr_min: float = -SPAN,
        logsnr_max: float = SPAN,
    ) -> None:
        super().__init__()
        check_weight_function("Custom", weight)
        self._weight = weight
        high, low = check_ends("Custom", logsnr_max, logsnr_min)
        self._range = (low, high)
        check_weighting(
            self.weight_at,
            low,
            high,
            "Custom",
            "give the range it is meant for: Custom(…, logsnr_min=…, logsnr_max=…)",
        )

    def range(self) -> tuple[float, float]:
        return self._range

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return self._weight(logsnr)


def loss_factor(
    weighting: Callable[[Tensor], Tensor],
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    steps: int | None = None,
) -> Callable[[Tensor], Tensor]:
    """What to put before the squared error that a loop of one's own already has, a function of λ:
    w/(2 p κ²).

    With t ~ U(0, 1), λ = schedule(t) and the target's error summed over dimensions,
    `factor(logsnr) * ‖o − ô‖²` has the expectation of `weighted_elbo` with the same weighting. It
    is a function of λ, not of t: `factor(schedule(t))`. (A loop that takes the mean over d
    dimensions trains the same objective over d.) With `steps`, for a loop over t = i/T, i = 1 … T:
    ½ w T expm1(λ_s − λ_t)/κ². It can be pickled if the weighting can.

    >>> factor = loss_factor(MSE(Cosine(), V()), Cosine(), V())
    >>> factor(torch.tensor([0.0, 5.0]))
    tensor([1., 1.])
    """
    check_weight_function("loss_factor", weighting)
    check_schedule("loss_factor", schedule)
    check_parameterization("loss_factor", parameterization)
    check_chain("loss_factor", weighting, schedule, steps)
    return partial(_factor, weighting, schedule, parameterization, steps)


def _factor(
    weighting: Callable[[Tensor], Tensor],
    schedule: Schedule,
    parameterization: Parameterization,
    steps: int | None,
    logsnr: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    if checking() and not (isinstance(logsnr, Tensor) and logsnr.is_floating_point()):
        came = logsnr.dtype if isinstance(logsnr, Tensor) else type(logsnr).__name__
        hint = "of times or steps t, λ is schedule(t): factor(schedule(t))"
        raise TypeError(must("loss_factor", "logsnr", "be a floating tensor", came, hint))
    v = wide(logsnr).masked_fill(logsnr == -math.inf, PURE)
    kappa2 = parameterization.kappa2(v)
    if steps is None:
        value: Tensor = weighting(v) / (2.0 * schedule.density(v) * kappa2)
    else:
        measure = schedule.levels(schedule.inverse(v, clamp=True), steps)[1]
        value = 0.5 * weighting(v) * measure / kappa2
    return value.to(at_least_float32(logsnr.dtype))


def check_chain(name: str, weighting: object, schedule: Schedule, steps: int | None) -> None:
    """Raise where a table or a chain's plain loss is asked for another number of steps than its
    own."""
    if steps is not None:
        check_steps(name, steps)
        if isinstance(schedule, Tabulated) and schedule.steps % steps:
            hint = f"a table of {schedule.steps + 1} levels has {schedule.steps} steps, the first level being the decoder's"
            raise ValueError(
                must(name, "steps", f"divide the {schedule.steps} steps of the table", steps, hint)
            )
    if isinstance(weighting, Weighting) and weighting.chain not in (None, steps):
        raise ValueError(
            must(
                name,
                "steps",
                f"be {weighting.chain}, as in {weighting!r}",
                steps,
                "the plain loss of a chain is one on that chain",
            )
        )


def check_weighting(
    weighting: Callable[[Tensor], Tensor],
    logsnr_min: float,
    logsnr_max: float,
    name: str = "weighting",
    hint: str = "",
) -> None:
    """Raise unless a weighting is finite, nonnegative and (batch,) → (batch,) between two
    log-SNRs. Reads values."""
    _check_callable(name, weighting)
    place = home(weighting)
    if place.type == "meta":
        return
    with torch.no_grad():
        logsnr = torch.linspace(logsnr_min, logsnr_max, 1001, dtype=torch.float64, device=place)
        w = weighting(logsnr)
    check_weight(name, w, logsnr)
    bad = ~(torch.isfinite(w) & (w >= 0))
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            must(
                name,
                "weighting",
                "be finite and at least 0",
                f"{w[i]:g} at λ = {logsnr[i]:g}",
                hint,
            )
        )


def check_weight_function(name: str, weighting: object) -> None:
    """Raise unless a weighting can be called with λ and is a total; its class, or a factor alone,
    is the likely mistake."""
    _check_callable(name, weighting)
    check_total(name, weighting)


def _check_callable(name: str, weighting: object) -> None:
    if isinstance(weighting, type):
        raise TypeError(
            must(
                name,
                "weighting",
                "be a Weighting or a function of logsnr",
                f"the class {weighting.__name__}",
                f"an instance: {weighting.__name__}()",
            )
        )
    if not callable(weighting):
        raise TypeError(
            must(
                name,
                "weighting",
                "be a Weighting or a function of logsnr",
                shown(weighting),
                "for instance Sigmoid(2.0)",
            )
        )
    if isinstance(weighting, nn.Module) and "_modules" not in vars(weighting):
        raise TypeError(
            must(
                name,
                "weighting",
                "be initialised",
                type(weighting).__name__,
                "its __init__ must call super().__init__()",
            )
        )


def check_values_once(
    name: str, weighting: Callable[[Tensor], Tensor], schedule: Schedule
) -> None:
    """`check_weighting` between the ends of a schedule, the first time that a function is used: a
    class checks its own arguments."""
    if not isinstance(weighting, types.FunctionType) or weighting in _SEEN:
        return
    check_weighting(weighting, lowest(schedule), schedule.logsnr_max, name)
    _SEEN.add(weighting)


def lowest(schedule: Schedule) -> float:
    """The least λ of a schedule at which a weighting is examined."""
    return -SPAN if schedule.reaches_noise else schedule.logsnr_min


def check_weight(name: str, weight: object, logsnr: Tensor) -> None:
    """Raise unless what a weighting returned has the shape and device of logsnr. Reads no
    value."""
    if (
        not isinstance(weight, Tensor)
        or weight.shape != logsnr.shape
        or weight.device != logsnr.device
    ):
        came = (
            f"{tuple(weight.shape)} on {weight.device}"
            if isinstance(weight, Tensor)
            else type(weight).__name__
        )
        hint = (
            "" if isinstance(weight, Tensor) else "torch.full_like(logsnr, value) for a constant"
        )
        if isinstance(weight, Tensor) and weight.shape != logsnr.shape:
            hint = "it would broadcast in silence"
        raise ValueError(
            must(
                name,
                "weighting",
                f"return a tensor of the shape and device of logsnr, {tuple(logsnr.shape)} on {logsnr.device}",
                came,
                hint,
            )
        )


__all__ = [
    "EDM",
    "ELBO",
    "MSE",
    "P2",
    "Custom",
    "Debiased",
    "Factor",
    "InDI",
    "MinSNR",
    "Product",
    "Sigmoid",
    "SoftMinSNR",
    "TruncatedSNR",
    "Weighting",
    "loss_factor",
]
