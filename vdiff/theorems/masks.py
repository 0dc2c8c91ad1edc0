"""Masks: given dimensions are a condition, absent ones are left out, and bits per dimension count
the others."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vdiff.bound import Bound
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.loss import Model, elbo
from vdiff.oracle import Gaussian
from vdiff.schedule import InTurn, Linear
from vdiff.theorems.fields import (
    COVARIANCE,
    DATA,
    EXACT,
    POINT,
    TURNS,
    WRONG,
    Told,
    noise_nodes,
    one_level,
    over_path,
    path_loss,
    written,
)
from vdiff.theorems.subject import f64, scaled_x
from vdiff.theorems.theorem import Sides, equal, theorem


@theorem(
    "the chain rule, as masked losses",
    without={
        "what falls later is given": {"given": False},
        "what falls earlier is absent": {"absent": False},
    },
)
def path_is_a_sum_of_masked_losses(given: bool = True, absent: bool = True) -> Sides:
    """Also for an inexact denoiser, the part of a group that falls in its turn is the loss with a
    mask: later groups are given, earlier ones absent. What λ_max = 18 and λ_min = −18 leave is
    less than 1e−8."""
    schedule, left, right = Linear(18.0, -18.0), [], []
    for data, turns in itertools.product((DATA, WRONG), TURNS):
        model, turn = scaled_x(data, 0.999), torch.tensor(turns)
        for now in range(max(turns) + 1):
            gone = (turn < now if absent else turn < 0) | (turn > now if not given else turn < 0)
            left.append(path_loss(model, schedule, mask=turn == now, absent=gone)[0])
        right.append(written(model, InTurn(schedule, turns), max(turns) + 1))
    return equal(torch.stack(left), torch.cat(right), rel=1e-8, why="the ends, 18 and −18")


# modelled and absent dimensions; the others are given
CASES = (
    ([True, False, False], [False, False, False]),
    ([False, True, True], [False, False, False]),
    ([False, True, False], [True, False, False]),
    ([True, True, True], [False, True, False]),
)


def masked_bound(model: Model, x: Tensor, end: float, **masks: Any) -> Tensor:
    """The whole bound of one x (1, d) between λ = ±end, through `elbo`."""

    def total(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        ends: dict[str, Any] = {"schedule": Linear(end, -end), "decoder": GaussianDecoder()}
        return elbo(model, x, **ends, **masks, t=t, eps=eps).total

    eps = noise_nodes(x.shape[1])
    return over_path(total, x.expand_as(eps), eps)


def conditional_nll(modelled: Tensor, given: Tensor) -> Tensor:
    """−log p(x_modelled | x_given) at `POINT`, as a difference of two marginals."""

    def log_prob(kept: Tensor) -> Tensor:
        white = torch.linalg.solve(COVARIANCE[kept][:, kept], POINT[kept])
        log_det = torch.logdet(2 * math.pi * COVARIANCE[kept][:, kept])
        log_density: Tensor = -0.5 * (POINT[kept] @ white + log_det)
        return log_density

    return log_prob(given) - log_prob(given | modelled)


@theorem(
    "of the bound; a mask as a condition, absent values as noise",
    without={
        EXACT: {"model": WRONG},
        "the network knows which dimensions are given": {
            "model": Told(DATA, one_level(lambda v: v.amin(1)))
        },
    },
)
def masked_bound_is_conditional(model: Model = DATA) -> Sides:
    """With a mask the bound of the exact denoiser tends to −log p(x_modelled | x_given), absent
    dimensions integrated out, as the ends recede: to the order of e^{−λ_max} + e^{λ_min}."""
    left, right, allowed = [], [], []
    for (modelled, gone), end in itertools.product(CASES, (8.0, 11.0, 14.0)):
        mask, absent = torch.tensor(modelled), torch.tensor(gone)
        x = torch.where(absent, math.nan, POINT)[None]
        left += [masked_bound(model, x, end, mask=mask, absent=absent)]
        left += [DATA.conditional_nll(x, mask, absent)]
        right += [conditional_nll(mask & ~absent, ~mask & ~absent)] * 2
        allowed += [4 * math.exp(-end), 1e-12]
    why = "the ends: 4 e^{−λ_max}, λ_min = −λ_max"
    return Sides(torch.cat(left), torch.stack(right), f64(allowed), why)


COUNTS = 1, 2, 4  # dimensions of the examples of a set


@theorem(
    "of the length of a code",
    without={
        "nats and dimensions are summed before they are divided": {
            "of": lambda bound: bound.bits_per_dim.mean()
        }
    },
)
def bits_of_a_set(of: Callable[[Bound], Tensor] = lambda bound: bound.mean_bits_per_dim) -> Sides:
    """Bits per dimension of a set whose examples have different numbers of dimensions: the sum of
    the nats over ln 2 times the sum of the numbers, as of all dimensions in one example."""
    size, n = max(COUNTS), sum(COUNTS)
    absent = torch.arange(size) >= torch.tensor(COUNTS)[:, None]
    x, noise = torch.linspace(-2, 2, n).double(), torch.linspace(1.5, -1, n).double()
    path: dict[str, Any] = {"schedule": Linear(6.0, -5.0), "decoder": GaussianDecoder()}
    padded, padded_noise = (
        torch.full((len(COUNTS), size), math.nan).double().masked_scatter(~absent, v)
        for v in (x, noise)
    )
    set_of = Gaussian([0.3] * size, [0.25] * size), Gaussian([0.3] * n, [0.25] * n)
    t, eps = f64([0.4]), padded_noise.nan_to_num(0.7)
    found = elbo(set_of[0], padded, **path, absent=absent, t=t.expand(len(COUNTS)), eps=eps)
    whole = elbo(set_of[1], x[None], **path, t=t, eps=noise[None])
    return equal(of(found), whole.total[0] / (n * math.log(2)), rel=1e-9)
