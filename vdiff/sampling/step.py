"""Steps from one noise level to the next: plain functions (model, z_t, λ_t, λ_s) → z_s, with
λ_s > λ_t.

λ is (batch,), or a field that broadcasts over z: each dimension moves between its own two levels,
and one whose level does not change stays as it is. A step may read its fifth argument, a
`History`: the predictions at earlier levels and the source of noise. It has no state of its own.
Options are keywords: `step=partial(ddim, eta=0.5)`.

Most steps move z along a straight line: with x̂ and ε̂ fixed, z_s = α_s x̂ + σ_s ε̂. In the
network's own units, with its row (a, b), h = ½ (λ_s − λ_t) and n = α_t b − σ_t a,

    z_s = [ (α_s b − σ_s a) z_t + α_s σ_t expm1(−h) ô ] / n

where no term is a difference: for ε̂ the first coefficient is α_s/α_t, for x̂ σ_s/σ_t, for v̂ the
cosine of the angle between the levels. (DPM-Solver's λ is half of this λ; its h is this h.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vdiff._arguments import Condition
from vdiff._diffusion import diffusion_of
from vdiff._precision import PURE_NOISE, to_float64
from vdiff._validate import Number, require, validated
from vdiff.errors import has_values, validation_enabled
from vdiff.gaussian import Level, alpha, combine, per_example, sigma
from vdiff.gaussian import Step as ChainStep
from vdiff.parameterization import Parameterization
from vdiff.prediction import ModelOutput, Prediction, as_output
from vdiff.sampling.noise import Generators, noise_like
from vdiff.variance import AnalyticVariance, ReverseVariance

Model = Callable[..., Prediction]
_ANCESTRAL = "1 is ancestral sampling; more leaves no ε̂ to keep"
Eta = Annotated[float, Number(at_least=0.0, at_most=1.0, hint=_ANCESTRAL)]
KEPT = 4  # predictions that a history holds: no step here reads more


@dataclass(frozen=True)
class History:
    """What a step may know beyond its own two levels: the last predictions, the newest at the end,
    and the source of noise.

    >>> from vdiff.oracle import GaussianMixture
    >>> oracle, level = GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.zeros(1)
    >>> z = torch.ones(1, 1)
    >>> z_s = ancestral(oracle, z, level, level + 1, History(generator=torch.Generator()))
    >>> len(History().after(oracle(z, level)).predictions)
    1
    """

    predictions: tuple[Any, ...] = ()
    generator: Generators = None

    def after(self, prediction: ModelOutput) -> "History":
        """The history of the next step."""
        return History((*self.predictions, prediction)[-KEPT:], self.generator)


Step = Callable[..., Tensor]  # (model, z, λ_t, λ_s, history) → z_s
NO_HISTORY = History()


class Counted(nn.Module):
    """A model that counts its evaluations.

    >>> from vdiff import sample
    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Karras
    >>> model = Counted(GaussianMixture([1.0], [[0.0]], [[1.0]]))
    >>> made = sample(model, torch.randn(4, 1), schedule=Karras(), steps=17, step=heun)
    >>> model.evaluations  # as in EDM: two for each of 17 steps, one for the last
    35
    """

    @validated
    def __init__(self, model: Model, *, condition: Condition = None) -> None:
        super().__init__()
        self.model, self.condition, self.evaluations = model, dict(condition or {}), 0

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Any:
        """The model's prediction; raises unless it is a Prediction of the shape of z."""
        self.evaluations += 1
        return predicted(self.model, z, logsnr, self.condition | condition)

    @property
    def protocol(self) -> dict[str, object]:
        """The changes that wrappers made to the model, by name."""
        return dict(getattr(self.model, "protocol", {}))


def predicted(model: Model, z: Tensor, logsnr: Tensor, condition: dict[str, Any]) -> Any:
    """The prediction of a model; raises unless it is a Prediction of the shape of z."""
    prediction: Any = as_output(model(z, logsnr, **condition))
    came = f"{tuple(prediction.shape)} for {tuple(z.shape)}"
    same, hint = prediction.shape == z.shape, "it would broadcast in silence"
    require(same, "model", "return a prediction of the shape of z", came, hint)
    return prediction


@validated
def ancestral(
    model: Model,
    z: Shaped[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
    *,
    variance: ReverseVariance | None = None,
) -> Shaped[Tensor, "batch *dims"]:
    """z_s ~ p(z_s | z_t) = N(μ_Q(z_t, x̂), Σ), the chain that `elbo(..., steps=T)` bounds. One
    evaluation. Over tokens p(z_s | z_t) is that of the process, each token on its own.

    Σ is the model's own choice, or `variance` (of `vdiff.variance`). From λ_t = −∞ the step is
    α_s x̂ + σ_s n; with `FixedLarge()` it is n. Ho et al., arXiv:2006.11239, algorithm 2.

    Raises ValueError for `AnalyticVariance(...)` at λ_t = −∞, which no profile reaches.

    >>> from vdiff.oracle import GaussianMixture
    >>> oracle, level = GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.zeros(1)
    >>> ancestral(oracle, torch.ones(1, 1), level, level + 1).shape
    torch.Size([1, 1])
    """
    now = model(z, logsnr_t)
    if variance is not None:
        hint = "the step of tokens has none"
        require(diffusion_of(now).continuous, "variance", "be left out", repr(variance), hint)
        now = now.replace(variance=variance)
    own = getattr(now, "variance", None)
    known = not (isinstance(own, AnalyticVariance) and is_at(-torch.inf, logsnr_t))
    hint = "FixedSmall() or FixedLarge() for the step from pure noise"
    require(known, "variance", "be known at λ = −∞", repr(own), hint)
    step = chain_step(logsnr_t, logsnr_s)
    return diffusion_of(now).reverse(now, z, step, history.generator)


@validated
def ddim(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
    *,
    eta: Eta = 0.0,
) -> Float[Tensor, "batch *dims"]:
    """z_s = α_s x̂ + σ_s √(1 − η² c) ε̂ + η √c σ_s n, with c = −expm1(λ_t − λ_s). One evaluation,
    order 1.

    η = 0 draws no noise and is Euler's step of the probability-flow ODE (also DPM-Solver-1 and
    DPM-Solver++-1); η = 1 is ancestral sampling with the posterior's variance, for any process.
    Song et al., arXiv:2010.02502, eq. 12 and 16.

    Raises ValueError for η outside [0, 1].

    >>> from vdiff.oracle import GaussianMixture
    >>> level = torch.zeros(1, dtype=torch.float64)
    >>> ddim(GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.ones(1, 1), level, level + 1)
    tensor([[0.9713]])
    """
    now = model(z, logsnr_t)
    if eta == 0.0:
        return move(now, logsnr_s)
    high, delta = to_float64(logsnr_s), to_float64(logsnr_s) - to_float64(logsnr_t)
    # α_s x̂ + q ε̂ is a move to the cleaner level whose σ/α is q/α_s, scaled to α_s again
    cleaner = high - torch.log((1 - eta**2) + eta**2 * torch.exp(-delta))
    kept = per_example(alpha(high) / alpha(cleaner), z) * move(now, cleaner)
    spread = eta * torch.sqrt(-torch.expm1(-delta)) * sigma(high)
    return kept + per_example(spread, z) * noise_like(z, history.generator)


@validated
def heun(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
) -> Float[Tensor, "batch *dims"]:
    """EDM's step, Heun's rule in (z/α, σ/α): to λ_s with ε̂, and again with the mean of ε̂ at both
    ends. Two evaluations, order 2; one evaluation to data, λ_s = +∞, where the step is x̂. Karras
    et al., arXiv:2206.00364, algorithm 1.

    The second move differs from the first by half the change of ε̂, which is computed in the
    network's own units: where noise dominates, x̂ has digits that ε̂ has not. Raises ValueError at
    λ_t = −∞, where σ/α is infinite.

    >>> from vdiff.oracle import GaussianMixture
    >>> level = torch.zeros(1, dtype=torch.float64)
    >>> heun(GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.ones(1, 1), level, level + 1)
    tensor([[1.0055]])
    """
    hint = "σ/α is infinite there: ddim or adams_bashforth take a step from pure noise"
    require(not is_at(-torch.inf, logsnr_t), "logsnr_t", "be above −∞", "-inf", hint)
    now = model(z, logsnr_t)
    first = move(now, logsnr_s)
    if is_at(torch.inf, logsnr_s):
        return first
    there, t, s = model(first, logsnr_s), to_float64(logsnr_t), to_float64(logsnr_s)
    row = there.parameterization
    # to the output from the one that has the x̂ and ε̂ of λ_t
    change = there.output - row.target(now.x, now.eps, logsnr_s)
    half = -0.5 * alpha(s) * sigma(s) * torch.expm1(0.5 * (s - t)) / scale(row, s)
    return torch.addcmul(first, torch.as_tensor(per_example(half, z)), change)


def is_at(level: float, logsnr: Tensor) -> bool:
    """Whether any λ, of an example or a dimension, is this one: +∞, clean data, or −∞, pure
    noise."""
    return validation_enabled() and has_values(logsnr) and bool((logsnr == level).any())


def chain_step(logsnr_t: Tensor, logsnr_s: Tensor) -> ChainStep:
    """The step between two levels, of which the first may be −∞."""
    t = to_float64(logsnr_t).clamp(min=PURE_NOISE)
    return ChainStep(t, to_float64(logsnr_s) - t)


def scale(parameterization: Parameterization, logsnr: Tensor) -> Tensor:
    """n = α b − σ a, the determinant that gives x̂ and ε̂ from z and the target with row (a, b)."""
    a, b = parameterization.row(logsnr)
    return alpha(logsnr) * b - sigma(logsnr) * a


def move(prediction: Prediction, logsnr_s: Tensor) -> Tensor:
    """z_s = α_s x̂ + σ_s ε̂ with the x̂ and ε̂ of a prediction, computed in its network's own
    units; exact to λ_s = +∞, where it is x̂."""
    t, s = to_float64(prediction.logsnr), to_float64(logsnr_s)
    a, b = prediction.parameterization.row(t)
    of_out = alpha(s) * sigma(t) * torch.expm1(-0.5 * (s - t))
    n = scale(prediction.parameterization, t)
    return combine((alpha(s) * b - sigma(s) * a) / n, prediction.z, of_out / n, prediction.output)
