"""Coefficients, conversions and schedules: numbers of one λ, one step or one time."""

import math

import torch
from oracle_records import SCHEDULES, assert_meets, of, vector

from vdiff import Prediction, bits_per_dim
from vdiff.denoiser import edm_time, flow_time, sigma_time
from vdiff.gaussian import Step, alpha, diffuse, sigma, step_kl
from vdiff.parameterization import Eps, Flow, Score, V
from vdiff.sampling import ddim
from vdiff.schedule import Cosine, Karras, Laplace, LinearBeta, Normal, OptimalTransport, Tabulated


@of("vp")
def test_coefficients_of_a_level(record):
    logsnr = vector([record["params"]["lam"]])
    one = torch.ones(1, 1)

    def from_edm(z, out):
        """x̂ from z̃ = z/α and F = −out, which is c_skip z̃ + c_out F."""
        return Prediction(alpha(logsnr)[:, None] * z, logsnr, -out, V(0.5)).x[0]

    assert_meets(
        record,
        {
            "alpha": alpha(logsnr),
            "sigma": sigma(logsnr),
            "snr": (alpha(logsnr) / sigma(logsnr)) ** 2,
            "fm_alpha": flow_time(-logsnr),
            "fm_sigma": flow_time(logsnr),
            "ve_sigma": sigma_time(logsnr),
            "edm_c_noise": edm_time(logsnr),
            "edm_c_in": alpha(logsnr) * V(0.5).input_scale(logsnr),
            "edm_c_skip": from_edm(one, 0 * one),
            "edm_c_out": from_edm(0 * one, one),
        },
    )


@of("posterior")
def test_coefficients_of_a_step(record):
    t, s = record["params"]["lam_t"], record["params"]["lam_s"]
    step = Step(vector(t), vector(s) - vector(t))

    def deterministic(z, eps):
        return ddim(
            lambda z, logsnr: Prediction(z, logsnr, eps, Eps()), z, vector([t]), vector([s])
        )

    one = torch.ones(1, 1)
    assert_meets(
        record,
        {
            "c": step.fresh,
            "coef_z": step.coefficient_z,
            "coef_x": step.coefficient_x,
            "coef_eps": step.coefficient_eps,
            "var_posterior": step.variance,
            "var_upper": step.forward_variance,
            "kl_weight": step_kl(step.snr_gain, vector(1.0)),
            "ell": step.log_variance_ratio,
            "ddim_coef_z": deterministic(one, 0 * one),
            "ddim_coef_eps": deterministic(0 * one, one),
        },
    )


@of("conversions_vp")
def test_targets_of_a_sample(record):
    x, eps, logsnr = (vector([record["params"][k]]) for k in ("x", "eps", "lam"))
    z = diffuse(x[:, None], eps[:, None], logsnr)
    perfect = Prediction(z, logsnr, eps[:, None], Eps())
    assert_meets(
        record,
        {
            "z": z,
            "v": perfect.v,
            "score": perfect.score,
            "edm_F_sd0p5": -V(0.5).target(x[:, None], eps[:, None], logsnr),
            "u_eps_minus_x": perfect.as_target(Flow()),
            "x_from_z_eps": perfect.x,
        },
    )
    for target in (V(), Score(), V(0.5), Flow()):
        again = Prediction(z, logsnr, target.target(x[:, None], eps[:, None], logsnr), target)
        torch.testing.assert_close(
            torch.cat([again.x, again.eps]), torch.stack([x, eps]), rtol=1e-11, atol=0.0
        )


@of("bits_per_dim")
def test_bits_per_dim(record):
    nats, dims = vector(record["params"]["nats"]), record["params"]["d"]
    assert_meets(
        record,
        {
            "discrete": bits_per_dim(nats, dims),
            "density_on_2_over_255_grid": bits_per_dim(nats, dims, bin_width=2 / 255),
            "density_on_2_over_256_grid": bits_per_dim(nats, dims, bin_width=2 / 256),
        },
    )


@of("lambda")
def test_schedule_between_its_ends(record):
    t = record["value"]["t"]
    assert_meets(record, {"t": t, "lam": SCHEDULES[record["params"]["schedule"]]()(vector(t))})


@of("untruncated")
def test_schedule_as_a_law(record):
    t = vector(record["params"]["t"])
    laws = {
        "cosine": Cosine().law,
        "vp_linear": LinearBeta().law,
        "fm_ot": OptimalTransport().law,
        "iddpm_cosine": Cosine(offset=0.008).law,
        "laplace_0_0p5": Laplace(0.0, 0.5).law,
        "edm_lognormal_quantile": Normal(2.4, 2.4).law,
        "logit_normal_0_1": Normal(0.0, 2.0).law,
    }
    got = {name: law.icdf(t) for name, law in laws.items()}
    assert_meets(
        record,
        got
        | {
            f"{name}_dldt": -1 / laws[name].density(got[name])
            for name in ("cosine", "vp_linear", "fm_ot", "iddpm_cosine")
        },
    )


@of("karras_sigmas")
def test_karras_grid(record):
    assert_meets(record, Karras(0.002, 80.0).sigmas(18))


@of("iddpm_cosine_discrete")
def test_cosine_table(record):
    table = Tabulated.cosine_betas().table
    level = torch.tensor(record["value"]["t"]) - 1
    before = torch.cat([vector([math.inf]), table[:-1]])
    beta = torch.sigmoid(-table) * -torch.expm1(
        table - before
    )  # c σ_t², with c = 1 at the first level
    assert_meets(record, {"t": record["value"]["t"], "lam": table[level], "beta": beta[level]})
