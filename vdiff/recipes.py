"""Published objectives as data: method = schedule × parameterization × weighting, and over tokens
× process.

A recipe is the mathematics alone, without training settings. Each name maps to a function without
arguments, so that nothing is built before its first use.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from vdiff._diffusion import diffusion_of
from vdiff._inputs import total
from vdiff._validate import require, validated
from vdiff.decoder import Decoder
from vdiff.discrete import Hybrid as HybridProcess
from vdiff.discrete import LeaveOneOut, Masked, Posterior, Process, TokenParameterization
from vdiff.errors import InvalidType, did_you_mean
from vdiff.loss import Model
from vdiff.objective import VLB, Hybrid, Loss, Objective, Weighted
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.schedule import (
    Cosine,
    LearnedLinear,
    LinearBeta,
    LogLinear,
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


@dataclass(frozen=True)
class TokenRecipe(Recipe):
    """A named objective over tokens. Its process has the published vocabulary.

    >>> recipe("llada").process, recipe("llada").source
    (Masked(126464, mask=126336), 'arXiv:2502.09992')
    """

    parameterization: TokenParameterization  # type: ignore[assignment]
    process: Process = field(kw_only=True)

    def objective(self, model: Model, decoder: Decoder | None = None) -> Objective:
        """The loss of this recipe as a module, nats per example. The vocabulary is the model's.
        Raises ValueError for a model of another kind of process, and for a decoder."""
        own = diffusion_of(model)
        what = f"have a process of the kind {type(self.process).__name__}"
        require(isinstance(own, type(self.process)), "model", what, repr(own))
        require(decoder is None, "decoder", "be left out for tokens", decoder)
        return super().objective(model)


def _cut(t: float, end: float) -> LogLinear:
    """α = 1 − t from 1 − t to `end`."""
    return LogLinear(math.log((1 - t) / t), math.log(end / (1 - end)))


def _masked(name: str, process: Process, schedule: Schedule, source: str) -> TokenRecipe:
    return TokenRecipe(name, schedule, Posterior(), ELBO(), source=source, process=process)


def _gidd() -> TokenRecipe:
    process, source = HybridProcess.gidd(GPT2, uniform=0.1), "arXiv:2503.04482"
    return TokenRecipe("gidd", LogLinear(), LeaveOneOut(), ELBO(), source=source, process=process)


GPT2 = 50257  # the tokens of GPT-2
# Where their codes cut the time: MDLM draws t from 10⁻³ to 1, at α = 1 − (1 − 10⁻³) t; MD4 has
# α = 10⁻⁴ + (1 − 2·10⁻⁴)(1 − t); LLaDA masks with a probability from 10⁻³ to 1, of which the last
# is λ = −∞ and here that of `LogLinear`. GIDD's schedule is a choice of draws alone: its bound is
# that of every schedule, and here it has `LogLinear`. Its weights that depend on the token are in
# no recipe.
TOKEN_RECIPES: dict[str, Callable[[], TokenRecipe]] = {
    "mdlm": lambda: _masked("mdlm", Masked(GPT2), _cut(0.999e-3, 1e-3), "arXiv:2406.07524"),
    "md4": lambda: _masked("md4", Masked(GPT2), _cut(1e-4, 1e-4), "arXiv:2406.04329"),
    "llada": lambda: _masked(
        "llada",
        Masked(126464, mask=126336),
        LogLinear(logsnr_max=math.log(999)),
        "arXiv:2502.09992",
    ),
    "gidd": _gidd,
}
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
    known: dict[str, Callable[[], Recipe]] = {**RECIPES, **TOKEN_RECIPES}
    name, hint = name.lower(), did_you_mean(name, known)
    require(name in known, "name", f"be one of {', '.join(known)}", repr(name), hint)
    return known[name]()


__all__ = ["RECIPES", "TOKEN_RECIPES", "Recipe", "TokenRecipe", "recipe"]
