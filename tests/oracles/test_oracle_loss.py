"""Diffusion losses of exact denoisers and of wrong ones: L_∞, L_T, c₁, at given x, weighted, and
VDM++'s theorem 1."""

from functools import cache, partial
from itertools import pairwise

import torch
from oracle_nodes import error_of, kinks, levels_between, mmse, moments, nodes, nodes_given, times
from oracle_records import (
    SCHEDULES,
    assert_meets,
    chain,
    denoiser,
    of,
    oracle,
    schedule_of,
    shape_constant,
    total,
    vector,
)
from torch import Tensor

from vdiff.gaussian import prior_kl
from vdiff.schedule import Cosine, Linear, OptimalTransport, Schedule

# chains up to this length go through the loss itself, longer ones through the perfect denoiser's
# mmse
SHORT = 100


@of("L_inf")
def test_continuous_loss(record):
    case, (t, weight) = record["case"], times()
    model = denoiser(case, record["params"]["denoiser"])
    (loss,) = moments(model, partial(nodes, case), t, schedule=schedule_of(record))
    assert_meets(record, loss @ weight)


def long_chain(case: str, schedule_name: str, name: str, steps: int) -> Tensor:
    """L_T = ½ Σ expm1(λ_s − λ_t) E‖e‖² from the schedule's measure and the error in closed
    form."""
    logsnr, measure = SCHEDULES[schedule_name]().at(chain(steps), steps)[:2]
    return 0.5 * (measure * error_of(case, name, logsnr, mmse(case, logsnr))).mean()


def short_chain(case: str, schedule_name: str, name: str, steps: int) -> Tensor:
    """L_T as the mean of the loss over the chain's times."""
    (loss,) = moments(
        denoiser(case, name),
        partial(nodes, case),
        chain(steps),
        schedule=SCHEDULES[schedule_name](),
        steps=steps,
    )
    return loss.mean()


@of("L_T", "gauss_s0.5", "gauss_s2", "diag3", "gmm1d")
def test_chain_loss(record):
    where = record["case"], record["params"]["schedule"], record["params"]["denoiser"]
    assert_meets(
        record,
        {
            key: (short_chain if int(key) <= SHORT else long_chain)(*where, int(key))
            for key in record["value"]
        },
    )


@of("L_T", "pixels_ddpm")
def test_chain_loss_of_pixels(record):
    assert_meets(
        record,
        long_chain("pixels_ddpm", record["params"]["schedule"], "opt", record["params"]["T"]),
    )


@of("c1")
def test_chain_approaches_the_continuous_loss_as_c1_over_steps(record):
    case, schedule_name = record["case"], record["params"]["schedule"]
    schedule = SCHEDULES[schedule_name]()
    ends = oracle(case).mutual_information(vector([schedule.logsnr_max, schedule.logsnr_min]))
    lengths = [4096, 8192, 16384, 32768, 65536]
    row = [
        steps * (long_chain(case, schedule_name, "opt", steps) - (ends[0] - ends[1]))
        for steps in lengths
    ]
    for order in range(1, len(row)):  # Richardson: T (L_T − L_∞) is a power series in 1/T
        row = [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in pairwise(row)]
    assert_meets(record, row[0])


@of("L_inf_x")
def test_continuous_loss_at_given_x(record):
    case, p, (t, weight) = record["case"], record["params"], times()
    schedule = Linear(p["lam_max"], p["lam_min"])
    (loss,) = moments(
        denoiser(case, p["denoiser"]), partial(nodes_given, vector(p["x"])), t, schedule=schedule
    )
    assert_meets(record, loss @ weight)


@of("L_T_x")
def test_chain_loss_at_given_x(record):
    p = record["params"]
    at = partial(nodes_given, vector(p["x"]))
    (loss,) = moments(
        oracle(record["case"]), at, chain(p["T"]), schedule=schedule_of(record), steps=p["T"]
    )
    assert_meets(record, loss.mean())


def weighted_loss(case: str, name: str, weighting: str, schedule: Schedule) -> Tensor:
    """L_w of a table's shape: the loss of the total over λ ~ p, in panels that meet at the kinks
    of w."""
    level, width = levels_between(schedule.logsnr_min, schedule.logsnr_max, kinks(weighting))
    (loss,) = moments(
        denoiser(case, name),
        partial(nodes, case),
        schedule.inverse(level),
        schedule=schedule,
        weighting=total(weighting),
    )
    return (width * schedule.density(level)) @ loss / shape_constant(weighting)


@of("L_w")
def test_weighted_loss(record):
    p = record["params"]
    schedule = {"opt": Linear, "eps_scale_0.9": Cosine, "eps_zero": OptimalTransport}[
        p["denoiser"]
    ]  # it moves nothing
    assert_meets(
        record,
        weighted_loss(
            record["case"], p["denoiser"], p["weighting"], schedule(p["lam_max"], p["lam_min"])
        ),
    )


@of("w")
def test_weight(record):
    name = record["params"]["weighting"]
    assert_meets(record, total(name)(vector(record["params"]["lam"])) / shape_constant(name))


@cache
def information(
    case: str, low: float, high: float, splits: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    level, width = levels_between(low, high, list(splits))
    return level, width, oracle(case).mutual_information(level)


@of("theorem1")
def test_weighted_loss_is_a_mean_of_bounds(record):
    case, p = record["case"], record["params"]
    data, name, schedule = oracle(case), p["weighting"], Linear(p["lam_max"], p["lam_min"])
    constant = shape_constant(name)

    low, high = (
        data.mutual_information(vector([v]))[0] for v in (schedule.logsnr_min, schedule.logsnr_max)
    )
    x, _, weight = nodes(case, vector([schedule.logsnr_min]))
    prior = weight[0] @ prior_kl(x[0], schedule.logsnr_min)

    level, width, known = information(
        case, schedule.logsnr_min, schedule.logsnr_max, tuple(kinks(name))
    )
    level = level.requires_grad_()
    w = total(name)(level) / constant
    (slope,) = (
        torch.autograd.grad(w.sum(), level) if w.requires_grad else (torch.zeros_like(level),)
    )
    w_max, w_min = (
        total(name)(vector([v])).item() / constant
        for v in (schedule.logsnr_max, schedule.logsnr_min)
    )

    bulk = -(width * slope) @ (prior + known - low)
    dirac, rest = w_max * (prior + high - low), -w_min * prior
    assert_meets(
        record,
        {
            "lhs_L_w": weighted_loss(case, "opt", name, schedule),
            "bulk_int_dw_L": bulk,
            "dirac_w_max_L0": dirac,
            "const": rest,
            "rhs": bulk + dirac + rest,
            "dirac_mass_normalised": w_max / w_min,
            "w_at_lam_max": w_max,
            "w_at_lam_min": w_min,
        },
    )
