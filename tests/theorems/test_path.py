"""One path through the whole chain: the log-ratio that is an importance weight, and the order of
variances reversed."""

import math

import pytest
import torch
from registry import ORACLES

from vdiff import Denoiser, elbo
from vdiff.chain import first_variance, path_bound
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.gaussian import Step
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import X
from vdiff.schedule import Linear, Tabulated
from vdiff.variance import FixedLarge

SCHEDULE = Linear(6.0, -5.0)


def gmm1d():
    return ORACLES["mixture"]()


def within(value, expected, standard_errors=4.0):
    error = value.std() / len(value) ** 0.5
    return abs(value.mean() - expected) < standard_errors * error


@pytest.mark.parametrize(
    "decoder", [Gaussian(), Gaussian(uses_network=True, variance=0.01)], ids=repr
)
@pytest.mark.parametrize("steps", [1, 5])
def test_both_estimators_have_the_bound_as_their_mean(decoder, steps):
    oracle, n = gmm1d(), 40_000
    x = oracle.sample(1).expand(n, -1)
    options = {"schedule": SCHEDULE, "decoder": decoder, "steps": steps}
    exact = elbo(
        oracle, x, draws=steps, generator=torch.Generator().manual_seed(0), **options
    ).total
    path = path_bound(oracle, x, generator=torch.Generator().manual_seed(1), **options)
    for estimate in path:
        difference = estimate - exact  # independent draws: the errors add
        assert within(difference, 0.0)


def test_the_density_of_the_path_written_out():
    """log q(z₀ … z₁ | x) − log p(x, z₀ … z₁) from forward densities q(z_t | z_s), the other way to
    factor it."""
    steps = 3
    levels = torch.tensor([[3, 9, 16]])
    decoder, seen = Categorical(17), []

    def watched(z, logsnr):
        seen.append((z, logsnr))
        return Denoiser(lambda z, logsnr: torch.tanh(z), X(), variance=FixedLarge())(z, logsnr)

    torch.set_default_dtype(torch.float64)
    try:
        got = path_bound(
            watched,
            levels,
            schedule=SCHEDULE,
            decoder=decoder,
            steps=steps,
            generator=torch.Generator().manual_seed(3),
        )
        x = decoder.encode(levels)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(
        3
    )  # the path once more, z₀ included, which the model is not shown
    eps = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    t = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    z = [seen[0][0]]
    for i in range(steps):
        step = Step(SCHEDULE(t[i : i + 1]), SCHEDULE.delta(t[i : i + 1], steps))
        eps = step.noise_s(eps, torch.randn(x.shape, dtype=torch.float64, generator=generator))
        s = step.logsnr_s
        z.append(s.sigmoid().sqrt() * x + (-s).sigmoid().sqrt() * eps)
    for a, (b, _) in zip(z[:-1], seen, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    normal = torch.distributions.Normal
    lam = [SCHEDULE(torch.tensor(i / steps, dtype=torch.float64)) for i in range(steps, -1, -1)]
    alpha, sigma = [v.sigmoid().sqrt() for v in lam], [(-v).sigmoid().sqrt() for v in lam]
    log_q = normal(alpha[-1] * x, sigma[-1]).log_prob(z[-1]).sum()
    log_p = (
        normal(0.0, 1.0).log_prob(z[0]).sum()
        + decoder.log_prob(levels, z[-1] / alpha[-1], 6.0).sum()
    )
    for i in range(steps):
        kept = alpha[i] / alpha[i + 1]
        c = -torch.expm1(lam[i] - lam[i + 1])
        spread = (c * sigma[i].square()).sqrt()
        log_q = log_q + normal(kept * z[i + 1], spread).log_prob(z[i]).sum()
        mean = alpha[i + 1] * (
            (lam[i] - lam[i + 1]).exp() * z[i] / alpha[i] + c * torch.tanh(z[i])
        )
        log_p = log_p + normal(mean, spread).log_prob(z[i + 1]).sum()
    assert got.log_ratio.item() == pytest.approx((log_q - log_p).item(), rel=1e-10)


def test_along_a_path_the_order_of_the_variances_is_reversed():
    """Term by term the closed form wins; summed along one path the log-ratio does, by O(T) at the
    exact denoiser."""
    oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    x = torch.full((4000, 1), 0.5, dtype=torch.float64)
    ratio = []
    for steps in (10, 100):
        path = path_bound(
            oracle,
            x,
            schedule=Linear(13.3, -5.0),
            decoder=Gaussian(),
            steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
        ratio.append((path.rao_blackwell.var() / path.log_ratio.var()).item())
    assert 1.0 < ratio[0] < 2.0  # 1.31 exactly
    assert 8.0 < ratio[1] < 12.0  # 9.9 exactly


def test_importance_weights_tighten_the_bound_towards_the_likelihood():
    """E[exp(−log_ratio)] = p(x) of the chain; −log of a mean over K lies between the bound and
    −log p(x)."""
    oracle, steps, n = GaussianMixture([1.0], [[0.2]], [[0.5]]), 20, 16_384
    x = torch.full((n, 1), 0.4, dtype=torch.float64)

    def model(z, logsnr):
        return oracle(z, logsnr)

    path = path_bound(
        model,
        x,
        schedule=SCHEDULE,
        decoder=Gaussian(),
        steps=steps,
        generator=torch.Generator().manual_seed(0),
    )
    # the chain of a Gaussian's exact denoiser is linear: its marginal p(x) is a Gaussian,
    # propagated here
    mean, variance = torch.zeros(1, 1, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in range(steps, 0, -1):
        t = torch.tensor([i / steps], dtype=torch.float64)
        step = Step(SCHEDULE(t), SCHEDULE.delta(t, steps))
        at = [step.mean(z, oracle(z, step.logsnr_t).x) for z in (mean, mean + 1)]
        variance = (at[1] - at[0]).square().squeeze() * variance + step.variance.squeeze()
        mean = at[0]
    a = torch.sigmoid(torch.tensor(6.0, dtype=torch.float64)).sqrt()
    log_p = (
        torch.distributions.Normal(mean / a, (variance / a**2 + math.exp(-6.0)).sqrt())
        .log_prob(x[:1])
        .item()
    )
    weights = torch.exp(-path.log_ratio - log_p)
    assert within(weights, 1.0)
    groups = path.log_ratio.view(-1, 64)
    tighter = -(torch.logsumexp(-groups, 1) - math.log(64))
    assert tighter.mean() < path.log_ratio.mean()
    assert tighter.mean() > -log_p - 4 * tighter.std() / len(tighter) ** 0.5


def test_the_first_variance_is_ddpms_second_posterior():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    left = (1 - betas).cumprod(0)
    assert first_variance(Tabulated.linear_betas(), 999) == pytest.approx(
        (betas[1] * (1 - left[0]) / (1 - left[1])).item(), rel=1e-10
    )


def test_a_decoder_that_denoises_is_read_at_the_paths_own_end():
    model = Denoiser(lambda z, logsnr: torch.tanh(3 * z), X())
    table = Tabulated.linear_betas(levels=20, rescale_from=30)
    decoder = DiscretizedGaussian(17, uses_network=True, variance=0.01)
    levels = torch.tensor([[3, 9]]).expand(20_000, 2)
    options = {"schedule": table, "steps": table.steps, "decoder": decoder}
    exact = elbo(
        model, levels, draws=table.steps, generator=torch.Generator().manual_seed(0), **options
    )
    path = path_bound(model, levels, generator=torch.Generator().manual_seed(1), **options)
    for estimate in path:
        assert within(estimate - exact.total, 0.0)
