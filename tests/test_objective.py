"""The objective as one module: which loss it is, and the losses of a chain through it."""

import re
import warnings

import pytest
import torch
from registry import objective_of
from torch import nn

from vdiff import Denoiser, Objective, elbo, hybrid_loss, recipe, sample, weighted_elbo
from vdiff.chain import first_variance, vlb
from vdiff.decoder import Categorical, DiscretizedGaussian, Levels
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.objective import VLB, Hybrid, Weighted
from vdiff.parameterization import Eps, V
from vdiff.recipes import RECIPES
from vdiff.resampling import LossSecondMoment
from vdiff.sampling import uniform
from vdiff.schedule import Adaptive, Cosine, LearnedLinear, Linear, Monotone, Tabulated
from vdiff.times import independent, stratified
from vdiff.variance import LearnedRange
from vdiff.weighting import MSE, MinSNR, Sigmoid

STEPS = 9
TABLE = Tabulated.cosine_betas(STEPS + 1)
DECODER = DiscretizedGaussian(
    17, uses_network=True, posterior_variance=first_variance(TABLE, STEPS)
)
LEVELS = torch.randint(0, 17, (STEPS + 1, 2), generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(STEPS + 1, 2, generator=torch.Generator().manual_seed(2))
EVERY = (
    torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
)  # every level of the chain, the decoder's first


class Heads(nn.Module):
    """A smooth network of points with a mean and, with `heads` = 2, a variance."""

    def __init__(self, heads=2):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2 * heads)
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)

    def forward(self, z, logsnr):
        return self.outer(torch.tanh(self.inner(torch.cat([z, 0.1 * logsnr[:, None]], 1))))


def chain(**options):
    return objective_of(
        Denoiser(Heads(), Eps(), variance=LearnedRange()),
        schedule=TABLE,
        decoder=DECODER,
        steps=STEPS,
        **options,
    )


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


def test_one_term_of_the_bound_times_their_number_is_the_bound_on_average():
    """Term by term: each is n times what `elbo`, which evaluates the network twice, has for it."""
    objective, n = chain(), STEPS + 1
    one = vlb(
        objective.model, LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER, t=EVERY, eps=NOISE
    )
    whole = elbo(
        objective.model,
        LEVELS,
        schedule=TABLE,
        steps=STEPS,
        decoder=DECODER,
        t=EVERY.clamp(min=1 / STEPS),
        eps=NOISE,
    )
    assert torch.allclose(one.prior, whole.prior)
    assert torch.allclose(one.diffusion[1:] / n, whole.diffusion[1:] / STEPS, rtol=1e-5)
    assert torch.allclose(one.reconstruction[:1] / n, whole.reconstruction[:1], rtol=1e-5)
    assert (one.diffusion[0], *one.reconstruction[1:].tolist()) == (0.0, *[0.0] * STEPS)
    drawn = vlb(
        objective.model,
        LEVELS,
        schedule=TABLE,
        steps=STEPS,
        decoder=DECODER,
        generator=torch.Generator().manual_seed(0),
    )
    assert int((drawn.reconstruction > 0).sum()) == 1  # ten examples, ten terms, stratified


@pytest.mark.parametrize("looks", [True, False])
def test_terms_drawn_by_their_size_have_the_mean_of_the_bound(looks):
    torch.manual_seed(0)
    decoder, terms = (DECODER, STEPS + 1) if looks else (Categorical(17), STEPS)
    sampler = LossSecondMoment(terms, memory=1)
    sampler.update(torch.arange(1, terms + 1) / terms, torch.logspace(0, 2, terms))
    objective = Objective(
        Denoiser(Heads(), Eps(), variance=LearnedRange()),
        schedule=TABLE,
        loss=VLB(decoder, steps=STEPS, resampling=sampler),
    ).eval()
    data, eps = LEVELS[:1].expand(200_000, 2), NOISE[:1].expand(200_000, 2)
    found = objective(data, u=stratified(200_000, offset=0.5), eps=eps).double().mean()
    whole = [objective.bound(LEVELS[:1], t=t[None], eps=NOISE[:1]) for t in EVERY[1:]]
    known = whole[0].prior + whole[0].reconstruction + sum(one.diffusion for one in whole) / STEPS
    assert found.item() == pytest.approx(known.item(), rel=1e-3)
    assert (sampler.noted == 0).all()  # an evaluation is not noted


def test_at_given_times_a_drawn_term_has_the_rest_of_its_bound():
    """The reconstruction too, which is small beside the term."""
    chosen = VLB(Categorical(17), steps=STEPS, resampling=LossSecondMoment(STEPS))
    objective = Objective(chain().model, schedule=TABLE, loss=chosen)
    given = {"t": EVERY.clamp(min=1 / STEPS), "eps": NOISE}
    bound = objective.bound(LEVELS, **given)
    rest = bound.prior + bound.reconstruction
    found = objective(LEVELS, **given) - bound.diffusion
    torch.testing.assert_close(found, rest, rtol=1e-3, atol=1e-6)
    assert (rest > 1e-3).any()


def test_what_is_drawn_follows_the_losses_of_all_micro_batches_and_ranks():
    """Two halves of a batch with their notes summed leave the memory that one process has."""
    one, halves = (
        chain(resampling=LossSecondMoment(STEPS + 1)),
        [chain(resampling=LossSecondMoment(STEPS + 1)) for _ in range(2)],
    )
    t = EVERY.roll(1)
    one(LEVELS, t=t, eps=NOISE)
    for i, half in enumerate(halves):
        half(LEVELS[i::2], t=t[i::2], eps=NOISE[i::2])
    notes = sum(half.loss.resampling.noted for half in halves)
    one.update()
    for half in halves:
        half.update(lambda _: notes.clone())
        assert torch.allclose(half.loss.resampling.history, one.loss.resampling.history)
        assert torch.equal(half.loss.resampling.count, torch.ones(STEPS + 1, dtype=torch.long))
        assert (half.loss.resampling.noted == 0).all()
    known = vlb(one.model, LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER, t=t, eps=NOISE)
    known = (known.diffusion + known.reconstruction)[EVERY.roll(1).argsort()]
    assert torch.allclose(one.loss.resampling.history[:, 0], known.double(), rtol=1e-6)
    one.loss.resampling.note(torch.tensor([0.1, 0.1, 0.2]), torch.tensor([3.0, 4.0, torch.nan]))
    one.update()
    assert one.loss.resampling.history[0, 1].item() == pytest.approx(12.5**0.5)
    assert one.loss.resampling.count[:3].tolist() == [2, 1, 1]


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


@pytest.mark.parametrize(("build", "message"), [
    (lambda: chain(bound_weight=-1.0), "'bound_weight' must be finite and at least 0"),
    (lambda: chain(resampling=LossSecondMoment(STEPS)),
    (
        f"'resampling' must have as many steps as the bound has terms, with the decoder's, "
        f"{STEPS + 1}; got {STEPS}"
    )),
])  # fmt: skip
def test_losses_that_do_not_go_together(build, message):
    with pytest.raises(ValueError, match=r"(Hybrid|VLB): argument " + message):
        build()


def test_one_term_is_refused_where_another_loss_is_meant():
    model = Denoiser(Heads(), Eps(), variance=LearnedRange())
    with pytest.raises(
        ValueError, match=r"vlb: argument 'decoder' must use the network; got .*elbo takes it"
    ):
        vlb(model, LEVELS, schedule=TABLE, steps=STEPS, decoder=Categorical(17))
    with pytest.raises(
        ValueError,
        match=(
            r"vlb: argument 'schedule' must have fixed ends; got "
            r".*elbo\(…, steps=T\) trains them"
        ),
    ):
        vlb(model, LEVELS, schedule=LearnedLinear(), steps=STEPS, decoder=DECODER)
    with pytest.raises(
        ValueError,
        match=(
            r"hybrid_loss: argument 'model' must learn its reverse variance; .* bound_weight=0 is "
            r"the simple loss"
        ),
    ):
        hybrid_loss(
            Denoiser(Heads(1), Eps()), LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER
        )


NO_SIGNAL = Tabulated([3.0, 1.0, 0.0, -2.0, -float("inf")])
DRAWN = {"decoder": DECODER, "steps": STEPS, "resampling": LossSecondMoment(STEPS + 1)}
REFUSED = {  # learned heads, schedule, loss, arguments, message
    "a squared error and a variance": (
        2,
        Cosine(),
        Weighted(),
        {},
        "'model' must have no learned",
    ),
    "its chain": (2, Cosine(), Weighted(steps=5), {}, "'model' must have no learned"),
    "a variance in time": (
        2,
        Cosine(),
        VLB(GaussianDecoder()),
        {},
        "'model' must have no learned",
    ),
    "a bound without a variance": (1, TABLE, Hybrid(STEPS), {}, "'model' must learn its reverse"),
    "a shape": (2, Monotone(learn_ends=False), Hybrid(5), {}, "'schedule' must have a fixed"),
    "ends": (1, LearnedLinear(), VLB(**DRAWN), {}, "'schedule' must have a? ?fixed"),
    "a weight at pure noise": (1, NO_SIGNAL, Weighted(steps=4), {}, "'weighting' must be finite"),
    "times before the data": (
        1,
        TABLE,
        Weighted(steps=STEPS),
        {"t": 0.01},
        "'t' must be at least",
    ),
    "t = 0": (1, Cosine(), VLB(GaussianDecoder(), steps=4), {"t": 0.0}, "'t' must be at least"),
    "numbers above 1": (1, Cosine(), Weighted(), {"u": 1.3}, r"'u' must lie within \[0, 1\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_function_refuses_its_objective_refuses(name):
    heads, schedule, loss, given, message = REFUSED[name]
    model = Denoiser(Heads(heads), Eps(), **({"variance": LearnedRange()} if heads == 2 else {}))
    data = LEVELS if isinstance(loss.decoder, Levels) else NOISE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = Objective(model, schedule=schedule, loss=loss)
        with pytest.raises(ValueError, match=f"Objective: argument {message}"):
            objective(data, **{word: torch.full((len(data),), v) for word, v in given.items()})


# ---- independent times


class Told(nn.Module):
    """A model whose error at a token depends on the λ of all tokens."""

    def forward(self, z, logsnr):
        field = logsnr.expand_as(z)
        return torch.tanh(0.1 * field + 0.05 * field.mean(1, keepdim=True)) * z


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


def test_a_schedule_that_learns_from_losses_refuses_independent_times():
    model = Denoiser(Told(), V(), field=True)
    objective = Objective(model, schedule=Adaptive(9, -9), loss=Weighted(independent=(1,)))
    with pytest.raises(ValueError, match="be one time per example for a schedule that learns"):
        objective(torch.randn(4, 3))
