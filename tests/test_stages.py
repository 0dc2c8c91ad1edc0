"""The run of an evaluation by hand: what a replicate adds, how many draws and replicates there
are, and what is given on the way."""

import math
from dataclasses import replace

import pytest
import torch

from vdiff import Prediction
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import Independent, Share, VarianceReduction, compare, evaluate
from vdiff.likelihood.chunks import Run
from vdiff.likelihood.density import Binned
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.estimate import RunningMoments
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.oracle import Lattice
from vdiff.parameterization import X
from vdiff.schedule import Linear

DECODER = Categorical(levels=4)
ORACLE = Lattice(DECODER.level_values, [0.4, 0.3, 0.2, 0.1])
ENDS = Linear(7.0, -6.0)
PLAIN, ALONE = VarianceReduction.plain(), Share()


def integrand(images=5, model=ORACLE, kind=Integrand):
    return kind(
        *([model] if kind is Integrand else [model, Lattice(DECODER.level_values, [0.25] * 4)]),
        levels(images),
        ENDS,
        DECODER,
    )


def levels(images):
    return (torch.arange(images) % 4)[:, None]


def run_of(images=5, plan=PLAIN, *, batch=1024, seed=0, share=ALONE, **budget):
    run = Run(batch=batch, seed=seed, share=share)
    return Evaluation(integrand(images), plan, Budget(**budget), run)


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
    run.fitted, run.scale = (
        replace(run.fitted, variance={"nothing": 99.0, "another": 50.0, "the last": 12.0}),
        0.5,
    )
    assert run._suggested_draws() == draws
    run.budget = Budget()
    assert run._suggested_draws() == 32


def first_stage():
    """Five images of seven replicates, whose totals have variances 1, 2, 3, 4, 5."""
    spread = torch.full((4, 5), 1e3, dtype=torch.float64)
    spread[3] = 6 * torch.arange(1, 6)
    return RunningMoments(
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
        run.budget = Budget(draws=8, tolerance=tolerance)
        assert run._needed(first_stage()) == replicates
    run.budget = Budget(draws=8, tolerance=0.2, evaluations=11)
    enough = 40 * math.ceil(15 * (bits / 0.2 / 5) ** 2)
    reached = bits * math.sqrt(15) / 5 * math.sqrt(5 * 8 / 11)
    with pytest.raises(
        ValueError,
        match=r"must be within reach of budget = 11 network evaluations; got 0\.2 bits",
    ) as seen:
        run._needed(first_stage())
    assert f"(a budget of {enough:,} would do; 11 reaches about {reached:.2g})" in str(seen.value)
    run.budget = Budget(draws=8, tolerance=0.2, evaluations=enough)
    assert 40 * run._needed(first_stage()) == enough


def test_a_cost_is_in_evaluations_of_a_network():
    run = Evaluation(integrand(kind=Difference), PLAIN, Budget(draws=8))
    assert run._cost(3) == 3 * 5 * 8 * 2
    denoising = Gaussian(uses_network=True, variance=0.1)
    model = Lattice(DECODER.level_values, [0.25] * 4)
    one = Integrand(model, levels(5).double(), ENDS, denoising)
    assert (
        one.evaluations,
        Difference(model, ORACLE, levels(5).double(), ENDS, denoising).evaluations,
    ) == (2, 4)


@pytest.mark.parametrize(
    ("images", "budget", "pilot"),
    [
        (5, {}, 1024),  # 4 · 5 · 32 = 640
        (20, {}, 2560),
        (20, {"draws": 16, "replicates": 6}, 1920),
        (100, {}, 8192),
        (5, {"tolerance": 1.0}, 8192),
    ],
)
def test_a_pilot_costs_no_more_than_what_it_steers(images, budget, pilot):
    run = run_of(images, VarianceReduction(controls=(), antithetic=False), **budget)
    assert run.plan.pilot == run.fitted.evaluations == pilot
    assert (
        run_of(
            images, VarianceReduction(controls=(), antithetic=False, pilot=512), **budget
        ).plan.pilot
        == 512
    )


def test_an_odd_number_of_draws_has_no_pairs():
    plan = VarianceReduction(controls=(), pilot=64)
    assert run_of(plan=plan, draws=7).plan.antithetic is False
    assert run_of(plan=plan, draws=8).plan.antithetic is None
    assert run_of(plan=plan).plan.antithetic is None


def progress(kind=Integrand, replicates=3, **options):
    calls = []
    run = Run(**{"batch": 16} | options, progress=lambda *counts: calls.append(counts))
    Evaluation(integrand(kind=kind), PLAIN, Budget(draws=8, replicates=replicates), run)()
    return calls


def test_progress_counts_evaluations_of_this_process():
    """Two images at once, three times each."""
    done = (16, 32, 48, 64, 80, 96, 104, 112, 120)
    assert progress() == [(count, 120) for count in done]
    assert progress(batch=3) == [(8 * i, 120) for i in range(1, 16)]  # at least one image's grid
    both = progress(Difference, replicates=2, batch=1024)
    assert both == [(80, 160), (160, 160)]  # of two networks
    assert progress(batch=1000) == [(40, 120), (80, 120), (120, 120)]


def test_a_share_draws_its_own_images_alone():
    calls = []
    run = Run(batch=16, share=Share(1, 2), progress=lambda *counts: calls.append(counts))
    found = Evaluation(integrand(), PLAIN, Budget(draws=8, replicates=2), run)()
    assert calls == [(16, 32), (32, 32)]
    assert found.terms.count.tolist() == [[0, 2, 0, 2, 0]]
    alone = run_of(draws=8, replicates=2, batch=16)()
    assert torch.equal(found.terms.mean[:, [1, 3]], alone.terms.mean[:, [1, 3]])


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

    run = Run(batch=8, share=Share(0, count), progress=lambda *v: done.append(v))
    evaluation = Evaluation(integrand(6, model), PLAIN, Budget(draws=8, replicates=2), run)
    with pytest.raises(
        ValueError, match=r"a finite bound; got NaN or infinity on image 0 at λ = "
    ):
        evaluation()
    assert len(done) == (0 if count == 1 else 2 * len(range(0, 6, count)))


class Seen(Integrand):
    """Keeps what it was asked."""

    def __call__(self, rows, t, eps, drawn=None):
        self.asked = [*getattr(self, "asked", []), (rows, t, eps)]
        return super().__call__(rows, t, eps, drawn)


@pytest.mark.parametrize("pairs", [False, True])
def test_each_image_has_a_grid_and_noise_of_its_own(pairs):
    """Where draws come in pairs, half as many times, each with ε and −ε."""
    seen = Seen(ORACLE, levels(3), ENDS, DECODER)
    Evaluation(
        seen,
        VarianceReduction(importance=False, controls=(), antithetic=pairs, baseline=False),
        Budget(draws=8, replicates=2),
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
    run = Evaluation(seen, replace(PLAIN, times=Independent()), Budget(draws=64, replicates=2))
    run.fitted = replace(run.fitted, density=Binned(torch.tensor([0.5, 1.5])))
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
        run_of(plan=replace(PLAIN, times=VarianceReduction().times), draws=8),
    ]
    others += [run_of(draws=8, share=share) for share in (Share(1, 2), Share(0, 2))]
    assert len({int(run.key) for run in others} | {int(known)}) == len(others) + 1


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

    for budget in ({"draws": 8, "replicates": 3}, {"tolerance": 0.02}, {"tolerance": 0.1}):
        calls[0] = 0
        seen.clear()
        setting = {"schedule": ENDS, "decoder": DECODER, "progress": told}
        found = evaluate(counted, levels(20), **setting, **budget)
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
        other = Lattice(DECODER.level_values, [0.25] * 4)
        return compare(counted, other, data, budget=budget, **setting)

    least = 160 if kind is Integrand else 320
    with pytest.raises(ValueError, match=f"its first stage takes {least} alone"):
        estimate(least - 1)
    assert not calls
    with pytest.raises(ValueError, match="'tolerance' must be within reach of budget"):
        estimate(least)
    assert calls
