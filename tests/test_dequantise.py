"""Bits of discrete data from densities: noise within the bin, its own density, bounds whose answer
is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from vdiff import Denoiser, Prediction
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.likelihood.dequantise import (
    Dequantization,
    TruncatedNormal,
    Uniform,
    _probe_seed,
    dequantized_ode,
)
from vdiff.likelihood.importance import importance_weighted
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.oracle import Gaussian, Lattice
from vdiff.parameterization import V
from vdiff.schedule import Linear

KINDS = [
    lambda decoder: Uniform(decoder),
    lambda decoder: TruncatedNormal(decoder, 2.0),
    lambda decoder: TruncatedNormal(decoder, 6.0),
    lambda decoder: TruncatedNormal(decoder, 13.3),
]
ORACLE = Lattice(Categorical(5).level_values, torch.arange(1, 6) / 15.0)
DECODERS = [Categorical(2), Categorical(17), Categorical(256, levels_at_ends=True)]


def per_sample_generators(n, seed=0):
    return [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(n)]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: f"{d.levels}")
@pytest.mark.parametrize("kind", KINDS)
def test_noise_stays_within_its_bin_and_its_density_is_its_own(decoder, kind):
    dequantization: Dequantization = kind(decoder)
    half = 0.5 * decoder.spacing
    width = min(half, 12 * getattr(dequantization, "std", half))
    mass = integrate.quad(
        lambda u: dequantization.log_density(torch.tensor(u, dtype=torch.float64)).exp().item(),
        -width,
        width,
        epsabs=1e-11,
    )[0]
    assert mass == pytest.approx(1.0, abs=1e-9)
    u = dequantization.within(
        2 * torch.rand(20_000, dtype=torch.float64, generator=per_sample_generators(1)[0]) - 1
    )
    assert u.abs().max() <= half
    grid = torch.linspace(-width, width, 2001, dtype=torch.float64)
    below = torch.cumulative_trapezoid(dequantization.log_density(grid).exp(), grid)
    assert stats.kstest(u.numpy(), lambda v: np.interp(v, grid[1:], below)).pvalue > 1e-4


def test_the_truncated_normals_entropy_in_closed_form():
    decoder, logsnr = Categorical(17), 6.5
    dequantization = TruncatedNormal(decoder, logsnr)
    law = stats.truncnorm(
        -dequantization.reach.item(), dequantization.reach.item(), scale=math.exp(-0.5 * logsnr)
    )
    data = torch.randint(0, 17, (4000, 3), generator=per_sample_generators(1)[0])
    x, log_q = dequantization.draw(data, per_sample_generators(4000))
    assert x.shape == data.shape
    assert torch.equal(decoder.decode(x), data)
    assert abs(-log_q.mean() - 3 * law.entropy()) < 4 * log_q.std() / 4000**0.5
    assert dequantization.log_density(torch.tensor(0.01)).item() == pytest.approx(
        law.logpdf(0.01), abs=1e-6
    )


def test_examples_draw_their_noise_by_themselves():
    data = torch.randint(0, 17, (6, 2))
    dequantization = Uniform(Categorical(17))
    whole = dequantization.draw(data, per_sample_generators(6))[0]
    assert torch.equal(
        whole[2:4], dequantization.draw(data[2:4], per_sample_generators(6)[2:4])[0]
    )


def smoothed(logsnr, levels=5):
    """Levels with unequal probabilities under noise that blurs neighbors, its bins, and each
    level's exact bits."""
    decoder = Categorical(levels)
    pmf = torch.arange(1, levels + 1, dtype=torch.float64) / (levels * (levels + 1) / 2)
    return decoder, Lattice(decoder.level_values, pmf), Linear(logsnr, -14.0)


def exact_bound(decoder, oracle, dequantization, logsnr, level):
    """E_q[log q(u) − log p(x_k + u)] by quadrature, where p is the density of z₀/α₀."""
    std, center = math.exp(-0.5 * logsnr), decoder.level_values[level].item()

    def integrand(u):
        log_q = dequantization.log_density(torch.tensor(u, dtype=torch.float64)).item()
        log_p = torch.logsumexp(
            oracle.weights.log()
            + torch.distributions.Normal(oracle.means[:, 0], std).log_prob(
                torch.tensor(center + u)
            ),
            0,
        )
        return math.exp(log_q) * (log_q - log_p.item())

    half = 0.5 * decoder.spacing
    return integrate.quad(integrand, -half, half, epsabs=1e-10)[0]


@pytest.mark.parametrize("name", ["uniform", "truncated normal"])
def test_the_bound_of_each_level_is_its_quadrature(name):
    logsnr = 3.0
    decoder, oracle, schedule = smoothed(logsnr)
    dequantization = Uniform(decoder) if name == "uniform" else TruncatedNormal(decoder, logsnr)
    data = torch.arange(5).repeat_interleave(150)[:, None]
    found = dequantized_ode(
        oracle, data, dequantization=dequantization, schedule=schedule, tolerance=1e-6
    )
    for level in range(5):
        nats = found.replicates[:, data[:, 0] == level].flatten()
        assert (
            abs(nats.mean() - exact_bound(decoder, oracle, dequantization, logsnr, level))
            < 4 * nats.std() / len(nats) ** 0.5
        )


def test_more_samples_tighten_the_bound_and_none_crosses_the_truth():
    """−log P(k) of the bin, by quadrature of the smoothed density; the error of a mean of K
    samples comes with it."""
    logsnr = 5.0
    decoder, oracle, schedule = smoothed(logsnr)
    data, std, half = torch.full((200, 1), 1), math.exp(-0.5 * logsnr), 0.5 * decoder.spacing
    normal = torch.distributions.Normal(oracle.means[:, 0], std)
    mass = oracle.weights @ (
        normal.cdf(decoder.level_values[1] + half) - normal.cdf(decoder.level_values[1] - half)
    )
    found = {
        k: dequantized_ode(
            oracle,
            data,
            dequantization=Uniform(decoder),
            samples=k,
            schedule=schedule,
            tolerance=1e-5,
        )
        for k in (1, 8)
    }
    for bound in found.values():
        assert bound.mean > -mass.log() - 4 * bound.mean_error
        assert bound.evaluations.min() > 0
    assert found[8].mean < found[1].mean - 4 * math.hypot(found[1].mean_error, found[8].mean_error)
    assert found[8].mean < -mass.log() + 0.3 * (found[1].mean + mass.log())
    assert found[8].effective_sample_size.min() >= 1
    assert found[8].effective_sample_size.max() <= 8


def test_the_importance_weighted_mean_has_its_minus_log_k():
    assert (
        importance_weighted(torch.zeros(5, 3)).abs().max() < 1e-6
    )  # weights of one have a mean of one
    assert importance_weighted(torch.tensor([[0.0], [math.log(3.0)]])).item() == pytest.approx(
        math.log(2.0)
    )


@pytest.mark.parametrize(
    ("closed", "softmax", "interval"), [(True, 0.0101, 0.0512), (False, 0.0105, 0.0523)]
)
def test_the_decoder_is_part_of_the_number(closed, softmax, interval):
    """Interior levels at γ₀ = −13.3, level spacing 2/255 and 2/256, bits/dim: five times the bits
    for another decoder."""
    for decoder, bits in (
        (Categorical(256, levels_at_ends=closed), softmax),
        (DiscretizedGaussian(256, levels_at_ends=closed), interval),
    ):
        assert decoder.table(13.3)[128].item() / math.log(2) == pytest.approx(bits, abs=5e-5)


def test_every_draw_has_probes_of_its_own():
    """Else the replicates would share their error, and its estimate be too small."""

    class Watched(Hutchinson):
        def directions(self, z, generators):
            seen.append(super().directions(z, generators))
            return seen[-1]

    def three(z, logsnr):  # independent dimensions
        flat = ORACLE(z.reshape(-1, 1), logsnr.repeat_interleave(3))
        return Prediction(z, logsnr, flat.output.view(z.shape), flat.parameterization)

    seen: list[torch.Tensor] = []
    data = torch.randint(0, 5, (40, 3), generator=per_sample_generators(1)[0])
    setting = {
        "dequantization": Uniform(Categorical(5)),
        "schedule": Linear(3.0, -8.0),
        "tolerance": 1e-2,
        "replicates": 4,
    }
    dequantized_ode(three, data, trace=Watched(probes=2), **setting)
    drawn = [one for one in seen if one.shape[1] == 40]
    assert len(drawn) == 4
    for one, other in itertools.combinations(drawn, 2):
        assert 0.35 < (one == other).double().mean() < 0.65


def test_it_says_what_it_is():
    assert repr(TruncatedNormal(Categorical(17), 9.0)).endswith("logsnr_max=9)")


@pytest.mark.parametrize(
    ("trace", "samples"), [(Exact(), 1), (Exact(), 3), (Hutchinson(probes=2), 1)]
)
def test_under_a_flat_density_every_draw_has_the_probability_of_its_bin(trace, samples):
    """v̂ = 0 moves nothing, and a prior of variance s² = 10⁸ is flat: P = (width · α₀/√(2πD))², D
    = α₁² s² + σ₁², without chance."""
    still = Denoiser(lambda z, logsnr: torch.zeros_like(z), V())
    found = dequantized_ode(
        still, torch.tensor([[1, 4]]), dequantization=Uniform(Categorical(5)),
        schedule=Linear(2.0, 0.0), trace=trace,
        prior=Gaussian([0.0, 0.0], [1e8, 1e8]), samples=samples,
    )  # fmt: skip
    log_p = (
        math.log(0.4)
        - 0.5 * math.log1p(math.exp(-2.0))
        - 0.5 * math.log(2 * math.pi * (0.5 * 1e8 + 0.5))
    )
    assert torch.allclose(found.replicates, torch.full((2, 1), -2 * log_p).double(), atol=1e-6)
    assert found.dims == 2
    assert found.samples == samples
    assert found.evaluations.tolist() == [round(2 * samples * found.protocol["NFE"])]
    assert found.change is None


def test_the_audit_is_of_the_first_draw_of_each_example():
    """Of K = 2 the first is that of K = 1: its noise is a function of the seed and its number."""
    data, setting = (
        torch.tensor([[0], [3], [4]]),
        {"dequantization": Uniform(Categorical(5)), "schedule": Linear(3.0, -8.0)},
    )
    found = dequantized_ode(ORACLE, data, tolerance=0.002, audit=True, samples=2, **setting)
    loose, finer = (
        dequantized_ode(ORACLE, data, tolerance=tolerance, **setting).replicates[0]
        for tolerance in (0.002, 0.001)
    )
    assert found.change.abs().min() > 0
    assert torch.allclose(found.change, finer - loose, atol=1e-12)
    assert found.protocol["and one example at most"] == pytest.approx(
        found.change.abs().max().item() / math.log(2)
    )


def test_a_bound_of_two_samples_needs_an_exact_trace():
    with pytest.raises(
        ValueError, match=r"argument 'samples' must be 1 with a random trace; got 2"
    ):
        dequantized_ode(
            ORACLE,
            torch.tensor([[0]]),
            dequantization=Uniform(Categorical(5)),
            schedule=Linear(),
            samples=2,
            trace=Hutchinson(),
        )


def test_no_two_draws_have_the_same_probes():
    assert len({_probe_seed(seed, draw) for seed in (0, 1) for draw in range(500)}) == 1000


@pytest.mark.parametrize("logsnr", [-3.0, 2.0, 6.0])
def test_noise_is_the_quantile_of_its_law_and_a_draw_is_a_level_and_its_noise(logsnr):
    """Increasing in the uniform number, and as exact near both edges: they are each other's
    mirror."""
    decoder = Categorical(2)
    normal = TruncatedNormal(decoder, logsnr)
    edge = special.ndtr(-0.5 * math.exp(0.5 * logsnr))  # of bins of width 1
    below = torch.cat(
        [
            torch.linspace(-1, 0, 101, dtype=torch.float64)[1:-1],
            torch.tensor([1e-9 - 1, 1e-14 - 1], dtype=torch.float64),
        ]
    )
    quantile = special.ndtri(edge + (1 + below.numpy()) * (0.5 - edge)) * math.exp(-0.5 * logsnr)
    np.testing.assert_allclose(normal.within(below).numpy(), quantile, rtol=1e-9)
    assert torch.equal(normal.within(-below), -normal.within(below))
    rolled = 2 * torch.rand(3, dtype=torch.float64, generator=per_sample_generators(1)[0]) - 1
    for dequantization in (normal, Uniform(decoder)):
        x, log_q = dequantization.draw(torch.tensor([[0, 1, 1]]), per_sample_generators(1))
        noise = dequantization.within(rolled)
        assert torch.allclose(
            x.double(), torch.tensor([-0.5, 0.5, 0.5]).double() + noise, atol=1e-6
        )
        assert log_q.item() == pytest.approx(dequantization.log_density(noise).sum().item())


@pytest.mark.parametrize("logsnr_max", [3.0, 6.0, 9.0, 13.0])
def test_noise_never_leaves_its_bin(logsnr_max):
    """Half a bin is 9 to 1,300 standard deviations: the ends of the uniform numbers are the ends
    of the bin."""
    dequantization = TruncatedNormal(Categorical(2), logsnr_max)
    u = dequantization.within(torch.tensor([-1.0, 1.0, 0.0, 1 - 2**-53], dtype=torch.float64))
    assert torch.isfinite(u).all()
    assert (u.abs() <= dequantization.half).all()
    assert u[2] == 0.0
