"""The probability-flow ODE of the perfect denoiser: where it leads, and the density it gives."""

import math

from oracle_records import assert_meets, of, oracle, vector

from vdiff.likelihood.immse import immse
from vdiff.likelihood.ode import ode_likelihood
from vdiff.schedule import Linear


@of("pf_ode")
def test_flow_and_density(record):
    p, data = record["params"], oracle(record["case"])
    z0, clean = vector([[p["z0"]]]), vector([p["lam_max"]])
    log_alpha = 0.5 * clean.sigmoid().log()
    found = ode_likelihood(
        data,
        z0 / log_alpha.exp(),
        schedule=Linear(p["lam_max"], p["lam_min"]),
        tolerance=0.1 * record["tol"],
        method="dopri8",
        max_evaluations=20_000,
    )
    got = {
        "z1": found.noise,
        "log_p_model_z0": -found.nats - log_alpha,
        "log_q_z0": data.noisy_log_prob(z0, clean),
        "log_p_model_x": -found.nats,
    }
    assert math.isfinite(found.nats.item())
    assert_meets(record, {name: got[name] for name in record["value"]})


@of("nll_x")
def test_minus_log_p_by_the_flow_and_by_the_error_of_the_denoiser(record):
    """From λ = 18 to −12: what the ends cost, and the estimate's own error."""
    data, x = oracle(record["case"]), vector(record["params"]["x"])[None]
    found = ode_likelihood(
        data, x, schedule=Linear(18.0, -12.0), prior=data.matched(), tolerance=1e-7
    )
    assert abs(found.nats.item() - record["value"]) < 2e-5
    estimate = immse(data, x.repeat(32, 1), schedule=Linear(18.0, -12.0), gaussian=data.matched())
    assert abs(estimate.mean - record["value"]) < 4 * estimate.mean_error + 2e-5
