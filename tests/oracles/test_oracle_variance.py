"""Variances of estimators, from the loss's own second moment at quadrature nodes."""

import functools
import math
from functools import partial

import torch
from oracle_nodes import (
    gauss_legendre,
    kinks,
    levels_between,
    mmse,
    moments,
    nodes,
    nodes_given,
    product_nodes,
    times,
)
from oracle_records import (
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

from vdiff import weighted_elbo
from vdiff.schedule import Cosine, Histogram, Linear
from vdiff.schedule.learned import Learned
from vdiff.times import stratified


def steps_of_a_chain(model, at, schedule, steps, t=None):
    """Mean and variance of each step's KL, E ½k‖e‖², over (x, ε)."""
    first, second = moments(
        model, at, chain(steps) if t is None else t, schedule=schedule, steps=steps, powers=(1, 2)
    )
    return first / steps, (second - first.square()) / steps**2


def both_variances(mean, variance):
    """Rao-Blackwellised, and with z_s sampled, which adds twice the mean."""
    return {"mean": mean, "var_rb": variance, "var_mc": variance + 2 * mean}


@of("rb_mc_variance_by_t")
def test_variance_of_a_step(record):
    case, p, i = record["case"], record["params"], record["value"]["i"]
    at = partial(nodes, case)
    mean, variance = steps_of_a_chain(
        denoiser(case, p["denoiser"]), at, schedule_of(record), p["T"], vector(i) / p["T"]
    )
    assert_meets(record, {"i": i} | both_variances(mean, variance))


@of("rb_mc_variance_by_t_given_x")
def test_variance_of_a_step_at_given_x(record):
    p = record["params"]
    at = partial(nodes_given, vector(p["x"]))
    assert_meets(
        record,
        both_variances(*steps_of_a_chain(oracle(record["case"]), at, schedule_of(record), p["T"])),
    )


@of("single_t_estimator_variance")
def test_variance_of_one_uniform_step(record):
    case, steps = record["case"], record["params"]["T"]
    at = partial(nodes, case)
    first, second = moments(
        oracle(case), at, chain(steps), schedule=schedule_of(record), steps=steps, powers=(1, 2)
    )
    variance = second.mean() - first.mean().square()
    assert_meets(
        record,
        {"L_T": first.mean(), "var_rb": variance, "var_mc": variance + 2 * steps * first.mean()},
    )


def error_moments(case, schedule, t):
    """E‖e‖² and E‖e‖⁴ at given times."""
    at = product_nodes if oracle(case).dims > 1 else nodes
    first, second = moments(oracle(case), partial(at, case), t, schedule=schedule, powers=(1, 2))
    return 2 * first / schedule.rate(t), 4 * second / schedule.rate(t).square()


@of("estimator_variance_over_lambda")
def test_variance_by_density_over_logsnr(record):
    case, p = record["case"], record["params"]
    name, constant = p["weighting"], shape_constant(p["weighting"])
    at = product_nodes if oracle(case).dims > 1 else nodes
    t, width = times()
    drawn = {}
    for key, schedule in (
        ("uniform_lambda", Linear(p["lam_max"], p["lam_min"])),
        ("cosine", Cosine(p["lam_max"], p["lam_min"])),
    ):
        first, second = moments(
            oracle(case),
            partial(at, case),
            t,
            schedule=schedule,
            weighting=total(name),
            powers=(1, 2),
        )
        mean = width @ first / constant
        drawn[key] = width @ second / constant**2 - mean.square()

    schedule = Linear(p["lam_max"], p["lam_min"])
    level, width = levels_between(p["lam_min"], p["lam_max"], kinks(name), n=96)
    m, q = error_moments(case, schedule, schedule.inverse(level))
    w = total(name)(level) / constant
    area = width @ (w * m)
    assert_meets(
        record,
        drawn
        | {
            "mean": 0.5 * area,
            "vdmpp_p_prop_w_m": 0.25 * (area * (width @ (w * q / m)) - area.square()),
            "optimal_p_prop_w_sqrt_m4": 0.25 * ((width @ (w * q.sqrt())).square() - area.square()),
        },
    )


@functools.cache
def size_of_the_error(case, low, high):
    """(λ, E‖e‖², √E‖e‖⁴) at Chebyshev points, dense enough to be interpolated to 1e-11."""
    angle = (torch.arange(240, dtype=torch.float64) + 0.5) * (math.pi / 240)
    level = 0.5 * (low + high) + 0.5 * (high - low) * torch.cos(angle)
    schedule = Linear(high, low)
    m, q = error_moments(case, schedule, schedule.inverse(level))
    return level, torch.sin(angle) * (1 - 2 * (torch.arange(240) % 2)), m, q.sqrt()


@of("importance_quantiles")
def test_quantiles_of_an_importance_density(record):
    p = record["params"]
    low, high = p["lam_min"], p["lam_max"]
    knots, barycentric, *sizes = size_of_the_error(record["case"], low, high)
    size = sizes[0 if p["density"] == "vdmpp_p_prop_w_m" else 1]

    def density(level):
        found = []
        for part in level.split(5000):
            ratio = barycentric / (part[:, None] - knots)
            found.append(ratio @ size / ratio.sum(1))
        return total(p["weighting"])(level) / shape_constant(p["weighting"]) * torch.cat(found)

    level, width = levels_between(low, high, kinks(p["weighting"]), n=96)
    schedule = Histogram.proportional(density, high, low, bins=200_000)
    at = {key: schedule(1 - vector(float(key))) for key in record["value"]["lam_at_cdf"]}
    assert_meets(record, {"Z": width @ density(level), "lam_at_cdf": at})


class Bent(Learned):
    """−λ = −13.3 + 18.3 (t + η t (1 − t))."""

    def __init__(self, eta):
        super().__init__(13.3, -5.0, learn_ends=False)
        self.eta = torch.nn.Parameter(vector(eta))
        self.mean_loss += 1

    def cdf_and_pdf(self, t):
        return t + self.eta * t * (1 - t), 1 + self.eta * (1 - 2 * t)


@of("vdm_variance")
def test_variance_of_a_learned_schedule_and_its_gradient(record):
    """The gradient that one backward pass leaves on the shape is that of the variance."""
    schedule = Bent(record["params"]["eta"])
    t, width = times()
    with torch.no_grad():
        first, second = moments(
            oracle(record["case"]),
            partial(nodes, record["case"]),
            t,
            schedule=schedule,
            powers=(1, 2),
        )
    x, eps, weight = nodes(record["case"], schedule(t).detach())
    each = x.shape[1]
    rows = weight * width[:, None]
    loss = weighted_elbo(
        oracle(record["case"]),
        x.flatten(0, 1),
        schedule=schedule,
        t=t.repeat_interleave(each),
        eps=eps.flatten(0, 1),
    )
    (rows.flatten() @ loss).backward()
    assert_meets(
        record, {"var": width @ second - (width @ first).square(), "dvar_deta": schedule.eta.grad}
    )


@of("batch_estimator_variance")
def test_variance_of_a_batch_mean(record):
    case, batch, schedule = record["case"], record["params"]["B"], schedule_of(record)
    t, width = times()
    first, second = moments(
        oracle(case), partial(nodes, case), t, schedule=schedule, powers=(1, 2)
    )
    mean, within = width @ first, width @ (second - first.square())

    # of a stratum: from one to the next the grid is the same again
    offset, mass = gauss_legendre(0.0, 1.0, 64)
    grids = torch.stack([stratified(batch, offset=u / batch) for u in offset])
    logsnr, rate = schedule.at(grids.flatten())[:2]
    grid_mean = (0.5 * rate * mmse(case, logsnr)).view(grids.shape).mean(1)
    between = mass @ grid_mean.square() - mean.square()
    assert_meets(
        record,
        {
            "iid_t": (width @ second - mean.square()) / batch,
            "low_discrepancy": within / batch + between,
        },
    )
