"""Hashes of data, weights and settings."""

import hashlib

import torch

from vdiff.likelihood.conditions import condition_digest
from vdiff.likelihood.digest import data_hash, distribution_digest, state_key, weights_digest
from vdiff.oracle import Gaussian


def test_data_are_known_by_the_start_of_a_hash_and_a_state_by_a_whole_number():
    data = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    assert (
        data_hash(data) == hashlib.sha256(b"torch.uint8 (2, 2) \x00\x01\x02\x03").hexdigest()[:16]
    )
    assert data_hash(data.view(4)) != data_hash(data)
    keys = [int(state_key("test", i)) for i in range(200)]
    assert len(set(keys)) == 200
    assert 0 <= min(keys) < 2**60 < 2**62 < max(keys) < 2**63  # all bits but the sign
    assert condition_digest({"scale": 2.0, "label": data}) == {
        "scale": 2.0,
        "label": data_hash(data),
    }


def test_weights_and_distributions_are_known_by_every_number():
    one, same, other = (Gaussian([0.0], [v]) for v in (1.0, 1.0, 2.0))
    assert distribution_digest(one) == distribution_digest(same) != distribution_digest(other)
    assert distribution_digest(one).startswith("Gaussian ")
    assert weights_digest(one, same)[0] == weights_digest(one, same)[1] != weights_digest(other)[0]
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first, abs) == weights_digest(second)
    second.bias.data[0] += 1e-6
    assert weights_digest(first) != weights_digest(second)
