"""Times: one grid over batch, ranks and accumulation; pure functions of seed and step."""

import itertools
import math

import pytest
import torch
from uniform_times import around, assert_uniform

from vdiff import weighted_elbo
from vdiff.chain import with_decoder
from vdiff.oracle import Gaussian
from vdiff.schedule import Cosine
from vdiff.times import draws_of_step, generator_of, independent, offset_of, on_chain, stratified


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
