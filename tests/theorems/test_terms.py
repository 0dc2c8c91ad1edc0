"""Every term of a chain's bound by name, against DDPM's own formulas; and its first term, the
decoder's."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vdiff import Denoiser, elbo, hybrid_loss
from vdiff.decoder import DiscretizedGaussian, Gaussian
from vdiff.likelihood import evaluate
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.reverse import RaoBlackwell, Raw
from vdiff.schedule import Linear
from vdiff.times import grid
from vdiff.variance import (
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
)

from .chains_of_ddpm import LEVELS, STEPS, TABLE, model_and_decoder, network
from .reference import gmm1d

BETAS = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64) * 100 / LEVELS
ABAR = (1 - BETAS).cumprod(0)


pytestmark = pytest.mark.usefixtures("float64")


def ddpm_terms(levels, eps):
    """L_0 … L_1000 as in the papers, with index t = 1 … n of the table, iDDPM's learned range and
    its clip."""
    x = 2 * levels / 16 - 1
    before = torch.cat([torch.ones(1), ABAR[:-1]])
    small = BETAS * (1 - before) / (1 - ABAR)
    clipped = torch.cat([small[1:2], small[1:]])
    terms = {
        f"L_{LEVELS}": kl_divergence(
            Normal(ABAR[-1].sqrt() * x, (1 - ABAR[-1]).sqrt()), Normal(0.0, 1.0)
        ).sum(1)
    }
    for t in range(LEVELS):
        z = ABAR[t].sqrt() * x + (1 - ABAR[t]).sqrt() * eps
        logsnr = (ABAR[t] / (1 - ABAR[t])).log().expand(len(x))
        out, head = network(z, logsnr).chunk(2, 1)
        share = (head + 1) / 2
        std = (0.5 * (share * BETAS[t].log() + (1 - share) * clipped[t].log())).exp()
        mean = (z - BETAS[t] / (1 - ABAR[t]).sqrt() * out) / (1 - BETAS[t]).sqrt()
        if t == 0:
            upper = torch.where(levels == 16, torch.ones(()), Normal(mean, std).cdf(x + 1 / 16))
            lower = torch.where(levels == 0, torch.zeros(()), Normal(mean, std).cdf(x - 1 / 16))
            terms["L_0"] = -(upper - lower).log().sum(1)
        else:
            posterior = (
                before[t].sqrt() * BETAS[t] / (1 - ABAR[t]) * x
                + (1 - BETAS[t]).sqrt() * (1 - before[t]) / (1 - ABAR[t]) * z
            )
            terms[f"L_{t}"] = kl_divergence(
                Normal(posterior, small[t].sqrt()), Normal(mean, std)
            ).sum(1)
    return terms


def test_the_terms_are_ddpms_own():
    model, decoder = model_and_decoder()
    levels, eps = torch.randint(0, 17, (8, 3)), torch.randn(8, 3)
    bound = elbo(model, levels, schedule=TABLE, steps=STEPS, decoder=decoder, draws=STEPS, eps=eps)
    terms, expected = bound.terms(nats=True), ddpm_terms(levels, eps)
    assert list(terms) == [f"L_{i}" for i in range(LEVELS + 1)]
    for name, value in expected.items():
        assert torch.allclose(terms[name], value, rtol=1e-6, atol=1e-9), name
    assert torch.allclose(sum(terms.values()), bound.total, rtol=1e-12)
    in_bits = bound.terms()
    assert torch.allclose(sum(in_bits.values()), bound.bits_per_dim, rtol=1e-12)
    assert torch.allclose(in_bits["L_7"], terms["L_7"] / (3 * math.log(2)), rtol=1e-12)


def test_a_subset_of_the_steps_is_unbiased_and_says_which_it_saw():
    oracle, n, steps = gmm1d(), 4000, 12
    x = oracle.sample(1).expand(n, -1)
    options = {"schedule": Linear(6.0, -5.0), "steps": steps, "decoder": Gaussian()}
    generator = torch.Generator().manual_seed(0)
    whole = elbo(oracle, x, draws=steps, generator=generator, **options)
    few = elbo(oracle, x, draws=3, generator=generator, **options)
    one = elbo(oracle, x, generator=generator, **options)
    for bound in (few, one):
        difference = bound.diffusion - whole.diffusion
        assert abs(difference.mean()) < 4 * difference.std() / n**0.5
    assert whole.diffusion.var() < few.diffusion.var() < one.diffusion.var()
    terms = few.terms(nats=True)
    seen = torch.stack([~terms[f"L_{i}"].isnan() for i in range(1, steps + 1)])
    assert (seen.sum(0) == 3).all()  # each example three steps,
    assert all((seen[4 * j : 4 * j + 4].sum(0) == 1).all() for j in range(3))  # one in each third,
    assert (seen.sum(1) == n / 4).all()  # and over the batch each step equally often
    for i in range(1, steps + 1):
        a, b = terms[f"L_{i}"], whole.terms(nats=True)[f"L_{i}"]
        a = a[~a.isnan()]
        assert abs(a.mean() - b.mean()) < 5 * (a.var() / len(a) + b.var() / n).sqrt()


def test_several_draws_lie_in_equal_strata_in_continuous_time_too():
    t = grid(5, 4, generator=torch.Generator().manual_seed(0))
    strata = torch.arange(4, dtype=torch.float64)[:, None].expand(4, 5)
    assert torch.equal((t * 4).floor().sort(0).values, strata)
    assert torch.allclose(t.flatten().sort().values.diff(), torch.full((19,), 1 / 20))
    oracle = gmm1d()
    x = oracle.sample(4000)
    options = {
        "schedule": Linear(6.0, -5.0),
        "decoder": Gaussian(),
        "generator": torch.Generator().manual_seed(0),
    }
    few, one = (elbo(oracle, x, draws=draws, **options) for draws in (4, 1))
    assert (
        abs((few.diffusion - one.diffusion).mean())
        < 4 * (few.diffusion - one.diffusion).std() / len(x) ** 0.5
    )
    assert few.diffusion.var() < one.diffusion.var()
    with pytest.raises(
        ValueError, match=r"Bound.terms: argument 'steps' must be given to elbo; got None"
    ):
        few.terms()


def test_draws_are_checked():
    oracle = gmm1d()
    options = {"schedule": Linear(6.0, -5.0), "decoder": Gaussian()}
    with pytest.raises(ValueError, match=r"elbo: argument 'draws' must be .*; got 0"):
        elbo(oracle, oracle.sample(4), draws=0, **options)
    with pytest.raises(
        ValueError, match=r"elbo: argument 'draws' must be 1 where t is given; got 2"
    ):
        elbo(oracle, oracle.sample(4), draws=2, t=torch.rand(4), **options)


@pytest.mark.parametrize(
    ("variance", "log_variance"),
    [
        (FixedSmall(), lambda head, large, clip: clip.log()),
        (FixedLarge(), lambda head, large, clip: large.log()),
        (
            LearnedRange(),
            lambda head, large, clip: (head + 1) / 2 * large.log() + (1 - head) / 2 * clip.log(),
        ),
        (LearnedLogVariance(), lambda head, large, clip: head),
        (LearnedVariance(), lambda head, large, clip: torch.nn.functional.softplus(head).log()),
    ],
    ids=lambda v: repr(v) if not callable(v) else "",
)
def test_the_decoders_variance_is_the_networks(variance, log_variance):
    clip, lam = 0.004, torch.tensor(4.0)
    decoder = DiscretizedGaussian(17, uses_network=True, posterior_variance=clip)
    levels, z, head = torch.randint(0, 17, (6, 2)), torch.randn(6, 2), torch.randn(6, 2)
    prediction = Prediction(
        z, lam.expand(6), torch.tanh(z), Eps(), variance, head if variance.learned else None
    )
    expected = log_variance(head, torch.sigmoid(-lam), torch.tensor(clip)).expand(6, 2)
    fixed = torch.stack(
        [
            torch.cat(
                [
                    DiscretizedGaussian(
                        17, uses_network=True, variance=expected[i, j].exp().item()
                    ).log_prob(
                        levels[i : i + 1, j : j + 1], prediction.x[i : i + 1, j : j + 1], 4.0
                    )
                    for j in range(2)
                ]
            ).sum()
            for i in range(6)
        ]
    )
    assert torch.allclose(decoder.nll(levels, z, 4.0, lambda *_: prediction), -fixed, rtol=1e-10)


def test_hybrid_with_a_decoder_draws_every_term_of_ddpm():
    """n = T + 1 terms, the decoder's at t = 0; the mean is stopped in it too."""
    model, decoder = model_and_decoder()
    levels, eps = torch.randint(0, 17, (LEVELS, 3)), torch.randn(LEVELS, 3)
    t = torch.arange(LEVELS) / STEPS
    options = {"schedule": TABLE, "steps": STEPS, "decoder": decoder}
    loss = hybrid_loss(model, levels, t=t, eps=eps, **options)
    terms = ddpm_terms(levels, eps)
    bound = torch.stack([terms[f"L_{i}"][i] for i in range(LEVELS)])
    x = decoder.encode(levels)
    z = ABAR.sqrt()[:, None] * x + (1 - ABAR).sqrt()[:, None] * eps
    simple = (network(z, TABLE(t))[:, :3] - eps).square().mean(1)
    assert torch.allclose(loss, simple + 0.001 * LEVELS * bound / 3, rtol=1e-6)
    torch.manual_seed(0)
    drawn = [
        hybrid_loss(model, levels[:4].expand(4, 3).repeat(500, 1), **options).mean()
        for _ in range(3)
    ]
    assert torch.isfinite(torch.stack(drawn)).all()


def test_the_mean_gets_nothing_from_the_decoders_term():
    scale = torch.ones((), requires_grad=True)
    model = Denoiser(
        lambda z, logsnr: torch.cat([scale * z, scale.detach() * z], 1),
        Eps(),
        variance=LearnedRange(),
    )
    decoder = model_and_decoder()[1]
    levels, eps, t = torch.randint(0, 17, (16, 3)), torch.randn(16, 3), torch.zeros(16)
    options = {"schedule": TABLE, "steps": STEPS, "decoder": decoder, "t": t, "eps": eps}
    slopes = [
        torch.autograd.grad(hybrid_loss(model, levels, bound_weight=w, **options).mean(), scale)[0]
        for w in (0.0, 10.0)
    ]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=repr)
def test_a_chains_profile_is_of_the_models_error_whatever_its_variance(variance):
    oracle = gmm1d()

    def model(z, logsnr):
        p = oracle(z, logsnr)
        return Prediction(z, logsnr, p.output, p.parameterization, variance)

    profile = Profile(logsnr_max=6.0, logsnr_min=-5.0, bins=4)
    evaluate(
        model,
        oracle.sample(4000),
        schedule=Linear(6.0, -5.0),
        decoder=Gaussian(),
        steps=4,
        draws=4,
        replicates=2,
        profile=profile,
    )
    levels = torch.tensor([-5.0, -2.25, 0.5, 3.25])
    assert ((profile.mean - oracle.mmse(levels)).abs() < 4 * profile.standard_error).all()


def test_the_raw_estimators_total_is_a_bound_too():
    oracle, n = gmm1d(), 40_000
    x = oracle.sample(n)
    options = {"schedule": Linear(6.0, -5.0), "steps": 5, "decoder": Gaussian(), "draws": 5}
    closed, raw = (
        elbo(oracle, x, estimator=e, generator=torch.Generator().manual_seed(i), **options).total
        for i, e in enumerate((RaoBlackwell(), Raw()))
    )
    assert abs((raw - closed).mean()) < 4 * (raw - closed).std() / n**0.5
