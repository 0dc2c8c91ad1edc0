"""Every term of a chain's bound by name, against DDPM's own formulas; and its first term, the
decoder's."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vdiff import Denoiser, elbo, hybrid_loss
from vdiff.chain import first_variance, path_bound
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import evaluate
from vdiff.parameterization import Eps, PosteriorMean
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw
from vdiff.schedule import Linear, Tabulated
from vdiff.times import grid
from vdiff.variance import (
    AnalyticVariance,
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
)

from .reference import gmm1d

LEVELS, STEPS = 40, 39
TABLE = Tabulated.linear_betas(levels=LEVELS, rescale_from=100)
BETAS = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64) * 100 / LEVELS
ABAR = (1 - BETAS).cumprod(0)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(z, logsnr):
    """Twice the channels: some ε̂, and some log-interpolation."""
    return torch.cat([0.7 * z + 0.1 * torch.tanh(logsnr)[:, None], torch.sin(3 * z)], 1)


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


def model_and_decoder():
    decoder = DiscretizedGaussian(
        17, uses_network=True, posterior_variance=first_variance(TABLE, STEPS)
    )
    return Denoiser(network, Eps(), variance=LearnedRange()), decoder


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


def test_bad_first_steps_are_named():
    with pytest.raises(
        ValueError,
        match=(
            r"argument 'posterior_variance' must come with uses_network=True and without "
            r"variance; got variance=None, uses_network=False"
        ),
    ):
        DiscretizedGaussian(17, posterior_variance=0.1)
    with pytest.raises(
        ValueError, match=r"argument 'posterior_variance' must be finite and greater than 0"
    ):
        DiscretizedGaussian(17, uses_network=True, posterior_variance=0.0)
    model, decoder = model_and_decoder()
    with pytest.raises(
        ValueError,
        match=r"hybrid_loss: argument 'decoder' must use the network; got Categorical",
    ):
        hybrid_loss(
            model,
            torch.zeros(2, 3, dtype=torch.long),
            schedule=TABLE,
            steps=STEPS,
            decoder=Categorical(17),
        )
    profile = Profile(logsnr_max=12.0, logsnr_min=-12.0, bins=1)
    profile.update(torch.zeros(2), torch.ones(2))
    fitted = Denoiser(lambda z, logsnr: z, Eps(), variance=AnalyticVariance(profile, dims=3))
    with pytest.raises(
        ValueError,
        match=(
            r"argument 'posterior_variance' must be left out with a variance fitted to the "
            r"chain; got AnalyticVariance"
        ),
    ):
        elbo(
            fitted,
            torch.zeros(2, 3, dtype=torch.long),
            schedule=TABLE,
            steps=STEPS,
            decoder=decoder,
        )


@pytest.mark.parametrize("levels", [100, 1000, 4000])
def test_rescaled_betas_keep_the_last_level_and_move_the_first(levels):
    table = Tabulated.linear_betas(levels=levels, rescale_from=1000)
    reference = Tabulated.linear_betas()
    assert table.logsnr_max - reference.logsnr_max == pytest.approx(
        math.log(levels / 1000), abs=2e-3
    )
    assert abs(table.logsnr_min - reference.logsnr_min) < 0.7
    assert torch.allclose(
        table.table, Tabulated.from_betas(torch.linspace(1e-4, 0.02, levels) * 1000 / levels).table
    )


def test_betas_that_rescaling_drives_to_one_are_refused():
    with pytest.raises(
        ValueError, match=r"'betas' must lie strictly between 0 and 1; got 1 at step 20 of 20"
    ):
        Tabulated.linear_betas(levels=20, rescale_from=1000)
    with pytest.raises(ValueError, match=r"got 1\.01.* at step 10 of 10 \(rescaled to few steps"):
        Tabulated.linear_betas(1e-4, 0.01 + 1e-4, levels=10, rescale_from=1000)
    with pytest.raises(
        ValueError,
        match=(
            r"'betas' must be one row of at least two values; got shape \(1,\) \(one noise level "
            r"is a decoder"
        ),
    ):
        Tabulated.from_betas([0.1])
    with pytest.raises(
        ValueError,
        match=(
            r"'alphas_cumprod' must be strictly decreasing \(a step removes signal\); got 0.1 at "
            r"level 1 of 2 and 0.2 at level 2 of 2 \(the table"
        ),
    ):
        Tabulated.from_alphas_cumprod([0.1, 0.2])


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


def test_times_that_are_not_of_the_chain_have_no_name():
    oracle = gmm1d()
    x, t = oracle.sample(2), torch.tensor([0.5, 1.0])
    options = {"schedule": Linear(6.0, -5.0), "steps": 3, "decoder": Gaussian()}
    with pytest.raises(
        ValueError,
        match=(
            r"Bound.terms: argument 't' must be i/3 with i = 1 … 3; got 0.5 \(the times of "
            r"another chain\?\)"
        ),
    ):
        elbo(oracle, x, t=t, **options).terms()
    rounded = (torch.tensor([7.0, 700.0]) / 999).float()
    assert list(elbo(oracle, x, t=rounded, **options | {"steps": 999}).terms()) == [
        "L_0",
        "L_7",
        "L_700",
        "L_1000",
    ]
    with pytest.raises(ValueError, match=r"Bound.terms: argument 't' must be i/999"):
        elbo(oracle, x, t=rounded.bfloat16(), **options | {"steps": 999}).terms()
    model, decoder = model_and_decoder()
    with pytest.raises(
        ValueError,
        match=(
            r"hybrid_loss: argument 't' must be at least 1/steps = 0.025641 on a chain; got 0.01"
        ),
    ):
        hybrid_loss(
            model,
            torch.zeros(1, 3, dtype=torch.long),
            t=torch.tensor([0.01]),
            schedule=TABLE,
            steps=STEPS,
            decoder=decoder,
        )


def test_words_of_other_functions_are_no_conditions():
    model, decoder = model_and_decoder()
    levels = torch.zeros(2, 3, dtype=torch.long)
    options = {"schedule": TABLE, "steps": STEPS, "decoder": decoder}
    for call, word in (
        (hybrid_loss, "draws"),
        (hybrid_loss, "estimator"),
        (elbo, "bound_weight"),
        (path_bound, "draws"),
        (hybrid_loss, "weighting"),
    ):
        with pytest.raises(
            TypeError,
            match=rf"{call.__name__}: argument '{word}' is unknown; ",
        ):
            call(model, levels, **options, **{word: 3})
    with pytest.raises(
        TypeError,
        match=r"path_bound: argument 'eps' is unknown; a path draws the noise of every step",
    ):
        path_bound(model, levels, **options, eps=1)
    with pytest.raises(
        ValueError,
        match=r"elbo: argument 'estimator' must be left out without steps; got MonteCarlo\(\)",
    ):
        elbo(
            gmm1d(),
            torch.zeros(2, 1),
            schedule=Linear(),
            decoder=Gaussian(),
            estimator=MonteCarlo(),
        )
    with pytest.raises(
        ValueError,
        match=r"hybrid_loss: argument 'bound_weight' must be finite and at least 0; got -1",
    ):
        hybrid_loss(model, levels, bound_weight=-1.0, **options)


def test_a_posterior_mean_has_no_denoised_first_level():
    model = Denoiser(lambda z, logsnr: z, PosteriorMean(TABLE, STEPS))
    with pytest.raises(
        ValueError,
        match=(
            r"argument 'uses_network' must be False where the network predicts a chain's "
            r"posterior mean; got True"
        ),
    ):
        elbo(
            model,
            torch.zeros(2, 3),
            schedule=TABLE,
            steps=STEPS,
            decoder=Gaussian(uses_network=True, variance=0.1),
        )


def test_tables_that_are_no_tables_of_beta():
    with pytest.raises(
        ValueError,
        match=(
            r"'betas' must start with little noise; got 0.99, falling to 0.1 \(these look like ᾱ"
        ),
    ):
        Tabulated.from_betas([0.99, 0.5, 0.1])
    with pytest.raises(
        ValueError, match=r"'alphas_cumprod' must be one row of .*; got shape \(1, 2\)"
    ):
        Tabulated.from_alphas_cumprod(torch.tensor([[0.9, 0.8]]))
    with pytest.raises(ValueError, match=r"first_variance: argument 'steps' must be .*; got 0"):
        first_variance(TABLE, 0)
