"""Published objectives as data: method = schedule × parameterization × weighting.

Training settings live beside the example scripts; a recipe is the mathematics alone. Each name is
a function without arguments, so that nothing is built before it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vdiff.decoder import Decoder
from vdiff.errors import did_you_mean, must
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
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    InDI,
    MinSNR,
    Sigmoid,
    Weighting,
    check_weight_function,
)


@dataclass(frozen=True)
class Recipe:
    """A named objective. `schedule` is where it trains, `weighting` the total w(λ) that it
    minimises, constant included.

    `weighting` is written with the untruncated law, as published; a truncated schedule moves only
    the constant. A factor alone is refused. With a `bound_weight` the loss is `hybrid`, on all
    levels of a chain; a `weighting` has no value for the first of them, where no step ends.

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

    def __post_init__(self) -> None:
        check_weight_function("Recipe", self.weighting)

    def objective(self, model: Model, decoder: Decoder | None = None) -> Objective:
        """The loss of this recipe as a module, nats per example.

        With a decoder it takes data as it is; a recipe whose weighting is `ELBO()` then trains the
        whole bound.

        >>> from vdiff import Denoiser, Eps
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


def _ddpm() -> Recipe:
    schedule = Tabulated.linear_betas()
    simple, source = MSE(schedule, Eps(), steps=schedule.steps), "arXiv:2006.11239"
    return Recipe("ddpm", schedule, Eps(), simple, schedule.steps, source, bound_weight=0.0)


def _ddpm_continuous() -> Recipe:
    schedule = LinearBeta()
    return Recipe(
        "ddpm-continuous", schedule, Eps(), MSE(schedule.law, Eps()), source="arXiv:2011.13456"
    )


def _iddpm() -> Recipe:
    schedule = Cosine(offset=0.008)
    return Recipe("iddpm", schedule, Eps(), MSE(schedule.law, Eps()), source="arXiv:2102.09672")


def _vdm() -> Recipe:
    return Recipe("vdm", LearnedLinear(), Eps(), ELBO(), source="arXiv:2107.00630")


def _vdmpp() -> Recipe:
    return Recipe("vdmpp-sigmoid", Cosine(), V(), Sigmoid(2.0), source="arXiv:2303.00848")


def _vdmpp_edm() -> Recipe:
    return Recipe(
        "vdmpp-edm-monotone", Normal(), V(0.5), EDM(monotone=True), source="arXiv:2303.00848"
    )


def _edm() -> Recipe:
    return Recipe("edm", Normal(), V(0.5), EDM(), source="arXiv:2206.00364")


def _flow() -> Recipe:
    schedule = OptimalTransport()
    return Recipe(
        "flow-matching", schedule, Flow(), MSE(schedule.law, Flow()), source="arXiv:2210.02747"
    )


def _sd3() -> Recipe:
    schedule = Normal(0.0, 2.0)
    return Recipe("sd3", schedule, Flow(), MSE(schedule.law, Flow()), source="arXiv:2403.03206")


def _v_prediction() -> Recipe:
    schedule = Cosine()
    return Recipe("v-prediction", schedule, V(), MSE(schedule.law, V()), source="arXiv:2202.00512")


def _p2() -> Recipe:
    schedule = Cosine()
    return Recipe(
        "p2", schedule, Eps(), MSE(schedule.law, Eps()) * P2(gamma=1.0), source="arXiv:2204.00227"
    )


def _min_snr() -> Recipe:
    schedule = Cosine()
    return Recipe(
        "min-snr",
        schedule,
        Eps(),
        MSE(schedule.law, Eps()) * MinSNR(5.0),
        source="arXiv:2303.09556",
    )


def _indi() -> Recipe:
    return Recipe("indi", OptimalTransport(), X(), InDI(), source="arXiv:2303.11435")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "ddpm": _ddpm,
    "ddpm-continuous": _ddpm_continuous,
    "iddpm": _iddpm,
    "vdm": _vdm,
    "vdmpp-sigmoid": _vdmpp,
    "vdmpp-edm-monotone": _vdmpp_edm,
    "edm": _edm,
    "flow-matching": _flow,
    "sd3": _sd3,
    "v-prediction": _v_prediction,
    "p2": _p2,
    "min-snr": _min_snr,
    "indi": _indi,
}


def recipe(name: str) -> Recipe:
    """A published objective by name; raises ValueError with the nearest name where there is none.

    >>> recipe("edm").weighting.monotone
    False
    """
    name = name.lower()
    if name not in RECIPES:
        raise ValueError(
            must(
                "recipe",
                "name",
                f"be one of {', '.join(RECIPES)}",
                repr(name),
                did_you_mean(name, RECIPES),
            )
        )
    return RECIPES[name]()


__all__ = ["RECIPES", "Recipe", "recipe"]
