"""Where samplers end, and the map of the probability-flow ODE, on data whose denoiser is known."""

import functools

import torch
from oracle_records import RECORDS, assert_meets, of, oracle, vector

from vdiff import trajectory
from vdiff.gaussian import Step
from vdiff.reverse import reverse_mean
from vdiff.sampling import ddim, dpmpp_2m, heun, invert, ode
from vdiff.schedule import Linear

EXACT = functools.partial(ode, method="dopri8", rtol=1e-13, atol=1e-14)


def ancestral_mean(model, z, logsnr_t, logsnr_s, history):
    """An ancestral step with its noise off."""
    return reverse_mean(model(z, logsnr_t), Step(logsnr_t, logsnr_s - logsnr_t))


STEPS = {
    "ddim": ddim,
    "heun_sigma": heun,
    "dpmpp_2m": dpmpp_2m,
    "ancestral_mean": ancestral_mean,
    "exact_pf_ode": EXACT,
}


@functools.cache
def endpoints(case, name, levels):
    """z at λ = 10 from each of a case's states at −5: all in one batch, by state."""
    states = sorted(
        {
            r["params"]["z1"]
            for r in RECORDS
            if r["quantity"] == "sampler_endpoint" and r["case"] == case
        }
    )
    *_, (z0, _) = trajectory(
        oracle(case),
        vector(states)[:, None],
        schedule=Linear(10.0, -5.0),
        steps=levels - 1,
        step=STEPS[name],
    )
    return dict(zip(states, z0, strict=True))


@of("sampler_endpoint")
def test_where_a_sampler_ends(record):
    levels = dict.fromkeys(STEPS, record["params"]["N"] + 1) | {"exact_pf_ode": 2}
    assert_meets(
        record,
        {
            name: endpoints(record["case"], name, levels[name])[record["params"]["z1"]]
            for name in STEPS
        },
    )


@functools.cache
def noise(case, logsnr_max, logsnr_min):
    """The noise at λ_min of all of a case's states at λ_max, by state; and that the way back leads
    to them."""
    states = sorted(
        {r["params"]["z0"] for r in RECORDS if r["quantity"] == "pf_ode" and r["case"] == case}
    )
    z0 = vector(states)[:, None]
    z1 = invert(oracle(case), z0, schedule=Linear(logsnr_max, logsnr_min), step=EXACT)
    clean, noisy = vector(logsnr_max).expand(len(z0)), vector(logsnr_min).expand(len(z0))
    torch.testing.assert_close(EXACT(oracle(case), z1, noisy, clean), z0, rtol=0.0, atol=1e-9)
    return dict(zip(states, z1, strict=True))


@of("pf_ode")
def test_the_noise_that_data_comes_from(record):
    p = record["params"]
    got = {
        "z1": noise(record["case"], p["lam_max"], p["lam_min"])[p["z0"]],
        "log_q_z0": oracle(record["case"]).noisy_log_prob(
            vector([[p["z0"]]]), vector([p["lam_max"]])
        ),
    }
    known = record["value"]  # its densities are the likelihood's: test_oracle_ode.py
    assert_meets(
        record | {"value": {name: known[name] for name in got if name in known}},
        {name: got[name] for name in got if name in known},
    )
