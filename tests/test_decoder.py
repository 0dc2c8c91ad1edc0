"""Decoders are distributions, their tables are expectations, and their tails are right."""

import math
from functools import cache

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import erfcx, log_ndtr
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdiff import Denoiser, Objective, Prediction, elbo
from vdiff.decoder import (
    Categorical,
    DiscretizedGaussian,
    Gaussian,
    log_normal_cdf,
    log_normal_interval,
    normal_nodes,
)
from vdiff.likelihood import Uniform, compare, dequantized_ode, evaluate, path_importance
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import Eps, V, X
from vdiff.schedule import Linear
from vdiff.variance import LearnedRange
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

MEANS = torch.tensor(
    [-3.0, -1.02, -1.0, -0.31, 0.0, 0.5, 0.9, 0.98, 1.0, 40.0], dtype=torch.float64
)


def grid(levels: int, closed: bool) -> np.ndarray:
    k = np.arange(levels)
    return 2 * k / (levels - 1) - 1 if closed else 2 * (k + 0.5) / levels - 1


def log_interval(a, b):
    """log(Φ(b) − Φ(a)), in the tail where it keeps its digits."""
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    return log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b)))


def log_pmf(kind, mean, std, levels, closed, prior=None) -> np.ndarray:
    """log p(k | mean) for all k, shape (*mean, levels), in SciPy."""
    x, mean = grid(levels, closed), np.asarray(mean)[..., None]
    if kind is Categorical:
        logit = -0.5 * ((mean - x) / std) ** 2 + (0 if prior is None else prior)
        return logit - np.logaddexp.reduce(logit, -1, keepdims=True)
    half = 0.5 * (x[1] - x[0])
    lower, upper = (x - half - mean) / std, (x + half - mean) / std
    inner = log_interval(lower, upper)
    inner[..., 0], inner[..., -1] = log_ndtr(upper[..., 0]), log_ndtr(-lower[..., -1])
    return inner


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


@pytest.mark.parametrize(("bins", "log_p"), [(8, -34.736), (12, -78.02)])
@pytest.mark.parametrize("side", [-1, 1])
def test_far_tails_have_their_value_and_their_gradient(bins, log_p, side):
    """No floor: a clamp at 1e-12 would return −27.631 and a zero gradient."""
    std = math.sqrt(5.4532e-5)
    decoder = DiscretizedGaussian(256, variance=std**2)
    x = grid(256, True)
    mean = torch.tensor([[x[100 + side * bins]]], requires_grad=True)
    value = decoder.log_prob(torch.tensor([[100]]), mean, 0.0).sum()
    assert value.item() == pytest.approx(log_p, abs=0.006)
    value.backward()
    a, b = ((x[100] + h / 255 - x[100 + side * bins]) / std for h in (-1, 1))
    log_phi = [
        -0.5 * u**2 - 0.5 * math.log(2 * math.pi) for u in (a, b)
    ]  # ∂ log P/∂mean = (φ(a) − φ(b))/(σ P)
    want = (math.exp(log_phi[0] - value.item()) - math.exp(log_phi[1] - value.item())) / std
    assert mean.grad.item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (-300.0, -299.0),
        (299.0, 300.0),
        (-41.0, -40.0),
        (-1.0, 1.0),
        (-40.0, 40.0),
        (0.3, 0.3001),
        (-20.0, 1.0),
    ],
)
def test_an_interval_of_the_normal_in_log_space(lower, upper):
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (lower, upper))
    value = log_normal_interval(a, b)
    assert value.item() == pytest.approx(float(log_interval(lower, upper)), rel=1e-12, abs=1e-13)
    value.backward()
    want = [
        sign * math.exp(-0.5 * end**2 - 0.5 * math.log(2 * math.pi) - value.item())
        for end, sign in ((lower, -1), (upper, 1))
    ]
    assert [a.grad.item(), b.grad.item()] == pytest.approx(
        want, rel=1e-9, abs=1e-12 * max(map(abs, want))
    )


@pytest.mark.parametrize("at", [0.0, 1e-3, 0.3, -7.0, 40.0])
@pytest.mark.parametrize("width", [2**-2, 2**-8, 2**-11, 2**-12, 2**-20, 2**-36, 2**-42])
def test_a_narrow_interval_keeps_its_digits(at, width):
    """Φ(b) − Φ(a) to 80 digits is the oracle."""
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (at, at + width))
    value = log_normal_interval(a, b)
    with mpmath.workdps(80 + int(at**2)):
        low, high = (-b.item(), -a.item()) if at > 0 else (a.item(), b.item())
        mass = mpmath.ncdf(high) - mpmath.ncdf(low)
        want, density = mpmath.log(mass), mpmath.npdf(b.item()) / mass
    assert value.item() == pytest.approx(float(want), rel=1e-11)
    value.backward()
    assert b.grad.item() == pytest.approx(float(density), rel=1e-7)


def test_the_bins_of_a_decoder_under_almost_pure_noise():
    """log p = log φ(0) + log of the width, whose digits a difference of Φ loses."""
    for variance, logsnr in ((None, -39.0), (None, -75.0), (1e30, 5.0)):
        decoder = DiscretizedGaussian(256, variance=variance)
        std = math.exp(-0.5 * logsnr) if variance is None else math.sqrt(variance)
        mean = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        log_p = decoder.log_prob(torch.tensor([[100]]), mean, logsnr)
        want = math.log(decoder.spacing / std) - 0.5 * math.log(2 * math.pi)
        assert log_p.item() == pytest.approx(want, rel=1e-12)
        assert torch.autograd.grad(log_p.sum(), mean)[0].isfinite().all()


def density_over_mass(lower, upper):
    """φ(lower)/P and φ(upper)/P with P = Φ(upper) − Φ(lower), from φ/Φ = √(2/π)/erfcx(−x/√2)."""
    flip = lower + upper > 0
    low, high = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    mass = -np.expm1(log_ndtr(low) - log_ndtr(high))  # P/Φ(high)
    near = math.sqrt(2 / math.pi) / erfcx(-high / math.sqrt(2)) / mass
    far = near * np.exp(0.5 * (high - low) * (high + low))
    return np.where(flip, near, far), np.where(flip, far, near)


@pytest.mark.parametrize("logsnr", [5.0, 9.21, 13.3, 20.0, 30.0, 35.0, 40.0])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_the_gradient_is_right_at_every_level_however_small_the_noise(logsnr, closed, learned):
    """The mean is up to 1e9 standard deviations from the level; the variance may be learned."""
    levels, means = 256, [-1.0, -0.31, 0.98, 3.0]
    data = torch.arange(levels).repeat(len(means))[:, None]
    mean = torch.tensor(means, dtype=torch.float64).repeat_interleave(levels)[:, None]
    mean.requires_grad_()
    head = torch.ones_like(mean, requires_grad=True)  # of a range: the noise of z₀ itself, σ = σ₀
    clip = 0.1 * math.exp(-logsnr) if learned else None
    decoder = DiscretizedGaussian(
        levels, levels_at_ends=closed, uses_network=True, posterior_variance=clip
    )

    def nll(mean):
        def predict(z, logsnr):
            return Prediction(z, logsnr, mean, X(), LearnedRange(), head)

        return decoder.nll(data, torch.zeros_like(mean), logsnr, predict).sum()

    slopes = torch.autograd.grad(nll(mean), [mean, head] if learned else [mean])
    std = math.exp(-0.5 * logsnr) * ((1 + math.exp(-logsnr)) ** -0.5 if learned else 1)
    away, half = decoder.level_values.numpy()[data] - mean.detach().numpy(), 0.5 * decoder.spacing
    first, last = data.numpy() == 0, data.numpy() == levels - 1
    lower = np.where(first, -1e15, (away - half) / std)
    upper = np.where(last, 1e15, (away + half) / std)
    by_lower, by_upper = density_over_mass(lower, upper)
    by_std = np.where(last, 0, upper * by_upper) - np.where(first, 0, lower * by_lower)
    by_head = 0.25 * (math.log(std**2) - math.log(0.1) + logsnr) * by_std
    for slope, want in zip(slopes, [(by_upper - by_lower) / std, by_head], strict=False):
        np.testing.assert_allclose(slope.numpy(), want, rtol=1e-8, atol=1e-8 / std)
    single = mean.detach().float().requires_grad_()
    nll(single).backward()
    assert torch.isfinite(single.grad).all()


@pytest.mark.parametrize("score", [-1e99, -1e9, -1e8, -1e6, -40.0, -1.0, 0.0, 1.0, 9.0, 40.0, 1e9])
def test_the_logarithm_of_the_normal_cdf_and_its_slope(score):
    x = torch.tensor([score, 0.5], dtype=torch.float64, requires_grad=True)
    value = log_normal_cdf(x)
    assert value.tolist() == pytest.approx(log_ndtr([score, 0.5]).tolist(), rel=1e-14)
    value.sum().backward()
    hazard = math.sqrt(2 / math.pi) / erfcx(-score / math.sqrt(2))
    assert x.grad[0].item() == pytest.approx(hazard, rel=1e-14)


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
