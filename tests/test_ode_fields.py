"""The probability flow of a part given the rest, and along paths over dimensions."""

import math

import pytest
import torch
from fields_of_noise import COVARIANCE, GAUSSIAN, PLANE, FieldMixture, OfDimensions, OneByOne

from vdiff.flow import along, angle, between, solve, solve_path
from vdiff.likelihood import Exact, Hutchinson, log_prob, ode_likelihood
from vdiff.likelihood._flow_rules import one_flow
from vdiff.oracle import Gaussian
from vdiff.schedule import Cosine, Linear, Shifted

WIDE = Linear(18.0, -30.0)
ZERO = torch.zeros(3, dtype=torch.float64)


def points(n, dims=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dims, dtype=torch.float64, generator=generator)


def exact(x, modelled):
    """log p(x_modelled | x_given) of the Gaussian, for each row."""
    found = []
    for row, own in zip(x, modelled, strict=True):
        parts = [keep.nonzero()[:, 0] for keep in (torch.ones(3, dtype=torch.bool), ~own)]
        both, given = (
            torch.distributions.MultivariateNormal(ZERO[i], COVARIANCE[i][:, i]).log_prob(row[i])
            if len(i) else torch.zeros(()) for i in parts
        )  # fmt: skip
        found.append(both - given)
    return torch.stack(found)


MASKS = torch.tensor(
    [[True, False, True], [False, True, False], [True, True, True], [False, False, False]]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_of_a_part_given_the_rest(dtype):
    """Each example has its own mask; nothing is modelled in the last."""
    x, single = points(4).to(dtype), dtype == torch.float32
    schedule, accurate = (Linear(13.0, -16.0), 5e-3) if single else (WIDE, 1e-5)
    found = ode_likelihood(GAUSSIAN, x, schedule=schedule, mask=MASKS, tolerance=1e-6, batch=3)
    assert torch.allclose(found.nats, -exact(x.double(), MASKS), atol=accurate)
    assert found.dims.tolist() == [2, 1, 3, 0]
    assert found.nats[3] == 0
    assert torch.equal(found.noise == 0, ~MASKS)
    bits = found.nats[:3] / torch.tensor([2, 1, 3]) / math.log(2)
    assert torch.allclose(found.bits_per_dim[:3], bits)
    assert found.bits_per_dim[3] == 0
    assert "modelled" in found.protocol


def test_the_conditional_of_a_mixture():
    mask, value = torch.tensor([True, False]), torch.tensor([0.35], dtype=torch.float64)
    x = torch.stack([torch.linspace(-1.5, 1.5, 7).double(), value.expand(7)], 1)
    found = ode_likelihood(PLANE, x, schedule=WIDE, mask=mask, tolerance=1e-7)
    law = PLANE.conditional(~mask, value)
    assert torch.allclose(found.nats, -law.log_prob(x[:, :1]), atol=1e-5)


def test_a_mask_of_all_dimensions_is_none():
    x = points(3)
    one, two = (
        ode_likelihood(GAUSSIAN, x, schedule=WIDE, **options)
        for options in ({}, {"mask": torch.ones(3, dtype=torch.bool)})
    )
    assert torch.allclose(one.nats, two.nats, rtol=0.0, atol=1e-12)
    assert torch.allclose(one.truncation, two.truncation, rtol=0.0, atol=1e-9)
    assert two.dims.tolist() == [3, 3, 3]


def test_probes_are_of_the_modelled_dimensions():
    x, mask = points(6), torch.tensor([True, False, True])
    options = {"schedule": WIDE, "mask": mask}
    found = ode_likelihood(GAUSSIAN, x, trace=Hutchinson(probes=64), **options)
    sure = ode_likelihood(GAUSSIAN, x, trace=Exact(), **options)
    off = (found.nats - sure.nats) / found.standard_error
    assert found.mean_error > 0
    assert off.abs().max() < 4.5


def test_absent_values_leave_the_marginal():
    """They are not read, and may be NaN."""
    x, absent = points(5), torch.tensor([False, True, False])
    found = ode_likelihood(
        GAUSSIAN, x.masked_fill(absent, torch.nan), schedule=WIDE, absent=absent, tolerance=1e-7
    )
    pair = COVARIANCE[::2, ::2]
    law = torch.distributions.MultivariateNormal(ZERO[:2], pair)
    assert torch.allclose(found.nats, -law.log_prob(x[:, ::2]), atol=1e-5)
    assert found.dims.tolist() == [2] * 5
    with pytest.raises(ValueError, match=r"argument 'x' must be finite; got 5 NaN"):
        ode_likelihood(
            GAUSSIAN, x.masked_fill(~absent, torch.nan)[:, :2], schedule=WIDE, absent=absent[:2]
        )


def test_gradients_of_the_density_of_a_part():
    x, mask = points(2).requires_grad_(), torch.tensor([True, False, True])
    found = log_prob(GAUSSIAN, x, schedule=WIDE, mask=mask, tolerance=1e-7)
    wanted = exact(x, mask.expand(2, 3))
    assert torch.allclose(found, wanted, atol=1e-5)
    (one,), (two,) = (torch.autograd.grad(v.sum(), x) for v in (found, wanted))
    assert torch.allclose(one, two, atol=1e-4)


PATHS = {
    "own ends": OfDimensions([18.0, 16.0, 17.0], [-30.0, -28.0, -26.0]),
    "one by one": OneByOne(18.0, -28.0, [1, 2, 0]),
}


@pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])], ids=["all", "a part"])
def test_the_exact_denoiser_has_one_density_on_every_path(schedule, mask):
    x = points(4)
    found = ode_likelihood(GAUSSIAN, x, schedule=schedule, mask=mask, tolerance=1e-7)
    modelled = torch.ones(3, dtype=torch.bool) if mask is None else mask
    assert torch.allclose(found.nats, -exact(x, modelled.expand(4, 3)), atol=2e-5)
    assert "path" in found.protocol
    random = ode_likelihood(GAUSSIAN, x, schedule=schedule, mask=mask, trace=Hutchinson(probes=32))
    assert ((random.nats - found.nats) / random.standard_error).abs().max() < 4.5
    # ½ Σ e^{−λ_i} ∂²p/∂x_i² /p
    precision = torch.linalg.inv(COVARIANCE)
    if mask is None:
        ends = torch.as_tensor(schedule.ends_of(2)[0]).expand(1, 3).double()
        slope = x @ precision
        wanted = 0.5 * ((-ends).exp() * (slope.square() - precision.diagonal())).sum(1)
        assert torch.allclose(found.truncation, wanted, rtol=1e-3, atol=0.0)


def test_a_wrong_denoiser_has_another_density_on_another_path():
    def wrong(z, logsnr):
        made = GAUSSIAN(z, logsnr)
        return made.replace(output=0.9 * made.output)

    x = points(3)
    one, two = (ode_likelihood(wrong, x, schedule=s).nats for s in PATHS.values())
    assert (one - two).abs().min() > 1e-2


def test_a_path_is_normalised_for_any_denoiser():
    """∫ p dx = 1 for the density of a wrong denoiser along one dimension after another."""
    law = FieldMixture([1.0], [[0.0, 0.0]], [[[0.5, 0.2], [0.2, 0.4]]])

    def wrong(z, logsnr):
        made = law(z, logsnr)
        return made.replace(output=made.output + 0.1 * torch.tanh(z))

    line = torch.linspace(-4.5, 4.5, 41, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    schedule = OneByOne(8.0, -8.0, [0, 1])
    found = ode_likelihood(wrong, x, schedule=schedule, tolerance=1e-4, batch=len(x))
    mass = (-found.nats).exp().sum() * (line[1] - line[0]) ** 2
    assert abs(mass - 1) < 5e-3


def test_the_path_of_a_schedule_turns_by_its_angles():
    """∫ dφ/dt dt is the change of φ, in each dimension."""
    schedule = PATHS["own ends"]
    path = along(schedule, 2, 2)
    start = (torch.zeros(2, 3, dtype=torch.float64),)
    turned = solve_path(lambda logsnr, rate, state: (rate,), start, path, rtol=1e-9, atol=1e-9)
    high, low = schedule.ends_of(2)
    assert torch.allclose(turned.state[0], (angle(low) - angle(high)).expand(2, 3), atol=1e-7)
    back = solve_path(lambda logsnr, rate, state: (rate,), turned.state, path, backwards=True)
    assert torch.allclose(back.state[0], start[0], atol=1e-3)


def test_between_two_fields_each_angle_moves_evenly():
    low, high = (torch.tensor([[v, 2.0]], dtype=torch.float64) for v in (-6.0, 8.0))
    path = between(low, high, unit=1.0)
    for t in (0.0, 0.3, 1.0):
        level, rate = path(torch.tensor(t, dtype=torch.float64))
        assert torch.allclose(angle(level), torch.lerp(angle(low), angle(high), t))
        assert torch.allclose(rate, angle(high) - angle(low))
    assert level[0, 1] == 2.0


def test_the_error_is_measured_over_the_modelled_dimensions():
    """One among many that rest costs as many evaluations as alone."""

    def field(logsnr, state):
        moves = torch.arange(state[0].shape[1]) == 0
        return (torch.where(moves, torch.sin(5 * state[0]), 0.0),)

    counts = []
    for dims in (1, 400):
        z = torch.full((1, dims), 0.7, dtype=torch.float64)
        modelled = torch.arange(dims)[None] == 0
        counts.append(solve(field, (z,), 8.0, -8.0, modelled=modelled).evaluations)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("argument", "words", "options"),
    [
        ("prior", "be left out with a mask", {"mask": MASKS, "prior": Gaussian(ZERO, ZERO + 1)}),
        ("prior", "a schedule over dimensions",
         {"schedule": PATHS["own ends"], "prior": Gaussian(ZERO, ZERO + 1)}),
        ("mask", "broadcast over x", {"mask": MASKS[:3]}),
    ],
)  # fmt: skip
def test_what_has_no_such_density(argument, words, options):
    with pytest.raises(ValueError, match=f"ode_likelihood: argument '{argument}' must .*{words}"):
        ode_likelihood(GAUSSIAN, points(4), **{"schedule": WIDE} | options)


def test_a_schedule_for_each_example_has_no_flow_of_a_batch():
    schedule = Shifted(Cosine(), 1.0)
    one_flow(schedule, None, None, None)
    schedule.shift = torch.ones(4)
    with pytest.raises(ValueError, match="'schedule' must be one for all examples; got Shifted"):
        one_flow(schedule, None, None, None)
