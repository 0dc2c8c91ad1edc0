"""Multistep methods: one evaluation a step, and a higher order from the predictions at earlier
levels.

Each of x, ε, v and the rectified flow's u is a velocity: with the target's row (a, b) and
n(λ) = α b − σ a,

    d(z/n)/dτ = ô,     dτ/dλ = −½ α σ / n²

    target      z/n                      τ
    ε           z/α                      σ/α
    x           z/σ                      α/σ
    v           z                        the angle arctan σ/α
    u           z/(α + σ)                σ/(α + σ)

(v of data with standard deviation σ_d is the same at the log-SNR of the normalised data.) So the
part that is linear in z is solved exactly. The rest is the integral of ô(τ), for which Adams and
Bashforth take a polynomial through its last values. The integrals are quadratures in
q = arsinh(α/σ), where dτ = −σ/n² dq is smooth from λ = −∞ on; for ε, which has no such end, in
arsinh(σ/α).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, require, validated
from vdiff.denoiser import flow_time
from vdiff.gaussian import Level, per_example, sigma
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.prediction import Prediction
from vdiff.sampling.step import NO_HISTORY, History, Model, is_at, move, scale

# of Gauss–Legendre quadrature on [−1, 1]
NODES, MASS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(32))
AT_ONCE = 2**17  # values of a field, for all nodes together
_FLOW = Flow()


@validated
def dpmpp_2m(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
) -> Float[Tensor, "batch *dims"]:
    """DPM-Solver++(2M): the deterministic move with x̂_t + (h/2h_prev)(x̂_t − x̂_prev) for x̂. The
    first step and the step to data (λ_s = +∞) take x̂_t, and so does the first step of a dimension
    that rested. One evaluation, order 2. Lu et al.,
    arXiv:2211.01095, algorithm 2.

    >>> from vdiff.oracle import GaussianMixture
    >>> level = torch.zeros(1, dtype=torch.float64)
    >>> dpmpp_2m(GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.ones(1, 1), level, level + 1)
    tensor([[0.9713]])
    """
    now = model(z, logsnr_t)
    if not history.predictions or is_at(torch.inf, logsnr_s):
        return move(now, logsnr_s)
    before = history.predictions[-1]
    t, s, earlier = map(to_float64, (logsnr_t, logsnr_s, before.logsnr))
    ratio = 0.5 * (s - t) / (t - earlier)
    ratio = per_example(torch.where(t > earlier, ratio, 0.0) if ratio.ndim > 1 else ratio, z)
    return move(Prediction(z, logsnr_t, now.x + ratio * (now.x - before.x), X()), logsnr_s)


def _velocity(target: Parameterization, logsnr_t: Tensor, order: int) -> None:
    """A rule: the target is a velocity and finite at the start; the order is known."""
    require(order <= 3, "order", "be 1, 2 or 3", order)
    what, hint = "be a velocity: X(), Eps(), V() or Flow()", "the model may predict anything"
    require(isinstance(target, X | Eps | V | Flow), "target", what, repr(target), hint)
    finite = not (isinstance(target, Eps) and is_at(-torch.inf, logsnr_t))
    hint = "z/α is infinite there: Flow(), V() or X()"
    require(finite, "target", "be another than Eps() at λ = −∞", "Eps()", hint)


@validated(rules=[_velocity])
def adams_bashforth(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
    *,
    order: Count = 3,
    target: Parameterization = _FLOW,
) -> Float[Tensor, "batch *dims"]:
    """z_s/n_s = z_t/n_t + Σ_j ô_j ∫ ℓ_j dτ over the step, with ℓ_j the Lagrange polynomials
    through the last `order` levels.

    One evaluation. The polynomials are in rectified flow's time σ/(α + σ) for every target: on
    mixtures that takes fewer evaluations than polynomials in λ or in τ. The first steps have a
    lower order, for lack of earlier levels. Near pure noise, where ô hardly changes, that costs
    little; at hundreds of steps it is the error that remains. A dimension that rested starts anew
    in the same way. To data, λ_s = +∞, the step is x̂.

    - `Flow()` is the plain rule on the rectified path, which was best on mixtures.
    - `V(σ_d)` is exact, in every order, for Gaussian data of standard deviation σ_d.
    - `Flow()`, `X()` and `Eps()` are `ddim` at order 1.
    - `Eps()` is unstable for long steps in λ where noise dominates: over twelve levels uniform in
      λ from −20, in float32, rounding grows to 0.6 (2e-6 for the others). It cannot start at
      λ = −∞.

    The model may predict anything. If it predicts ε, x̂ has lost its digits at so low a λ in
    float32, and these twelve levels are off by 5e-4 with any target. DEIS: Zhang & Chen,
    arXiv:2204.13902, section 3; the coordinates and the polynomial's variable are ours.

    Raises ValueError for another order or target, and for `Eps()` at λ_t = −∞.

    >>> from vdiff.oracle import GaussianMixture
    >>> oracle, level = GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.zeros(1).double()
    >>> adams_bashforth(oracle, torch.ones(1, 1), level, level + 1)
    tensor([[0.9713]])
    """
    now = model(z, logsnr_t)
    if is_at(torch.inf, logsnr_s):
        return move(now, logsnr_s)
    predictions = [*history.predictions[1 - order :], now] if order > 1 else [now]
    t, s = to_float64(logsnr_t), to_float64(logsnr_s)
    weights = _integrals(target, [to_float64(earlier.logsnr) for earlier in predictions], t, s)
    n_s = scale(target, s)
    z_s = per_example(n_s / scale(target, t), z) * z
    for earlier, weight in zip(predictions, weights, strict=True):
        weight = torch.as_tensor(per_example(n_s * weight, z))
        z_s = torch.addcmul(z_s, weight, earlier.as_target(target))
    return z_s


def _integrals(
    target: Parameterization, levels: Sequence[Tensor], t: Tensor, s: Tensor
) -> list[Tensor]:
    """∫ ℓ_j dτ from λ_t to λ_s, where the polynomial ℓ_j is 1 at level j and 0 at the others."""
    side = -1.0 if isinstance(target, Eps) else 1.0
    start, end = (torch.asinh(torch.exp(0.5 * side * level)) for level in (t, s))
    times = [flow_time(level) for level in levels]
    known = _without_rest(levels)
    integrals: list[Tensor] = []
    for nodes, mass in _quadrature(t):
        q = start + 0.5 * (end - start) * (nodes + 1)  # (nodes, batch) or (nodes, *field)
        logsnr = 2.0 * side * torch.log(torch.sinh(q))
        square = scale(target, logsnr).square()
        rate = -0.5 * side * (end - start) * mass * sigma(side * logsnr) / square
        parts = [(rate * ell).sum(0) for ell in _lagrange(flow_time(logsnr), times, known)]
        integrals = [a + b for a, b in zip(integrals, parts, strict=True)] if integrals else parts
    return integrals


def _quadrature(t: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Nodes and masses that broadcast over (nodes, *levels): all at once, or one by one for a
    large field, whose memory they would multiply."""
    shape = -1, *[1] * t.ndim
    nodes, mass = NODES.to(t).view(shape), MASS.to(t).view(shape)
    if t[0].numel() == 1 or t.numel() < AT_ONCE:
        return [(nodes, mass)]
    return [(nodes[i : i + 1], mass[i : i + 1]) for i in range(len(nodes))]


def _without_rest(levels: Sequence[Tensor]) -> list[Tensor | None]:
    """For each level of a dimension, whether it moved at every step since; None for all."""
    if levels[-1].ndim == 1:
        return [None] * len(levels)
    known = [torch.ones_like(levels[-1], dtype=torch.bool)]
    for earlier, later in zip(levels[-2::-1], levels[:0:-1], strict=True):
        known.insert(0, known[0] & (earlier < later))
    return list(known)


def _lagrange(
    time: Tensor, times: Sequence[Tensor], known: Sequence[Tensor | None]
) -> Iterator[Tensor]:
    """ℓ_j at `time`, through the known ones of `times`; 0 for the others."""
    for j, at_j in enumerate(times):
        polynomial = torch.ones_like(time)
        for k, at_k in enumerate(times):
            if k != j:
                product = polynomial * (time - at_k) / (at_j - at_k)
                polynomial = _if(known[k], product, polynomial)
        yield _if(known[j], polynomial, torch.zeros_like(polynomial))


def _if(known: Tensor | None, value: Tensor, otherwise: Tensor) -> Tensor:
    return value if known is None else torch.where(known, value, otherwise)
