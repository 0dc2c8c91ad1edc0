"""The probability-flow ODE: what its likelihood costs and how right it is, there and back,
whatever the batch."""

import math

import pytest
import torch
from registry import ORACLES
from torch import nn

from vdiff import Denoiser
from vdiff.flow import solve
from vdiff.likelihood.ode import costs, ode_likelihood, warn_of_tolerance
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, V, X
from vdiff.schedule import Cosine, Linear

WIDE = Linear(18.0, -9.0)


def ring():
    """Eight Gaussians of standard deviation 0.1 on a circle of radius √2."""
    place = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(
        [1 / 8] * 8, 2**0.5 * torch.stack([place.cos(), place.sin()], 1), torch.full((8, 2), 0.01)
    )


def mixture(seed, dims=16, components=10):
    """The random mixtures of `benchmarks/ode_cost.py`."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.5
    means = torch.randn(components, dims, generator=generator, dtype=torch.float64)
    factors = torch.randn(components, dims, dims, generator=generator, dtype=torch.float64) / 8
    return GaussianMixture(
        weights / weights.sum(), means, factors @ factors.mT + 0.02 * torch.eye(dims)
    )


RING = ring()
PRIOR = RING.matched()


def points(n, seed=0):
    return RING.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_on_a_ring_of_eight_falls_with_the_tolerance_and_what_that_costs(seed):
    x = points(256, seed)
    truth, errors, counts = -RING.log_prob(x), [], []
    for tolerance in (1e-4, 5e-5, 2.5e-5, 1e-5, 5e-6, 2.5e-6, 1e-6):
        found = ode_likelihood(RING, x, schedule=WIDE, prior=PRIOR, tolerance=tolerance)
        errors.append((found.nats - truth).square().mean().sqrt().item())
        counts.append(int(found.evaluations.max()))
    for bound, budget in ((1e-3, 110), (1e-4, 120), (1e-5, 180)):
        good = [all(e <= bound for e in errors[i:]) for i in range(len(errors))]
        assert counts[good.index(True)] <= budget, (bound, list(zip(counts, errors, strict=True)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_on_a_random_mixture_in_sixteen_dimensions(seed):
    """As on the ring, with what `benchmarks/ode_cost.py` finds on 256 points: 1e-3 nats within 120
    evaluations, 1e-4 within 170."""
    data = mixture(seed)
    x, errors, counts = data.sample(48, torch.Generator().manual_seed(seed)), [], []
    for tolerance in (5e-5, 2.5e-5, 1e-5, 5e-6, 2.5e-6):
        found = ode_likelihood(data, x, schedule=WIDE, prior=data.matched(), tolerance=tolerance)
        errors.append((found.nats + data.log_prob(x)).square().mean().sqrt().item())
        counts.append(int(found.evaluations.max()))
    for bound, budget in ((1e-3, 120), (1e-4, 170)):
        good = [all(e <= bound for e in errors[i:]) for i in range(len(errors))]
        assert counts[good.index(True)] <= budget, (bound, list(zip(counts, errors, strict=True)))


def test_the_units_of_the_angle_move_the_cost_and_not_the_answer():
    x = points(8)
    found = [
        ode_likelihood(RING, x, schedule=WIDE, prior=PRIOR, tolerance=1e-7, unit=unit)
        for unit in (0.25, 0.5, 1.0, 2.0)
    ]
    for other in found[1:]:
        assert torch.allclose(other.nats, found[0].nats, atol=1e-6)
    assert len({int(f.evaluations[0]) for f in found}) > 1


def test_only_the_ends_of_the_schedule_matter():
    x = points(16)
    one, two = (
        ode_likelihood(RING, x, schedule=s, tolerance=1e-7).nats
        for s in (Linear(12.0, -9.0), Cosine(12.0, -9.0))
    )
    assert torch.equal(one, two)


def test_the_reverse_trajectory_returns_to_its_start():
    x = points(64)
    there = ode_likelihood(RING, x, schedule=WIDE, tolerance=1e-9)

    def field(logsnr, state):
        return (RING(state[0], logsnr.expand(len(state[0]))).v,)

    back = solve(field, (there.noise,), -9.0, 18.0, rtol=1e-9, atol=1e-9).state[0]
    assert torch.allclose(back, x / math.sqrt(1 + math.exp(-18.0)), atol=1e-6)


def test_a_gaussian_in_closed_form():
    data = Gaussian([0.5, -1.0], [[0.5, 0.3], [0.3, 0.4]])
    x = data.sample(16, torch.Generator().manual_seed(3))
    found = ode_likelihood(data, x, schedule=Linear(8.0, -6.0), prior=data, tolerance=1e-9)
    clean = torch.full((16,), 8.0, dtype=torch.float64)
    a = clean.sigmoid().sqrt()
    of_z0 = (
        data.noisy_log_prob(a[:, None] * x, clean) + 2 * a.log()
    )  # the density of z₀/α₀, exactly
    assert torch.allclose(-found.nats, of_z0, atol=1e-7)
    assert torch.allclose(found.truncation, of_z0 - data.log_prob(x), rtol=0.05, atol=1e-6)
    assert (found.truncation.abs() > 1e-5).any()


def test_a_prior_with_the_datas_moments_is_nearer_than_a_standard_normal():
    data = ORACLES["mixture"]()
    x = data.sample(64, torch.Generator().manual_seed(0))
    fitted = Gaussian.fit(data.sample(20_000, torch.Generator().manual_seed(1)), shrinkage=0.0)
    off = [
        (
            ode_likelihood(data, x, schedule=Linear(18.0, -4.0), prior=p, tolerance=1e-8).nats
            + data.log_prob(x)
        )
        .abs()
        .mean()
        for p in (None, fitted)
    ]
    assert off[1] < 0.2 * off[0]


def test_hutchinsons_mean_is_the_exact_trace_within_its_error():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=generator, dtype=torch.float64) * 0.4
    data = GaussianMixture(
        [0.4, 0.6],
        torch.randn(2, 6, generator=generator),
        torch.stack([mixed @ mixed.T, mixed.T @ mixed]) + 0.1 * torch.eye(6),
    )
    x = data.sample(64, generator)
    exact = ode_likelihood(data, x, schedule=WIDE, trace=Exact())
    random = ode_likelihood(data, x, schedule=WIDE, trace=Hutchinson(probes=4))
    assert exact.standard_error.eq(0).all()
    assert (random.mean - exact.mean) ** 2 < (4 * random.mean_error) ** 2
    z = (random.nats - exact.nats) / random.standard_error
    assert z.abs().median() < 1.5
    assert random.mean_error > 0.01
    assert random.evaluations[0] <= 1.3 * exact.evaluations[0]  # probes cost backward passes alone
    assert (
        ode_likelihood(data, x[:2], schedule=WIDE, trace=Hutchinson(probes=1))
        .standard_error.isnan()
        .all()
    )


def test_a_crowd_of_easy_examples_costs_what_its_hardest_one_does():
    """One far out among 80: the steps are those that it needs."""
    easy, far = points(5).repeat(16, 1), torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    same = {"schedule": WIDE, "prior": PRIOR, "tolerance": 1e-6}
    alone, crowd = (ode_likelihood(RING, x, **same) for x in (far, torch.cat([easy, far])))
    assert crowd.evaluations[-1] >= 0.8 * alone.evaluations[-1]


def test_the_audit_says_what_half_the_tolerance_changes():
    x = points(64)
    loose = ode_likelihood(RING, x, schedule=WIDE, tolerance=1e-3, audit=True)
    finer = ode_likelihood(RING, x, schedule=WIDE, tolerance=5e-4)
    assert torch.allclose(loose.change, finer.nats - loose.nats, atol=1e-12)
    tight = ode_likelihood(RING, x, schedule=WIDE, tolerance=1e-7, audit=True)
    assert tight.change.abs().max() < 1e-5 < loose.change.abs().max()
    assert ode_likelihood(RING, x[:2], schedule=WIDE).change is None
    assert loose.protocol["half the tolerance changes the mean"] == pytest.approx(
        loose.change.mean().item() / (2 * math.log(2))
    )
    with pytest.warns(
        UserWarning,
        match=r"half the tolerance moves the mean by .* bits/dim, "
        r"more than its Monte Carlo error of 0: lower",
    ):
        ode_likelihood(RING, x, schedule=WIDE, tolerance=0.05, audit=True)


def test_a_network_in_float32_and_every_target():
    """A Gaussian's denoiser as a network of weights in float32, told and asked in each
    parameterization."""

    class Exactly(nn.Module):
        def __init__(self, target):
            super().__init__()
            self.target, self.scale = target, nn.Parameter(torch.tensor(0.25))

        def forward(self, z, logsnr):
            z = z / torch.as_tensor(self.target.input_scale(logsnr)).view(-1, 1)
            signal, noise = logsnr.sigmoid()[:, None], logsnr.neg().sigmoid()[:, None]
            total = signal * self.scale + noise
            return self.target.target(
                signal.sqrt() * self.scale / total * z, noise.sqrt() / total * z, logsnr
            )

    data = Gaussian([0.0, 0.0], [0.25, 0.25])
    x = data.sample(32, torch.Generator().manual_seed(0))
    for target in (Eps(), X(), V(), V(0.5)):
        found = ode_likelihood(
            Denoiser(Exactly(target), target), x.float(), schedule=Linear(12.0, -12.0)
        )
        assert found.nats.dtype == torch.float64
        assert torch.allclose(found.nats, -data.log_prob(x), atol=2e-3), target


def test_conditions_go_by_rows():
    def network(z, logsnr, shift):
        signal, noise = logsnr.sigmoid()[:, None], logsnr.neg().sigmoid()[:, None]
        return noise.sqrt() / (0.25 * signal + noise) * (z - signal.sqrt() * shift[:, None])

    shift = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    x = shift[:, None] + 0.3
    found = ode_likelihood(
        Denoiser(network, Eps()),
        x,
        schedule=Linear(14.0, -20.0),
        batch=2,
        condition={"shift": shift},
    )
    assert torch.allclose(found.nats, found.nats[0].expand(5), atol=1e-3)
    assert torch.allclose(
        found.nats, -Gaussian([0.0], [0.25]).log_prob(torch.tensor([[0.3]])).expand(5), atol=1e-3
    )


def test_a_constant_network_has_a_divergence_of_its_own():
    """v̂ = 0 moves nothing: log p is the prior's at α₀ x."""
    x = points(3)
    found = ode_likelihood(
        Denoiser(lambda z, logsnr: torch.zeros_like(z), V()), x, schedule=Linear(10.0, -10.0)
    )
    normal = (
        0.5 * (x.square() / (1 + math.exp(-10.0))).sum(1)
        + math.log(2 * math.pi)
        + math.log1p(math.exp(-10.0))
    )
    assert torch.allclose(found.nats, normal, atol=1e-6)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(probes=3)], ids=repr)
def test_a_linear_field_has_its_exponential(trace):
    """v̂ = A z turns and stretches: z₁ = e^{AΔφ} z₀, log p = log N(z₁) + tr A Δφ + d log α₀. Where
    what is off A's diagonal is antisymmetric, p·Ap = tr A for every p of signs, and each probe
    knows the trace."""
    matrix, seen = torch.tensor([[0.5, -0.8], [0.8, -0.2]], dtype=torch.float64), []
    model = Denoiser(lambda z, logsnr: z @ matrix.T, V())
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    found = ode_likelihood(
        model,
        x,
        schedule=Linear(2.0, -3.0),
        trace=trace,
        tolerance=1e-10,
        progress=lambda done, total: seen.append((done, total)),
    )
    a, s = (1 / math.sqrt(1 + math.exp(-sign * 2.0)) for sign in (1, -1))
    turned = math.atan(math.exp(1.5)) - math.atan(math.exp(-1.0))
    z = torch.linalg.matrix_exp(turned * matrix) @ (a * x[0])
    nats = 0.5 * z.square().sum() + math.log(2 * math.pi) - 0.3 * turned - 2 * math.log(a)
    assert found.replicates.shape == (1 if trace.exact else 3, 1)
    assert torch.allclose(found.replicates, nats.expand_as(found.replicates), atol=1e-7)
    assert torch.allclose(found.noise, z[None], atol=1e-7)
    assert seen[-1] == (1, 1)
    # ½ (‖ε̂‖² − σ div ε̂) of ε̂ = (σ + α A) z₀
    eps = s * a * x[0] + a * matrix @ (a * x[0])
    assert found.truncation.item() == pytest.approx(
        0.5 * (eps.square().sum().item() - s * (2 * s + 0.3 * a)), abs=1e-9
    )


def test_the_audits_change_is_that_of_the_mean_over_probes():
    x, setting = points(3), {"schedule": WIDE, "trace": Hutchinson(probes=3), "seed": 4}
    loose = ode_likelihood(RING, x, tolerance=2e-2, audit=True, **setting)
    finer = ode_likelihood(RING, x, tolerance=1e-2, **setting)
    assert loose.change.abs().max() > 1e-6
    assert torch.allclose(loose.change, finer.nats - loose.nats, atol=1e-12)


def test_a_change_is_told_where_it_is_more_than_the_error_or_the_error_is_unknown():
    """Of one probe no error is known."""
    one, two = (
        Replicated(torch.ones(1, 4), 2, torch.ones(4)),
        Replicated(torch.tensor([[1.0] * 4, [2.0] * 4]), 2, torch.ones(4)),
    )
    bits = 2 * math.log(2) * torch.ones(4)  # a bit in each of two dimensions
    assert math.isnan(one.estimate.monte_carlo)
    assert two.estimate.monte_carlo == pytest.approx(0.25 / (2 * math.log(2)))
    with pytest.warns(
        UserWarning, match=r"by 0\.1 bits/dim, more than its Monte Carlo error of nan"
    ):
        warn_of_tolerance(one, -0.1 * bits)
    with pytest.warns(
        UserWarning, match=r"by 0\.2 bits/dim, more than its Monte Carlo error of 0\.18"
    ):
        warn_of_tolerance(two, 0.2 * bits)
    warn_of_tolerance(two, 0.15 * bits)
    warn_of_tolerance(one, 0.004 * bits)
    warn_of_tolerance(
        one, bits * torch.tensor([1.0, -1.0, 1.0, -1.0])
    )  # it is the mean that must stand
    assert costs(torch.tensor([100.0, 101.0, 101.0]), 0.5 * bits, 2) == {
        "NFE": 100.7,
        "most NFE": 101,
        "half the tolerance changes the mean": pytest.approx(0.5),
        "and one example at most": pytest.approx(0.5),
    }
