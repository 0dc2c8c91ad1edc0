"""Shifts for each example, and the published shifts by the size of an image."""

import copy
import math

import pytest
import torch

from vdiff import Denoiser, elbo, plots, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.describe import describe
from vdiff.parameterization import V
from vdiff.recipes import Recipe
from vdiff.schedule import (
    Cosine,
    LearnedLinear,
    Linear,
    OptimalTransport,
    PerDimension,
    Shifted,
    Tabulated,
    resolution_shift,
    sequence_shift,
)
from vdiff.weighting import ELBO, MSE

SHIFTS = torch.tensor([0.0, -1.5, 2.0], dtype=torch.float64)
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("steps", [None, 10])
@pytest.mark.parametrize(
    "inner", [Cosine(7.0, -6.0), Tabulated.linear_betas(levels=11)], ids=["cosine", "table"]
)
def test_each_example_has_its_shift(inner, steps):
    several = Shifted(inner, SHIFTS).check()
    got = several.at(T, steps)
    high, low = several.ends_of(4)
    for i, shift in enumerate(SHIFTS.tolist()):
        one = Shifted(inner, shift)
        for value, want in zip(got[:3], one.at(T, steps)[:3], strict=True):
            if want is not None:
                torch.testing.assert_close(value[i], want[i], rtol=1e-12, atol=1e-12)
        assert (high[i].item(), low[i].item()) == pytest.approx((one.logsnr_max, one.logsnr_min))
    assert several.logsnr_max == pytest.approx(inner.logsnr_max + 2.0)
    assert several.logsnr_min == pytest.approx(inner.logsnr_min - 1.5)
    field = several.at(T[:, None, None].expand(3, 1, 4), steps)
    torch.testing.assert_close(field.logsnr, got.logsnr[:, None, None].expand(3, 1, 4))


def test_reports_have_one_lambda_for_each_time():
    t = torch.rand(2, 2, dtype=torch.float64)
    inner = Cosine(7.0, -6.0)
    mean = inner(t) + SHIFTS.mean()
    torch.testing.assert_close(Shifted(inner, SHIFTS).mean_logsnr(t), mean)
    assert torch.equal(Shifted(inner, 1.0).mean_logsnr(t), inner(t) + 1.0)


def test_the_inverse_and_the_density_of_each_example():
    inner = Cosine(7.0, -6.0)
    several = Shifted(inner, SHIFTS)
    logsnr = several(T)
    torch.testing.assert_close(several.inverse(logsnr), T)
    torch.testing.assert_close(several.density(logsnr), inner.density(inner(T)))
    outside = several.density(torch.tensor([7.5, 7.5, 7.5]))
    assert (outside > 0).tolist() == [False, False, True]


def test_the_loss_of_a_batch_is_that_of_each_example():
    model = Denoiser(lambda z, logsnr: 0.1 * logsnr[:, None] * z, V())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    eps = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    data = torch.randint(0, 5, (3, 2), generator=generator)
    inner, decoder = Linear(7.0, -6.0), Categorical(5)
    given = {"t": T, "eps": eps}
    loss = weighted_elbo(model, x, schedule=Shifted(inner, SHIFTS), **given)
    bound = elbo(model, data, schedule=Shifted(inner, SHIFTS), decoder=decoder, **given)
    for i, shift in enumerate(SHIFTS.tolist()):
        one = {name: v[i : i + 1] for name, v in given.items()}
        schedule = Shifted(inner, shift)
        want = weighted_elbo(model, x[i : i + 1], schedule=schedule, **one)
        torch.testing.assert_close(loss[i : i + 1], want, rtol=1e-12, atol=0)
        want = elbo(model, data[i : i + 1], schedule=schedule, decoder=decoder, **one)
        for part in ("prior", "diffusion", "reconstruction"):
            got = getattr(bound, part)[i : i + 1]
            torch.testing.assert_close(got, getattr(want, part), rtol=2e-6, atol=1e-7)


def test_a_number_adds_a_number():
    """As it was: no tensor, and the same bits."""
    inner, t = Cosine(7.0, -6.0), torch.linspace(0, 1, 33, dtype=torch.float64)
    schedule = Shifted(inner, -1.5)
    assert schedule.shift == -1.5
    assert schedule.ends() == (5.5, -7.5)
    assert torch.equal(schedule(t), inner(t) + -1.5)
    assert Shifted(inner, torch.tensor(-1.5)).shift == -1.5
    assert schedule.state_dict() == {}


def test_shifts_are_copied_moved_and_restored_and_are_no_state():
    schedule = Shifted(Cosine(), SHIFTS)
    assert schedule.state_dict() == {}
    assert torch.equal(copy.deepcopy(schedule).half()(T), schedule(T))
    again = schedule.to_empty(device="cpu")
    again.shift.fill_(7)
    again.reset_parameters()
    assert torch.equal(again.shift, SHIFTS)
    assert "<svg" in schedule._repr_html_()


def recipe_of(schedule):
    return Recipe("mine", schedule, V(), ELBO())


def test_a_figure_has_the_least_and_the_largest_shift():
    left, _ = plots.schedule({"a": Shifted(Linear(9.0, -7.0), SHIFTS)})
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert [(name, y[0], y[-1]) for name, y in lines.items()] == [
        ("a [-1.5]", 7.5, -8.5),
        ("a [+2]", 11.0, -5.0),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shifted(Cosine(), torch.zeros(2, 2)), r"'shift' must have shape \(batch,\)"),
        (lambda: Shifted(Cosine(), torch.tensor([0.0, math.nan])), "'shift' must be finite"),
        (lambda: Shifted(Cosine(), math.inf), "'shift' must be finite"),
        (lambda: Shifted(Cosine(), "two"), "'shift' must be a number"),
        (lambda: Shifted(LearnedLinear(), SHIFTS), "must have fixed ends and shape"),
        (lambda: Shifted(PerDimension([Cosine()]), 1.0), "must have one λ for all dimensions"),
        (lambda: Shifted(Shifted(Cosine(), SHIFTS), 1.0), "must have one λ for all dimensions"),
        (lambda: Shifted(Cosine(), SHIFTS)(torch.rand(2)), "'t' must be of the batch of 3"),
        (lambda: MSE(Shifted(Cosine(), SHIFTS), V()), "must have one λ for all dimensions"),
        (lambda: MSE(PerDimension([Cosine()]), V()), "must have one λ for all dimensions"),
        (lambda: describe(recipe_of(Shifted(Cosine(), SHIFTS))), "must have one λ for all"),
        (lambda: describe(recipe_of(PerDimension([Cosine()]))), "must have one λ for all"),
        (
            lambda: Shifted(Linear(9.0, -7.0), SHIFTS).inverse(torch.tensor([12.0, 0.0, 0.0])),
            r"within the ends \[-7, 9\] plus the shift of each example; got values from 0 to 12",
        ),
        (lambda: sequence_shift(300, short=256, long=256), "'long' must be more than short = 256"),
        (lambda: sequence_shift(300, short=300, long=256), "'long' must be more than short = 300"),
        (lambda: resolution_shift(0, 64), "'size' must be finite and greater than 0"),
        (lambda: resolution_shift(torch.tensor([1, 0]), 64), "'size' must be finite and greater"),
    ],
)
def test_bad_shifts_are_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_the_resolution_shift_is_sd3s_and_simple_diffusions():
    """SD3, eq. 23: t_m = √(m/n) t_n/(1 + (√(m/n) − 1) t_n), of rectified flow. Simple diffusion:
    2 log(d_ref/d), of sides."""
    flow = OptimalTransport(9.0, -9.0)
    root = math.sqrt(1024**2 / 512**2)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    later = root * t / (1 + (root - 1) * t)
    shifted = 2 * torch.log((1 - t) / t) + resolution_shift(1024**2, 512**2)
    torch.testing.assert_close(2 * torch.log((1 - later) / later), shifted, rtol=1e-12, atol=1e-12)
    schedule = Shifted(flow, resolution_shift(1024**2, 512**2))
    assert schedule(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(
        -2 * math.log(2)
    )
    assert resolution_shift(128**2, 64**2) == pytest.approx(2 * math.log(64 / 128))
    several = resolution_shift(torch.tensor([64**2, 128**2]), 64**2)
    assert several.tolist() == pytest.approx([0.0, -math.log(4)])
    assert several.dtype == torch.float64


def test_the_sequence_shift_is_fluxs():
    """t′ = e^μ/(e^μ + 1/t − 1), with μ = ½ for 256 tokens and 1.15 for 4096."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        later = math.exp(mu) / (math.exp(mu) + 1 / t - 1)
        shifted = 2 * torch.log((1 - t) / t) + sequence_shift(tokens)
        torch.testing.assert_close(2 * torch.log((1 - later) / later), shifted)
    assert sequence_shift(torch.tensor([256, 4096])).tolist() == pytest.approx([-1.0, -2.3])
