"""Times: one grid over batch, ranks and accumulation; pure functions of seed and step."""

import itertools
import math
import warnings

import pytest
import torch
from registry import objective_of
from scipy.stats import chi2

from vdiff import Denoiser, elbo, hybrid_loss, weighted_elbo
from vdiff.chain import vlb, with_decoder
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood import VarianceReduction, evaluate
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, Linear
from vdiff.times import (
    draws_of_step,
    generator_of,
    grid,
    independent,
    offset_of,
    on_chain,
    stratified,
)
from vdiff.training import Config
from vdiff.training.batches import Batches
from vdiff.training.ranks import Rank
from vdiff.training.validation import FIXED


def test_every_stratum_has_one_time_for_every_batch_up_to_2048():
    for n in range(1, 2049):
        for offset in (2**-24, 1 - 2**-24):
            t = stratified(n, offset=offset)
            assert (t * n).floor().sort().values.tolist() == list(range(n))
            assert 0 <= t.min() <= t.max() < 1


@pytest.mark.parametrize(("batch", "count"), [(1, 7), (3, 4), (64, 8), (5, 1)])
def test_the_shares_of_all_ranks_are_the_global_grid(batch, count):
    shares = [stratified(batch, offset=0.3, index=i, count=count) for i in range(count)]
    assert torch.equal(torch.stack(shares, 1).flatten(), stratified(batch * count, offset=0.3))


def around(difference):
    """A difference of times on the circle, in [−½, ½)."""
    return (difference + 0.5) % 1.0 - 0.5


def assert_uniform(times):
    """The mean and the distribution of each place's times over many calls (calls, places), by z
    and Kolmogorov-Smirnov."""
    calls = len(times)
    below = (torch.arange(calls, dtype=torch.float64)[:, None] + 0.5) / calls
    assert (times.mean(0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / calls)
    distance = (times.double().sort(0).values - below).abs().max()
    assert distance < 2.5 / math.sqrt(calls)  # more in one of 100,000 places


def test_each_time_is_uniform_and_the_grid_is_shifted_as_one():
    generator = torch.Generator().manual_seed(0)
    grids = torch.stack([stratified(8, generator=generator) for _ in range(4000)])
    assert around(grids.diff(dim=1) - 1 / 8).abs().max() < 1e-15
    assert_uniform(grids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_offsets_are_as_fine_as_float32_whatever_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in range(500)]
        drawn = torch.cat([stratified(1, generator=one) for one in generators])
    finally:
        torch.set_default_dtype(before)
    assert drawn.dtype == torch.float64
    assert len(drawn.unique()) == 500  # bfloat16 has 256 numbers there


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


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 49, 1000])
def test_a_chain_visits_each_of_its_steps_equally(steps):
    t = on_chain(stratified(20 * steps, offset=0.5), steps)
    counts = torch.bincount((t * steps).round().long(), minlength=steps + 1)
    assert counts.tolist() == [0] + [20] * steps
    assert torch.equal(t.unique(), torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    assert on_chain(torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64), steps).tolist() == [
        1 / steps,
        1.0,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [on_chain, with_decoder])
def test_times_on_the_edge_of_a_step_begin_the_next(place, dtype):
    """i/T is step i + 1 of T also where T · (i/T) is rounded down; and the last time is in the
    last step."""
    for steps in (1, 3, 49, 98, 107, 999, 4000):
        parts = steps + (place is with_decoder)
        u = torch.arange(parts + 1, dtype=torch.float64).to(dtype) / parts
        found = (place(u, steps) * steps).round() - int(place is on_chain)
        assert found.tolist() == [*range(parts), parts - 1]


def test_offsets_are_functions_of_seed_and_step_alone():
    offsets = [offset_of(7, step) for step in range(1000)]
    torch.manual_seed(123)
    torch.rand(5)
    assert offsets == [offset_of(7, step) for step in range(1000)]
    assert offset_of(7, 500) == offsets[500]
    assert offset_of(8, 0) != offsets[0]
    # low-discrepancy: the largest gap of n golden-ratio points is below 2/n, of random ones about
    # log(n)/n
    points = torch.tensor(offsets, dtype=torch.float64).sort().values
    assert points.diff().max() < 2 / 1000
    assert 0 <= points[0] < points[-1] < 1
    # the numbers themselves, so that a run resumes: each a golden section of the circle after the
    # last
    assert all(
        (b - a) % 1 == pytest.approx((math.sqrt(5) - 1) / 2)
        for a, b in itertools.pairwise(offsets[:20])
    )


def test_generators_are_functions_of_seed_step_and_slot_alone():
    keys = [(seed, step, slot) for seed in (0, 1) for step in (0, 1, 2) for slot in (0, 1)]
    first = {key: torch.rand(3, generator=generator_of(*key)) for key in keys}
    torch.manual_seed(99)
    again = {key: torch.rand(3, generator=generator_of(*key)) for key in reversed(keys)}
    assert all(torch.equal(first[key], again[key]) for key in keys)
    assert len({tuple(v.tolist()) for v in first.values()}) == len(keys)
    # the number itself, so that a run resumes with another version of Python
    assert generator_of(3, 4, 5).initial_seed() == 6643208206250794906


def test_a_loss_draws_stratified_times():
    oracle, schedule, told = Gaussian([0.2], [0.5]), Cosine(13.3, -5.0), []

    def model(z, logsnr):
        told.append(logsnr)
        return oracle(z, logsnr)

    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weighted_elbo(model, oracle.sample(64), schedule=schedule, generator=generator)
        weighted_elbo(model, oracle.sample(64), schedule=schedule, steps=64, generator=generator)
    for continuous, chain in zip(told[::2], told[1::2], strict=True):
        strata = (schedule.inverse(continuous) * 64).floor()
        assert strata.sort().values.tolist() == list(range(64))
        torch.testing.assert_close(
            chain.sort(descending=True).values,
            schedule(torch.arange(1, 65, dtype=torch.float64) / 64),
        )
    assert len({logsnr[0].item() for logsnr in told[::2]}) == 3


def test_offsets_of_successive_steps_are_a_golden_ratio_apart():
    """1/φ = (√5 − 1)/2: however many steps are taken, their offsets lie about evenly."""
    offsets = [offset_of(3, step) for step in range(50)]
    for before, after in itertools.pairwise(offsets):
        assert (after - before) % 1 == pytest.approx((5**0.5 - 1) / 2, abs=1e-12)


# ---- independent times


def test_independent_times_are_stratified_over_the_batch_at_each_index():
    x = torch.empty(16, 5, 3, device="meta")
    t = independent(x, (1,), generator=torch.Generator().manual_seed(0), device="cpu")
    assert t.shape == (16, 5, 1)
    strata = (16 * t[..., 0]).floor().sort(0).values
    assert torch.equal(strata, torch.arange(16.0, dtype=t.dtype)[:, None].expand(16, 5))
    assert independent(x, (1, -1), device="cpu").shape == (16, 5, 3)


def test_each_independent_time_is_uniform_and_knows_nothing_of_the_others():
    generator, x = torch.Generator().manual_seed(0), torch.zeros(4, 3)
    t = torch.stack([independent(x, (1,), generator=generator) for _ in range(4000)])
    assert_uniform(t.flatten(1))
    pairs = torch.einsum("kij,kil->kijl", t - 0.5, t - 0.5).mean(0)  # of indices j, l of example i
    off = pairs[:, ~torch.eye(3, dtype=torch.bool)]
    assert off.abs().max() < 5 / 12 / math.sqrt(4000)  # the variance of a product is 1/144


@pytest.mark.parametrize("count", [1, 2, 3])
def test_independent_times_of_a_step_are_those_of_all_shares(count):
    x = torch.zeros(6, 5, 2)
    u, eps = draws_of_step(x, seed=1, step=2, independent=(1,))
    assert u.shape == (6, 5, 1)
    assert torch.equal(eps, draws_of_step(x, seed=1, step=2)[1])
    for index in range(count):
        options = {"index": index, "count": count, "independent": (1,)}
        share, _ = draws_of_step(x[index::count], seed=1, step=2, **options)
        assert torch.equal(share, u[index::count])
    assert not torch.equal(u, draws_of_step(x, seed=1, step=3, independent=(1,))[0])


@pytest.mark.parametrize("dims", [(), (0,), (3,), (-3,)])
def test_independent_times_need_dimensions_of_an_example(dims):
    with pytest.raises(ValueError, match=r"'dims' must be some of 1 … 2, the dimensions of x"):
        independent(torch.zeros(6, 5, 2), dims)
