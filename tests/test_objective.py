"""The objective as one module: which loss it is, and the losses of a chain through it."""

import re
import warnings

import pytest
import torch
from chains import DECODER, EVERY, LEVELS, NOISE, STEPS, TABLE, Heads, Told, chain
from registry import objective_of

from vdiff import Denoiser, Objective, elbo, hybrid_loss, recipe, sample, weighted_elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, Levels
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.objective import Hybrid, Weighted
from vdiff.parameterization import Eps, V
from vdiff.recipes import RECIPES
from vdiff.resampling import LossSecondMoment
from vdiff.sampling import uniform
from vdiff.schedule import Cosine, Linear
from vdiff.times import independent, stratified
from vdiff.variance import LearnedRange
from vdiff.weighting import MSE, MinSNR, Sigmoid


def test_with_a_weighting_a_decoder_encodes_and_measures():
    model, decoder = Denoiser(Heads(1), V()), Categorical(17)
    objective = Objective(model, schedule=Cosine(), loss=Weighted(Sigmoid(), decoder=decoder))
    t = EVERY.clamp(min=0.01)
    known = weighted_elbo(
        model, decoder.encode(LEVELS), schedule=Cosine(), weighting=Sigmoid(), t=t, eps=NOISE
    )
    assert torch.equal(objective(LEVELS, t=t, eps=NOISE), known)
    assert torch.equal(
        objective.bound(LEVELS, t=t, eps=NOISE).total,
        elbo(model, LEVELS, schedule=Cosine(), decoder=decoder, t=t, eps=NOISE).total,
    )
    with pytest.raises(TypeError, match="be integer levels"):
        objective(decoder.encode(LEVELS))


def test_uniform_numbers_become_the_times_of_each_loss():
    """`u` on a fine grid falls on every time as often as the loss draws it."""
    u, n = stratified(4000, offset=0.5), STEPS + 1
    data, seen = LEVELS[:1].expand(4000, 2), []

    def network(z, logsnr):
        seen.append(TABLE.inverse(logsnr.double(), clamp=True) * STEPS)
        return torch.cat([z, z], 1)

    model = Denoiser(network, Eps(), variance=LearnedRange())
    share = {"steps": STEPS, "schedule": TABLE}
    for objective, levels in (
        (objective_of(model, decoder=DECODER, bound_weight=0.1, **share), range(n)),
        (objective_of(model, decoder=DECODER, resampling=LossSecondMoment(n), **share), range(n)),
        (objective_of(model, decoder=Categorical(17), **share), range(1, n)),
        (
            objective_of(
                model, decoder=Categorical(17), resampling=LossSecondMoment(STEPS), **share
            ),
            range(1, n),
        ),
    ):
        seen.clear()
        objective(data, u=u)
        places = seen[0].round().long()
        assert (seen[0] - places).abs().max() < 1e-3
        assert places.unique().tolist() == list(levels)
        counts = torch.bincount(places, minlength=n)[levels[0] :]
        assert (counts - 4000 / len(levels)).abs().max() <= 1
    told = []
    continuous = Objective(
        Denoiser(lambda z, logsnr: told.append(logsnr) or 0 * z, V()),
        schedule=Linear(),
        loss=Weighted(Sigmoid(), decoder=Categorical(17)),
    )
    continuous(data, u=u)
    assert torch.allclose(told[0].double(), Linear()(u), atol=1e-5)
    with pytest.raises(
        ValueError, match=r"Objective: argument 'u' must be left out where t is given"
    ):
        continuous(data, u=u, t=u)


def test_the_hybrid_loss_is_that_of_an_example():
    objective = chain(bound_weight=0.3)
    known = hybrid_loss(
        objective.model,
        LEVELS,
        schedule=TABLE,
        steps=STEPS,
        decoder=DECODER,
        bound_weight=0.3,
        t=EVERY,
        eps=NOISE,
    )
    assert torch.allclose(objective(LEVELS, t=EVERY, eps=NOISE), 2 * known)


def test_without_the_bound_the_hybrid_loss_is_ddpms_simple_loss_on_every_level():
    model = Denoiser(Heads(1), Eps())
    objective = Objective(
        model,
        schedule=TABLE,
        loss=Hybrid(STEPS, bound_weight=0.0, decoder=DiscretizedGaussian(17, uses_network=True)),
    )
    x, logsnr = DECODER.encode(LEVELS), TABLE(EVERY)
    z = logsnr.sigmoid().sqrt()[:, None] * x + (-logsnr).sigmoid().sqrt()[:, None] * NOISE
    known = (model(z.float(), logsnr.float()).eps - NOISE).square().sum(1)
    assert torch.allclose(objective(LEVELS, t=EVERY, eps=NOISE), known, rtol=1e-5)


@pytest.mark.parametrize("decoder", [None, Categorical(17), DECODER, GaussianDecoder()], ids=repr)
def test_the_simple_loss_is_on_every_level_that_a_sampler_visits(decoder):
    """As often on each of T + 1, by the plain squared error of ε, whatever decoder encodes."""
    told = []

    def network(z, logsnr):
        told.append(logsnr.double())
        return 0.5 * z

    model, n = Denoiser(network, Eps()), STEPS + 1
    x = LEVELS if isinstance(decoder, Levels) else EVERY[:, None].expand(n, 2).float()
    encoded = x if decoder is None else decoder.encode(x)
    objective = Objective(
        model, schedule=TABLE, loss=Hybrid(STEPS, bound_weight=0.0, decoder=decoder)
    )
    level = TABLE(EVERY)[:, None]
    z = level.sigmoid().sqrt() * encoded + level.neg().sigmoid().sqrt() * NOISE
    known = (0.5 * z - NOISE).square().sum(1)
    assert torch.allclose(objective(x, t=EVERY, eps=NOISE).double(), known.double(), rtol=1e-5)
    chain = {"schedule": TABLE, "steps": STEPS, "bound_weight": 0}
    simple = hybrid_loss(model, encoded, t=EVERY, eps=NOISE, **chain)
    assert torch.allclose(simple.double(), known.double() / 2, rtol=1e-5)
    for draw in (
        lambda: objective(x, generator=torch.Generator().manual_seed(0)),
        lambda: objective(x, u=stratified(n, offset=0.03)),
        lambda: hybrid_loss(model, encoded, **chain),
    ):
        told.clear()
        draw()
        asked = told[0].sort().values
        told.clear()
        sample(model, torch.randn(1, 2), schedule=TABLE, steps=n - 1)
        assert torch.allclose(asked, torch.cat(told), atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_of_a_recipe_is_on_every_level_that_a_sampler_of_its_chain_visits(name):
    told, row = [], recipe(name)
    model = Denoiser(lambda z, logsnr: told.append(logsnr.double()) or 0 * z, row.parameterization)
    n = 1 if row.steps is None else row.steps + 1
    x, eps = 2 * torch.ones(n, 2), torch.ones(n, 2)
    loss = row.objective(model)(x, u=stratified(n, offset=0.3 / n), eps=eps)
    assert (loss > 0).all()
    if row.steps is None:
        t = torch.tensor([0.3], dtype=torch.float64)
        known = weighted_elbo(
            model, x, schedule=row.schedule, weighting=row.weighting, t=t, eps=eps
        )
        assert torch.equal(loss, known)
    else:
        levels = uniform(row.schedule, row.steps)  # from noise to data
        assert torch.allclose(told[0].flip(0), levels, atol=1e-5)


SAMPLER, BOTH = (
    "the last step of a sampler calls",
    "the last step of a sampler and the decoder call",
)
SIMPLE, LOOK = r"Hybrid\(9, bound_weight=0\) is DDPM.s loss at all 10 times", "decoder that uses"
PLAIN = MSE(TABLE, Eps(), steps=STEPS)


@pytest.mark.parametrize(
    ("options", "asks", "hint"),
    [
        ({"weighting": PLAIN, "decoder": DECODER}, BOTH, SIMPLE),
        ({"weighting": MSE(TABLE, V(), steps=STEPS) * MinSNR(), "decoder": DECODER}, BOTH, SIMPLE),
        ({"weighting": Sigmoid(), "decoder": DECODER}, BOTH, SIMPLE),
        ({"weighting": torch.ones_like, "decoder": DECODER}, BOTH, SIMPLE),
        ({"weighting": PLAIN, "decoder": Categorical(17)}, SAMPLER, SIMPLE),
        ({"bound_weight": 0.1}, SAMPLER, LOOK),
        ({"weighting": PLAIN}, None, None),
        ({}, None, None),
        ({"decoder": DECODER}, None, None),
        ({"decoder": Categorical(17)}, None, None),
        ({"bound_weight": 0.0}, None, None),
        ({"bound_weight": 0.0, "decoder": DECODER}, None, None),
        ({"bound_weight": 0.1, "decoder": DECODER}, None, None),
        ({"bound_weight": 0.1, "decoder": GaussianDecoder(uses_network=True)}, None, None),
        ({"weighting": Sigmoid(), "decoder": DECODER, "steps": None}, None, None),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)) if not isinstance(v, dict) else "-".join(v),
)
def test_a_loss_that_leaves_out_the_first_level_says_so(options, asks, hint):
    model = Denoiser(Heads(), Eps(), variance=LearnedRange())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective_of(model, schedule=TABLE, **({"steps": STEPS} | options))
    assert len(caught) == (asks is not None)
    if asks is not None:
        what = "Objective: on a chain of 9 steps this loss trains t = 1/9 … 1"
        assert re.match(
            rf"{what} and not t = 0, where {asks} the network \(.*{hint}",
            str(caught[0].message),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"bound_weight": 0.1},
        {"bound_weight": 0.0},
        {"resampling": LossSecondMoment(STEPS + 1)},
        {},
    ],
    ids=str,
)
def test_every_loss_of_a_chain_trains_all_of_the_network(options):
    objective = chain(**options)
    objective(LEVELS, generator=torch.Generator().manual_seed(0)).mean().backward()
    gradients = [p.grad for p in objective.model.network.outer.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients)
    mean, spread = gradients[0].chunk(2)
    assert mean.abs().sum() > 0
    assert (spread.abs().sum() > 0) == (options.get("bound_weight") != 0.0)


def test_independent_times_are_drawn_and_labelled_as_no_bound():
    loss = Weighted(Sigmoid(2.0), independent=[1])
    assert repr(loss) == "Weighted(Sigmoid(bias=2.0), independent=(1,): no bound)"
    assert loss.independent == (1,)
    assert not loss.is_bound
    x = torch.randn(6, 4, 2)
    objective = Objective(Denoiser(Told(), V(), field=True), schedule=Cosine(), loss=loss)
    generator = torch.Generator().manual_seed(0)
    found = objective(x, generator=generator)
    generator = torch.Generator().manual_seed(0)
    t = independent(x, (1,), generator=generator)
    expected = weighted_elbo(
        objective.model, x, schedule=Cosine(), weighting=Sigmoid(2.0), t=t, generator=generator
    )
    assert torch.equal(found, expected)
    one = Objective(objective.model, schedule=Cosine(), loss=Weighted(Sigmoid(2.0)))
    assert (found - one(x, generator=torch.Generator().manual_seed(0))).abs().max() > 0.1


def test_independent_times_on_a_chain_are_ends_of_its_steps():
    loss = Weighted(independent=(1,), steps=5)
    u = independent(torch.zeros(7, 3), (1,))
    t, _ = loss.times(u)
    assert torch.equal((5 * t).round() / 5, t)


@pytest.mark.parametrize("dims", [(0,), 1, ("tokens",)])
def test_independent_takes_dimensions_behind_the_batch(dims):
    with pytest.raises((ValueError, TypeError), match="Weighted: argument 'independent' must be"):
        Weighted(independent=dims)
