"""Decoders of levels, against 200 digits."""

import math

import torch
from oracle_records import assert_meets, of, vector

from vdiff.decoder import Categorical, DiscretizedGaussian


@of("discretised_gaussian_logp")
def test_discretized_gaussian(record):
    p = record["params"]
    decoder = DiscretizedGaussian(256, levels_at_ends=True)
    log_p = decoder.log_prob(
        torch.tensor([[p["k"]]]), vector([[p["mu"]]]), -2 * math.log(p["sigma"])
    )
    assert_meets(record, log_p[0])


@of("vdm_categorical_logp")
def test_categorical(record):
    p = record["params"]
    decoder = Categorical(256, levels_at_ends=p["levels"] == "ddpm")
    assert_meets(
        record,
        decoder.log_prob(torch.tensor([[p["k"]]]), vector([[p["z0_over_alpha0"]]]), p["lam_max"])[
            0
        ],
    )
