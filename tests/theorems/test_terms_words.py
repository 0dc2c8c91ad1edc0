"""Steps, times and words that the terms of a chain refuse."""

import pytest
import torch

from vdiff import Denoiser, elbo, hybrid_loss
from vdiff.chain import path_bound
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.parameterization import Eps, PosteriorMean
from vdiff.profile import Profile
from vdiff.reverse import MonteCarlo
from vdiff.schedule import Linear
from vdiff.variance import AnalyticVariance

from .chains_of_ddpm import STEPS, TABLE, model_and_decoder
from .reference import gmm1d

pytestmark = pytest.mark.usefixtures("float64")


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
