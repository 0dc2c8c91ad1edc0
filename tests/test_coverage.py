"""Intervals that cover as often as they say: many evaluations at once, as groups of the images of
a large one."""

import math
from collections.abc import Callable

import pytest
import torch
from registry import ORACLES
from torch import Tensor

from vdiff import elbo
from vdiff.decoder import Gaussian
from vdiff.likelihood import Independent, Sobol, VarianceReduction
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.chunks import Run
from vdiff.likelihood.estimate import Estimate, RunningMoments, replicates_for
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Linear

POINTS = GaussianMixture([0.4, 0.6], [[-1.2], [0.4]], [[0.06], [0.09]]).sample(
    20, torch.Generator().manual_seed(0)
)
MODEL = ORACLES["mixture"]()  # not the data's own; images are drawn from POINTS
DECODER = Gaussian()
SCHEDULE = Linear(7.0, -6.0)
PLANS = {
    "nothing": VarianceReduction.plain(),
    "stratified": VarianceReduction(
        importance=False, controls=(), antithetic=False, baseline=False
    ),
    "importance": VarianceReduction(controls=(), antithetic=False),
    "controls": VarianceReduction(antithetic=False),
    "antithetic": VarianceReduction(antithetic=True),
    "independent times": VarianceReduction(times=Independent()),
    "Sobol": VarianceReduction(times=Sobol()),
}


def exact() -> Tensor:
    """The bound at each point, nats: λ and ε on grids."""
    noise = torch.arange(-36, 37, dtype=torch.float64) * 0.25
    weight = torch.exp(-0.5 * noise.square())
    t = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    x, n = POINTS.repeat_interleave(len(t) * len(noise), 0), len(POINTS)
    with torch.no_grad():
        bound = elbo(
            MODEL, x, schedule=SCHEDULE, decoder=DECODER,
            t=t.repeat_interleave(len(noise)).repeat(n), eps=noise.repeat(n * len(t))[:, None]
        )  # fmt: skip
    return (bound.total.view(n, len(t), len(noise)).mean(1) @ weight) / weight.sum()


EXACT = exact()
GROUPS = 200  # evaluations in each test; 2,000 in the soak


def tallies(
    plan: VarianceReduction, groups: int, images: int, *, draws: int, replicates: range, seed: int
) -> tuple[Tensor, dict[int, RunningMoments]]:
    """The points of `groups` test sets in a row, and what was found of them after each number of
    replicates."""
    points = torch.randint(
        len(POINTS), (groups * images,), generator=torch.Generator().manual_seed(seed)
    )
    found, state = {}, None
    with evaluating(MODEL):
        for n in replicates:
            kept: list[dict[str, Tensor]] = []
            integrand = Integrand(MODEL, POINTS[points], SCHEDULE, DECODER)
            run = Evaluation(
                integrand,
                plan,
                Budget(draws=draws, replicates=n),
                Run(batch=200_000, seed=seed, checkpoint=kept.append, resume=state),
            )
            found[n] = run().terms
            state = kept[-1]
    return points.view(groups, images), found


def group(tally: RunningMoments, i: int, images: int) -> RunningMoments:
    here = slice(i * images, (i + 1) * images)
    return RunningMoments(tally.count[:, here], tally.mean[:, here], tally.spread[:, here])


def covered(estimate: Estimate, truth: float, *, over_images: bool = False) -> bool:
    low, high = estimate.interval(over_images=over_images)
    return low <= truth <= high


def coverage_of_a_plan(name: str, groups: int, images: int = 16) -> float:
    points, found = tallies(PLANS[name], groups, images, draws=8, replicates=range(4, 5), seed=2)
    hits = [
        covered(group(found[4], i, images).estimates(1.0)[3], EXACT[points[i]].mean().item())
        for i in range(groups)
    ]
    return sum(hits) / groups


def coverage_of_a_tolerance(
    groups: int, images: int = 12, first: int = 4, most: int = 14
) -> float:
    """Stein's rule by hand on what was drawn; the tolerance asks for 4 to 14 replicates, about
    seven as a rule."""
    points, found = tallies(
        PLANS["controls"], groups, images, draws=4, replicates=range(first, most + 1), seed=3
    )
    variance = found[first].variances()[3].mean().item()
    tolerance = math.sqrt(variance / (7 * images))
    hits, asked = [], []
    for i in range(groups):
        begun = group(found[first], i, images)
        asked.append(max(first, int(replicates_for(tolerance, begun.variances()[3]))))
        estimate = group(found[min(most, asked[-1])], i, images).estimates(1.0, begun)[3]
        assert estimate.monte_carlo <= tolerance or asked[-1] > most
        hits.append(covered(estimate, EXACT[points[i]].mean().item()))
    assert len(set(asked)) > 5
    return sum(hits) / groups


def coverage_over_images(groups: int, images: int = 60) -> float:
    """Of the mean over the population that the images come from."""
    _, found = tallies(
        PLANS["antithetic"], groups, images, draws=8, replicates=range(2, 3), seed=4
    )
    truth = EXACT.mean().item()
    return (
        sum(
            covered(group(found[2], i, images).estimates(1.0)[3], truth, over_images=True)
            for i in range(groups)
        )
        / groups
    )


def near(coverage: float, groups: int) -> bool:
    return abs(coverage - 0.95) < 4 * math.sqrt(0.95 * 0.05 / groups)


@pytest.mark.parametrize("name", PLANS)
def test_the_interval_covers_under_each_plan(name):
    assert near(coverage_of_a_plan(name, GROUPS), GROUPS)


def test_the_interval_covers_where_a_tolerance_decides_when_to_stop():
    assert near(coverage_of_a_tolerance(GROUPS), GROUPS)


def test_the_interval_over_images_covers_the_populations_mean():
    assert near(coverage_over_images(GROUPS), GROUPS)


def test_a_coverage_that_is_wrong_is_seen(monkeypatch):
    """An error that is 0.7 of the right one, the square root of a half: replicates of two that are
    not independent."""
    import vdiff.likelihood.estimate as module

    right = module.mean_error
    monkeypatch.setattr(
        module, "mean_error", lambda *given: (0.7 * right(*given)[0], right(*given)[1])
    )
    assert not near(coverage_of_a_plan("controls", GROUPS), GROUPS)


SOAK: dict[str, Callable[[int], float]] = {
    f"plan {name}": lambda groups, name=name: coverage_of_a_plan(name, groups) for name in PLANS
}
SOAK |= {"a tolerance": coverage_of_a_tolerance, "over images": coverage_over_images}


@pytest.mark.soak
@pytest.mark.parametrize("name", SOAK)
def test_coverage_over_2000_evaluations(name):
    coverage = SOAK[name](2000)
    print(f"\n{name}: {100 * coverage:.2f} % of 2,000")  # benchmarks/results/coverage.txt
    assert 0.935 <= coverage <= 0.965
