"""Whole bounds: for continuous data with a Gaussian decoder, for levels with VDM's, and the
gradients of the end points."""

from functools import partial

import torch
from oracle_nodes import nodes, nodes_given, times
from oracle_records import assert_meets, of, oracle, vector
from torch import Tensor

from vdiff import bits_per_dim, elbo
from vdiff.decoder import Categorical, Decoder, Gaussian
from vdiff.schedule import LearnedLinear, Linear


def bound_over_time(case, at, schedule):
    """`elbo` at every node of (t, x, ε), and the nodes' weights."""
    t, width = times()
    x, eps, weight = at(schedule(t))
    bound = elbo(
        oracle(case),
        x.flatten(0, 1),
        schedule=schedule,
        decoder=Gaussian(),
        t=t.repeat_interleave(x.shape[1]),
        eps=eps.flatten(0, 1),
    )
    return bound, (width[:, None] * weight).flatten()


@of("nll_bound_continuous")
def test_bound_and_its_parts(record):
    case, p = record["case"], record["params"]
    bound, weight = bound_over_time(case, partial(nodes, case), Linear(p["lam_max"], p["lam_min"]))
    exact, entropy = oracle(case).bound(p["lam_max"], p["lam_min"]), oracle(case).entropy()
    one = torch.ones(1)
    for parts, w in ((bound, weight), (exact, one)):
        whole = w @ parts.total
        assert_meets(
            record,
            {
                "prior_kl": w @ parts.prior,
                "L_inf": w @ parts.diffusion,
                "L0_gaussian_decoder": w @ parts.reconstruction,
                "total": whole,
                "entropy_x": entropy,
                "gap": whole - entropy,
            },
        )


@of("nll_bound_x")
def test_bound_at_given_x(record):
    p = record["params"]
    bound, weight = bound_over_time(
        record["case"], partial(nodes_given, vector(p["x"])), Linear(p["lam_max"], p["lam_min"])
    )
    assert_meets(record, weight @ bound.total)


class ContinuousDecoder(Decoder):
    """N(z₀/α₀, e^{−λ_max} I). `elbo` refuses learned ends with vdiff's own, since training them
    has no optimum; their gradient is exact."""

    decode = log_prob = None

    def encode(self, data: Tensor) -> Tensor:
        return data

    def expected_nll(self, data: Tensor, logsnr: Tensor | float) -> Tensor:
        return Gaussian().expected_nll(data, logsnr)


@of("bound_endpoint_gradients")
def test_gradient_of_the_end_points(record):
    case, p = record["case"], record["params"]
    schedule = LearnedLinear(p["lam_max"], p["lam_min"])
    t, width = times()
    x, eps, weight = nodes(case, schedule(t).detach())
    bound = elbo(
        oracle(case),
        x.flatten(0, 1),
        schedule=schedule,
        decoder=ContinuousDecoder(),
        t=t.repeat_interleave(x.shape[1]),
        eps=eps.flatten(0, 1),
    )
    ((width[:, None] * weight).flatten() @ bound.total).backward()
    # λ_min = low, λ_max = low + softplus(high − low)
    of_max = schedule.high.grad / torch.sigmoid(schedule.high - schedule.low).detach()
    assert_meets(
        record, {"dlam_max": of_max, "dlam_min": schedule.low.grad + schedule.high.grad - of_max}
    )


@of("vdm_bound")
def test_bound_of_levels(record):
    case, p = record["case"], record["params"]
    data, decoder = oracle(case), Categorical(256, levels_at_ends=True)
    high = vector([p["lam_max"]])
    exact = data.bound(p["lam_max"], p["lam_min"], decoder)
    got = {
        "L_inf": exact.diffusion,
        "L0_by_k": {k: decoder.table(p["lam_max"])[int(k)] for k in record["value"]["L0_by_k"]},
        "L0_ideal_posterior": data.entropy() - data.mutual_information(high)[0],
        "prior_gap": data.prior_gap(p["lam_min"]),
    }
    levels = torch.arange(256)[:, None]
    schedule = Linear(p["lam_max"], p["lam_min"])
    each = elbo(
        data,
        levels,
        schedule=schedule,
        decoder=decoder,
        t=torch.full((256,), 0.5),
        eps=torch.zeros(256, 1),
    )
    for prior, reconstruction in (
        (exact.prior, exact.reconstruction),
        (data.weights @ each.prior, data.weights @ each.reconstruction),
    ):
        whole = prior + exact.diffusion + reconstruction
        assert_meets(
            record,
            got
            | {
                "prior_kl": prior,
                "L0_categorical": reconstruction,
                "total_nats": whole,
                "total_bits_per_dim": bits_per_dim(whole, 1),
            },
        )
