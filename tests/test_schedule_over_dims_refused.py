"""What schedules with a λ(t) for each dimension refuse, and what refuses them."""

import numpy as np
import pytest
import torch
from registry import EXAMPLE
from schedules_over_dims import NDIM, Net, every, moved_for

from vdiff import Denoiser, elbo, weighted_elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood import log_prob, ode_likelihood, path_importance
from vdiff.parameterization import V
from vdiff.sampling import invert, ode, sample, trajectory
from vdiff.schedule import (
    InTurn,
    LearnedLinear,
    Linear,
    MuLAN,
    MultivariateSpline,
    Path,
    PerDimension,
    Tabulated,
)
from vdiff.schedule.over_dims import OverDims


@every
def test_the_shape_is_the_one_that_it_names_and_another_x_is_refused(name):
    t = torch.rand(5, dtype=torch.float64)
    schedule, own = moved_for(name, len(t))
    levels = own.at(t, ndim=NDIM)
    assert levels.logsnr.shape == levels.rate.shape == (5, *schedule.field_shape(NDIM))
    schedule.check_shape(torch.zeros(5, *EXAMPLE))
    with pytest.raises(ValueError, match="'schedule' must have a λ for each dimension of x"):
        schedule.check_shape(torch.zeros(5, *[7] * len(EXAMPLE)))
    with pytest.raises(ValueError, match="'schedule' must"):
        schedule.field_shape(1)
    with pytest.raises(ValueError, match="'ndim' must be given for a schedule over dimensions"):
        own.at(t)


class Rising(OverDims):
    least_ndim = 2
    slope = 1.0
    lowest = -5.0

    def field_shape(self, ndim):
        return (2,)

    def ends_of(self, ndim, detach=True):
        return 5.0, self.lowest

    def logsnr_at(self, t):
        return torch.cat([5 - 10 * t, 5 - 10 * t**2], 1)

    def rate_at(self, t, logsnr):
        return torch.cat([10 + 0 * t, self.slope * 20 * t], 1)


class Wrong:
    """What `check` refuses, by the words of its message."""

    def narrow(t):
        return 5 - 10 * t

    def rises(t):
        return torch.cat([5 - 10 * t, 5 - 10 * t + 3 * torch.sin(6 * t)], 1)

    def waits(t):
        return torch.cat([5 - 10 * (2 * t - 1).clamp(min=0), 5 - 10 * (2 * t - 1).clamp(min=0)], 1)

    def infinite(t):
        return torch.cat([5 - 10 * t, -torch.log(t)], 1)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Wrong.narrow, r"Path: argument 'logsnr' must return a tensor of shape \(2, 2\)"),
        (Wrong.rises, r"must never rise in t; got λ = .*\(dimension 1\)"),
        (Wrong.waits, "must always fall in at least one dimension"),
        (Wrong.infinite, "must be finite at t = 0 and t = 1"),
        (lambda t: -Wrong.waits(t), "λ falls|logsnr_max"),
    ],
)
def test_a_path_that_is_none_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        Path(function, [2])


def test_a_schedule_of_ones_own_is_checked():
    assert Rising(5.0, -5.0).check()
    wrong = Rising(5.0, -5.0)
    wrong.slope = 1.3
    with pytest.raises(
        ValueError, match=r"must have rate_at equal to the derivative.*dimension 1"
    ):
        wrong.check()
    wrong.slope = -1.0
    with pytest.raises(ValueError, match=r"must have rate_at\(t, logsnr\) = −dλ/dt ≥ 0"):
        wrong.check()
    wrong.slope, wrong.lowest = 1.0, -4.0
    with pytest.raises(ValueError, match=r"must have λ\(1\) equal to ends_of"):
        wrong.check()


LINEAR = Linear(7.0, -6.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerDimension([]), "'schedules' must be a list of schedules"),
        (lambda: PerDimension(LINEAR), "'schedules' must be a list of schedules"),
        (lambda: PerDimension([LINEAR, 3.0]), r"'schedules\[1\]' must be a Schedule"),
        (lambda: PerDimension([LearnedLinear()]), "must have fixed ends and shape"),
        (lambda: PerDimension([PerDimension([LINEAR])]), "must have one λ for all dimensions"),
        (lambda: PerDimension([LINEAR], dim=0), "'dim' must be a dimension of an example"),
        (
            lambda: PerDimension([Tabulated.linear_betas(zero_terminal_snr=True)]),
            "must have a finite λ_min",
        ),
        (lambda: PerDimension([LINEAR], dim=3).at(torch.rand(2), ndim=3), "'schedule' must lie"),
        (lambda: PerDimension([LINEAR], dim=-3).at(torch.rand(2), ndim=3), "'schedule' must lie"),
        (lambda: InTurn(LINEAR, 2, dim=0), "'dim' must be a dimension of an example"),
        (lambda: InTurn(LINEAR, [0, 2]), "'turns' must count from 0 without a gap"),
        (lambda: InTurn(LINEAR, [0.0, 1.0]), "'turns' must be whole numbers"),
        (lambda: InTurn(LINEAR, 0), "'turns' must be at least 1"),
        (lambda: InTurn(LINEAR, -3), "'turns' must be at least 1"),
        (lambda: InTurn(LINEAR, np.int64(3)), "'turns' must be one for each index"),
        (lambda: InTurn(LINEAR, "ab"), "'turns' must be whole numbers"),
        (lambda: InTurn(LINEAR, 2, dim="c"), "'dim' must be a Python int; got 'c'"),
        (lambda: PerDimension([LINEAR], dim=1.0), "'dim' must be a Python int"),
        (lambda: PerDimension([LINEAR], dim=True), "'dim' must be a Python int"),
        (lambda: Path(lambda t: t, "ab"), "'shape' must be the sizes"),
        (lambda: InTurn(LINEAR, torch.eye(2).long(), dim=-1), "'dim' must be at most −2"),
        (lambda: MultivariateSpline([]), "'shape' must be the sizes"),
        (lambda: MultivariateSpline([2, 0]), "'shape' must be the sizes"),
        (
            lambda: MultivariateSpline([2]).at(torch.rand(2), ndim=3),
            "'schedule' must have as many",
        ),
        (lambda: MultivariateSpline([2], follow="mean"), "'follow' must be one of"),
        (lambda: MuLAN(torch.nn.Identity(), [2], follow="variance"), "'follow' must be one of"),
        (lambda: MuLAN(torch.sin, [2]), "'encoder' must be a Module"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        PerDimension([LINEAR] * 3),
        InTurn(LINEAR, 3),
        Path(lambda t: 7 - 13 * t * torch.ones(3), [3]),
        MultivariateSpline([3]),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_times_that_do_not_broadcast_are_refused(schedule):
    own, five = torch.rand(2, 3), torch.rand(2, 5)
    assert schedule(own).shape == schedule.at(own, 4).delta.shape == (2, 3)
    for call in (schedule, schedule.rate, schedule.at, lambda t: schedule.delta(t, 4)):
        with pytest.raises(ValueError, match=r"'t' must broadcast.*\(batch, 3\).*\(2, 5\)"):
            call(five)


def test_samplers_and_densities_refuse_another_size():
    model, schedule = (
        Denoiser(Net(), V(), field=True),
        MultivariateSpline([6, 1], 6.0, -4.0, learn_ends=False),
    )
    z, decoder = torch.randn(4, 1, 5), Gaussian()
    for call in (
        lambda: sample(model, z, schedule=schedule, steps=3, step=ode),
        lambda: trajectory(model, z, schedule=schedule, steps=3),
        lambda: invert(model, z, schedule=schedule),
        lambda: path_importance(model, z, schedule=schedule, decoder=decoder, steps=3, samples=2),
        lambda: ode_likelihood(model, z, schedule=schedule),
        lambda: log_prob(model, z, schedule=schedule),
    ):
        with pytest.raises(ValueError, match="'schedule' must have a λ for each dimension"):
            call()


def test_a_schedule_of_another_size_than_x_is_refused():
    model = Denoiser(Net(), V(), field=True)
    schedule = PerDimension([LINEAR] * 3)
    with pytest.raises(ValueError, match="weighted_elbo: argument 'schedule' must have a λ for"):
        weighted_elbo(model, torch.randn(4, 1, 3), schedule=schedule)
    data = torch.zeros(4, 1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="elbo: argument 'schedule' must have a λ for"):
        elbo(model, data, schedule=schedule, decoder=Categorical(5))
