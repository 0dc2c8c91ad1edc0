"""The solver's home: what it counts, where it gives up and what it says of that place, and whose
error it controls."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from vdiff import flow
from vdiff.flow import SolverError, angle, logsnr_of, solve

START = (torch.tensor([[3.0, 4.0]], dtype=torch.float64),)


def still(logsnr, state):
    return (torch.zeros_like(state[0]),)


def test_between_equal_ends_nothing_is_asked():
    found = solve(lambda logsnr, state: 1 / 0, START, 3.0, 3.0)
    assert found.evaluations == 0
    assert found.state is START


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4), ("dopri5", None)],
)
def test_evaluations_are_the_calls_of_the_field(method, evaluations):
    calls = []

    def field(logsnr, state):
        calls.append(logsnr)
        return still(logsnr, state)

    found = solve(field, START, 5.0, -5.0, method=method)
    assert found.evaluations == len(calls)
    assert evaluations in (None, len(calls))  # one step of a method of so many stages


def test_it_gives_up_when_its_time_is_over_and_not_before(monkeypatch):
    """The clock stands at 100 s and each look at it takes a second: the fourth evaluation would
    begin after 4 s."""

    def timed(**limit):
        looks = iter(range(100, 1000))
        monkeypatch.setattr(flow, "time", SimpleNamespace(monotonic=lambda: float(next(looks))))
        return solve(still, START, 5.0, -5.0, method="rk4", **limit)

    assert timed(max_seconds=4.5).evaluations == timed().evaluations == 4
    with pytest.raises(SolverError, match=r"after 3 evaluations: reached max_seconds = 3\.5;"):
        timed(max_seconds=3.5)


@pytest.mark.parametrize("unit", [0.5, 2.0])
@pytest.mark.parametrize(("begin", "end"), [(5.0, -1.0), (-1.0, 5.0)])
def test_where_it_gave_up_is_the_place_of_its_last_evaluation(unit, begin, end):
    """In two steps the midpoint method looks at each quarter of the angle; the field (3, 4) has a
    root mean square of √12.5."""
    first, last = (math.atan(math.exp(-0.5 * level) / unit) for level in (begin, end))
    options = {
        "method": "midpoint",
        "unit": unit,
        "options": {"step_size": 0.5 * abs(last - first)},
    }
    for limit in (1, 2, 3):
        share = 0.25 * (limit - 1)
        level = -2 * math.log(unit * math.tan(first + share * (last - first)))
        where = re.escape(
            f"{share:.4g} of the way (λ = {level:.4g}) after {limit} evaluations: "
            f"reached max_evaluations = {limit}; "
        )
        with pytest.raises(
            SolverError,
            match=rf"^midpoint gave up at t = -?{where}\|v̂\| was {12.5**0.5:.3g} there",
        ):
            solve(
                lambda logsnr, state: START,
                START,
                begin,
                end,
                max_evaluations=limit,
                **options,
            )


def test_the_error_is_the_worst_examples_root_mean_square_over_its_dimensions():
    """So that a tolerance means the same for one pixel as for a thousand, and no example is
    averaged away."""
    z = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.6, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    log_p = torch.tensor([[0.0], [0.0], [0.2]])
    assert flow._of_the_worst_example((z, log_p)).item() == pytest.approx(0.3)
    assert flow._of_the_worst_example((z[[0, 2]], log_p[:2])).item() == pytest.approx(0.1)
    assert flow._of_the_worst_example((z[:1], log_p[1:])).item() == pytest.approx(0.2)


def test_the_angle_in_any_unit():
    logsnr = torch.linspace(-20, 20, 81, dtype=torch.float64)
    for unit in (0.3, 1.0):
        assert torch.allclose(logsnr_of(angle(logsnr, unit), unit), logsnr, atol=1e-8)


def test_a_crowd_does_not_outvote_the_one_that_turns():
    """The field turns one example fast and leaves the others: the steps are those of the one
    alone, whose integral is known."""

    def field(logsnr, state):
        still = torch.zeros_like(state[0])
        still[0] = torch.cos(30.0 * angle(logsnr))
        return (still,)

    alone, crowd = (
        solve(field, (torch.zeros(n, 2).double(),), 18.0, -18.0, rtol=1e-6, atol=1e-6)
        for n in (1, 1000)
    )
    ends = angle(torch.tensor([18.0, -18.0], dtype=torch.float64))
    exact = (torch.sin(30.0 * ends[1]) - torch.sin(30.0 * ends[0])) / 30.0
    assert crowd.evaluations == alone.evaluations
    assert torch.equal(crowd.state[0][0], alone.state[0][0])
    assert (alone.state[0] - exact).abs().max() < 3e-5
