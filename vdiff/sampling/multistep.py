"""Multistep methods: one evaluation a step, and a higher order from the predictions at earlier
levels.

Each of x, ε, v and the rectified flow's u is a velocity: with the target's row (a, b) and n(λ) = α
b − σ a,

    d(z/n)/dτ = ô,     dτ/dλ = −½ α σ / n²

    target      z/n                      τ
    ε           z/α                      σ/α
    x           z/σ                      α/σ
    v           z                        the angle arctan σ/α
    u           z/(α + σ)                σ/(α + σ)

(v of data with standard deviation σ_d alike, at the log-SNR of the normalised data.) What is
linear in z is thereby solved exactly, and the rest is the integral of ô(τ), through whose last
values Adams and Bashforth lay a polynomial. The integrals are quadratures in q = arsinh(α/σ),
where dτ = −σ/n² dq is smooth from λ = −∞ on; for ε, which has no such end, in arsinh(σ/α).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, require, validated
from vdiff.denoiser import flow_time
from vdiff.gaussian import per_example, sigma
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.prediction import Prediction
from vdiff.sampling.step import NOTHING, Memory, Model, is_at, move, scale

# Gauss and Legendre's, on [−1, 1]
NODES, MASS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(32))
_FLOW = Flow()


@validated
def dpmpp_2m(
    model: Model,
    z: Float[Tensor, "batch *dims"],
    logsnr_t: Float[Tensor, " batch"],
    logsnr_s: Float[Tensor, " batch"],
    memory: Memory = NOTHING,
) -> Float[Tensor, "batch *dims"]:
    """DPM-Solver++(2M): the deterministic move with x̂_t + (h/2h_prev)(x̂_t − x̂_prev) for x̂;
    without a past, and to data (λ_s = +∞), with x̂_t. One evaluation, order 2. Lu et al.,
    arXiv:2211.01095, algorithm 2.

    >>> from vdiff.oracle import GaussianMixture
    >>> level = torch.zeros(1, dtype=torch.float64)
    >>> dpmpp_2m(GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.ones(1, 1), level, level + 1)
    tensor([[0.9713]])
    """
    now = model(z, logsnr_t)
    if not memory.past or is_at(torch.inf, logsnr_s):
        return move(now, logsnr_s)
    before = memory.past[-1]
    t, s = to_float64(logsnr_t), to_float64(logsnr_s)
    ratio = per_example(0.5 * (s - t) / (t - to_float64(before.logsnr)), z)
    return move(Prediction(z, logsnr_t, now.x + ratio * (now.x - before.x), X()), logsnr_s)


def _velocity(target: Parameterization, logsnr_t: Tensor, order: int) -> None:
    """A rule: the target is a velocity, with a start that is finite; the order is known."""
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
    logsnr_t: Float[Tensor, " batch"],
    logsnr_s: Float[Tensor, " batch"],
    memory: Memory = NOTHING,
    *,
    order: Count = 3,
    target: Parameterization = _FLOW,
) -> Float[Tensor, "batch *dims"]:
    """z_s/n_s = z_t/n_t + Σ_j ô_j ∫ ℓ_j dτ over the step, with ℓ_j the Lagrange polynomials
    through the last `order` levels.

    The polynomials are in rectified flow's time σ/(α + σ) for every target: on mixtures that takes
    fewer evaluations than polynomials in λ, or in τ where that is another. One evaluation. The
    first steps have the order that their past allows: near pure noise, where ô hardly moves, that
    costs little, and it is what is left at hundreds of steps. To data, λ_s = +∞, it is x̂.

    - In `Flow()` it is the plain rule of that order on the rectified path, which was best on
      mixtures.
    - In `V(σ_d)` every order is exact for Gaussian data of standard deviation σ_d.
    - In `Flow()`, `X()` and `Eps()` order 1 is `ddim`.
    - In `Eps()` long steps in λ are unstable where noise dominates, and rounding grows with them:
      of twelve levels uniform in λ from −20, in float32, to 0.6. Nor can it start at λ = −∞. The
      others are stable there, with errors of 2e-6.

    The model may predict anything; but of one that predicts ε, x̂ has lost its digits at so low a
    λ in float32, and the same twelve levels are off by 5e-4 in any target. DEIS: Zhang & Chen,
    arXiv:2204.13902, section 3; the choice of coordinates and of the polynomial's variable is
    ours.

    Raises ValueError for another order or target, and for `Eps()` at λ_t = −∞.

    >>> from vdiff.oracle import GaussianMixture
    >>> level = torch.zeros(1, dtype=torch.float64)
    >>> adams_bashforth(GaussianMixture([1.0], [[0.0]], [[1.0]]), torch.ones(1, 1), level, level + 1)
    tensor([[0.9713]])
    """
    now = model(z, logsnr_t)
    if is_at(torch.inf, logsnr_s):
        return move(now, logsnr_s)
    predictions = [*memory.past[1 - order :], now] if order > 1 else [now]
    t, s = to_float64(logsnr_t), to_float64(logsnr_s)
    weights = _integrals(target, [to_float64(one.logsnr) for one in predictions], t, s)
    n_s = scale(target, s)
    moved = per_example(n_s / scale(target, t), z) * z
    for one, weight in zip(predictions, weights, strict=True):
        share = torch.as_tensor(per_example(n_s * weight, z))
        moved = torch.addcmul(moved, share, one.read(target))
    return moved


def _integrals(
    target: Parameterization, levels: Sequence[Tensor], t: Tensor, s: Tensor
) -> list[Tensor]:
    """∫ ℓ_j dτ from λ_t to λ_s, for the polynomial ℓ_j that is 1 at level j and 0 at the
    others."""
    nodes, mass = NODES.to(t)[:, None], MASS.to(t)[:, None]
    side = -1.0 if isinstance(target, Eps) else 1.0
    start, end = (torch.asinh(torch.exp(0.5 * side * level)) for level in (t, s))
    q = start + 0.5 * (end - start) * (nodes + 1)  # (nodes, batch)
    logsnr = 2.0 * side * torch.log(torch.sinh(q))
    square = scale(target, logsnr).square()
    rate = -0.5 * side * (end - start) * mass * sigma(side * logsnr) / square
    place, at = flow_time(logsnr), [flow_time(level) for level in levels]
    integrals = []
    for j, own in enumerate(at):
        polynomial = torch.ones_like(place)
        for other in at[:j] + at[j + 1 :]:
            polynomial = polynomial * (place - other) / (own - other)
        integrals.append((rate * polynomial).sum(0))
    return integrals


__all__ = ["adams_bashforth", "dpmpp_2m"]
