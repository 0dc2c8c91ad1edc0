"""Published objectives as data: method = schedule × parameterization × weighting.

A recipe is the mathematics alone, without training settings. Each name maps to a function without
arguments, so that nothing is built before its first use.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vdiff._inputs import total
from vdiff._validate import require, validated
from vdiff.decoder import Decoder
from vdiff.errors import InvalidType, did_you_mean
from vdiff.loss import Model
from vdiff.objective import VLB, Hybrid, Loss, Objective, Weighted
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.schedule import (
    Cosine,
    LearnedLinear,
    LinearBeta,
    Normal,
    OptimalTransport,
    Schedule,
    Tabulated,
)
from vdiff.weighting import EDM, ELBO, MSE, P2, InDI, MinSNR, Sigmoid, Weighting


@dataclass(frozen=True)
class Recipe:
    """A named objective: the `schedule` of its training, and the total w(λ) that it minimises,
    including the constant.

    `weighting` is written with the untruncated law, as published; a truncated schedule changes
    only the constant. A factor alone raises ValueError. With a `bound_weight` the loss is
    `hybrid_loss` on all levels of a chain; `weighting` has no value at the first level, where no
    step ends.

    >>> recipe("sd3").schedule.law, recipe("sd3").source
    (Gaussian(mean=0.0, std=2.0), 'arXiv:2403.03206')
    """

    name: str
    schedule: Schedule
    parameterization: Parameterization
    weighting: Weighting
    steps: int | None = None
    source: str = ""
    bound_weight: float | None = None

    @validated
    def __post_init__(self) -> None:
        if isinstance(self.weighting, Loss):
            hint = "a loss goes into Objective(model, schedule=…, loss=Weighted(…))"
            raise InvalidType("weighting", "be a Weighting", repr(self.weighting), hint)
        total(self.weighting, "weighting", {})

    def objective(self, model: Model, decoder: Decoder | None = None) -> Objective:
        """The loss of this recipe as a module, nats per example. A decoder makes it encode the
        data; a recipe whose weighting is `ELBO()` then trains the whole bound.

        >>> from vdiff import Denoiser
        >>> from vdiff.parameterization import Eps
        >>> ddpm = recipe("ddpm").objective(Denoiser(lambda z, logsnr: 0 * z, Eps()))
        >>> ddpm(torch.zeros(2, 3), u=torch.zeros(2), eps=torch.ones(2, 3))  # the first level
        tensor([3., 3.])
        """
        return Objective(model, schedule=self.schedule, loss=self.loss(decoder))

    def loss(self, decoder: Decoder | None = None) -> Loss:
        """The loss of this recipe; with a decoder and `ELBO()`, the whole bound."""
        if self.bound_weight is not None and self.steps is not None:
            return Hybrid(self.steps, bound_weight=self.bound_weight, decoder=decoder)
        if decoder is not None and isinstance(self.weighting, ELBO):
            return VLB(decoder, steps=self.steps)
        return Weighted(self.weighting, steps=self.steps, decoder=decoder)


def _plain(
    name: str,
    schedule: Cosine | LinearBeta | Normal | OptimalTransport,
    parameterization: Parameterization,
    source: str,
    factor: Weighting | None = None,
) -> Recipe:
    """Plain squared error on the target, times a factor."""
    weighting: Weighting = MSE(schedule.law, parameterization)
    if factor is not None:
        weighting = weighting * factor
    return Recipe(name, schedule, parameterization, weighting, source=source)


def _ddpm() -> Recipe:
    schedule = Tabulated.linear_betas()
    simple, source = MSE(schedule, Eps(), steps=schedule.steps), "arXiv:2006.11239"
    return Recipe("ddpm", schedule, Eps(), simple, schedule.steps, source, bound_weight=0.0)


_VDMPP = "arXiv:2303.00848"
RECIPES: dict[str, Callable[[], Recipe]] = {
    "ddpm": _ddpm,
    "ddpm-continuous": lambda: _plain("ddpm-continuous", LinearBeta(), Eps(), "arXiv:2011.13456"),
    "iddpm": lambda: _plain("iddpm", Cosine(offset=0.008), Eps(), "arXiv:2102.09672"),
    "vdm": lambda: Recipe("vdm", LearnedLinear(), Eps(), ELBO(), source="arXiv:2107.00630"),
    "vdmpp-sigmoid": lambda: Recipe("vdmpp-sigmoid", Cosine(), V(), Sigmoid(2.0), source=_VDMPP),
    "vdmpp-edm-monotone": lambda: Recipe(
        "vdmpp-edm-monotone", Normal(), V(0.5), EDM(monotone=True), source=_VDMPP
    ),
    "edm": lambda: Recipe("edm", Normal(), V(0.5), EDM(), source="arXiv:2206.00364"),
    "flow-matching": lambda: _plain(
        "flow-matching", OptimalTransport(), Flow(), "arXiv:2210.02747"
    ),
    "sd3": lambda: _plain("sd3", Normal(0.0, 2.0), Flow(), "arXiv:2403.03206"),
    "v-prediction": lambda: _plain("v-prediction", Cosine(), V(), "arXiv:2202.00512"),
    "p2": lambda: _plain("p2", Cosine(), Eps(), "arXiv:2204.00227", P2(gamma=1.0)),
    "min-snr": lambda: _plain("min-snr", Cosine(), Eps(), "arXiv:2303.09556", MinSNR(5.0)),
    "indi": lambda: Recipe("indi", OptimalTransport(), X(), InDI(), source="arXiv:2303.11435"),
}


@validated
def recipe(name: str) -> Recipe:
    """A published objective by name; raises ValueError for an unknown name, with the nearest one.

    >>> recipe("edm").weighting.monotone
    False
    """
    name, hint = name.lower(), did_you_mean(name, RECIPES)
    require(name in RECIPES, "name", f"be one of {', '.join(RECIPES)}", repr(name), hint)
    return RECIPES[name]()


__all__ = ["RECIPES", "Recipe", "recipe"]
