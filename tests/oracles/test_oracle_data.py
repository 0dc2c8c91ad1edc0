"""Facts of the data: entropy, density, the perfect denoiser's error and its square, mutual
information, prior terms."""

from functools import partial

import torch
from oracle_nodes import error_of, moments, nodes, product_nodes
from oracle_records import assert_meets, denoiser, of, oracle, vector

from vdiff import bits_per_dim
from vdiff.gaussian import diffuse, kl_to_normal, prior_kl
from vdiff.schedule import Linear


@of("entropy_x")
def test_entropy(record):
    assert_meets(record, oracle(record["case"]).entropy())


@of("entropy_nats")
def test_entropy_of_levels(record):
    assert_meets(record, oracle(record["case"]).entropy())


@of("entropy_bits_per_dim")
def test_entropy_of_levels_in_bits(record):
    assert_meets(record, bits_per_dim(oracle(record["case"]).entropy(), 1))


@of("nll_x")
def test_density(record):
    assert_meets(record, -oracle(record["case"]).log_prob(vector(record["params"]["x"])[None])[0])


def error_moment(case, logsnr, at, power):
    """E‖ε − ε̂‖^(2·power) of the perfect denoiser from its predictions."""
    x, eps, weight = (v[0] for v in at(case, vector([logsnr])))
    level = torch.full((len(x),), logsnr)
    return weight @ oracle(case)(diffuse(x, eps, level), level).squared_error(x, eps) ** power


@of("mmse_eps")
def test_mmse(record):
    case, logsnr = record["case"], record["params"]["lam"]
    assert_meets(record, oracle(case).mmse(vector([logsnr]))[0])
    assert_meets(record, error_moment(case, logsnr, nodes, 1))


@of("E_norm_e^4")
def test_fourth_moment_of_the_error(record):
    case = record["case"]
    assert_meets(
        record,
        error_moment(
            case, record["params"]["lam"], product_nodes if oracle(case).dims > 1 else nodes, 2
        ),
    )


@of("mutual_information")
def test_mutual_information(record):
    assert_meets(
        record, oracle(record["case"]).mutual_information(vector([record["params"]["lam"]]))[0]
    )


@of("prior_kl")
def test_prior_term(record):
    case, low = record["case"], record["params"]["lam_min"]
    x, _, weight = nodes(case, vector([0.0]))
    assert_meets(record, weight[0] @ prior_kl(x[0], low))
    assert_meets(record, oracle(case).bound(13.3, low).prior)


@of("prior_kl_x")
def test_prior_term_at_given_x(record):
    assert_meets(
        record, prior_kl(vector(record["params"]["x"])[None], record["params"]["lam_min"])[0]
    )


@of("prior_gap")
def test_slack_of_the_perfect_model(record):
    assert_meets(record, oracle(record["case"]).prior_gap(record["params"]["lam_min"]))


@of("prior_kl_ve")
def test_prior_term_of_a_variance_exploding_process(record):
    square, dims, variance = (
        record["params"]["x2"],
        record["params"]["d"],
        record["params"]["sigma_max"] ** 2,
    )
    signal = 1 / (1 + variance)
    assert_meets(
        record,
        {
            "prior_N0_smax2": kl_to_normal(square, variance, variance, dims),
            "prior_N0_smax2_plus_sd2": kl_to_normal(square, variance, variance + 0.25, dims),
            "prior_vp_equivalent_N0_1_plus_smax2": kl_to_normal(
                square * signal, variance * signal, 1.0, dims
            ),
        },
    )


@of("prior_kl_fm")
def test_prior_term_of_a_straight_path(record):
    p = record["params"]
    assert_meets(record, kl_to_normal((1 - p["t1"]) ** 2 * p["x2"], p["t1"] ** 2, 1.0, p["d"]))


def test_errors_of_wrong_denoisers_have_closed_forms():
    """c ε̂*, c x̂* and a bias: what the long chains use instead of the loss is what the loss
    returns."""
    schedule, t = Linear(13.3, -5.0), vector([0.1, 0.5, 0.9])
    for name in ("opt", "eps_scale_0.9", "eps_zero", "eps_bias_0.1", "x_zero", "x_scale_3"):
        (loss,) = moments(denoiser("gmm1d", name), partial(nodes, "gmm1d"), t, schedule=schedule)
        closed = (
            0.5
            * schedule.rate(t)
            * error_of("gmm1d", name, schedule(t), oracle("gmm1d").mmse(schedule(t)))
        )
        torch.testing.assert_close(loss, closed, rtol=1e-10, atol=0.0)
