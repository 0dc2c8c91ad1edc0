"""Levels as data and priors of them: any integer dtype, tables per pixel, the memory they take."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from decoder_values import grid, log_pmf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdiff import Denoiser, Objective, elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, normal_nodes
from vdiff.likelihood import Uniform, compare, dequantized_ode, evaluate, path_importance
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import V
from vdiff.schedule import Linear
from vdiff.weighting import Sigmoid

LEVELS = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def test_a_prior_per_dimension_is_read_where_it_belongs():
    data = torch.tensor([[0, 2, 1], [0, 2, 2], [0, 0, 1], [1, 2, 1]])
    decoder = Categorical.fit(data, 3, pseudocount=0.5)
    counts = np.array([np.bincount(column, minlength=3) for column in data.T.numpy()]) + 0.5
    np.testing.assert_allclose(
        decoder.prior.exp().numpy(), counts / counts.sum(1, keepdims=True), rtol=1e-12
    )
    shared = Categorical.fit(data, 3, per_dim=False, pseudocount=0.5)
    np.testing.assert_allclose(
        shared.prior.exp().numpy(),
        (np.bincount(data.flatten(), minlength=3) + 0.5) / 13.5,
        rtol=1e-12,
    )
    uneven = Categorical.fit(torch.tensor([[0, 0], [0, 2]]), 3, per_dim=False, pseudocount=0.5)
    np.testing.assert_allclose(
        uneven.prior.exp().numpy(), np.array([3.5, 0.5, 1.5]) / 5.5, rtol=1e-12
    )
    mean = torch.full((3, 3), 0.1, dtype=torch.float64)
    levels = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    rows = [log_pmf(Categorical, 0.1, math.exp(-0.5), 3, False, p.numpy()) for p in decoder.prior]
    np.testing.assert_allclose(
        decoder.log_prob(levels, mean, 1.0).numpy(), np.sum(rows, 0), rtol=1e-10
    )
    single = [Categorical(3, prior=p).table(1.0) for p in decoder.prior]
    torch.testing.assert_close(decoder.table(1.0), torch.stack(single), rtol=1e-12, atol=0)
    want = single[0][0] + single[1][2] + single[2][1]
    torch.testing.assert_close(
        decoder.expected_nll(data[:1], torch.tensor(1.0, dtype=torch.float64)), want[None]
    )


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.bytes = max(
            [
                self.bytes,
                *(
                    v.nbytes
                    for v in tree_leaves(made)
                    if isinstance(v, torch.Tensor) and not v._is_view()
                ),
            ]
        )
        return made


def counts_of(data: torch.Tensor, levels: int) -> np.ndarray:
    """(*dims, levels), by numpy."""
    columns = data.long().flatten(1).T.numpy()
    return np.stack([np.bincount(column, minlength=levels) for column in columns]).reshape(
        *data.shape[1:], levels
    )


@pytest.mark.parametrize("together", [1, 64, 2**22])
@pytest.mark.parametrize("dtype", LEVELS, ids=str)
def test_a_prior_counts_levels_of_any_integer_dtype(dtype, together, monkeypatch):
    monkeypatch.setattr("vdiff.decoder.categorical.PIECE", together)
    data = torch.randint(0, 5, (40, 2, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    counts = counts_of(data, 7) + 0.5
    fitted = Categorical.fit(data, 7, pseudocount=0.5)
    np.testing.assert_allclose(
        fitted.prior.exp().numpy(), counts / counts.sum(-1, keepdims=True), rtol=1e-12
    )
    shared = Categorical.fit(data, 7, pseudocount=0.5, per_dim=False).prior.exp().numpy()
    counts = counts_of(data, 7).sum((0, 1)) + 0.5
    np.testing.assert_allclose(shared, counts / counts.sum(), rtol=1e-12)


@pytest.mark.parametrize("per_dim", [True, False])
def test_a_prior_of_images_takes_the_memory_of_its_counts(per_dim):
    images = torch.randint(
        0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with Largest() as largest:
        Categorical.fit(images, 256, per_dim=per_dim)
    assert largest.bytes <= 32 * 2**20  # one level to a byte would be 400 MiB


@pytest.mark.parametrize("together", [1, 2**22])
@pytest.mark.parametrize("logsnr", [-3.0, 5.0, 13.3])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_table_for_many_pixels_is_that_of_each(scale, logsnr, together, monkeypatch):
    monkeypatch.setattr("vdiff.decoder.categorical.PIECE", together)
    prior = scale * torch.randn(
        4, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    table = Categorical(9, prior=prior).table(logsnr)
    nodes, weights = normal_nodes()
    mean = grid(9, False)[:, None] + math.exp(-0.5 * logsnr) * nodes.numpy()
    for place in np.ndindex(4, 3):
        log_p = log_pmf(
            Categorical,
            mean,
            math.exp(-0.5 * logsnr),
            9,
            False,
            prior[place].log_softmax(-1).numpy(),
        )
        want = [-(weights.numpy() @ log_p[k, :, k]) for k in range(9)]
        np.testing.assert_allclose(
            table[place].numpy(), want, rtol=1e-11, atol=1e-12 * max(1.0, scale)
        )


def test_a_table_for_all_pixels_of_an_image_is_made_at_once():
    data = torch.randint(0, 256, (100, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    decoder = Categorical.fit(data, 256)
    with Largest() as largest:
        table = decoder.table(13.3)
    assert table.shape == (3, 8, 8, 256)
    assert largest.bytes <= 32 * 2**20
    torch.testing.assert_close(
        table[1, 2, 3],
        Categorical(256, prior=decoder.prior[1, 2, 3]).table(13.3),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_table_of_a_prior_has_its_gradient():
    prior = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Categorical(5, prior=prior).table, level)


NETWORK = nn.Linear(3, 3)
MODEL = Denoiser(NETWORK, V(), call=lambda network, z, t: network(z)).eval()
OTHER = Denoiser(lambda z, t: 0 * z, V())
VERBS = {
    "elbo": lambda data, decoder, **given: (
        elbo(MODEL, data, schedule=Linear(), decoder=decoder, **given).total
    ),
    "objective": lambda data, decoder, **given: Objective(
        MODEL, schedule=Linear(), loss=VLB(decoder)
    )(data, **given),
    "weighted": lambda data, decoder, **given: Objective(
        MODEL, schedule=Linear(), loss=Weighted(Sigmoid(), decoder=decoder)
    )(data, **given),
    "evaluate": lambda data, decoder, **_: (
        evaluate(MODEL, data, schedule=Linear(), decoder=decoder, draws=4).by_image
    ),
    "compare": lambda data, decoder, **_: torch.tensor(
        compare(MODEL, OTHER, data, schedule=Linear(), decoder=decoder, draws=4).difference.value
    ),
    "path_importance": lambda data, decoder, **_: (
        path_importance(MODEL, data, schedule=Linear(), decoder=decoder, steps=3, samples=2).nats
    ),
    "dequantized_ode": lambda data, decoder, **_: (
        dequantized_ode(
            MODEL,
            data,
            schedule=Linear(4.0, -6.0),
            dequantization=Uniform(decoder),
            tolerance=1e-3,
        ).nats
    ),
}


@cache
def answers_of(verb, dtype):
    """Of the same levels under three decoders."""
    data = torch.randint(0, 17, (6, 3), generator=torch.Generator().manual_seed(0))
    given = {"t": torch.linspace(0.1, 0.9, 6), "eps": torch.ones(6, 3)}
    decoders = (
        Categorical.fit(data, 17),
        DiscretizedGaussian(17),
        DiscretizedGaussian(17, uses_network=True),
    )
    return [VERBS[verb](data.to(dtype), decoder, **given) for decoder in decoders]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [v for v in LEVELS if v != torch.int64], ids=str)
def test_levels_of_any_integer_dtype_are_the_same_data(dtype, verb):
    got, expected = answers_of(verb, dtype), answers_of(verb, torch.int64)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8], ids=str)
def test_levels_out_of_range_are_found_in_any_dtype(dtype):
    with torch.no_grad(), pytest.raises(ValueError, match="got values from 3 to 99"):
        Categorical(17).encode(torch.tensor([[3, 99]], dtype=dtype))
