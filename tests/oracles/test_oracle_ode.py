"""The probability-flow ODE of the perfect denoiser: where it leads, and the density it gives."""

import math

from oracle_records import assert_meets, of, oracle, vector

from vdiff import Linear
from vdiff.likelihood.ode import ode_likelihood


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
