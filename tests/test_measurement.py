"""The run of an evaluation by hand: what a replicate adds, how many draws and replicates there
are, and what is given on the way."""

import math
from dataclasses import replace

import pytest
import torch
from registry import ORACLES

from vdiff import Prediction
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import Independent, Plan, Share, compare, evaluate
from vdiff.likelihood.density import Binned
from vdiff.likelihood.estimate import Tally
from vdiff.likelihood.integrand import Difference, Integrand
from vdiff.likelihood.measurement import BINS, Effort, Evaluation, Measurement
from vdiff.likelihood.protocol import of_data, protocol_of
from vdiff.oracle import Lattice
from vdiff.parameterization import X
from vdiff.schedule import Linear

DECODER = Categorical(levels=4)
ORACLE = ORACLES["lattice"]()
ENDS = Linear(7.0, -6.0)
PLAIN = Plan.plain()


def integrand(images=5, model=ORACLE, kind=Integrand):
    return kind(
        *([model] if kind is Integrand else [model, Lattice(DECODER.grid, [0.25] * 4)]),
        levels(images),
        ENDS,
        DECODER,
    )


def levels(images):
    return (torch.arange(images) % 4)[:, None]


def run_of(images=5, plan=PLAIN, **effort):
    return Evaluation(integrand(images), plan, Effort(**effort))


def test_a_replicate_adds_to_the_tally_the_curve_the_weights_and_the_trouble():
    """Images 2 and 0 of three, two draws each, twice."""
    found = Measurement.empty(3)
    parts = torch.tensor(
        [[1.0, 1, 2, 2], [9.0, 9, 9, 9], [0.5, 1.5, 4, 4]], dtype=torch.float64
    )  # the second is not used
    first, second = (
        torch.tensor([-3.0, 5, 1, 2], dtype=torch.float64),
        torch.tensor([1.0, 1, -7, 0], dtype=torch.float64),
    )
    t = torch.tensor([0.0, 0.99, 0.5, 0.51], dtype=torch.float64)
    rows, well, level = (
        torch.tensor([2, 0]),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(BINS, dtype=torch.float64),
    )
    found.add(rows, parts, first, t, well, level)
    assert found.terms.mean[:, [2, 0]].tolist() == [[1, 2], [1, 1.5], [1, 4], [3, 7.5]]
    assert not found.trouble.any()
    found.add(rows, parts, second, t, torch.tensor([True, True, False, True]), level)
    assert found.terms.count.tolist() == [[2, 0, 2]]
    assert found.terms.mean[:, [2, 0]].tolist() == [[1, 2], [1, -1], [1, 4], [3, 5]]
    assert found.terms.variances()[1, [2, 0]].tolist() == [0, 12.5]  # 1 and 1; 1.5 and −3.5
    curve = torch.zeros(3, BINS, dtype=torch.float64)
    curve[2, 0], curve[2, 39], curve[0, 20] = (
        -2,
        6,
        -4,
    )  # t = 0.5 and 0.51 are in one of forty bins
    assert torch.equal(found.curve, curve)
    assert found.weights[[2, 0]].tolist() == [
        [3 + 5 + 1 + 1, 9 + 25 + 1 + 1, 5],
        [1 + 2 + 7, 1 + 4 + 49, 7],
    ]
    assert not found.weights[1].any()
    torch.testing.assert_close(found.trouble, torch.tensor([1.51, 0, 1.99], dtype=torch.float64))


def test_the_integral_of_a_baseline_lies_where_the_baseline_does():
    """Two draws of 5 and 6 at one time, each of which holds 4 = 1 + 3 of a baseline that lies in
    bins 7 and 30."""
    found, level = Measurement.empty(1), torch.zeros(BINS, dtype=torch.float64)
    level[7], level[30] = 1.0, 3.0
    draws, t = (
        torch.tensor([5.0, 6.0], dtype=torch.float64),
        torch.full((2,), 0.5, dtype=torch.float64),
    )
    found.add(
        torch.tensor([0]),
        torch.zeros(3, 2, dtype=torch.float64),
        draws,
        t,
        torch.zeros(2, dtype=torch.bool),
        level,
    )
    known = torch.zeros(1, BINS, dtype=torch.float64)
    known[0, 20], known[0, 7], known[0, 30] = (5 - 4) + (6 - 4), 2 * 1, 2 * 3
    assert torch.equal(found.curve, known)
    assert found.terms.mean[1].item() == 5.5


def test_processes_add_their_measurements_but_for_the_first_stages():
    mine = Measurement.empty(2)
    for v in mine.state().values():
        v += 1
    mine.first = Tally.empty(4, 2)
    whole = mine.over(Share(0, 2, lambda v: 3 * v))
    assert all(
        (v == 3).all() for name, v in whole.state().items() if not name.startswith("first_")
    )
    assert whole.first is mine.first
    again = Measurement.of(mine.state())
    again.curve += 1
    again.first.mean += 1
    assert (mine.curve == 1).all()
    assert not mine.first.mean.any()
    assert set(mine.state()) == set(again.state()) == set(whole.state())


@pytest.mark.parametrize(("images", "replicates"), [(1, 31), (7, 6), (10, 4), (15, 3), (60, 2)])
def test_a_first_stage_has_thirty_degrees_of_freedom(images, replicates):
    assert run_of(images, replicates=2, tolerance=0.1)._first_replicates() == replicates
    assert run_of(images, replicates=8, tolerance=0.1)._first_replicates() == max(8, replicates)
    assert run_of(images, replicates=2)._first_replicates() == 2


@pytest.mark.parametrize(
    ("tolerance", "draws"),
    [
        (0.1, 10),  # 12 · (0.5/0.1)² = 300 draws over 5 images of 7 replicates are 8.6 each
        (0.08, 14),  # 468.75, 13.4
        (0.5, 2),
        (1.0, 2),
        (0.026, 128),  # 4438, 126.8
        (0.01, 128),
    ],
)
def test_the_draws_of_a_grid_are_what_the_first_stage_needs(tolerance, draws):
    run = run_of(5, tolerance=tolerance, draws=4)
    assert run._suggested_draws() == 32  # without a pilot
    run.design, run.scale = (
        replace(run.design, variance={"nothing": 99.0, "another": 50.0, "the last": 12.0}),
        0.5,
    )
    assert run._suggested_draws() == draws
    run.effort = Effort()
    assert run._suggested_draws() == 32


def first_stage():
    """Five images of seven replicates, whose totals have variances 1, 2, 3, 4, 5."""
    spread = torch.full((4, 5), 1e3, dtype=torch.float64)
    spread[3] = 6 * torch.arange(1, 6)
    return Tally(
        torch.full((1, 5), 7.0, dtype=torch.float64),
        torch.zeros(4, 5, dtype=torch.float64),
        spread,
    )


def test_a_second_stage_is_as_large_as_steins_rule_says():
    """The error of n replicates is s √(15/n)/5, s = 1/log 2 bits."""
    bits = 1 / math.log(2)
    run = run_of(5, tolerance=1.0, draws=8)
    for tolerance, replicates in (
        (bits * math.sqrt(15 / 20) / 5 * 1.001, 20),
        (bits * math.sqrt(15 / 20) / 5 * 0.999, 21),
        (1.0, 7),
    ):
        run.effort = Effort(draws=8, tolerance=tolerance)
        assert run._needed(first_stage()) == replicates
    run.effort = Effort(draws=8, tolerance=0.2, budget=11)
    enough = 40 * math.ceil(15 * (bits / 0.2 / 5) ** 2)
    reached = bits * math.sqrt(15) / 5 * math.sqrt(5 * 8 / 11)
    with pytest.raises(
        ValueError,
        match=(
            r"'tolerance' must be within reach of budget = 11 network evaluations; got 0\.2 "
            r"bits/dim"
        ),
    ) as seen:
        run._needed(first_stage())
    assert f"(a budget of {enough:,} would do; 11 reaches about {reached:.2g})" in str(seen.value)
    run.effort = Effort(draws=8, tolerance=0.2, budget=enough)
    assert 40 * run._needed(first_stage()) == enough


def test_a_cost_is_in_evaluations_of_a_network():
    run = Evaluation(integrand(kind=Difference), PLAIN, Effort(draws=8))
    assert run._cost(3) == 3 * 5 * 8 * 2
    denoising = Gaussian(uses_network=True, variance=0.1)
    model = Lattice(DECODER.grid, [0.25] * 4)
    one = Integrand(model, levels(5).double(), ENDS, denoising)
    assert (
        one.evaluations,
        Difference(model, ORACLE, levels(5).double(), ENDS, denoising).evaluations,
    ) == (2, 4)


@pytest.mark.parametrize(
    ("images", "effort", "pilot"),
    [
        (5, {}, 1024),  # 4 · 5 · 32 = 640
        (20, {}, 2560),
        (20, {"draws": 16, "replicates": 6}, 1920),
        (100, {}, 8192),
        (5, {"tolerance": 1.0}, 8192),
    ],
)
def test_a_pilot_costs_no_more_than_what_it_steers(images, effort, pilot):
    run = run_of(images, Plan(controls=(), antithetic=False), **effort)
    assert run.plan.pilot == run.design.evaluations == pilot
    assert (
        run_of(images, Plan(controls=(), antithetic=False, pilot=512), **effort).plan.pilot == 512
    )


def test_an_odd_number_of_draws_has_no_pairs():
    plan = Plan(controls=(), pilot=64)
    assert run_of(plan=plan, draws=7).plan.antithetic is False
    assert run_of(plan=plan, draws=8).plan.antithetic is None
    assert run_of(plan=plan).plan.antithetic is None


def told(**effort):
    seen = []
    Evaluation(
        integrand(),
        PLAIN,
        Effort(**{"draws": 8, "batch": 16, "replicates": 3} | effort),
        progress=lambda done, total: seen.append((done, total)),
    )()
    return seen


def test_progress_is_told_in_evaluations_of_this_process():
    """Two images at once, three times each."""
    assert told() == [
        (16, 120),
        (32, 120),
        (48, 120),
        (64, 120),
        (80, 120),
        (96, 120),
        (104, 120),
        (112, 120),
        (120, 120),
    ]
    assert told(batch=3) == [(8 * i, 120) for i in range(1, 16)]  # at least one image's grid
    seen = []
    Evaluation(
        integrand(kind=Difference),
        PLAIN,
        Effort(draws=8, replicates=2),
        progress=lambda *v: seen.append(v),
    )()
    assert seen == [(80, 160), (160, 160)]  # of two networks
    assert told(batch=1000) == [(40, 120), (80, 120), (120, 120)]


def test_a_share_draws_its_own_images_alone():
    own = []
    run = Evaluation(
        integrand(),
        PLAIN,
        Effort(draws=8, replicates=2, batch=16),
        Share(1, 2),
        progress=lambda *v: own.append(v),
    )
    found = run()
    assert own == [(16, 32), (32, 32)]
    assert found.terms.count.tolist() == [[0, 2, 0, 2, 0]]
    whole = Evaluation(integrand(), PLAIN, Effort(draws=8, replicates=2, batch=16))()
    assert torch.equal(found.terms.mean[:, [1, 3]], whole.terms.mean[:, [1, 3]])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_process_stops_at_once_and_several_stop_together(count):
    """The first image's bound is NaN: alone, an evaluation ends there; with others, after all that
    it had to draw."""
    done = []

    def model(z, logsnr):
        return Prediction(
            z,
            logsnr,
            torch.where(torch.arange(len(z))[:, None] < 8 * (len(done) == 0), torch.nan, 0 * z),
            X(),
        )

    with pytest.raises(
        ValueError, match=r"must give a finite bound; got NaN or infinity on image 0 at λ = "
    ):
        Evaluation(
            integrand(6, model),
            PLAIN,
            Effort(draws=8, replicates=2, batch=8),
            Share(0, count),
            progress=lambda *v: done.append(v),
        )()
    assert len(done) == (0 if count == 1 else 2 * len(range(0, 6, count)))


class Seen(Integrand):
    """Keeps what it was asked."""

    def __call__(self, rows, t, eps):
        self.asked = [*getattr(self, "asked", []), (rows, t, eps)]
        return super().__call__(rows, t, eps)


@pytest.mark.parametrize("pairs", [False, True])
def test_each_image_has_a_grid_and_noise_of_its_own(pairs):
    """Where draws come in pairs, half as many times, each with ε and −ε."""
    seen = Seen(ORACLE, levels(3), ENDS, DECODER)
    Evaluation(
        seen,
        Plan(importance=False, controls=(), antithetic=pairs, baseline=False),
        Effort(draws=8, replicates=2),
    )()
    assert len(seen.asked) == 2
    every = []
    for rows, t, eps in seen.asked:
        assert rows.tolist() == [0] * 8 + [1] * 8 + [2] * 8
        for at, noise in zip(t.view(3, 8), eps.view(3, 8), strict=True):
            if pairs:
                assert torch.equal(at[:4], at[4:])
                assert torch.equal(noise[:4], -noise[4:])
                at, noise = at[:4], noise[:4]
            assert torch.equal((at * len(at)).floor(), torch.arange(len(at), dtype=at.dtype))
            every += [*at.tolist(), *noise.tolist()]
    assert len(set(every)) == len(every) == 2 * 3 * (4 if pairs else 8) * 2


def test_a_draw_is_divided_by_its_density():
    """At a density of ½ and 1½ in the halves of time, by hand from what the integrand was
    asked."""
    seen = Seen(ORACLE, levels(3), ENDS, DECODER)
    run = Evaluation(seen, replace(PLAIN, times=Independent()), Effort(draws=64, replicates=2))
    run.design = replace(run.design, density=Binned(torch.tensor([0.5, 1.5])))
    found, asked = run(), seen.asked
    terms = torch.stack(
        [
            Integrand.__call__(seen, *each)[1] / torch.where(each[1] < 0.5, 0.5, 1.5)
            for each in asked
        ]
    )
    torch.testing.assert_close(found.terms.mean[1], terms.view(2, 3, 64).mean((0, 2)))
    torch.testing.assert_close(found.curve.sum(1), terms.view(2, 3, 64).sum((0, 2)))
    times = torch.stack([t for _, t, _ in asked])
    assert (times < 0.5).double().mean().item() == pytest.approx(
        0.25, abs=4 * math.sqrt(0.25 * 0.75 / times.numel())
    )


def test_a_state_is_of_the_share_the_draws_and_the_seed():
    known = run_of(draws=8).key
    assert torch.equal(run_of(draws=8).key, known)
    assert torch.equal(run_of(draws=8, replicates=9, batch=3).key, known)  # more of the same
    others = [
        run_of(draws=6),
        run_of(draws=8, seed=1),
        run_of(6, draws=8),
        run_of(plan=replace(PLAIN, times=Plan().times), draws=8),
    ]
    others += [
        Evaluation(integrand(), PLAIN, Effort(draws=8), share)
        for share in (Share(1, 2), Share(0, 2))
    ]
    assert len({int(run.key) for run in others} | {int(known)}) == len(others) + 1


def test_the_protocol_counts_evaluations_of_both_models():
    run = Evaluation(
        integrand(kind=Difference),
        replace(PLAIN, importance=True, pilot=512),
        Effort(draws=8, replicates=3),
    )
    known = protocol_of(run, run(), {"ema": 0.5})
    assert known["pilot"] == 512
    assert known["evaluations"] == 3 * 5 * 8 * 2 + 512
    assert (known["replicates"], known["draws"], known["logsnr"], known["ema"]) == (
        3,
        8,
        [-6.0, 7.0],
        0.5,
    )
    assert (known["T"], known["schedule"]) == ("∞", None)
    chain = Evaluation(
        Integrand(ORACLE, levels(5), ENDS, DECODER, 7), PLAIN, Effort(draws=8, replicates=2)
    )
    assert [protocol_of(chain, chain(), {})[word] for word in ("T", "schedule")] == [7, repr(ENDS)]
    assert of_data(torch.zeros(2, 3, 4))["shape"] == [3, 4]


def test_both_models_of_a_comparison_are_evaluated_as_often():
    calls = [0, 0]

    def counted(i):
        def model(z, logsnr):
            calls[i] += len(z)
            return ORACLE(z, logsnr)

        return model

    found = compare(
        counted(0),
        counted(1),
        levels(5),
        schedule=ENDS,
        decoder=DECODER,
        draws=8,
        replicates=3,
        plan=PLAIN,
    )
    assert calls == [3 * 5 * 8] * 2
    assert found.protocol["evaluations"] == sum(calls)
    assert (found.difference.value, found.difference.monte_carlo) == (0.0, 0.0)


def test_progress_starts_before_the_pilot_and_counts_it():
    calls, seen = [0], []

    def counted(z, logsnr):
        calls[0] += len(z)
        return ORACLE(z, logsnr)

    def told(done, total):
        seen.append((done, total, calls[0]))

    for effort in ({"draws": 8, "replicates": 3}, {"tolerance": 0.02}, {"tolerance": 0.1}):
        calls[0] = 0
        seen.clear()
        setting = {"schedule": ENDS, "decoder": DECODER, "progress": told}
        found = evaluate(counted, levels(20), **setting, **effort)
        (first, total, asked), *_ = seen
        assert (first, asked) == (0, 0)
        assert found.protocol["pilot"] < total <= found.protocol["evaluations"]
        assert seen[-1][0] == seen[-1][1] == calls[0] == found.protocol["evaluations"]
        assert all(done == asked for done, _, asked in seen)
        assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
        within = [done for done, *_ in seen if done <= found.protocol["pilot"]]
        assert len(within) > 2


@pytest.mark.parametrize("kind", [Integrand, Difference])
def test_a_budget_that_cannot_be_met_is_refused_before_the_pilot(kind):
    """A first stage has 2 draws or more for each image and replicate: 20 · 4 · 2 a model."""
    calls = []

    def counted(z, logsnr):
        calls.append(len(z))
        return ORACLE(z, logsnr)

    def estimate(budget):
        data, setting = levels(20), {"schedule": ENDS, "decoder": DECODER, "tolerance": 1e-3}
        if kind is Integrand:
            return evaluate(counted, data, budget=budget, **setting)
        other = Lattice(DECODER.grid, [0.25] * 4)
        return compare(counted, other, data, budget=budget, **setting)

    least = 160 if kind is Integrand else 320
    with pytest.raises(ValueError, match=f"its first stage takes {least} alone"):
        estimate(least - 1)
    assert not calls
    with pytest.raises(ValueError, match="'tolerance' must be within reach of budget"):
        estimate(least)
    assert calls
