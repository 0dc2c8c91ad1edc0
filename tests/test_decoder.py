"""Decoders are distributions, their tables are expectations, and their tails are right."""

import math

import numpy as np
import pytest
import torch
from decoder_values import grid, log_pmf

from vdiff import Prediction
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.parameterization import Eps

MEANS = torch.tensor(
    [-3.0, -1.02, -1.0, -0.31, 0.0, 0.5, 0.9, 0.98, 1.0, 40.0], dtype=torch.float64
)


def all_levels(decoder, mean: torch.Tensor, logsnr: float) -> torch.Tensor:
    """log p(k | mean), (means, levels), through `log_prob`."""
    k = torch.arange(decoder.levels).repeat(len(mean))[:, None]
    return decoder.log_prob(k, mean.repeat_interleave(decoder.levels)[:, None], logsnr).view(
        len(mean), decoder.levels
    )


def decoders(levels: int):
    prior = torch.sin(torch.arange(levels) + 1.0)
    for closed in (False, True):
        yield Categorical(levels, levels_at_ends=closed)
        yield Categorical(levels, levels_at_ends=closed, prior=prior)
        yield DiscretizedGaussian(levels, levels_at_ends=closed)


@pytest.mark.parametrize("logsnr", [-6.0, 0.0, 5.0, 9.21, 13.3, 20.0])
@pytest.mark.parametrize(
    "decoder", [d for levels in (2, 5, 17, 256) for d in decoders(levels)], ids=repr
)
def test_probabilities_sum_to_one(decoder, logsnr):
    total = all_levels(decoder, MEANS, logsnr).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


@pytest.mark.parametrize("logsnr", [-2.0, 5.0, 13.3])
@pytest.mark.parametrize(
    "decoder", [d for levels in (2, 5, 256) for d in decoders(levels)], ids=repr
)
def test_probabilities_are_those_of_another_formula(decoder, logsnr):
    prior = getattr(decoder, "prior", None)
    want = log_pmf(
        type(decoder),
        MEANS.numpy(),
        math.exp(-0.5 * logsnr),
        decoder.levels,
        decoder.levels_at_ends,
        None if prior is None else prior.numpy(),
    )
    np.testing.assert_allclose(
        all_levels(decoder, MEANS, logsnr).numpy(), want, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("logsnr", [-1.0, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("decoder", list(decoders(5)), ids=repr)
def test_tables_are_expectations(decoder, logsnr):
    """By brute force, 20,000 nodes of the noise of z₀/α₀ around each level."""
    noise = np.linspace(-10, 10, 20_001)
    weight = np.exp(-0.5 * noise**2)
    std, prior = math.exp(-0.5 * logsnr), getattr(decoder, "prior", None)
    mean = grid(5, decoder.levels_at_ends)[:, None] + std * noise
    log_p = log_pmf(
        type(decoder),
        mean,
        std,
        5,
        decoder.levels_at_ends,
        None if prior is None else prior.numpy(),
    )
    want = [-(weight @ log_p[k, :, k]) / weight.sum() for k in range(5)]
    np.testing.assert_allclose(decoder.table(logsnr).numpy(), want, rtol=1e-9, atol=1e-13)
    data = torch.tensor([[0, 3], [4, 2]])
    got = decoder.expected_nll(data, torch.tensor(logsnr, dtype=torch.float64))
    assert got.tolist() == pytest.approx([want[0] + want[3], want[4] + want[2]], rel=1e-9)
    assert decoder.expected_nll(data, logsnr).tolist() == pytest.approx(got.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    "decoder", [Categorical(17), DiscretizedGaussian(17, variance=0.004)], ids=repr
)
def test_tables_agree_with_drawn_first_levels(decoder):
    generator, logsnr, n = torch.Generator().manual_seed(0), 5.5, 200_000
    data = torch.full((n, 1), 3)
    z = decoder.level_values[3] + math.exp(-0.5 * logsnr) * torch.randn(
        n, 1, dtype=torch.float64, generator=generator
    )
    nll = -decoder.log_prob(data, z, logsnr)
    assert abs(nll.mean() - decoder.table(logsnr)[3]) < 4 * nll.std() / n**0.5


@pytest.mark.parametrize(
    ("closed", "softmax", "interval"), [(True, 0.0101, 0.0512), (False, 0.0105, 0.0523)]
)
def test_the_decoder_is_part_of_the_number(closed, softmax, interval):
    """The same end of the same process, in bits per dimension of an inner grey level."""
    nats = Categorical(256, levels_at_ends=closed).table(13.3)
    assert nats[128].item() / math.log(2) == pytest.approx(softmax, abs=5e-5)
    assert DiscretizedGaussian(256, levels_at_ends=closed).table(13.3)[128].item() / math.log(
        2
    ) == pytest.approx(interval, abs=5e-5)
    assert nats[128].item() == pytest.approx(0.0069714 if closed else 0.0072456, abs=5e-8)
    assert nats[[0, 255]].tolist() == pytest.approx([0.5 * nats[128].item()] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("level", "mean", "std", "log_p"),
    [
        (102, 0.9, 0.3, -11.285),  # x = −0.2: an edge test on x − mean would say −8.953
        (255, 0.98, 0.02, -1.557),  # x = 1: −2.355 there
    ],
)
def test_the_edges_are_told_by_the_data(level, mean, std, log_p):
    decoder = DiscretizedGaussian(256, variance=std**2)
    got = decoder.log_prob(
        torch.tensor([[level]]), torch.tensor([[mean]], dtype=torch.float64), 0.0
    ).item()
    assert got == pytest.approx(log_p, abs=5e-4)


@pytest.mark.parametrize("variance", [None, 0.3])
def test_a_gaussian_decoder_integrates_to_one_and_expects_its_own_noise(variance):
    decoder, logsnr = Gaussian(variance=variance), 2.0
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    log_p = decoder.log_prob(x, torch.full_like(x, 0.4), logsnr)
    step = (x[1] - x[0]).item()
    assert (log_p.exp().sum() * step).item() == pytest.approx(1.0, abs=1e-9)
    s = math.exp(-logsnr) if variance is None else variance
    noise = torch.exp(-0.5 * (x[:, 0] - 0.4).square() * math.exp(logsnr)) * math.sqrt(
        math.exp(logsnr) / (2 * math.pi)
    )
    nll = -(noise @ log_p).item() * step  # z₀/α₀ around x, and x around z₀/α₀
    assert decoder.expected_nll(
        torch.zeros(1, 1, dtype=torch.float64), logsnr
    ).item() == pytest.approx(nll, rel=1e-9)
    assert nll == pytest.approx(
        0.5 * math.log(2 * math.pi * s) + 0.5 * math.exp(-logsnr) / s, rel=1e-9
    )


def test_a_denoising_decoder_reads_the_prediction():
    x, eps, logsnr = (
        torch.tensor([[0.2, -0.4]], dtype=torch.float64),
        torch.tensor([[1.0, 0.5]], dtype=torch.float64),
        3.0,
    )
    level = torch.tensor([logsnr], dtype=torch.float64)
    z = level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * eps
    seen = []

    def predict(z, logsnr):
        seen.append((z, logsnr))
        return Prediction(z, logsnr, eps - 0.1, Eps())

    nll = Gaussian(variance=0.01, uses_network=True).reconstruction(x, x, logsnr, predict, eps=eps)
    torch.testing.assert_close(seen[0][0], z)
    assert seen[0][1].tolist() == [logsnr]
    shift = 0.1 * math.exp(-0.5 * logsnr)  # x̂ − x of an error of 0.1 in ε
    assert nll.item() == pytest.approx(math.log(2 * math.pi * 0.01) + shift**2 / 0.01, rel=1e-9)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kind", [Categorical, DiscretizedGaussian])
def test_encoding_follows_its_convention_and_is_undone(kind, closed):
    decoder = kind(17, levels_at_ends=closed)
    data = torch.arange(17)[None]
    np.testing.assert_allclose(
        decoder.level_values.numpy(), grid(17, closed), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        decoder.encode(data)[0].numpy(), grid(17, closed), rtol=1e-6, atol=1e-7
    )
    for shift in (-0.49, 0.0, 0.49):
        assert torch.equal(decoder.decode(decoder.encode(data) + shift * decoder.spacing), data)
    assert decoder.decode(torch.tensor([[-9.0, 9.0]])).tolist() == [[0, 16]]
