"""The times that losses, trainings and evaluations ask: at every place of a batch each as often,
and the same result in the order of classes."""

import math
import warnings

import pytest
import torch
from registry import objective_of
from scipy.stats import chi2
from uniform_times import around, assert_uniform

from vdiff import Denoiser, elbo, hybrid_loss, weighted_elbo
from vdiff.chain import vlb
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood import VarianceReduction, evaluate
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, Linear
from vdiff.times import grid, offset_of, stratified
from vdiff.training import Config
from vdiff.training.batches import Batches
from vdiff.training.ranks import Rank
from vdiff.training.validation import FIXED


def assert_as_often(steps, probabilities):
    """Each place's steps (calls, places) come as often as their probabilities say, by χ²."""
    for place in steps.T:
        expected = len(steps) * probabilities
        seen = torch.bincount(place.round().long(), minlength=len(probabilities))
        assert len(seen) == len(probabilities)
        assert (seen[probabilities == 0] == 0).all()
        some = probabilities > 0
        away = ((seen - expected).square() / expected)[some].sum()
        assert away < chi2.isf(1e-7, int(some.sum()) - 1)


LINE, CHAIN, PLACES, CALLS = Linear(6.0, -6.0), 5, 6, 1500
LOOKS, ENCODES = DiscretizedGaussian(17, uses_network=True), Categorical(17)
DATA = torch.arange(PLACES)[:, None]
UNEVEN = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 1.0], dtype=torch.float64)


def drawn_by_size(terms):
    """Terms drawn by sizes that were seen."""
    sampler = LossSecondMoment(terms, memory=1)
    sampler.update(torch.arange(1, terms + 1) / terms, UNEVEN[:terms])
    return sampler


def asked(call):
    """The times (calls, evaluations · places) at which one and the same batch asks its model, call
    after call."""
    told = []

    def network(z, logsnr):
        told.append(logsnr.double())
        return 0 * z

    model, generator, times = Denoiser(network, Eps()), torch.Generator().manual_seed(0), []
    for i in range(CALLS):
        told.clear()
        call(model, i, generator)
        times.append(LINE.inverse(torch.cat(told), clamp=True))
    return torch.stack(times)


def share(i, index):
    """The uniform numbers of one of three shares at step i of a training."""
    return stratified(PLACES, offset=offset_of(1, i), index=index, count=3)


X = ENCODES.encode(DATA).double()
OPTIONS = {"schedule": LINE}
ON_CHAIN = {"schedule": LINE, "steps": CHAIN}
BOUND = {"decoder": ENCODES, **OPTIONS}
BOUND_ON_CHAIN = {"decoder": ENCODES, **ON_CHAIN}
LOOKS_ON_CHAIN = {"decoder": LOOKS, **ON_CHAIN}


def by_size(model, options, terms):
    return objective_of(model, resampling=drawn_by_size(terms), **options).eval()


CONTINUOUS = {
    "weighted_elbo": lambda model, _, g: weighted_elbo(model, X, generator=g, **OPTIONS),
    "elbo": lambda model, _, g: elbo(model, DATA, generator=g, **BOUND),
    "elbo, three draws": lambda model, _, g: elbo(model, DATA, draws=3, generator=g, **BOUND),
    "Objective": lambda model, _, g: objective_of(model, **OPTIONS)(X, generator=g),
    "Objective, a share": lambda model, i, _: objective_of(model, **OPTIONS)(X, u=share(i, 2)),
}
ALL_LEVELS = torch.full((CHAIN + 1,), 1 / (CHAIN + 1), dtype=torch.float64)
EVENLY = torch.tensor([0.0] + [1 / CHAIN] * CHAIN, dtype=torch.float64)
BY_SIZE = torch.cat([torch.zeros(1), drawn_by_size(CHAIN).probabilities()])
CHAINS = {
    "weighted_elbo": (
        lambda model, _, g: weighted_elbo(model, X, generator=g, **ON_CHAIN),
        EVENLY,
    ),
    "elbo": (lambda model, _, g: elbo(model, DATA, generator=g, **BOUND_ON_CHAIN), EVENLY),
    "elbo, three draws": (
        lambda model, _, g: elbo(model, DATA, draws=3, generator=g, **BOUND_ON_CHAIN),
        EVENLY,
    ),
    "simple": (
        lambda model, _, g: hybrid_loss(model, X, bound_weight=0, generator=g, **ON_CHAIN),
        ALL_LEVELS,
    ),
    "vlb": (lambda model, _, g: vlb(model, DATA, generator=g, **LOOKS_ON_CHAIN), ALL_LEVELS),
    "Objective, a share": (
        lambda model, i, _: objective_of(model, **ON_CHAIN)(X, u=share(i, 2)),
        EVENLY,
    ),
    "Objective, the simple loss, a share": (
        lambda model, i, _: objective_of(model, bound_weight=0.0, **ON_CHAIN)(X, u=share(i, 2)),
        ALL_LEVELS,
    ),
    "Objective, terms by their size": (
        lambda model, _, g: by_size(model, BOUND_ON_CHAIN, CHAIN)(DATA, generator=g),
        BY_SIZE,
    ),
    "Objective, terms by their size, a share": (
        lambda model, i, _: by_size(model, LOOKS_ON_CHAIN, CHAIN + 1)(DATA, u=share(i, 1)),
        drawn_by_size(CHAIN + 1).probabilities(),
    ),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_place_of_a_batch_is_asked_at_every_time(name):
    assert_uniform(asked(CONTINUOUS[name]))


@pytest.mark.parametrize("name", CHAINS)
def test_every_place_of_a_batch_is_asked_at_every_level_of_a_chain(name):
    call, probabilities = CHAINS[name]
    assert_as_often(asked(call) * CHAIN, probabilities)


def test_every_place_of_a_batch_draws_every_term_by_its_size():
    sampler, generator = drawn_by_size(CHAIN), torch.Generator().manual_seed(0)
    steps = torch.stack([sampler.draw(PLACES, generator)[0] for _ in range(CALLS)]) * CHAIN
    assert_as_often(steps, torch.cat([torch.zeros(1), sampler.probabilities()]))


@pytest.mark.parametrize("draws", [2, 5])
def test_several_times_of_an_example_are_as_many_strata_apart_and_all_of_them_one_grid(draws):
    """t_ki = (u + k/draws + i/(n·draws)) mod 1; over shares, i counts the examples of all."""
    t = grid(4, draws, generator=torch.Generator().manual_seed(0))
    k = torch.arange(draws, dtype=torch.float64)[:, None]
    assert around(t - t[0, 0] - k / draws - torch.arange(4) / (4.0 * draws)).abs().max() < 1e-7
    shares = [stratified(4 * draws, offset=0.31, index=i, count=3) for i in range(3)]
    # example i of share j is i · 3 + j of all
    whole = torch.stack([share.view(draws, 4) for share in shares], 2).flatten(1)
    assert around(whole - 0.31 - k / draws - torch.arange(12) / (12.0 * draws)).abs().max() < 1e-7
    for example in whole.T:
        assert (example * draws).floor().sort().values.tolist() == list(range(draws))


def test_as_many_draws_as_steps_are_every_step_once_for_each_example():
    t = grid(3, 7, steps=7)
    steps = torch.arange(1, 8, dtype=torch.float64)[:, None].expand(7, 3)
    assert torch.equal((t * 7).round().sort(0).values, steps)


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 3)])
def test_every_slot_and_every_image_of_a_training_has_every_time(index, count):
    config = Config(network={"name": "MLP", "dims": 2}, level_head=False, batch=6, shape=[2])
    batches = Batches(torch.zeros(8, 2), config, rank=Rank(index, count))
    slots, images = [], [[] for _ in range(8)]
    for step in range(1200):
        batch = batches(step, 0)
        slots.append(batch.u)
        for image, u in zip(batch.images.tolist(), batch.u.tolist(), strict=True):
            images[image].append(u)
    assert_uniform(torch.stack(slots))
    for times in images:
        assert_uniform(torch.tensor(times)[:, None])


# the error of ε is large at other levels for the wide class than for the narrow one
ORDERED = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[1.0], [1e-4]])
SPREAD = torch.linspace(-2, 2, 64, dtype=torch.float64)
IN_ORDER = torch.cat([-1 + SPREAD, 1 + 1e-2 * SPREAD])[:, None]


def test_a_batch_in_the_order_of_its_classes_has_the_same_loss_under_every_schedule():
    """The same 128 points in the same order, call after call, against times that are drawn one by
    one."""
    ends, calls, g = (12.0, -8.0), 100, torch.Generator().manual_seed(0)
    linear, cosine = Linear(*ends), Cosine(*ends)
    bound = {"decoder": GaussianDecoder(), "schedule": linear, "generator": g}

    def weighted(**options):
        return weighted_elbo(ORDERED, IN_ORDER, generator=g, **options)

    losses = {
        "alone": lambda: weighted(schedule=linear, t=torch.rand(128, generator=g)),
        "Linear": lambda: weighted(schedule=linear),
        "Cosine": lambda: weighted(schedule=cosine),
        "draws": lambda: elbo(ORDERED, IN_ORDER, draws=2, **bound).diffusion,
    }
    means = {}
    for name, loss in losses.items():
        found = torch.stack([loss().mean() for _ in range(calls)])
        means[name] = found.mean(), found.std() / calls**0.5
    for name in ("Linear", "Cosine", "draws"):
        (a, error), (b, other) = means["alone"], means[name]
        assert abs(a - b) < 4 * math.hypot(error, other), means
    bounds = [elbo(ORDERED, IN_ORDER, steps=40, draws=40, **bound) for _ in range(20)]
    every = torch.stack([one.diffusion.mean() for one in bounds])
    drawn = torch.stack([weighted(schedule=linear, steps=40).mean() for _ in range(calls)])
    error = math.hypot(every.std() / 20**0.5, drawn.std() / calls**0.5)
    assert abs(every.mean() - drawn.mean()) < 4 * error


@pytest.mark.parametrize(
    "plan",
    [VarianceReduction(), FIXED, VarianceReduction.plain()],
    ids=["default", "fixed", "plain"],
)
def test_an_evaluation_of_data_in_the_order_of_its_classes_is_unbiased(plan):
    """Each image has a grid of its own. Against times that are drawn one by one."""
    generator = torch.Generator().manual_seed(0)
    options = {"schedule": Linear(12.0, -8.0), "decoder": GaussianDecoder()}
    alone = []
    for _ in range(200):
        t = torch.rand(128, generator=generator)
        bound = elbo(ORDERED, IN_ORDER, t=t, generator=generator, **options)
        alone.append(bound.bits_per_dim.mean())
    known = torch.stack(alone)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "evaluate: ")  # of the plain plan's few large draws
        found = evaluate(ORDERED, IN_ORDER, draws=8, replicates=32, plan=plan, **options).total
    error = math.hypot(known.std() / 200**0.5, found.monte_carlo)
    assert abs(found.value - known.mean()) < 4 * error
    assert error < 0.2
