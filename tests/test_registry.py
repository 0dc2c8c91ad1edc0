"""Every public class of a room is in the registry: the tests of all of its kind run on it."""

import inspect

import pytest
from registry import (
    COUNTED,
    DECODERS,
    ORACLES,
    PROCESSES,
    SCHEDULES,
    SCHEDULES_OVER_DIMS,
    STEPS,
    TARGETS,
    TOKEN_STEPS,
    TOKEN_TARGETS,
    WEIGHTINGS,
    corners,
    made_of,
    moved,
)

from vdiff import decoder, discrete, oracle, parameterization, sampling, schedule, weighting
from vdiff.decoder import Decoder
from vdiff.discrete import Process, TokenParameterization
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule
from vdiff.weighting import Weighting

EVERY_SCHEDULE = made_of(SCHEDULES | SCHEDULES_OVER_DIMS)


@pytest.mark.parametrize(
    ("room", "base", "made"),
    [
        (schedule, Schedule, [make() for make in EVERY_SCHEDULE.values()]),
        (parameterization, Parameterization, TARGETS.values()),
        (weighting, Weighting, [make() for make in WEIGHTINGS.values()]),
        (decoder, Decoder, [make() for make in DECODERS.values()]),
        (oracle, GaussianMixture, [make() for make in ORACLES.values()]),
        (discrete, Process, [make() for make in (PROCESSES | COUNTED).values()]),
        (discrete, TokenParameterization, TOKEN_TARGETS.values()),
    ],
    ids=["schedule", "parameterization", "weighting", "decoder", "oracle", "process", "token"],
)
def test_every_public_class_is_here(room, base, made):
    """A factor of a weighting counts where a product holds it; a base class has no entry."""
    public = {getattr(room, name) for name in room.__all__ if name not in ("Factor", "Levels")}
    classes = {c for c in public if inspect.isclass(c) and issubclass(c, base)}
    final = {c for c in classes if c is GaussianMixture or c is not base}
    parts = [part for one in made for part in getattr(one, "modules", lambda one=one: [one])()]
    assert final - {type(part) for part in parts} == set()


def test_every_step_of_the_library_is_here():
    assert set(sampling.STEPS) <= set(STEPS)
    assert set(sampling.TOKEN_STEPS) <= set(TOKEN_STEPS)


@pytest.mark.parametrize("name", SCHEDULES_OVER_DIMS)
def test_so_is_one_over_dimensions(name):
    made = SCHEDULES_OVER_DIMS[name](9.0, -6.0)
    assert made.over_dims
    assert name not in SCHEDULES
    assert (made.logsnr_max, made.logsnr_min) == pytest.approx((9.0, -6.0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_made_between_the_ends_that_are_asked_for(name):
    made = SCHEDULES[name](9.0, -6.0)
    assert (made.logsnr_max, made.logsnr_min) == pytest.approx((9.0, -6.0))
    assert all(-6.0 <= corner <= 9.0 for corner in corners(moved(made)))
