"""DDPM on its own table of 1000 β: levels, weights, the simple loss, and the bound with either
variance."""

from functools import partial

import torch
from oracle_nodes import mmse, moments, nodes
from oracle_records import assert_meets, chain, denoiser, of, oracle, vector

from vdiff import bits_per_dim, recipe
from vdiff.decoder import DiscretizedGaussian, Gaussian
from vdiff.gaussian import Step, diffuse, prior_kl, step_kl
from vdiff.parameterization import Eps
from vdiff.schedule import Tabulated
from vdiff.weighting import MSE

TABLE = Tabulated.linear_betas()
STEPS = TABLE.steps  # 999: level 1 is the decoder's
BETA_1 = 1e-4


def steps_at(levels):
    """The chain's steps that end at levels t = 2 … 1000."""
    t = (vector(levels) - 1) / STEPS
    return Step(TABLE(t), TABLE.delta(t, STEPS))


def decoder_variances():
    return {"beta_1": BETA_1, "beta_tilde_2": steps_at([2]).variance.item()}


@of("schedule")
def test_levels(record):
    levels = record["value"]["t"]
    logsnr = TABLE.table[torch.tensor(levels) - 1]
    assert_meets(record, {"t": levels, "lam": logsnr, "abar": torch.sigmoid(logsnr)})


@of("w_vlb")
def test_weights_of_the_bound(record):
    levels = record["value"]["t"]
    step, one = steps_at(levels), torch.ones(len(levels))
    u = step.log_variance_ratio
    decoder = Gaussian(variance=BETA_1)
    nll = decoder.expected_nll(torch.zeros(1, 1), TABLE.logsnr_max)[0]  # of unit E‖e‖²
    assert_meets(
        record,
        {
            "t": levels,
            "small": step_kl(step.snr_gain, one),
            "large": step_kl(step.snr_gain, one, u) - step_kl(step.snr_gain, 0 * one, u),
            "large_t1": nll - 0.5 * torch.log(2 * torch.pi * vector(BETA_1)),
        },
    )


@of("ddpm")
def test_simple_loss_and_bound(record):
    case = record["case"]
    model = denoiser(case, record["params"]["denoiser"])
    at, t = partial(nodes, case), chain(STEPS)
    (small,) = moments(model, at, t, schedule=TABLE, steps=STEPS)
    (simple,) = moments(
        model, at, t, schedule=TABLE, steps=STEPS, weighting=MSE(TABLE, Eps(), steps=STEPS)
    )
    small = small / STEPS  # the mean of the loss over the chain is the sum of its steps
    step = steps_at(range(2, 1001))
    large = step_kl(
        step.snr_gain, 2 * small / step.snr_gain, step.log_variance_ratio, dims=oracle(case).dims
    )

    x, eps, weight = (v[0] for v in nodes(case, vector([TABLE.logsnr_max])))
    level = torch.full((len(x),), TABLE.logsnr_max)
    first = weight @ model(diffuse(x, eps, level), level).squared_error(x, eps)
    decoded = {
        name: weight
        @ Gaussian(variance=variance, uses_network=True).reconstruction(
            x, x, TABLE.logsnr_max, model, eps=eps
        )
        for name, variance in decoder_variances().items()
    }
    prior = weight @ prior_kl(x, TABLE.logsnr_min)
    levels = record["value"]["per_t_small"]
    assert_meets(
        record,
        {
            "L_simple_sum_over_dims": simple.mean() + first / 1000,
            "L_simple_t2_to_T": simple.mean(),
            "vlb_t2_to_T_small": small.sum(),
            "vlb_t2_to_T_large": large.sum(),
            "prior_kl": prior,
            "L0_gaussian_pdf": decoded,
            "per_t_small": {k: small[int(k) - 2] for k in levels},
            "per_t_large": {k: large[int(k) - 2] for k in levels},
            "total_small_beta1": prior + small.sum() + decoded["beta_1"],
        },
    )


@of("ddpm")
def test_the_recipe_is_the_simple_loss_on_all_levels(record):
    objective = recipe("ddpm").objective(denoiser(record["case"], record["params"]["denoiser"]))
    loss = 0.0
    for t in (torch.arange(1000, dtype=torch.float64) / STEPS).split(20):
        x, eps, weight = nodes(record["case"], TABLE(t))
        each = objective(x.flatten(0, 1), t=t.repeat_interleave(x.shape[1]), eps=eps.flatten(0, 1))
        loss = loss + (weight.flatten() @ each) / 1000
    known = record["value"]["L_simple_sum_over_dims"]
    assert abs(loss - known) < record["tol"] * known, (loss, known)


@of("ddpm_bound")
def test_bound_of_levels(record):
    case = record["case"]
    data, t = oracle(case), chain(STEPS)
    logsnr, measure = TABLE.at(t, STEPS)[:2]
    error = mmse(case, TABLE.table)  # level 1 first
    step = steps_at(range(2, 1001))
    small = 0.5 * (measure * error[1:]).mean()
    large = step_kl(step.snr_gain, error[1:], step.log_variance_ratio).sum()
    simple = (0.5 * MSE(TABLE, Eps(), steps=STEPS)(logsnr) * measure * error[1:]).mean() + error[
        0
    ] / 1000

    u = torch.arange(-80, 81) * 0.1
    mass = torch.exp(-0.5 * u.square())
    mass = mass / mass.sum()
    levels = torch.arange(256).repeat_interleave(len(u))[:, None]
    decoded = {}
    for name, variance in decoder_variances().items():
        decoder = DiscretizedGaussian(256, variance=variance, uses_network=True)
        nll = decoder.reconstruction(
            levels, decoder.encode(levels), TABLE.logsnr_max, data, eps=u.repeat(256)[:, None]
        )
        decoded[name] = data.weights @ (nll.view(256, -1) @ mass)
    prior = data.weights @ prior_kl(data.means, TABLE.logsnr_min)
    assert_meets(
        record,
        {
            "prior_kl": prior,
            "vlb_small": small,
            "vlb_large": large,
            "L0_discretised": decoded,
            "total_bits_per_dim_small": {
                k: bits_per_dim(prior + small + v, 1) for k, v in decoded.items()
            },
            "total_bits_per_dim_large": {
                k: bits_per_dim(prior + large + v, 1) for k, v in decoded.items()
            },
            "L_simple": simple,
        },
    )
