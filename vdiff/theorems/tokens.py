"""Tokens: the bound of masks, of uniform tokens and of their mixtures is one integral over
log-SNR."""

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vdiff.denoiser import logsnr_time
from vdiff.discrete import (
    AnyOrder,
    Hybrid,
    LeaveOneOut,
    Masked,
    Posterior,
    Process,
    TokenDenoiser,
    TokenParameterization,
    Uniform,
)
from vdiff.loss import elbo, weighted_elbo
from vdiff.schedule import Cosine, Linear, Schedule
from vdiff.theorems.integral import panels
from vdiff.theorems.subject import f64
from vdiff.theorems.theorem import Sides, equal, theorem
from vdiff.weighting import ELBO, Sigmoid, WeightFunction

VALUES = 3  # of a token
X = torch.tensor(list(itertools.product(range(VALUES), repeat=2)))  # every x of two tokens
P = f64([6, 3, 11, 7, 1, 6, 8, 10, 1]) / 53
END = 21.0  # beyond it lies e⁻²¹ of a token's bound
Conditionals = Callable[[Tensor, Tensor], Tensor]
ENDS, EXACT = "the ends, 21 and −21", "the network is exact"
_ELBO = ELBO()


def crossing(logsnr: Tensor) -> Tensor:
    """π(λ) that goes from uniform tokens to masks as λ falls."""
    token = (logsnr.sigmoid() / VALUES)[..., None].expand(*logsnr.shape, VALUES)
    return torch.cat([token, (-logsnr).sigmoid()[..., None]], -1)


def exact(process: Process, leave_out: bool, z: Tensor, logsnr: Tensor) -> Tensor:
    """log p(x_i | z_{−i}), or log p(x_i | z): (n, 2, values), by a sum over all x."""
    alpha = logsnr.sigmoid()[:, None, None]
    pi = process.pi(logsnr)[:, None].expand(*z.shape, -1).gather(-1, z[..., None])[:, None, :, 0]
    likelihood = alpha * (z[:, None] == X) + (1 - alpha) * pi  # n, x, token
    used = likelihood.flip(2) if leave_out else likelihood.prod(2, keepdim=True)
    joint = (P[:, None] * used).expand(len(z), len(X), 2)
    of_value = torch.nn.functional.one_hot(X, VALUES).double()
    mass = torch.einsum("nxi,xiv->niv", joint, of_value)
    return torch.log(mass / mass.sum(-1, keepdim=True))


def inexact(z: Tensor, logsnr: Tensor) -> Tensor:
    """Logits that know little, and that look at z and at λ."""
    value = torch.arange(VALUES, dtype=torch.float64)
    rest = (z * f64([1.3, -0.7])).sum(1)[:, None, None]
    return (
        torch.sin(rest + value * (1 + z[..., None])) + 0.1 * logsnr[:, None, None].tanh() * value
    )


def inexact_of_masks(z: Tensor, logsnr: Tensor) -> Tensor:
    """Logits that look at z alone."""
    return inexact(z, torch.zeros_like(logsnr))


def masks_are_easy(z: Tensor, logsnr: Tensor) -> Tensor:
    """Logits that are better the more tokens are masked."""
    both = (z == VALUES).all(1)[:, None, None]
    return torch.where(both, P.view(VALUES, VALUES).sum(1).log(), 0.0).expand(*z.shape, VALUES)


def model(
    process: Process,
    network: Callable[[Tensor, Tensor], Tensor] | None = None,
    parameterization: TokenParameterization | None = None,
) -> TokenDenoiser:
    """A model of two tokens; without a network the exact one, which leaves one out."""
    network = partial(exact, process, True) if network is None else network
    return TokenDenoiser(network, process, parameterization or LeaveOneOut(), time=logsnr_time)


def over_noise(
    of: Callable[[Tensor, Tensor, Tensor], Tensor], process: Process, schedule: Schedule, t: Tensor
) -> Tensor:
    """E f(x, noise, t) over what becomes of both tokens, (times, 9). f gives (n,)."""
    noise, weights = _cells(process, schedule.at(t).logsnr)
    total = torch.zeros(len(t), len(X), dtype=torch.float64)
    for eps, weight in zip(noise, weights, strict=True):
        if not weight.any():
            continue
        value = of(X.repeat(len(t), 1), eps.repeat_interleave(len(X), 0), t.repeat_interleave(9))
        total += weight[:, None] * value.detach().view(total.shape)
    return total


def _cells(process: Process, logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """One noise (times, 2) for each state that both tokens can become, and its probability,
    (times,)."""
    if isinstance(process, AnyOrder):
        orders = f64([[0.25, 0.75], [0.75, 0.25]])[:, None].expand(2, len(logsnr), 2)
        return orders, torch.full((2, len(logsnr)), 0.5, dtype=torch.float64)
    lost = torch.sigmoid(-logsnr)[:, None]
    edges = torch.cat([torch.zeros_like(lost), lost * process.pi(logsnr).cumsum(-1)], -1)
    edges = torch.cat([edges, torch.ones_like(lost)], -1)
    middle, width = 0.5 * (edges[:, 1:] + edges[:, :-1]), edges.diff(dim=-1)
    pairs = list(itertools.product(range(width.shape[1]), repeat=2))
    noise = torch.stack([torch.stack([middle[:, i], middle[:, j]], -1) for i, j in pairs])
    return noise, torch.stack([width[:, i] * width[:, j] for i, j in pairs])


def bound(subject: TokenDenoiser, steps: int | None = None, end: float = END) -> Tensor:
    """The bound of every x, (9,), through `elbo`; λ is linear in time."""
    schedule = Linear(end, -end)
    t, dt = panels(torch.linspace(0, 1, round(2 * end) + 1, dtype=torch.float64))
    if steps is not None:
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        dt = torch.full_like(t, 1 / steps)

    def total(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return elbo(subject, x, schedule=schedule, steps=steps, t=t, eps=eps).total

    return dt @ over_noise(total, subject.process, schedule, t)


def loss(subject: TokenDenoiser, schedule: Schedule, weighting: WeightFunction) -> Tensor:
    """E[weighted_elbo] of every x, (9,)."""
    t, dt = panels(torch.linspace(0, 1, 33, dtype=torch.float64))

    def draw(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return weighted_elbo(subject, x, schedule=schedule, weighting=weighting, t=t, eps=eps)

    return dt @ over_noise(draw, subject.process, schedule, t)


@cache
def processes() -> tuple[Process, ...]:
    """Made when they are needed: the derivative of π imports a compiler."""
    return Masked(VALUES), Uniform(VALUES), Hybrid(VALUES, crossing)


@theorem(
    "MDLM, arXiv:2406.07524; GIDD, arXiv:2503.04482, for all processes",
    without={
        EXACT: {"network": inexact},
        "a network that gives p(x_i | z) is said to": {"leave_out": False},
    },
)
def bound_of_exact_conditionals(
    network: Conditionals | None = None, leave_out: bool = True
) -> Sides:
    """With masks, with uniform tokens and between them, the bound of the leave-one-out posteriors
    p(x_i | z_{−i}) is −log p(x) for every x."""
    networks = [partial(exact, p, leave_out) if network is None else network for p in processes()]
    found = [bound(model(p, n)) for p, n in zip(processes(), networks, strict=True)]
    return equal(torch.stack(found), -P.log().expand(3, -1), rel=1e-8, why=ENDS)


@theorem(
    "Bayes' rule",
    without={"each network is said to give what it gives": {"said": (LeaveOneOut(), Posterior())}},
)
def posterior_and_leave_one_out_are_one_model(
    said: tuple[TokenParameterization, ...] = (Posterior(), LeaveOneOut()),
) -> Sides:
    """A network of p(x_i | z) and one of p(x_i | z_{−i}) have the same loss: they are two
    parameterizations."""
    schedule = Linear(8.0, -8.0)
    left, right = (
        torch.stack([
            loss(model(p, partial(exact, p, leave_out), one), schedule, Sigmoid(1.0))
            for p in processes()
        ])
        for leave_out, one in zip((False, True), said, strict=True)
    )  # fmt: skip
    return equal(left, right, rel=1e-9)


@theorem(
    "of an integral over λ; for masks MD4, arXiv:2406.04329, section 3",
    without={
        "the ends are the same": {"schedules": (Linear(8.0, -8.0), Cosine(8.0, -3.0))},
        "λ = log α/(1 − α)": {"weightings": (Sigmoid(1.0), lambda v: Sigmoid(1.0)(v - 0.1))},
    },
)
def schedule_invariance_of_tokens(
    schedules: tuple[Schedule, Schedule] = (Linear(8.0, -8.0), Cosine(8.0, -8.0)),
    weightings: tuple[WeightFunction, WeightFunction] = (Sigmoid(1.0), Sigmoid(1.0)),
) -> Sides:
    """The loss of any network over tokens, with any weighting, depends on a schedule only through
    its ends."""
    sides = [
        torch.stack([loss(model(p, inexact), schedule, weighting) for p in processes()])
        for schedule, weighting in zip(schedules, weightings, strict=True)
    ]
    return equal(*sides, rel=1e-8, why="quadrature over t")


@theorem(
    "NADE in any order, arXiv:1310.1757; ARDM, arXiv:2110.02037; RADD, arXiv:2406.03736",
    without={
        "w is constant": {"weighting": Sigmoid(-1.0)},
        "the network gets no λ": {"network": inexact},
    },
)
def masks_of_any_order(
    weighting: WeightFunction = _ELBO, network: Conditionals = inexact_of_masks
) -> Sides:
    """For any network of z alone, to mask each token on its own and to mask exactly k tokens, k
    uniform, have one loss in expectation."""
    schedule = Linear(END, -END)
    t, dt = panels(torch.linspace(0, 1, round(2 * END) + 1, dtype=torch.float64))
    sides = []
    for process in Masked(VALUES), AnyOrder(VALUES):
        subject = model(process, network)

        def draw(x: Tensor, eps: Tensor, t: Tensor, subject: TokenDenoiser = subject) -> Tensor:
            arguments: dict[str, Any] = {"schedule": schedule, "weighting": weighting}
            return weighted_elbo(subject, x, t=t, eps=eps, **arguments)

        sides.append(dt @ over_noise(draw, process, schedule, t))
    return equal(*sides, rel=1e-8, why=ENDS)


@theorem(
    "the chain rule of information; for masks Li & Cai, arXiv:2505.21400, bound it",
    without={EXACT: {"network": masks_are_easy}},
)
def chain_loses_what_falls_together(network: Conditionals | None = None) -> Sides:
    """With exact conditionals of masks, what a chain's bound loses in the mean is the mutual
    information of tokens that lose their mask in one step: for two tokens I(x₁; x₂) Σ_i p_i²,
    where p_i is the probability that a token loses it in step i. So it is above the entropy."""
    subject = model(Masked(VALUES), network)
    own = P.view(VALUES, VALUES).sum(1)[:, None] * P.view(VALUES, VALUES).sum(0)
    left, right = [], []
    for steps in 2, 5, 20, 80:
        alpha = torch.linspace(END, -END, steps + 1, dtype=torch.float64).sigmoid()
        together = alpha.diff().square().sum() * (P @ (P / own.flatten()).log())
        left.append(bound(subject, steps) @ P)
        right.append(-(P @ P.log()) + together)
    return equal(torch.stack(left), torch.stack(right), rel=1e-8, why=ENDS)


def both_states(process: Process, logsnr: float) -> tuple[Tensor, Tensor]:
    """q(z | x), (9, z), and the same for tokens that are uniform on the vocabulary, (z,)."""
    level = f64([logsnr])
    alpha, pi = level.sigmoid(), process.pi(level)[0]
    one = alpha * torch.eye(process.states, dtype=torch.float64)[:VALUES] + (1 - alpha) * pi
    pair = torch.einsum("xs,yt->xyst", one, one).reshape(len(X), -1)
    return pair, pair.mean(0)


@theorem(
    "the bound's three terms: VDM, arXiv:2107.00630, eq. 11, over tokens",
    without={"both ends count": {"ends": 0.0}},
)
def ends_of_tokens_are_divergences(ends: float = 1.0) -> Sides:
    """Cut at λ = ±2 the mean bound of exact conditionals is the entropy, the divergence of q(z₁)
    from p(z₁) and that of q(x | z₀) from the decoder: so it bounds −log p(x) still."""
    left, right = [], []
    for process in processes():
        parts = process.prior(X, -2.0) + process.reconstruction(X, 2.0)
        left.append((loss(model(process), Linear(2.0, -2.0), _ELBO) + ends * parts) @ P)
        q, uniform = both_states(process, -2.0)
        prior = torch.special.xlogy(P @ q, P @ q / uniform.clamp(min=1e-300)).sum()
        q, uniform = both_states(process, 2.0)
        joint, decoder = P[:, None] * q, q / (len(X) * uniform).clamp(min=1e-300)
        posterior = joint / joint.sum(0).clamp(min=1e-300)
        decoding = torch.special.xlogy(joint, posterior / decoder.clamp(min=1e-300)).sum()
        right.append(-(P @ P.log()) + prior + decoding)
    return equal(torch.stack(left), torch.stack(right), rel=1e-9)
